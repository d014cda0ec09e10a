"""Vectors and scores do not depend on what the calling process or its environment lets torch round."""

import dataclasses
import threading
from contextlib import contextmanager, nullcontext

import pytest
import torch
from checkpoints import write_colbertv2, write_jina_reranker

from evalkit.config.compose import compose
from evalkit.config.settings import CheckpointSource, RerankerConfig
from evalkit.errors import DeviceError
from evalkit.kernels.fp32 import full_precision, require_full_precision
from evalkit.maxsim import choice
from evalkit.models.encoder import checkpoints, load_encoders
from evalkit.models.reranker import load_reranker
from evalkit.ragged import ragged

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@contextmanager
def medium():
    """A program that asks torch for speed, as Lightning advises."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@contextmanager
def autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


@contextmanager
def tf32():
    """A program that uses torch's older flag."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def settings():
    cuda = torch.backends.cuda.matmul
    return torch.backends.mkldnn.matmul.fp32_precision, cuda.fp32_precision, cuda.allow_fp16_accumulation


@pytest.mark.parametrize("around", [nullcontext, medium, autocast, tf32])
@pytest.mark.parametrize("device", [CPU, CUDA])
def test_products_have_full_precision_and_the_programs_own_setting_comes_back(around, device):
    rows, weight = torch.randn(64, 384), torch.randn(384, 384)
    wanted = rows @ weight
    with around():
        before = settings(), torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32
        with full_precision(device):
            assert settings() == ("ieee", "ieee", False)
            assert not torch.backends.cuda.matmul.allow_tf32  # raises if it contradicts the others, also in cuBLAS
            if device == CPU:
                assert torch.equal(rows @ weight, wanted)
        assert (settings(), torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32) == before


@pytest.mark.parametrize("around", [medium, autocast])
def test_vectors_are_the_same_bits_inside_a_program_that_rounds(around, tmp_path):
    wanted = vectors(tmp_path)
    with around():
        assert torch.equal(vectors(tmp_path), wanted)


def vectors(folder):
    write_colbertv2(folder, dim=16)
    model = compose(["model=colbertv2"]).model
    source = dataclasses.replace(next(iter(model.checkpoints.values())), path=str(folder))
    model = dataclasses.replace(model, checkpoints={"16": source})
    (encoder,) = load_encoders(model, checkpoints(model, model.dims), device=CPU)
    tokens = encoder.tokenize_documents(["hello world", "a b c", "the the a . b , hello " * 12])
    return encoder.vectors(encoder.batch(tokens, skip_punctuation=True))[16][0]


@pytest.mark.parametrize("around", [medium, autocast])
def test_a_rerankers_scores_are_the_same_inside_a_program_that_rounds(around, tmp_path):
    source = CheckpointSource(path=str(write_jina_reranker(tmp_path / "m")))
    config = RerankerConfig(name="fixture", checkpoint=source, max_tokens=64, dtype="float32")
    reranker = load_reranker(config, device=CPU)
    pairs = reranker.pairs("hello", ["hello world", "a b c"])
    wanted = reranker.scores(pairs)
    with around():
        assert reranker.scores(pairs) == wanted


@pytest.mark.parametrize("kernel", ["packed", "auto"])
def test_scores_stay_within_their_bound_inside_a_program_that_rounds(kernel):
    texts = [torch.nn.functional.normalize(torch.randn(length, 64), dim=-1) for length in (3, 9, 30)]
    documents = queries = ragged(torch.cat(texts), torch.tensor([3, 9, 30]))
    wanted_QN = torch.stack([torch.stack([(q.double() @ d.double().T).amax(1).sum() for d in texts]) for q in texts])
    with medium():
        bound = choice.bind(kernel, documents, device=CPU)
        error_QN = (bound.scores(queries).double() - wanted_QN).abs()
        assert (error_QN <= bound.error_bound(queries).unsqueeze(1)).all()


def test_threads_that_encode_share_the_setting_and_a_thread_that_rounds_waits_for_them():
    order = []
    encoding, rounding = threading.Event(), threading.Event()

    def encode():
        with full_precision(CPU):
            encoding.set()
            assert rounding.wait(60)
            order.append(("encodes", settings()[0]))

    def nominate():
        rounding.set()
        with full_precision(CPU, rounded_to_bf16=True):
            order.append(("nominates", settings()[0]))

    with full_precision(CPU):
        threads = [threading.Thread(target=target) for target in (encode, nominate)]
        threads[0].start()
        assert encoding.wait(60)  # a second thread encodes while this one does
        threads[1].start()
        threads[0].join()
        order.append(("encodes", settings()[0]))
    threads[1].join()
    assert order == [("encodes", "ieee"), ("encodes", "ieee"), ("nominates", "bf16")]


def test_a_thread_that_would_wait_for_itself_is_told():
    with full_precision(CPU), pytest.raises(RuntimeError, match="needs the setting 'ieee' cannot also have 'bf16'"):
        full_precision(CPU, rounded_to_bf16=True).__enter__()
    assert settings()[0] != "bf16"


def test_threads_that_share_a_gpu_restore_its_setting_when_the_last_one_leaves():
    with medium():
        before = settings()
        first, second = full_precision(CUDA), full_precision(CUDA)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert settings()[1] == "ieee"
        second.__exit__(None, None, None)
        assert settings() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("ONEDNN_DEFAULT_FPMATH_MODE", "BF16"), ("DNNL_DEFAULT_FPMATH_MODE", "any"), ("NVIDIA_TF32_OVERRIDE", "1")],
)
def test_a_variable_that_rounds_is_refused_before_anything_is_computed(name, value, monkeypatch, tmp_path):
    monkeypatch.setenv(name, value)
    for start in (lambda: choice.require("auto", CPU), lambda: vectors(tmp_path)):
        with pytest.raises(DeviceError) as caught:
            start()
        assert str(caught.value) == (
            f"{name}={value} rounds the inputs of fp32 matrix products, so that scores would differ; unset it, or use "
            "model.dtype=bfloat16, which the results name"
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [("ONEDNN_DEFAULT_FPMATH_MODE", "strict"), ("DNNL_DEFAULT_FPMATH_MODE", ""), ("NVIDIA_TF32_OVERRIDE", "0")],
)
def test_a_variable_that_asks_for_full_precision_is_accepted(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    require_full_precision()


def test_another_default_type_is_refused():
    torch.set_default_dtype(torch.bfloat16)
    try:
        with pytest.raises(DeviceError, match=r"got torch.get_default_dtype\(\) torch.bfloat16, wanted torch.float32"):
            require_full_precision()
    finally:
        torch.set_default_dtype(torch.float32)
