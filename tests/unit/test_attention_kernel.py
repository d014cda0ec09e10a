"""Attention on vector units against float64: every length, padding, company, what is not finite, narrow registers."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from evalkit.kernels import trouble
from evalkit.kernels.cpu import registers
from evalkit.models import attention
from evalkit.models.attention import Spans, padded_attention

pytestmark = pytest.mark.skipif(not registers.available(), reason="no AVX2, or numba cannot compile for it")


def heads_of(lengths, *, heads, width, seed, size=1.0, longest=None):
    """Random queries, keys and values [B, A, T, K]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), heads, longest or max(lengths), width)
    return [torch.randn(shape, generator=generator) * size for _ in range(3)]


def wanted_of(query, key, value, length, attended, scale):
    """One text's mixtures in float64 [T, A, K]."""
    query, key, value = query[:, :length].double(), key[:, :attended].double(), value[:, :attended].double()
    return functional.scaled_dot_product_attention(query, key, value, scale=scale).transpose(0, 1)


def spans_of(lengths, attended=None):
    return Spans(np.array(lengths), np.array(attended or lengths))


@pytest.mark.parametrize(("heads", "width"), [(1, 32), (3, 32), (2, 64), (1, 128)])
def test_texts_of_every_length_equal_float64_and_padding_gives_zeros(heads, width):
    lengths = [1, 2, 3, 11, 12, 13, 24, 25, 31, 32, 33, 63, 64, 65, 100, 130]
    parts = heads_of(lengths, heads=heads, width=width, seed=1)
    got = padded_attention(*parts, spans_of(lengths), scale=0.2)
    for text, length in enumerate(lengths):
        wanted = wanted_of(*(part[text] for part in parts), length, length, 0.2)
        assert (got[text, :length] - wanted).abs().max() < 4e-6
        assert not got[text, length:].any()


def test_ids_that_are_not_attended_to_attend_themselves():
    """Query masks of ColBERT: they give vectors, and no other id looks at them."""
    lengths, attended = [32, 32, 32, 5], [7, 1, 32, 4]
    parts = heads_of(lengths, heads=2, width=32, seed=2)
    got = padded_attention(*parts, spans_of(lengths, attended), scale=0.3)
    for text, (length, keys) in enumerate(zip(lengths, attended, strict=True)):
        wanted = wanted_of(*(part[text] for part in parts), length, keys, 0.3)
        assert (got[text, :length] - wanted).abs().max() < 4e-6


def test_what_lies_behind_a_text_does_not_reach_it():
    lengths = [9, 40]
    parts = heads_of(lengths, heads=2, width=32, seed=3)
    wanted = padded_attention(*parts, spans_of(lengths), scale=0.2)
    for part in parts:
        part[0, :, 9:] = torch.nan
    assert torch.equal(padded_attention(*parts, spans_of(lengths), scale=0.2), wanted)


def test_a_text_has_the_same_bits_in_whatever_company_and_width():
    lengths = [50, 7, 129]
    parts = heads_of(lengths, heads=2, width=32, seed=4)
    together = padded_attention(*parts, spans_of(lengths), scale=0.2)
    for text, length in enumerate(lengths):
        for width in (length, length + 1, 129):
            alone = [part[text : text + 1, :, :width] for part in parts]
            got = padded_attention(*alone, spans_of([length]), scale=0.2)
            assert torch.equal(got[0, :length], together[text, :length])


def test_what_is_not_finite_stays_in_its_text_and_is_not_lost():
    lengths = [20, 20, 20]
    parts = heads_of(lengths, heads=2, width=32, seed=5)
    wanted = padded_attention(*parts, spans_of(lengths), scale=0.2)
    parts[1][1, 0, 4, 3] = torch.nan
    got = padded_attention(*parts, spans_of(lengths), scale=0.2)
    assert got[1, :, 0].isnan().all()
    assert torch.equal(got[1, :, 1], wanted[1, :, 1])
    assert torch.equal(got[::2], wanted[::2])
    parts[1][1, 0, 4, 3] = torch.inf
    assert padded_attention(*parts, spans_of(lengths), scale=0.2)[1, :, 0].isnan().any()


@pytest.mark.parametrize("size", [1e-20, 30.0, 1e4])
def test_logits_of_any_size_give_float64s_mixtures(size):
    lengths = [3, 40, 90]
    query, key, value = heads_of(lengths, heads=2, width=32, seed=6)
    parts = [query * size, key, value]
    got = padded_attention(*parts, spans_of(lengths), scale=0.2)
    for text, length in enumerate(lengths):
        wanted = wanted_of(*(part[text] for part in parts), length, length, 0.2)
        assert (got[text, :length] - wanted).abs().max() < 4e-6 * max(1.0, size)


