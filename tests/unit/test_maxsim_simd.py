"""The vector-unit kernel: every length and shape against the definition, garbage in its outputs, narrower registers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evalkit.errors import ConfigError
from evalkit.kernels import trouble
from evalkit.kernels.cpu import fixed_point, registers, simd
from evalkit.maxsim import bounds, choice, rescore
from evalkit.ragged import ragged

CPU = torch.device("cpu")
needs_units = pytest.mark.skipif(not registers.available(), reason="no AVX2, or numba cannot compile for it")
needs_processor = pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx2"), reason="the processor has no AVX2")
needs_pairs = pytest.mark.skipif(not registers.multiplies_pairs(), reason="the processor has no AVX-512 VNNI")


def texts(lengths, *, dim, seed, dtype=torch.float16):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(sum(lengths), dim, generator=generator), dim=1)
    return ragged(vectors.to(dtype), torch.tensor(lengths))


def every_pair(queries, documents):
    pairs = torch.cartesian_prod(*(torch.arange(len(side.offsets_N) - 1) for side in (queries, documents)))
    return pairs[:, 0], pairs[:, 1]


@needs_units
@pytest.mark.parametrize("dim", [1, 4, 30, 64, 96, 128, 384])
def test_documents_and_queries_of_every_small_length_are_scored_as_by_the_definition(dim):
    queries = texts([1, 2, 31, 32, 33, 64, 65, 130], dim=dim, seed=1)
    documents = texts([*range(1, 26), 300], dim=dim, seed=2)
    pairs = every_pair(queries, documents)
    wanted_H = rescore.exact_scores(queries, documents, *pairs)
    assert torch.equal(simd.exact_scores(queries, documents, *pairs), wanted_H)
    assert torch.allclose(simd.scores(queries, documents).flatten(), wanted_H, atol=1e-4)


@needs_pairs
@pytest.mark.parametrize("dim", [1, 5, 30, 64, 96, 128, 384])
def test_products_of_whole_numbers_are_exact_for_every_small_length(dim):
    queries = texts([1, 2, 31, 32, 33, 64, 65, 130], dim=dim, seed=1)
    documents = texts([*range(1, 26), 300], dim=dim, seed=2)
    scale, scale_Y = 30_000.0, fixed_point.scales(bounds.norms(queries.rows_XD))
    query_YD = fixed_point.rounded(queries.rows_XD, scale_Y.unsqueeze(1)).double()
    document_XD = fixed_point.rounded(documents.rows_XD, scale).double()
    best = [
        (query_YD @ document_TD.T).amax(1) for document_TD in document_XD.split(documents.offsets_N.diff().tolist())
    ]
    best_NY = torch.stack(best) / (scale_Y.double() * scale)
    wanted_QN = torch.stack([part.sum(1) for part in best_NY.split(queries.offsets_N.diff().tolist(), dim=1)])
    got_QN = simd.fixed_point_scores(queries, documents, scale_Y=scale_Y, scale=scale)
    assert torch.allclose(got_QN.double(), wanted_QN, rtol=2**-23, atol=1e-12)


@needs_pairs
def test_sixteen_bits_nominate_where_the_processor_multiplies_them_twice_as_fast():
    documents = texts([4, 2], dim=8, seed=1)
    automatic, named, fp32 = (
        choice.bind("auto", documents, device=CPU, precision=precision).error_bound(documents).tolist()
        for precision in ("auto", "int16", "float32")
    )
    assert automatic == named
    assert named != fp32


@needs_units
def test_negative_similarities_are_not_lost_to_the_panels_filling():
    queries, documents = texts([3], dim=8, seed=3), texts([2, 7], dim=8, seed=4)
    documents = documents._replace(rows_XD=-queries.rows_XD[:1].expand(9, 8))
    queries = ragged(queries.rows_XD[:1], torch.tensor([1]))
    assert simd.scores(queries, documents).max() < -0.99
    assert simd.exact_scores(queries, documents, *every_pair(queries, documents)).max() < -0.99


@needs_units
def test_whatever_the_output_held_before_leaves_no_trace(monkeypatch):
    queries, documents = texts([5, 40], dim=16, seed=5), texts([3, 9, 20], dim=16, seed=6)
    wanted = simd.scores(queries, documents).clone()
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **more: empty(*size, **more).fill_(torch.nan))
    assert torch.equal(simd.scores(queries, documents), wanted)
    assert not simd.exact_scores(queries, documents, *every_pair(queries, documents)).isnan().any()


@needs_units
def test_no_pairs_give_no_scores():
    none_H = torch.zeros(0, dtype=torch.int64)
    assert simd.exact_scores(texts([4], dim=16, seed=1), texts([5], dim=16, seed=2), none_H, none_H).tolist() == []


NARROW = """
import torch
torch.cpu.get_capabilities = lambda: {"avx2": True}
from test_maxsim_simd import every_pair, registers, rescore, simd, texts
from evalkit.kernels.cpu import simd_kernel
assert simd_kernel.PANEL_REGISTERS == 2
assert not registers.multiplies_pairs()
queries, documents = texts([1, 8, 9, 40], dim=96, seed=1), texts([1, 2, 5, 6, 7, 30], dim=96, seed=2)
pairs = every_pair(queries, documents)
wanted = rescore.exact_scores(queries, documents, *pairs)
assert torch.equal(simd.exact_scores(queries, documents, *pairs), wanted)
assert torch.allclose(simd.scores(queries, documents).flatten(), wanted, atol=1e-4)
"""


@needs_units
def test_processors_with_avx2_alone_are_served_by_narrower_tiles(tmp_path):
    environment = {**os.environ, "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+avx"}
    environment |= {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", NARROW], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@needs_pairs
def test_whole_numbers_are_left_alone_where_numba_compiles_for_a_lesser_processor():
    environment = {**os.environ, "NUMBA_CPU_NAME": "skylake-avx512", "NUMBA_CPU_FEATURES": "+avx512f,+avx2,+fma"}
    program = """
