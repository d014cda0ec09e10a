"""RoPE, residuals and norms in one pass: in Triton's interpreter on the CPU, and on a GPU where there is one."""

import copy
import dataclasses
import logging
import os
import subprocess
import sys

import pytest
import torch
from checkpoints import write_jina_checkpoint
from rich.console import Console
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertModel
from transformers.activations import ACT2FN

from evalkit.config.compose import compose
from evalkit.config.settings import CheckpointSource
from evalkit.kernels.cpu import linear
from evalkit.models import attention, elementwise
from evalkit.models.encoder import checkpoints, load_encoders
from evalkit.run import pipeline

pytest.importorskip("triton")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DEVICE = CUDA if torch.cuda.is_available() else CPU
HALF_UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""The largest error of one rounding, as a share of the number."""
DIM = 16
TEXTS = ["hello world", "the the a . b , hello", "", "b a c"]
"""Few words: the interpreter takes about 10 ms for each token of each layer."""


def drawn(seed, *shape, dtype=torch.float32, scale=1.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def tables(seed, *shape, dtype):
    """Cosines and sines as RoPE of two halves has them: every angle twice."""
    angles = torch.cat([drawn(seed, *shape, scale=3.0)] * 2, dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def close(ours, wanted, *, dtype, slack):
    size = wanted.abs().clamp(min=1.0)
    return bool(((ours.double().cpu() - wanted).abs() <= slack * HALF_UNIT[dtype] * size).all())


@pytest.mark.parametrize("dtype", HALF_UNIT)
@pytest.mark.parametrize(("heads", "width"), [(16, 64), (12, 64), (3, 8), (1, 2)])
def test_rope_in_place_is_its_definition_rounded_once(heads, width, dtype):
    query, key = (drawn(seed, 2, 5, heads, width, dtype=dtype) for seed in (1, 2))
    cos, sin = tables(3, 2, 5, width // 2, dtype=dtype)
    wanted = [elementwise.reference_rotated(part.double(), cos.double(), sin.double()) for part in (query, key)]
    ours = [part.to(DEVICE) for part in (query, key)]
    elementwise.rotate_in_place(*ours, cos.to(DEVICE), sin.to(DEVICE))
    assert all(close(one, other, dtype=dtype, slack=4) for one, other in zip(ours, wanted, strict=True))


def test_one_table_of_angles_serves_every_text_of_a_padded_batch():
    query, key = (drawn(seed, 3, 4, 2, 8) for seed in (1, 2))
    cos, sin = tables(3, 1, 4, 4, dtype=torch.float32)
    alone = [(query[row : row + 1].clone(), key[row : row + 1].clone()) for row in range(3)]
    elementwise.rotate_in_place(query, key, cos, sin)
    for row, (own_query, own_key) in enumerate(alone):
        elementwise.rotate_in_place(own_query, own_key, cos, sin)
        assert torch.equal(query[row], own_query[0])
        assert torch.equal(key[row], own_key[0])


@pytest.mark.parametrize("dtype", HALF_UNIT)
@pytest.mark.parametrize("width", [1024, 384, 40])
def test_a_residual_and_its_norm_are_those_of_float64_rounded_once(width, dtype):
    rows, others = (drawn(seed, 2, 3, width, dtype=dtype) + 2 for seed in (1, 2))
    norm = nn.LayerNorm(width, eps=1e-5, dtype=dtype)
    norm.load_state_dict({"weight": drawn(3, width, dtype=dtype), "bias": drawn(4, width, dtype=dtype)})
    exact = nn.LayerNorm(width, eps=1e-5, dtype=torch.float64)
    exact.load_state_dict(norm.state_dict())
    with torch.inference_mode():
        wanted = exact(rows.double() + others.double())
        ours = elementwise.add_and_norm(rows.to(DEVICE), others.to(DEVICE), norm.to(DEVICE))
    # fp32 rounds the sums too; Triton's interpreter cuts bf16 where a GPU rounds it.
    slack = {torch.float32: 40, torch.float16: 1.01, torch.bfloat16: 1.01 if DEVICE == CUDA else 2.01}
    assert close(ours, wanted, dtype=dtype, slack=slack[dtype])


def test_a_row_is_normed_to_the_same_bits_whatever_rows_are_beside_it():
    rows, others, norm = drawn(1, 9, 40), drawn(2, 9, 40), nn.LayerNorm(40).requires_grad_(requires_grad=False)
    alone = torch.cat(
        [
            elementwise.add_and_norm(rows[place : place + 1].clone(), others[place : place + 1], norm)
            for place in range(9)
        ]
    )
    assert torch.equal(elementwise.add_and_norm(rows, others, norm), alone)


def feed_forward(seed, *, width, between, dtype):
    parts = [nn.Linear(width, between, dtype=dtype), elementwise.GeluInPlace(), nn.Linear(between, width, dtype=dtype)]
    block = nn.Sequential(*parts)
    block.load_state_dict(
        {
            name: drawn(seed + place, *tensor.shape, dtype=dtype, scale=0.1)
            for place, (name, tensor) in enumerate(block.state_dict().items())
        }
    )
    return block


@pytest.mark.parametrize("dtype", HALF_UNIT)
def test_a_feed_forward_in_slices_is_float64s_whatever_the_last_slice_has(monkeypatch, dtype):
    monkeypatch.setattr(elementwise, "SLICE_BYTES", 96 * dtype.itemsize)
    monkeypatch.setattr(elementwise, "MIN_SLICE_ROWS", 1)  # 4 rows a slice: 4, 4 and 2
    block, norm = feed_forward(1, width=16, between=24, dtype=dtype), nn.LayerNorm(16, dtype=dtype)
    hidden = drawn(9, 2, 5, 16, dtype=dtype)
    exact, total = copy.deepcopy(block).double(), hidden.double()
    exact[1], exact_norm = nn.GELU(), copy.deepcopy(norm).double()
    heights = []
    block.register_forward_hook(lambda _block, given, _out: heights.append(len(given[0])))
    with torch.inference_mode():
        wanted = exact_norm(total + exact(total))
        ours = elementwise.in_slices(hidden.to(DEVICE), block.to(DEVICE), norm.to(DEVICE), width=24)
    assert heights == [4, 4, 2]
    # The rows between the products are rounded twice, their sum's share of the norm's input once.
    assert close(ours, wanted, dtype=dtype, slack=8 if dtype != torch.float32 else 60)


def test_gelu_in_place_is_its_definition_and_no_approximation():
    rows = torch.linspace(-6, 6, 2001)
    wanted = rows.double() * torch.special.ndtr(rows.double())
    ours = elementwise.GeluInPlace()(given := rows.clone())
    assert ours is given
    assert (ours.double() - wanted).abs().max() < 1e-6
    assert (functional.gelu(rows, approximate="tanh").double() - wanted).abs().max() > 1e-4
    assert linear.is_gelu(ACT2FN["gelu"])
    assert linear.is_gelu(nn.GELU())
    assert not any(map(linear.is_gelu, (ACT2FN["gelu_new"], ACT2FN["relu"], nn.GELU(approximate="tanh"))))


def jina(folder, **changes):
    write_jina_checkpoint(folder, dim=DIM)
    model = compose(["model=jina-colbert-v2"]).model
    source = CheckpointSource(path=str(folder))
    return dataclasses.replace(model, dtype="float32", checkpoints={str(DIM): source}, verify=False, **changes)


@pytest.mark.parametrize("path", ["sdpa", "varlen"])
def test_jina_colbert_v2_has_the_same_vectors_by_the_kernels_as_by_torchs_own_calls(tmp_path, path):
    model = jina(tmp_path / "m")
    found = checkpoints(model, (DIM,))
    ours, wanted = (
        load_encoders(model, found, device=CPU, attention=path, elementwise=choice)[0] for choice in ("triton", "torch")
    )
    assert sum(isinstance(part, elementwise.FusedLayer) for part in ours.module.modules()) == 2
    assert not any(isinstance(part, elementwise.FusedLayer) for part in wanted.module.modules())
    assert {name for name, _ in linear.weights(ours.module)} == {name for name, _ in linear.weights(wanted.module)}
    for side, given in (("queries", TEXTS[:1]), ("documents", TEXTS)):
        texts = getattr(ours, f"tokenize_{side}")(given)
        got, of_torch = (
            encoder.vectors(encoder.batch(texts, skip_punctuation=side == "documents"))[DIM][0]
            for encoder in (ours, wanted)
        )
        assert (got - of_torch).abs().max() < 2e-6


def test_a_padded_batch_with_a_mask_goes_the_same_way(tmp_path):
    """On CUDA in fp32 transformers' own attention takes the mask; on a CPU evalkit's kernel has none."""
    model = jina(tmp_path / "m")
    found = checkpoints(model, (DIM,))
    (encoder,) = load_encoders(model, found, device=CPU, elementwise="torch")
    batch = encoder.batch(encoder.tokenize_documents(TEXTS), skip_punctuation=False)
    given = {"input_ids": batch.ids_BT, "attention_mask": batch.attended_BT}
    with torch.inference_mode():
        wanted = encoder.module(**given).last_hidden_state.clone()
        elementwise.fuse(encoder.module)
        ours = encoder.module(**given).last_hidden_state
    assert (ours - wanted)[batch.attended_BT].abs().max() < 2e-6


def test_berts_residual_blocks_are_fused_with_the_same_result():
    torch.manual_seed(0)
    shape = BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48)
    module = BertModel(shape, add_pooling_layer=False).eval()
    ids = torch.arange(14).view(2, 7)
    with torch.inference_mode():
        wanted = module(input_ids=ids).last_hidden_state.clone()
        elementwise.fuse(module)
        ours = module(input_ids=ids).last_hidden_state
    assert sum(isinstance(part, elementwise.FusedResidual) for part in module.modules()) == 4
    assert sum(isinstance(part, elementwise.GeluInPlace) for part in module.modules()) == 2
    assert (ours - wanted).abs().max() < 2e-6


@pytest.fixture
def fresh(caplog):
    caches = (elementwise.probe, attention.warn_once)
    for cached in caches:
        cached.cache_clear()
    caplog.set_level(logging.WARNING)
    yield caplog
    for cached in caches:
        cached.cache_clear()


def model(name="demo", **changes):
    return dataclasses.replace(compose([f"model={name}"]).model, **changes)


def test_auto_leaves_the_cpu_and_other_backbones_to_torch(fresh, monkeypatch):
    monkeypatch.setattr(elementwise, "probe", lambda device, dtype: "")
    cases = [
        ("auto", model(), CPU, False),
        ("auto", model(), CUDA, True),
        ("auto", model("colbertv2"), CUDA, True),
        ("torch", model(), CUDA, False),
        ("auto", model("jina-colbert-v1-en"), CUDA, False),
        ("auto", model("colbert-xm"), CUDA, False),
        ("triton", model(trust_remote_code=True), CUDA, False),
    ]
    for asked, config, device, fused in cases:
        assert elementwise.choose(asked, config=config, device=device) == (fused, "")
    assert not fresh.records


def test_kernels_that_work_here_are_taken(fresh):
    assert elementwise.choose("triton", config=model(), device=DEVICE) == (True, "")
    assert elementwise.choose("triton", config=model(dtype="bfloat16"), device=DEVICE) == (True, "")


@pytest.mark.parametrize("part", ["rotate_in_place", "add_and_norm"])
def test_kernels_with_wrong_values_are_not_taken(fresh, monkeypatch, part):
    def wrong(rows, *others):
        return rows * float("nan") if part == "add_and_norm" else None

    monkeypatch.setattr(elementwise, part, wrong)
    for _ in range(2):
        fused, problem = elementwise.choose("triton", config=model(), device=DEVICE)
        assert not fused
        assert problem.startswith("Triton's elementwise kernels give wrong values here (off by ")
    assert [record.getMessage() for record in fresh.records] == [problem]


def test_kernels_that_cannot_be_compiled_are_not_taken(fresh, monkeypatch):
    def broken(*parts):
        raise RuntimeError("no C compiler\nand more")

    monkeypatch.setattr(elementwise, "rotate_in_place", broken)
    fused, problem = elementwise.choose("triton", config=model(), device=DEVICE)
    reason = "unusable here (RuntimeError: no C compiler); torch's own calls are used instead"
    assert (fused, problem) == (False, f"Triton's elementwise kernels are {reason}")


def test_without_triton_torch_does_it_and_the_package_is_named(fresh, monkeypatch):
    monkeypatch.setattr(elementwise.importlib.util, "find_spec", lambda name: None)
    fused, problem = elementwise.choose("auto", config=model(), device=CUDA)
    assert not fused
    assert problem.startswith("Triton's elementwise kernels need the package triton, which is not installed; torch's")


SMALL = ["dataset.demo.documents=150", "dataset.demo.queries=50", "dim=64"]


def test_a_run_records_which_of_them_it_had_and_what_was_given_up(fresh, tmp_path, monkeypatch):
    words = [*SMALL, f"results_dir={tmp_path / 'r'}", f"cache_dir={tmp_path / 'c'}"]
    monkeypatch.setattr(elementwise, "probe", lambda device, dtype: "the kernels are broken")
    (cell,) = pipeline.run(compose([*words, "engine.elementwise=triton"]), console=Console(quiet=True))
    assert "elementwise" not in cell.protocol
    assert cell.environment["elementwise_given_up"] == "the kernels are broken; torch's own calls are used instead"
    monkeypatch.setattr(elementwise, "probe", lambda device, dtype: "")
    monkeypatch.setattr("evalkit.models.encoder.fuse", lambda module: None)  # the interpreter takes minutes
    (other,) = pipeline.run(compose([*words, "engine.elementwise=triton"]), console=Console(quiet=True))
    assert other.protocol["elementwise"] == "triton"
    assert other.run_id != cell.run_id
    assert "elementwise_given_up" not in other.environment


def test_packed_attention_is_handed_the_rotated_heads(tmp_path, monkeypatch):
    """What reaches the attention kernels is contiguous and rotated: theirs is the layout [X, A, K]."""
    model = jina(tmp_path / "m")
    (encoder,) = load_encoders(model, checkpoints(model, (DIM,)), device=CPU, attention="varlen", elementwise="triton")
    seen = []
    real = attention.packed_attention

    def watched(query_XAK, *others, **options):
        seen.append(query_XAK.is_contiguous())
        return real(query_XAK, *others, **options)

    monkeypatch.setattr(attention, "packed_attention", watched)
    encoder.vectors(encoder.batch(encoder.tokenize_documents(TEXTS), skip_punctuation=False))
    assert seen == [True, True]


COMPILE = """
import re
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from evalkit.models.elementwise import warps
from evalkit.kernels.gpu.elementwise_kernel import add_norm, rotate