@pytest.mark.parametrize(
    ("backbone", "width", "dtype", "remote", "served"),
    [
        ("bert", 32, torch.float32, False, True),
        ("xmod", 64, torch.float32, False, True),
        ("jina_embeddings_v3", 64, torch.float32, False, True),
        ("bert", 24, torch.float32, False, False),
        ("bert", 32, torch.bfloat16, False, False),
        ("bert", 32, torch.float32, True, False),
        ("jina_bert", 32, torch.float32, False, False),
    ],
)
def test_the_kernel_serves_native_models_in_fp32_whose_heads_it_can_tile(backbone, width, dtype, remote, served):
    class Model(torch.nn.Module):
        config = type("Config", (), {"hidden_size": 3 * width, "num_attention_heads": 3})

    config = type("Config", (), {"backbone": backbone, "trust_remote_code": remote})
    assert attention.has_kernel(config, Model(), device=torch.device("cpu"), dtype=dtype) is served


NARROW = """
import torch
torch.cpu.get_capabilities = lambda: {"avx2": True}
import test_attention_kernel as tests
from evalkit.kernels.cpu import attention_kernel
assert (attention_kernel.ROWS, attention_kernel.COLUMNS) == (6, 16)
tests.test_texts_of_every_length_equal_float64_and_padding_gives_zeros(3, 32)
tests.test_ids_that_are_not_attended_to_attend_themselves()
"""


def test_processors_with_avx2_alone_are_served_by_narrower_tiles(tmp_path):
    environment = {**os.environ, "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+avx"}
    environment |= {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", NARROW], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def native(backbone):
    """A small model of transformers' with random weights and heads of 32."""
    import transformers

    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 96}
    shape |= {"vocab_size": 50, "max_position_embeddings": 64, "pad_token_id": 1, "attn_implementation": "sdpa"}
    torch.manual_seed(0)
    if backbone == "bert":
        return transformers.BertModel(transformers.BertConfig(**shape), add_pooling_layer=False).eval()
    if backbone == "xmod":
        config = transformers.XmodConfig(**shape, languages=["en_XX"], default_language="en_XX")
        return transformers.XmodModel(config, add_pooling_layer=False).eval()
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    config = transformers.JinaEmbeddingsV3Config(**shape, rope_parameters=rope, type_vocab_size=1)
    return transformers.JinaEmbeddingsV3Model(config, add_pooling_layer=False).eval()


@pytest.mark.parametrize("backbone", attention.INTERFACE_BACKBONES)
@torch.inference_mode()
def test_every_native_model_gives_with_spans_what_it_gives_with_a_mask(backbone):
    model = native(backbone)
    lengths, attended = [17, 9, 40, 40], [17, 6, 40, 8]
    ids_BT = torch.randint(4, 50, (4, 40), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate(lengths):
        ids_BT[row, length:] = 1
    mask_BT = torch.arange(40) < torch.tensor(attended).unsqueeze(1)
    wanted = model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
    attention.enable(model, SimpleNamespace(backbone=backbone, architecture=None))
    got = model(input_ids=ids_BT, spans=spans_of(lengths, attended)).last_hidden_state
    for row, length in enumerate(lengths):
        assert (got[row, :length] - wanted[row, :length]).abs().max() < 1e-5


def test_where_torchs_fused_attention_fails_its_plain_one_is_used_and_said_once(monkeypatch, caplog):
    real = functional.scaled_dot_product_attention

    def fails_if_fused(*heads, **options):
        if torch.backends.cuda.flash_sdp_enabled():
            raise RuntimeError("pack_vnni2 is only supported when avx512 is supported\nand more")
        return real(*heads, **options)

    heads = torch.randn((1, 2, 80, 16), generator=torch.Generator().manual_seed(3))
    wanted = real(heads, heads, heads)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", fails_if_fused)
    for known in (attention.fused_problem, trouble.warn_once):
        known.cache_clear()
    half = heads.bfloat16()
    for _ in range(2):
        with attention.working_sdpa(torch.device("cpu"), torch.bfloat16):
            found = functional.scaled_dot_product_attention(half, half, half)
        assert (found.float() - wanted).abs().max() < 3e-2
    attention.fused_problem.cache_clear()
    (said,) = caplog.messages
    assert said == (
        "torch's fused attention in torch.bfloat16 fails here (pack_vnni2 is only supported when avx512 is supported); "
        "its plain one is used instead"
    )


def test_on_cuda_attention_leaves_out_cudnn_which_plans_every_shape_on_the_host():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with attention.working_sdpa(torch.device("cuda"), torch.float16):
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
