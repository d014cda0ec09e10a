"""Exact search against brute force in float64: ties, ragged lengths, shards, floors and blocks change nothing."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.kernels.cpu import registers, simd
from evalkit.maxsim import choice, packed, reference, rescore
from evalkit.ragged import ragged
from evalkit.ranking import Hits, Ids, best_of_shard, drop_self, floors, id_array, merge, no_hits, separate_ties
from evalkit.run import search
from evalkit.run.search import hits_from_arrays, hits_to_arrays, search_shard, to_run
from evalkit.storage.shard_files import ShardVectors
from evalkit.types import Hit

CPU = torch.device("cpu")
INT16 = [("auto", "int16")] if registers.multiplies_pairs() else []
NOMINATIONS = [("auto", "float32"), ("packed", "float32"), ("packed", "bfloat16"), *INT16]
USEFUL = {"float32": 1e-3, "bfloat16": 0.3, "int16": 3e-2}
"""Bounds above which nomination would leave too much to exact scoring, for queries of 32 vectors."""


def texts(generator, count, *, dim, longest, distinct, prefix, dtype=torch.float16):
    """Unit vectors drawn from few distinct ones, so that equal scores are common."""
    pool = torch.nn.functional.normalize(torch.randn(distinct, dim, generator=generator), dim=1).to(dtype)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator)
    rows = torch.randint(0, distinct, (int(lengths.sum()),), generator=generator)
    return ShardVectors(tuple(f"{prefix}{i:03d}" for i in range(count)), ragged(pool[rows], lengths))


def brute_force(queries, shard, depth):
    offsets_q = [0, *queries.vectors.lengths_N.cumsum(0).tolist()]
    offsets_d = [0, *shard.vectors.lengths_N.cumsum(0).tolist()]
    run = {}
    for q, query in enumerate(queries.ids):
        query_LD = queries.vectors.rows_XD[offsets_q[q] : offsets_q[q + 1]].double()
        hits = []
        for d, document in enumerate(shard.ids):
            document_TD = shard.vectors.rows_XD[offsets_d[d] : offsets_d[d + 1]].double()
            hits.append(Hit(document, float(np.float32((query_LD @ document_TD.T).amax(1).sum()))))
        run[query] = sorted(hits, key=lambda hit: (hit.score, hit.document_id.encode()), reverse=True)[:depth]
    return run


def all_open(queries):
    return np.full(len(queries.ids), -np.inf, dtype=np.float32)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dim=st.sampled_from([3, 64, 96, 128]),
    distinct=st.integers(2, 40),
    depth=st.integers(1, 30),
    longest=st.sampled_from([1, 3, 40]),
    kernel=st.sampled_from(NOMINATIONS),
)
def test_search_equals_brute_force_to_the_bit_ties_included(seed, dim, distinct, depth, longest, kernel):
    generator = torch.Generator().manual_seed(seed)
    queries = texts(generator, 5, dim=dim, longest=6, distinct=distinct, prefix="q")
    shard = texts(generator, 30, dim=dim, longest=longest, distinct=distinct, prefix="d")
    maxsim, precision = kernel
    hits = search_shard(
        queries, shard, depth=depth, floor_Q=all_open(queries), device=CPU, precision=precision, maxsim=maxsim
    )
    assert to_run(hits, queries.ids) == brute_force(queries, shard, depth)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(1, 39), max_size=4, unique=True), order=st.randoms())
def test_the_run_does_not_depend_on_how_or_in_which_order_the_corpus_is_cut(seed, cuts, order):
    generator = torch.Generator().manual_seed(seed)
    queries = texts(generator, 4, dim=8, longest=5, distinct=6, prefix="q")
    whole = texts(generator, 40, dim=8, longest=7, distinct=6, prefix="d")
    starts = [0, *whole.vectors.lengths_N.cumsum(0).tolist()]
    edges = [0, *sorted(cuts), 40]
    shards = [
        ShardVectors(whole.ids[a:b], ragged(whole.vectors.rows_XD[starts[a] : starts[b]], whole.vectors.lengths_N[a:b]))
        for a, b in pairwise(edges)
    ]
    order.shuffle(shards)
    best = no_hits()
    for shard in shards:
        floor_Q = floors(best, queries=4, depth=10)
        best = merge([best, search_shard(queries, shard, depth=10, floor_Q=floor_Q, device=CPU)], depth=10)
    assert to_run(best, queries.ids) == brute_force(queries, whole, 10)


@pytest.mark.parametrize(("maxsim", "precision"), NOMINATIONS)
@pytest.mark.parametrize("longest", [1, 2, 17, 700, 5000])
def test_nominating_scores_are_within_their_proven_error_bound(longest, maxsim, precision):
    generator = torch.Generator().manual_seed(longest)
    queries = texts(generator, 7, dim=128, longest=32, distinct=100, prefix="q")
    shard = texts(generator, 50, dim=128, longest=longest, distinct=5000, prefix="d")
    query, documents = (side.vectors for side in (queries, shard))
    kernel = choice.bind(maxsim, documents, device=CPU, precision=precision)
    fast_QN = kernel.scores(query).double()
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(50))
    exact_QN = rescore.exact_scores(query, documents, pairs[:, 0], pairs[:, 1]).view(7, 50).double()
    bound_Q = kernel.error_bound(query)
    assert ((fast_QN - exact_QN).abs() <= bound_Q.unsqueeze(1) + 2e-6).all()
    assert float(bound_Q.max()) < USEFUL[precision]


@pytest.mark.skipif(not INT16, reason="the processor has no AVX-512 VNNI")
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dim=st.sampled_from([1, 2, 7, 128]),
    sizes=st.lists(st.floats(-6, 4), min_size=2, max_size=2),
    peaked=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.float32]),
)
def test_whole_numbers_neither_overflow_nor_leave_their_bound_whatever_the_vectors_sizes(
    seed, dim, sizes, peaked, dtype
):
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for size, count in zip(sizes, (60, 90), strict=True):
        vectors_XD = torch.randn(count, dim, generator=generator)
        if peaked:
            vectors_XD = torch.nn.functional.one_hot(vectors_XD.argmax(1), dim).float()
        scaled_XD = (vectors_XD * 10**size).clamp(-60_000, 60_000).to(dtype)
        sides.append(ragged(scaled_XD, torch.tensor([count // 3] * 3)))
    query, documents = sides
    kernel = choice.bind("simd", documents, device=CPU, precision="int16")
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    exact_QN = rescore.exact_scores(query, documents, pairs[:, 0], pairs[:, 1]).view(3, 3).double()
    off_QN = (kernel.scores(query).double() - exact_QN).abs()
    assert (off_QN <= kernel.error_bound(query).unsqueeze(1)).all()


@pytest.mark.parametrize(("maxsim", "precision"), [("auto", "float32"), ("packed", "float32"), *INT16])
def test_scores_of_queries_longer_than_a_block_are_right(maxsim, precision):
    generator = torch.Generator().manual_seed(1)
    queries = texts(generator, 2, dim=4, longest=3, distinct=9, prefix="q")
    long = ragged(torch.randn(1500, 4, generator=generator).half(), torch.tensor([1500]))
    shard = texts(generator, 9, dim=4, longest=5, distinct=9, prefix="d")
    both = ragged(
        torch.cat([queries.vectors.rows_XD, long.rows_XD]), torch.cat([queries.vectors.lengths_N, long.lengths_N])
    )
    documents = shard.vectors
    scores = choice.bind(maxsim, documents, device=CPU, precision=precision).scores(both)
    starts = [0, *shard.vectors.lengths_N.cumsum(0).tolist()]
    wanted = [reference.maxsim(long.rows_XD, shard.vectors.rows_XD[a:b]) for a, b in pairwise(starts)]
    assert np.allclose(scores[2].numpy(), wanted, rtol=1e-4 if precision == "int16" else 1e-5)


@pytest.mark.parametrize(("maxsim", "precision"), NOMINATIONS)
def test_the_run_does_not_depend_on_block_sizes_or_threads(maxsim, precision, monkeypatch):
    generator = torch.Generator().manual_seed(5)
    queries = texts(generator, 9, dim=96, longest=32, distinct=60, prefix="q")
    shard = texts(generator, 200, dim=96, longest=90, distinct=300, prefix="d")
    wanted = brute_force(queries, shard, 20)
    threads = torch.get_num_threads()
    try:
        for rows, columns, block, count in [(7, 33, 2, 1), (64, 40, 9, 2), (5000, 5000, 4, 3)]:
            monkeypatch.setattr(packed, "DOCUMENT_VECTORS", rows)
            monkeypatch.setattr(packed, "QUERY_VECTORS", columns)
            monkeypatch.setattr(simd, "BLOCK_BYTES", 4 * 96 * rows)
            monkeypatch.setattr(simd, "EXACT_BLOCK_BYTES", 8 * 96 * rows)
            monkeypatch.setattr(search, "QUERY_BLOCK", block)
            torch.set_num_threads(count)
            hits = search_shard(
                queries,
                shard,
                depth=20,
                floor_Q=all_open(queries),
                device=CPU,
                precision=precision,
                maxsim=maxsim,
            )
            assert to_run(hits, queries.ids) == wanted
    finally:
        torch.set_num_threads(threads)


def test_negative_similarities_survive():
    queries = ShardVectors(("q",), ragged(torch.tensor([[1.0, 0.0]]).half(), torch.tensor([1])))
    shard = ShardVectors(
        ("short", "long"),
        ragged(torch.tensor([[-1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [-1.0, 0.0]]).half(), torch.tensor([1, 3])),
    )
    hits = search_shard(queries, shard, depth=5, floor_Q=all_open(queries), device=CPU)
    assert to_run(hits, ["q"]) == {"q": [Hit("long", 0.0), Hit("short", -1.0)]}


def test_hits_survive_their_checkpoint_with_ids_of_any_script():
    hits = Hits(
        np.array([0, 1], np.int32), np.array(["é".encode(), "文書-7".encode()]), np.array([1.5, -0.25], np.float32)
    )
    back = hits_from_arrays(hits_to_arrays(hits))
    assert to_run(back, ["a", "b"]) == {"a": [Hit("é", 1.5)], "b": [Hit("文書-7", -0.25)]}


def test_no_hits_survive_their_checkpoint():
    assert to_run(hits_from_arrays(hits_to_arrays(no_hits())), ["a"]) == {"a": []}


def test_anserini_order_ranks_the_lower_id_first_and_survives_trec_evals_tie_rule():
    hits = Hits(np.zeros(3, np.int32), np.array([b"c", b"a", b"b"]), np.array([2, 2, 1], np.float32))
    ranked = separate_ties(merge([hits], depth=3, ties="anserini"))
    assert ranked.id_H.tolist() == [b"a", b"c", b"b"]
    assert merge([ranked], depth=3).id_H.tolist() == [b"a", b"c", b"b"]
    assert np.abs(ranked.score_H - [2, 2, 1]).max() < 1e-6


def test_dropping_the_querys_own_document_keeps_depth_and_counts():
    run = {"a": [Hit("a", 3.0), Hit("b", 2.0), Hit("c", 1.0)], "b": [Hit("c", 1.0), Hit("a", 0.5), Hit("d", 0.1)]}
    kept, dropped = drop_self(run, depth=2)
    assert kept == {"a": [Hit("b", 2.0), Hit("c", 1.0)], "b": [Hit("c", 1.0), Hit("a", 0.5)]}
    assert dropped == 1


def by_hand(hits, depth, ties):
    """Rank as the rule reads: score descending; of equal scores the greater id first, or the lesser in Anserini's."""
    found = []
    for query in sorted(set(hits.query_H.tolist())):
        mine = [(one[2], one[1]) for one in zip(*(part.tolist() for part in hits), strict=True) if one[0] == query]
        mine.sort(key=lambda pair: pair[1], reverse=ties == "trec_eval")
        mine.sort(key=lambda pair: -pair[0])
        found += [(query, identifier, score) for score, identifier in mine[:depth]]
    return found


