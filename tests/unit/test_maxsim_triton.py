"""The GPU kernels: in Triton's interpreter on the CPU, and on a GPU where there is one."""

import math
import mmap
import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.errors import ConfigError
from evalkit.kernels import trouble
from evalkit.kernels.cpu import registers
from evalkit.kernels.gpu import pieces
from evalkit.maxsim import bounds, choice, reference, rescore
from evalkit.ragged import ragged
from evalkit.ranking import floors, merge, no_hits
from evalkit.run.search import search_shard
from evalkit.storage.shard_files import ShardVectors

pytest.importorskip("triton")

from evalkit.kernels.gpu import tensor_core
from evalkit.kernels.gpu.tensor_core import Tiling

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MAP_NORESERVE = 0x4000
"""Linux's flag for an address range without memory behind it; Python's mmap names it from 3.13 on."""
SMALL = Tiling(rows=32, warps=4, stages=2)


def texts(seed, lengths, *, dim, dtype=torch.float16, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    lengths_N = torch.as_tensor(lengths)
    vectors = torch.nn.functional.normalize(torch.randn(int(lengths_N.sum()), dim, generator=generator), dim=1)
    return ragged((vectors * scale).to(dtype), lengths_N)


def exact(queries, documents):
    """Every score by the definition, in float64."""
    sides = [[side.rows_XD[a:b] for a, b in pairwise(side.offsets_N.tolist())] for side in (queries, documents)]
    return torch.tensor(
        [[reference.maxsim(query, document) for document in sides[1]] for query in sides[0]], dtype=torch.float64
    )


def on_device(documents):
    return documents._replace(rows_XD=documents.rows_XD.to(DEVICE))


def kernel_scores(queries, documents, *, piece=16, tiling=SMALL):
    return tensor_core.scores(queries, pieces.document_pieces(on_device(documents), piece=piece), tiling=tiling).cpu()


@pytest.mark.parametrize("dim", [128, 96, 64, 384, 48, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kernel_scores_are_within_the_bound_at_every_dim_and_type(dim, dtype):
    queries = texts(dim, [32, 1, 32, 7], dim=dim, dtype=dtype)
    documents = texts(1, [1, 16, 17, 80, 300, 31, 33, 2], dim=dim, dtype=dtype)
    bound_Q = bounds.tensor_core_bound(queries, documents, dtype=dtype)
    error_QN = (kernel_scores(queries, documents).double() - exact(queries, documents)).abs()
    assert (error_QN <= bound_Q.unsqueeze(1)).all()
    assert float(bound_Q.max()) < 5e-3


@pytest.mark.parametrize("tiling", tensor_core.TILINGS)
@pytest.mark.parametrize("piece", [8, 16, 32])
def test_every_tiling_gives_the_same_scores(tiling, piece):
    if not 2 <= tiling.rows // piece <= 8:
        pytest.skip("a tile has 2, 4 or 8 pieces")
    queries = texts(1, [32] * 9 + [5], dim=32)
    documents = texts(2, [1, 7, 8, 9, 130, 64, 16, 257], dim=32)
    scores_QN = kernel_scores(queries, documents, piece=piece, tiling=tiling)
    assert torch.allclose(scores_QN.double(), exact(queries, documents), atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    query_lengths=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    document_lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    piece=st.sampled_from([8, 16]),
    scale=st.sampled_from([1.0, 30.0, 1e-3]),
)
def test_ragged_scores_are_within_the_bound(seed, query_lengths, document_lengths, piece, scale):
    queries = texts(seed, query_lengths, dim=16)
    documents = texts(seed + 1, document_lengths, dim=16, scale=scale)
    error_QN = (kernel_scores(queries, documents, piece=piece).double() - exact(queries, documents)).abs()
    bound_Q = bounds.tensor_core_bound(queries, documents, dtype=torch.float16)
    assert (error_QN <= bound_Q.unsqueeze(1)).all()


def test_sums_that_cancel_are_within_the_bound():
    """Large terms of both signs, then tiny ones that a running sum of fp32 loses: the worst that additions can do."""
    row = torch.tensor([1.0, -1.0] * 32 + [2.0**-14, 2.0**-24] * 32).half()
    queries = ragged(torch.ones(32, 128).half(), torch.tensor([32]))
    documents = ragged(torch.stack([row, row.flip(0), row[torch.randperm(128)]]), torch.tensor([1, 2]))
    error_QN = (kernel_scores(queries, documents).double() - exact(queries, documents)).abs()
    bound_Q = bounds.tensor_core_bound(queries, documents, dtype=torch.float16)
    assert (error_QN <= bound_Q.unsqueeze(1)).all()


def cut(value, *, to):
    """Cut a number, toward zero, to 24 bits of another's exponent."""
    unit = 2.0 ** (math.frexp(to)[1] - 24)
    return math.trunc(value / unit) * unit


def cut_sides(kind):
    """Return a query and a document vector of 128 numbers for the simulated tensor core."""
    if kind == "each term just below the last place":  # so every cut loses a whole term
        query, document = torch.full((1, 128), 2.0**-11 * (1 - 2.0**-11)), torch.full((1, 128), 2.0**-12)
        query[0, 0] = document[0, 0] = 1
        return query.half(), document.half()
    generator = torch.Generator().manual_seed(0)
    shift = 2 if kind == "one sign" else 0
    sides = (torch.randn(1, 128, generator=generator) + shift for _ in range(2))
    return tuple(torch.nn.functional.normalize(side).half() for side in sides)


@pytest.mark.parametrize("group", [2, 4, 8, 16])
@pytest.mark.parametrize("kind", ["both signs", "one sign", "each term just below the last place"])
def test_the_bound_covers_additions_that_are_cut_instead_of_rounded(group, kind):
    """Simulate the tensor core of TENSOR_CORE_UNIT's docstring."""
    query, document = cut_sides(kind)
    total = 0.0
    products = (query.double() * document.double()).flatten()
    for terms in products.split(group):
        addends = [*terms.tolist(), total]
        largest = max(addends, key=abs)
        total = sum(cut(addend, to=largest) for addend in addends)
        total = cut(total, to=total)
    bound = bounds.tensor_core_bound(
        ragged(query, torch.tensor([1])), ragged(document, torch.tensor([1])), dtype=torch.float16
    )
    assert 0 < abs(total - float(products.sum())) <= float(bound)


@pytest.mark.parametrize("rounded_side", ["queries", "documents"])
def test_vectors_that_bf16_rounds_are_within_a_bound_that_measures_the_rounding(rounded_side):
    queries, documents = texts(1, [32, 4], dim=64, dtype=torch.float32), texts(2, [9, 90], dim=64, dtype=torch.float32)
    rounded_queries, rounded = (side._replace(rows_XD=side.rows_XD.bfloat16()) for side in (queries, documents))
    if rounded_side == "queries":
        documents = rounded
    else:
        queries = rounded_queries
    error_QN = (kernel_scores(queries, rounded).double() - exact(queries, documents)).abs()
    bound_Q = bounds.tensor_core_bound(queries, documents, dtype=torch.bfloat16)
    unrounded_Q = bounds.tensor_core_bound(rounded_queries, rounded, dtype=torch.bfloat16)
    assert (error_QN <= bound_Q.unsqueeze(1)).all()
    assert float(error_QN.max()) > float(unrounded_Q.max())  # so the measured rounding is what makes the bound hold
    assert float(bound_Q.max()) < 0.5


def assert_within_bound(scores_QN, queries, documents):
    """What a nominating score owes; its bits differ with the tile, since the interpreter multiplies by numpy's BLAS."""
    bound_Q = bounds.tensor_core_bound(queries, documents, dtype=torch.float16)
    assert ((scores_QN.double() - exact(queries, documents)).abs() <= bound_Q.unsqueeze(1)).all()


def run_of(queries, documents, *, maxsim="triton", device=DEVICE):
    """The best four documents of each query, by id and exact score."""
    sides = [
        ShardVectors(tuple(f"{kind}{n}" for n in range(len(side.lengths_N))), side)
        for kind, side in (("q", queries), ("d", documents))
    ]
    floor_Q = floors(no_hits(), queries=len(sides[0].ids), depth=4)
    found = search_shard(*sides, depth=4, floor_Q=floor_Q, device=device, maxsim=maxsim)
    return [column.tolist() for column in found]


def test_chunks_change_nothing_in_the_run_and_one_document_may_be_longer_than_a_chunk(monkeypatch):
    queries, documents = texts(1, [32, 32], dim=16), texts(2, [5, 700, 1, 40, 40, 300, 8], dim=16)
    whole = run_of(queries, documents)
    monkeypatch.setattr(pieces, "CHUNK_ROWS", 128)
    laid = pieces.document_pieces(documents, piece=16)
    assert len(laid.chunk_documents) > 3
    assert_within_bound(kernel_scores(queries, documents), queries, documents)
    assert run_of(queries, documents) == whole == run_of(queries, documents, maxsim="packed", device=CPU)


@pytest.mark.parametrize("piece", [8, 16])
def test_a_documents_score_is_within_the_bound_whatever_stands_beside_it(piece):
    queries, documents = texts(1, [32, 20], dim=64), texts(2, [33, 80, 5, 64], dim=64)
    assert_within_bound(kernel_scores(queries, documents, piece=piece), queries, documents)
    for a, b in pairwise(documents.offsets_N.tolist()):
        alone = ragged(documents.rows_XD[a:b], torch.tensor([b - a]))
        assert_within_bound(kernel_scores(queries, alone, piece=piece), queries, alone)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the address space is the CPU's")
def test_offsets_beyond_31_bits_reach_the_right_rows():
    """The same layout, moved 2³¹ numbers up an address range; only the rows in question are backed by memory."""
    queries, documents = texts(1, [32], dim=128), texts(2, [20, 130], dim=128)
    laid = pieces.document_pieces(documents, piece=16)
    moved_grains = 2**31 // (pieces.GRAIN * 128)
    # The reserve before the base is where an offset that wrapped to -2³¹ would read: zeros, not a crash.
    reserve_bytes, moved_bytes = 2**32, 2**32
    size_bytes = reserve_bytes + moved_bytes + laid.rows_RD.numel() * 2
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    rows_RD = torch.frombuffer(memory, dtype=torch.float16)[reserve_bytes // 2 :].view(-1, 128)
    rows_RD[moved_grains * pieces.GRAIN :] = laid.rows_RD
    far = laid._replace(
        rows_RD=rows_RD,
        ends=torch.cat([torch.zeros(moved_grains, dtype=torch.int32), laid.ends]),
        chunk_grains=laid.chunk_grains + moved_grains,
    )
    assert_within_bound(tensor_core.scores(queries, far, tiling=SMALL), queries, documents)
    assert float(exact(queries, documents).min()) > 0  # which zeros in their place would not reach


def test_layout_repeats_the_last_vector_and_marks_where_documents_end():
    documents = ragged(torch.arange(1.0, 12.0).half().unsqueeze(1).expand(-1, 16), torch.tensor([9, 2]))
    laid = pieces.document_pieces(documents, piece=8)
    assert laid.rows_RD[:, 0].tolist() == [*range(1, 10), *[9] * 7, 10, *[11] * 111]
    assert laid.ends.tolist() == [0b110]
    assert laid.chunk_grains.tolist() == [0, 1]


def test_dims_without_three_powers_of_two_are_filled_up_with_zeros():
    assert pieces.dim_parts(240) == (256, 0, 0)
    queries, documents = texts(1, [3], dim=240), texts(2, [5], dim=240)
    assert torch.allclose(kernel_scores(queries, documents).double(), exact(queries, documents), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    document_lengths=st.lists(st.integers(1, 90), min_size=1, max_size=9),
    batch_numbers=st.sampled_from([1, 5000, 1 << 20]),
)
def test_rescoring_in_batches_equals_rescoring_one_by_one_to_the_bit(seed, document_lengths, batch_numbers):
    queries, documents = texts(seed, [32, 5, 17], dim=48), texts(seed + 1, document_lengths, dim=48)
    pairs_H2 = torch.cartesian_prod(torch.arange(3), torch.arange(len(document_lengths)))
    pairs_H2 = pairs_H2[torch.randperm(len(pairs_H2), generator=torch.Generator().manual_seed(seed))]
    batched_H = rescore.exact_scores(
        queries, on_device(documents), pairs_H2[:, 0], pairs_H2[:, 1], batch_numbers=batch_numbers
    )
    assert torch.equal(batched_H.cpu().view(-1), exact(queries, documents)[pairs_H2[:, 0], pairs_H2[:, 1]].float())


def test_rescoring_no_pairs_gives_no_scores():
    none_H = torch.zeros(0, dtype=torch.int64)
    assert rescore.exact_scores(texts(1, [4], dim=16), texts(2, [5], dim=16), none_H, none_H).tolist() == []


@pytest.mark.parametrize("maxsim", ["triton", "late-interaction-kernels"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_every_kernel_gives_the_same_hits_to_the_bit(maxsim, dtype):
    if maxsim == "late-interaction-kernels":
        pytest.importorskip("late_interaction_kernels")
    pool = texts(0, [12], dim=32, dtype=dtype).rows_XD  # few distinct vectors, so that equal scores are common
    generator = torch.Generator().manual_seed(1)
    query_lengths, document_lengths = torch.tensor([4, 40, 32]), torch.randint(1, 40, (30,), generator=generator)
    draw = [torch.randint(0, 12, (int(n.sum()),), generator=generator) for n in (query_lengths, document_lengths)]
    queries = ShardVectors(("a", "b", "c"), ragged(pool[draw[0]], query_lengths))
    shard = ShardVectors(tuple(f"d{i:02d}" for i in range(30)), ragged(pool[draw[1]], document_lengths))

    def hits(maxsim, device):
        floor_Q = floors(no_hits(), queries=3, depth=10)
        return search_shard(queries, shard, depth=10, floor_Q=floor_Q, device=device, maxsim=maxsim)

    found, wanted = hits(maxsim, DEVICE), hits("packed", torch.device("cpu"))
    assert [column.tolist() for column in found] == [column.tolist() for column in wanted]
    assert len(merge([found], depth=10).score_H) == 30


def test_vectors_of_512_numbers_fit_hopper_and_not_an_ampere_card_of_100_kib():
    assert tensor_core.tilings(512, piece=16)
    assert not tensor_core.tilings(512, piece=16, shared_bytes=101_376)
    assert tensor_core.tilings(128, piece=16, shared_bytes=101_376)


@pytest.mark.skipif(not registers.available(), reason="no AVX2, or numba cannot compile for it")
def test_auto_is_the_vector_unit_kernel_on_a_cpu_unless_bf16_is_asked_for():
    documents, device = texts(1, [5], dim=16), torch.device("cpu")
    assert choice.bind("auto", documents, device=device).name == "simd"
    assert choice.bind("auto", documents, device=device, precision="bfloat16").name == "packed"


@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")
def test_auto_is_the_triton_kernel_on_a_gpu():
    assert choice.bind("auto", texts(1, [50], dim=128), device=DEVICE).name == "triton"


@pytest.fixture
def fresh(caplog):
    caches = (choice.probe, trouble.warn_once)
    for cached in caches:
        cached.cache_clear()
    choice._GIVEN_UP.clear()
    yield caplog
    for cached in caches:
        cached.cache_clear()
    choice._GIVEN_UP.clear()


@pytest.mark.parametrize("piece", [8, 16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_kernel_that_works_passes_its_probe(fresh, dtype, piece):
    assert choice.probe(DEVICE, dtype, 48, piece) == ""


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        (lambda *_, **__: refuse("no C compiler\nand more"), "is unusable here (RuntimeError: no C compiler)"),
        (lambda *_, **__: torch.full((2, 3), float("nan")), "gives wrong scores here (off by nan)"),
        (lambda *_, **__: torch.zeros(2, 3), "gives wrong scores here (off by "),
    ],
    ids=["not compiled", "not a number", "wrong"],
)
def test_a_kernel_that_fails_its_probe_costs_no_run_and_is_said_once(fresh, monkeypatch, scores, problem):
    monkeypatch.setattr(tensor_core, "scores", scores)
    queries, documents = texts(1, [32], dim=16), texts(2, [50, 60], dim=16)
    for _ in range(2):
        kernel = choice.bind("triton", on_device(documents), device=DEVICE)
        assert kernel.name == "packed"
    assert torch.allclose(kernel.scores(queries).cpu().double(), exact(queries, documents), atol=1e-5)
    (said,) = [message for message in fresh.messages if "Triton" in message]
    assert said.startswith(f"Triton's MaxSim kernel for 16 numbers of float16 {problem}")
    assert said.endswith("; packed is used instead")
    assert choice.given_up(DEVICE, (64, 16)) == said
    assert choice.given_up(DEVICE, (64,)) == ""


def refuse(said):
    raise RuntimeError(said)


def test_a_tiling_that_cannot_run_leaves_the_choice_to_the_others(fresh, monkeypatch):
    monkeypatch.setattr(tensor_core, "_least_ms", lambda call, _device: call() or 1.0)
    tried = []

    def launch(_query_MLD, _documents, tiling):
        tried.append(tiling)
        if tiling.stages == 3:
            raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(tensor_core, "launch", launch)
    laid = pieces.document_pieces(on_device(texts(1, [50], dim=16)), piece=16)
    fitting = [Tiling(64, 8, 3), Tiling(128, 8, 3), Tiling(128, 8, 2)]
    assert tensor_core._time_tilings(laid, 300, fitting) == Tiling(128, 8, 2)
    assert tried.count(Tiling(128, 8, 2)) == 2  # once to compile
    assert "Tiling(rows=64, warps=8, stages=3) cannot run here (RuntimeError: out of resource" in fresh.messages[0]
    assert tensor_core._time_tilings(laid, 300, fitting[:2]) == Tiling(
        64, 8, 3
    )  # none ran: the expected one may say why


def test_a_tiling_is_timed_on_its_own_stream_by_the_least_of_several_times(monkeypatch):
    """While another stream encodes, the device is never idle: only this stream's events may be waited for."""
    times, said = iter([9.0, 3.0, 4.0, 5.0, 7.0]), []

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self, stream):
            said.append(stream)

        def synchronize(self):
            said.append("waits")

        def elapsed_time(self, _end):
            return next(times)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: "search")
    assert tensor_core._least_ms(lambda: said.append("runs"), torch.device("cuda")) == 3.0
    assert said == ["search", "runs", "search", "waits"] * 5


def test_rescoring_that_does_not_fit_memory_goes_on_in_smaller_batches_and_says_so_once(fresh, monkeypatch):
    monkeypatch.setattr(rescore, "_FITTING", {})
    queries, documents = texts(1, [32, 5], dim=48), texts(2, [3, 90, 7, 20, 41], dim=48)
    pairs_H2 = torch.cartesian_prod(torch.arange(2), torch.arange(5))
    real, sizes = torch.bmm, []

    def small(one, other):
        sizes.append(len(one))
        if len(one) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nand more")
        return real(one, other)

    monkeypatch.setattr(torch, "bmm", small)
    for _ in range(2):
        scores_H = rescore.exact_scores(queries, on_device(documents), pairs_H2[:, 0], pairs_H2[:, 1])
        assert torch.equal(scores_H.cpu().view(2, 5), exact(queries, documents).float())
    assert sizes[0] == 10
    assert len([size for size in sizes if size > 2]) < 5  # the second call knows what fits
    reason = "CUDA out of memory. Tried to allocate 9 GiB"
    assert fresh.messages == [f"exact scores of 10 pairs did not fit memory ({reason}): smaller batches follow"]


def test_a_pair_that_does_not_fit_memory_alone_is_an_error(fresh, monkeypatch):
    monkeypatch.setattr(rescore, "_FITTING", {})

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "bmm", full)
    one_H = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        rescore.exact_scores(texts(1, [4], dim=16), on_device(texts(2, [5], dim=16)), one_H, one_H)


def test_a_kernel_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"late-interaction-kernels is not installed; wanted `pip install late-inte"):
        choice.require("late-interaction-kernels", torch.device("cpu"))


def test_triton_on_a_cpu_is_refused_outside_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ConfigError, match=r"engine.maxsim=triton: got device cpu, wanted a CUDA device .*=auto"):
        choice.require("triton", torch.device("cpu"))


def test_vectors_too_wide_for_the_triton_kernel_are_refused():
    with pytest.raises(
        ConfigError, match=r"got vectors of 1024 numbers, wanted a dim that fits .* \(at most 512 on Hopper\); use"
    ):
        choice.bind("triton", texts(1, [2], dim=1024), device=DEVICE)


SPECIALIZED = """
from evalkit.kernels.gpu.elementwise_kernel import add_norm, rotate
from evalkit.kernels.gpu.triton_kernel import maxsim

for kernel in (rotate, add_norm, maxsim):
    free = [one.name for one in kernel.params if not one.is_constexpr and not one.do_not_specialize]
    print(kernel.__name__, *free)
"""


def test_no_kernel_is_compiled_anew_where_a_count_stops_being_a_multiple_of_16():
    """Triton makes another variant for each divisibility of an argument, tensors' addresses aside: all are aligned."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    made = subprocess.run(
        [sys.executable, "-"], input=SPECIALIZED, env=environment, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines() == [
        "rotate query key cos sin",
        "add_norm rows others weight bias eps",  # eps is no integer
        "maxsim queries documents ends chunk_grains chunk_documents out",
    ]


COMPILE = """
import re, sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from evalkit.kernels.gpu import tensor_core
from evalkit.kernels.gpu.pieces import GRAIN, dim_parts
from evalkit.kernels.gpu.triton_kernel import maxsim

for dim in (64, 96, 128, 384):
    for tiling in tensor_core.tilings(dim, piece=16):
        rows, warps, stages = tiling
        dim0, dim1, dim2 = dim_parts(dim)
        constants = dict(dim=dim, dim0=dim0, dim1=dim1, dim2=dim2, rows=rows, piece=16, grain=GRAIN, warps=warps,
                         stages=stages)
        types = dict(queries="*fp16", documents="*fp16", ends="*i32", chunk_grains="*i64", chunk_documents="*i64",
                     out="*fp32", out_stride="i64", **dict.fromkeys(constants, "constexpr"))
        names = list(types)
        aligned = {(place,): [["tt.divisibility", 16]] for place in range(6)}
        source = ASTSource(maxsim, types, {(names.index(name),): value for name, value in constants.items()}, aligned)
        made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
        ptx, sass = made.asm["ptx"], made.asm["sass"]
        print(dim, *tiling, made.metadata.shared, tiling.shared_bytes(dim), ptx.count("wgmma.mma_async"),
              ptx.count("cp.async.cg"), len(re.findall(r"\\b(?:STL|LDL)\\b", sass)))
"""


def test_the_kernel_compiles_for_hopper_with_tensor_cores_and_without_spills():
    """Triton needs no GPU to compile; registers that spill show as local loads and stores in the machine code."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    made = subprocess.run(
        [sys.executable, "-"], input=COMPILE, env=environment, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    lines = [[int(word) for word in line.split()] for line in made.stdout.splitlines()]
    assert {line[0] for line in lines} == {64, 96, 128, 384}
    for dim, _rows, _warps, _stages, shared_bytes, counted_bytes, products, copies, spills in lines:
        assert shared_bytes <= counted_bytes <= tensor_core.HOPPER_SHARED_BYTES
        assert products >= dim // 16  # one wgmma instruction per 16 numbers of a vector, so none for a dim's padding
        assert copies > 0  # tiles are copied ahead, asynchronously
        assert spills == 0
