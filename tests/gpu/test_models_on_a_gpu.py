"""Encoders on a GPU against padded fp32 on the CPU: packed attention and fused elementwise work, every architecture."""

import importlib.util
import sys

import pytest
import torch
from checkpoints import FAMILIES
from gpu_device import CPU, DEVICE, ON_GPU, invented, loaded, needs_gpu

from evalkit.kernels.cpu import linear
from evalkit.models import attention, elementwise
from evalkit.run.encode import Encoding, encode

pytestmark = pytest.mark.gpu
TEXTS = ["", *invented(300 if ON_GPU else 12), "hello " * 250]
FEW = TEXTS if ON_GPU else TEXTS[:4]
"""Where every token of every layer is interpreted."""
HALF = {"float32": 5e-3, "float16": 5e-2, "bfloat16": 0.2}
"""How far a unit vector of a small random model may be from its fp32 one; on a CPU the worst are .027 and .136."""


def vectors(encoder, *, of=TEXTS, **options):
    ids = [str(place) for place in range(len(of))]
    texts = encoder.tokenize_documents(of)
    encoding = Encoding(documents=True, batch_tokens=4096, storage=torch.float32, **options)
    (shard,) = encode(ids, texts, encoder, encoding).values()
    return shard.vectors.rows_XD.cpu().float()


def apart(ours, wanted):
    assert ours.shape == wanted.shape
    return float((ours - wanted).norm(dim=1).max())


@pytest.mark.parametrize("dtype", HALF if ON_GPU else ["float32"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_architecture_has_the_cpus_vectors(name, dtype, tmp_path):
    wanted = vectors(loaded(name, tmp_path / "m", device=CPU, dtype="float32"))
    encoder = loaded(name, tmp_path / "m", device=DEVICE, dtype=dtype)
    assert apart(vectors(encoder), wanted) < HALF[dtype]
    resident = vectors(encoder, resident=True)
    assert torch.equal(resident, vectors(encoder))


@pytest.mark.parametrize("path", ["varlen", "flash"])
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_attention_is_no_further_from_fp32_than_padded_half_precision(name, path, tmp_path):
    if path == "flash" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    dtype = "bfloat16" if ON_GPU else "float32"
    wanted = vectors(loaded(name, tmp_path / "m", device=CPU, dtype="float32"))
    padded, packed = (
        loaded(name, tmp_path / "m", device=DEVICE, dtype=dtype, attention=one, elementwise="torch")
        for one in ("sdpa", path)
    )
    packs = name not in ("jina-colbert-v1-en", "jina-embeddings-v2-base-en")  # no packed kernel takes ALiBi
    assert packed.attention == (path if packs or not ON_GPU else "sdpa")
    assert apart(vectors(packed), wanted) <= 2 * apart(vectors(padded), wanted) + 1e-3


@pytest.mark.parametrize("dtype", HALF if ON_GPU else ["float32"])
@pytest.mark.parametrize("name", ["jina-colbert-v2", "colbertv2", "mdpr"])
def test_fused_elementwise_work_is_no_further_from_fp32_than_torchs_calls(name, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(elementwise, "SLICE_BYTES", 1)
    # The feed-forward goes in several slices, the last one partly full.
    monkeypatch.setattr(elementwise, "MIN_SLICE_ROWS", 100 if ON_GPU else 10)
    if not ON_GPU:  # on a CPU oneDNN's layers would take the place of those that are fused
        monkeypatch.setattr(linear, "use_onednn", lambda _module: None)
    wanted = vectors(loaded(name, tmp_path / "m", device=CPU, dtype="float32"), of=FEW)
    fused, of_torch = (
        loaded(name, tmp_path / "m", device=DEVICE, dtype=dtype, attention="sdpa", elementwise=one)
        for one in ("triton", "torch")
    )
    assert any(type(part).__name__.startswith("Fused") for part in fused.module.modules())
    assert apart(vectors(fused, of=FEW), wanted) <= 2 * apart(vectors(of_torch, of=FEW), wanted) + 1e-3


@needs_gpu
def test_the_fast_paths_are_taken_here(capsys):
    """What a run would give up on this machine, and why; printed, because a quiet fall-back would look like success."""
    problems = {dtype: elementwise.probe(DEVICE, dtype) for dtype in HALF}
    attentions = {path: attention.probe(path, DEVICE, "bfloat16") for path in ("varlen", "flash")}
    with capsys.disabled():  # to stderr, because pytest-xdist drops the stdout of its workers
        print(f"\nelementwise kernels: {problems}\npacked attention: {attentions}", file=sys.stderr)
        print(f"options of torch's packed attention: {dict(attention._varlen_options(DEVICE))}", file=sys.stderr)
        print(f"it takes a scale: {attention._varlen_takes_scale(DEVICE)}", file=sys.stderr)
    assert set(problems.values()) == {""}
    assert attentions["varlen"] == ""