from evalkit.kernels.cpu import registers
assert registers.available() and not registers.multiplies_pairs()
"""
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_precision_that_cannot_be_had_is_refused_with_the_remedy(monkeypatch):
    documents = texts([4, 2], dim=8, seed=1)
    with pytest.raises(ConfigError, match=r"nominate=int16: .*maxsim=packed, wanted .*; use engine\.nominate=auto"):
        choice.bind("packed", documents, device=CPU, precision="int16")
    monkeypatch.setattr(registers, "multiplies_pairs", lambda: False)
    with pytest.raises(ConfigError, match=r"engine\.nominate=int16: got device cpu .*wanted a CPU with AVX-512 VNNI"):
        choice.bind("auto", documents, device=CPU, precision="int16")
    if registers.available():
        with pytest.raises(ConfigError, match=r"got engine\.maxsim=simd, which has float32 and int16; use .*packed"):
            choice.bind("simd", documents, device=CPU, precision="bfloat16")


def test_a_processor_without_the_units_is_told_so_and_served_by_another_kernel(monkeypatch):
    monkeypatch.setattr(registers, "available", lambda: False)
    monkeypatch.setattr(simd, "problem", lambda: "")
    documents = texts([4, 2], dim=8, seed=1)
    with pytest.raises(ConfigError, match=r"engine\.maxsim=simd: got device cpu, wanted a CPU with AVX2 or AVX-512"):
        choice.bind("simd", documents, device=CPU)
    kernel = choice.bind("auto", documents, device=CPU)
    assert kernel.name == "packed"
    assert torch.equal(
        kernel.exact_scores(documents, *every_pair(documents, documents)),
        rescore.exact_scores(documents, documents, *every_pair(documents, documents)),
    )


@pytest.mark.parametrize("outcome", ["raises", "is wrong"])
def test_kernels_that_do_not_work_are_reported_once_and_replaced_by_torch(monkeypatch, caplog, outcome):
    def right():
        if outcome == "raises":
            raise OSError("LLVM cannot select\nvpdpwssd")
        return False

    monkeypatch.setattr(registers, "available", lambda: True)
    monkeypatch.setattr(registers, "problem", lambda: "")
    monkeypatch.setattr(simd, "problem", lambda: registers.trial_problem("the kernels", right))
    trouble.warn_once.cache_clear()
    documents = texts([4, 2], dim=8, seed=1)
    assert {choice.bind("auto", documents, device=CPU).name for _ in range(2)} == {"packed"}
    reason = {"raises": "OSError: LLVM cannot select", "is wrong": "they give wrong values here"}[outcome]
    wanted = f"the kernels are not used: {reason}; torch's own calls are used instead"
    assert [record.getMessage() for record in caplog.records] == [wanted]
    with pytest.raises(ConfigError, match=r"engine\.maxsim=simd: got the kernels are not used: .* use engine"):
        choice.bind("simd", documents, device=CPU)


SWITCHED_OFF = """
import json
from evalkit.kernels.cpu import registers
from evalkit.kernels.cpu import simd
from evalkit.models import attention
print(json.dumps([registers.available(), registers.problem(), simd.problem(), attention.kernel_problem()]))
"""


@needs_processor
@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"NUMBA_DISABLE_JIT": "1"}, "numba's compiler is off (NUMBA_DISABLE_JIT)"),
        ({"NUMBA_CPU_NAME": "generic"}, "numba compiles for a processor without avx2, fma"),
    ],
    ids=["no compiler", "generic processor"],
)
def test_what_numba_will_not_compile_is_left_alone_and_said(setting, reason):
    command = [sys.executable, "-c", SWITCHED_OFF]
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("NUMBA_DISABLE_JIT", "NUMBA_CPU_NAME")
    }
    ran = subprocess.run(command, env=inherited | setting, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    available, problem, of_maxsim, of_attention = json.loads(ran.stdout)
    assert not available
    assert problem.startswith(reason)
    assert of_maxsim == (
        f"the vector-unit kernels of MaxSim are not used: {problem}; torch's own calls are used instead"
    )
    assert of_attention.startswith(f"the vector-unit kernels of attention are not used: {reason}")


UNWRITABLE = """
import os
from pathlib import Path
from evalkit.kernels.cpu import registers
from evalkit.kernels.cpu import simd
assert simd.problem() == "", simd.problem()
print(os.environ["NUMBA_CACHE_DIR"], len(list(Path(os.environ["NUMBA_CACHE_DIR"]).rglob("*.nbi"))))
"""


@needs_units
def test_without_a_folder_that_can_be_written_kernels_are_compiled_into_one_that_goes_with_the_process():
    """Of numba's ways to find a folder only that of NUMBA_CACHE_DIR is left, and that is not set."""
    inherited = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment = {**inherited, "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    command = [sys.executable, "-c", UNWRITABLE]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    folder, compiled = ran.stdout.split()
    assert int(compiled) >= 2
    assert not Path(folder).exists()