shared = {"eps": "fp32", "period": "i32"}
cases = [
    (rotate, {"heads": 16, "half": 32, "head_block": 16, "half_block": 32}),
    (rotate, {"heads": 12, "half": 32, "head_block": 16, "half_block": 32}),
    (add_norm, {"width": 1024, "block": 1024}),
    (add_norm, {"width": 768, "block": 1024}),
]
for kind in ("bf16", "fp16", "fp32"):
    for kernel, constants in cases:
        types = {name: "constexpr" if name in constants else shared.get(name, f"*{kind}") for name in kernel.arg_names}
        names = list(types)
        aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in names if types[name].startswith("*")}
        values = {(names.index(name),): value for name, value in constants.items()}
        numbers = constants.get("block") or constants["head_block"] * constants["half_block"]
        options = {"num_warps": warps(numbers)}
        made = compile(ASTSource(kernel, types, values, aligned), target=GPUTarget("cuda", 90, 32), options=options)
        sass = made.asm["sass"]
        wide = [len(re.findall(rf"\\b{name}\\.E\\S*\\.128\\b", sass)) for name in ("LDG", "STG")]
        print(kind, kernel.__name__, *wide, len(re.findall(r"\\b(?:STL|LDL)\\b", sass)))
"""


def test_the_kernels_compile_for_hopper_with_wide_loads_and_without_spills():
    """Triton needs no GPU to compile; registers that spill show as local loads and stores in the machine code."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    made = subprocess.run(
        [sys.executable, "-"], input=COMPILE, env=environment, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    lines = [line.split() for line in made.stdout.splitlines()]
    assert len(lines) == 12
    for _kind, _kernel, loads, stores, spills in lines:
        assert int(loads) >= 2
        assert int(stores) >= 1
        assert int(spills) == 0