@pytest.mark.parametrize("ties", ["trec_eval", "anserini"])
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("short", [True, False])
def test_ties_are_settled_by_whole_ids_of_any_length_within_a_shard_and_across(ties, seed, short):
    random = np.random.default_rng(seed)
    ids = [b"a", b"a\0", b"a\0b", b"ab", "é".encode(), b"x" * 5000, b"x" * 4999, b""]
    ids = ids[:1] + ids[3:5] if short else ids
    ids += [str(number).encode() for number in range(12)]
    count = 60
    query_H = random.integers(0, 3, count).astype(np.int32)
    score_H = random.integers(-2, 2, count).astype(np.float32)
    document_H = np.array([number % len(ids) for number in range(count)])
    hits = Hits(query_H, id_array([ids[place] for place in document_H]), score_H)
    wanted = by_hand(hits, 7, ties)
    half = count // 2
    parts = [Hits(*(part[:half] for part in hits)), Hits(*(part[half:] for part in hits))]
    names = Ids(id_array(ids), np.array([sorted(ids).index(one) for one in ids]))
    for found in (
        merge([hits], depth=7, ties=ties),
        merge([merge([part], depth=7, ties=ties) for part in parts], depth=7, ties=ties),
        best_of_shard(query_H, document_H, score_H, names, depth=7, ties=ties),
    ):
        got = list(zip(*(part.tolist() for part in found), strict=True))
        assert [(query, score) for query, _, score in got] == [(query, score) for query, _, score in wanted]
        assert got == wanted


def test_ids_of_older_checkpoints_are_read():
    old = {
        "query": torch.tensor([0, 1], dtype=torch.int32),
        "id": torch.tensor([[97, 0], [98, 99]], dtype=torch.uint8),
        "score": torch.tensor([1.0, 2.0]),
    }
    assert hits_from_arrays(old).id_H.tolist() == [b"a", b"bc"]


def test_one_long_id_takes_its_own_room_and_no_other_s():
    hits = Hits(np.arange(1000, dtype=np.int32), id_array([b"x" * 100_000] + [b"d"] * 999), np.zeros(1000, np.float32))
    arrays = hits_to_arrays(merge([hits], depth=5))
    assert arrays["id_bytes"].numel() == 100_000 + 999
