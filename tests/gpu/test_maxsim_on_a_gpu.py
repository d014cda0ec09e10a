"""MaxSim on a GPU against float64: every kernel, dims, types and shapes that a run can meet."""

from itertools import pairwise

import pytest
import torch
from gpu_device import CPU, DEVICE, ON_GPU, needs_gpu

from evalkit.kernels.gpu import pieces
from evalkit.maxsim import bounds, choice, rescore
from evalkit.ragged import ragged
from evalkit.ranking import floors, no_hits
from evalkit.run.search import search_shard
from evalkit.storage.shard_files import ShardVectors

pytest.importorskip("triton")
from evalkit.kernels.gpu import tensor_core

pytestmark = pytest.mark.gpu
DIMS = (64, 96, 128, 384, 48, 100, 7) if ON_GPU else (64, 96, 7)
LENGTHS = [1, 16, 17, 80, 300, 31, 33, 2]
if ON_GPU:
    LENGTHS += [8192, *torch.randint(1, 301, (400,), generator=torch.Generator().manual_seed(9)).tolist()]
QUERY_LENGTHS = [32, 1, 32, 7, 70, 64, *([32] * 40 if ON_GPU else [])]


def drawn(seed, lengths, *, dim, dtype=torch.float16, device=CPU):
    lengths_N = torch.as_tensor(lengths)
    generator = torch.Generator(device).manual_seed(seed)
    rows_XD = torch.randn(int(lengths_N.sum()), dim, generator=generator, device=device)
    return ragged(torch.nn.functional.normalize(rows_XD, dim=1).to(dtype), lengths_N)


def there(texts):
    return texts._replace(rows_XD=texts.rows_XD.to(DEVICE))


def by_definition(queries, documents):
    """Every score [Q, N] in float64 on the CPU, document by document."""
    query_YD = queries.rows_XD.double()
    spans = pairwise(documents.offsets_N.tolist())
    best_NY = torch.stack([(documents.rows_XD[a:b].double() @ query_YD.T).amax(0) for a, b in spans])
    return torch.stack([best_NY[:, a:b].sum(1) for a, b in pairwise(queries.offsets_N.tolist())])


def exceeds(scores_QN, wanted_QN, bound_Q):
    """The largest error as a share of the bound; 1 is the most that is allowed, and NaN passes nothing."""
    share = ((scores_QN.cpu().double() - wanted_QN).abs() / bound_Q.unsqueeze(1)).max()
    return float("inf") if bool(share.isnan()) else float(share)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", DIMS)
def test_every_kernel_is_within_its_bound_of_float64(dim, dtype):
    queries, documents = drawn(1, QUERY_LENGTHS, dim=dim, dtype=dtype), drawn(2, LENGTHS, dim=dim, dtype=dtype)
    wanted_QN = by_definition(queries, documents)
    names = ["packed", "triton"] if ON_GPU or dtype == torch.float16 else ["packed"]
    for name in names:
        kernel = choice.bind(name, there(documents), device=DEVICE)
        assert kernel.name == name
        scores_QN = kernel.scores(queries)
        assert exceeds(scores_QN, wanted_QN, kernel.error_bound(queries)) <= 1
        assert torch.equal(kernel.scores(queries), scores_QN)


@pytest.mark.parametrize("dim", [128, 96] if ON_GPU else [32])
def test_every_tiling_and_piece_is_within_the_bound_of_float64(dim):
    queries, documents = drawn(1, QUERY_LENGTHS, dim=dim), drawn(2, LENGTHS, dim=dim)
    wanted_QN = by_definition(queries, documents)
    bound_Q = bounds.tensor_core_bound(queries, documents, dtype=torch.float16)
    for piece in (8, 16):
        laid = pieces.document_pieces(there(documents), piece=piece)
        for tiling in tensor_core.tilings(dim, piece=piece)[: None if ON_GPU else 2]:
            scores_QN = tensor_core.scores(queries, laid, tiling=tiling)
            assert exceeds(scores_QN, wanted_QN, bound_Q) <= 1, tiling


def test_exact_scores_are_float64s_rounded_once():
    queries, documents = drawn(1, QUERY_LENGTHS, dim=96), drawn(2, LENGTHS, dim=96)
    pairs_H2 = torch.cartesian_prod(torch.arange(len(QUERY_LENGTHS)), torch.arange(len(LENGTHS)))
    scores_H = rescore.exact_scores(queries, there(documents), pairs_H2[:, 0], pairs_H2[:, 1]).cpu()
    wanted_H = by_definition(queries, documents).flatten().float()
    assert torch.allclose(scores_H, wanted_H, rtol=2.0**-22, atol=0)


@needs_gpu
def test_documents_behind_2_to_the_31_numbers_are_scored():
    lengths = torch.full(((1 << 31) // 128 // 128 + 64,), 128, dtype=torch.int64)
    documents = drawn(3, lengths, dim=128, device=DEVICE)
    queries = drawn(4, [32] * 8, dim=128)
    laid = pieces.document_pieces(documents, piece=16)
    assert laid.rows_RD.numel() > 1 << 31
    last_N = torch.arange(len(lengths) - 32, len(lengths))
    tail = ragged(documents.rows_XD[-32 * 128 :].cpu(), lengths[last_N])
    wanted_QN, bound_Q = by_definition(queries, tail), bounds.tensor_core_bound(queries, tail, dtype=torch.float16)
    for tiling in tensor_core.TILINGS[:2]:
        assert exceeds(tensor_core.scores(queries, laid, tiling=tiling)[:, last_N], wanted_QN, bound_Q) <= 1
    pairs_H2 = torch.cartesian_prod(torch.arange(8), last_N)
    exact_H = rescore.exact_scores(queries, documents, pairs_H2[:, 0], pairs_H2[:, 1]).cpu()
    assert torch.allclose(exact_H.view(8, 32).double(), wanted_QN, rtol=2.0**-22)


@pytest.mark.parametrize("dim", [128, 64] if ON_GPU else [32])
def test_hits_of_every_kernel_are_the_cpus_to_the_bit_where_many_documents_tie(dim):
    generator = torch.Generator().manual_seed(5)
    count, queries_count = (3000, 60) if ON_GPU else (40, 3)
    pool_XD = drawn(6, [60], dim=dim).rows_XD
    lengths, query_lengths = torch.randint(1, 150, (count,), generator=generator), torch.full((queries_count,), 32)

    def of_pool(kind, lengths_N):
        rows_XD = pool_XD[torch.randint(0, 60, (int(lengths_N.sum()),), generator=generator)]
        return ShardVectors(tuple(f"{kind}{place:05d}" for place in range(len(lengths_N))), ragged(rows_XD, lengths_N))

    shard, queries = of_pool("d", lengths), of_pool("q", query_lengths)
    options = {"depth": 20, "floor_Q": floors(no_hits(), queries=queries_count, depth=20)}
    wanted = search_shard(queries, shard, device=CPU, maxsim="packed", **options)
    names = ["packed", "triton"]
    if ON_GPU and choice.importlib.util.find_spec("late_interaction_kernels"):
        names.append("late-interaction-kernels")
    for name in names:
        found = search_shard(queries, shard, device=DEVICE, maxsim=name, **options)
        assert [column.tolist() for column in found] == [column.tolist() for column in wanted], name
