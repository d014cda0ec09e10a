"""The native jina_embeddings_v3 path against an independent float64 implementation of the published architecture."""

import dataclasses
import json
import math

import pytest
import torch
from checkpoints import write_jina_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from evalkit.config.settings import CheckpointSource, EncoderConfig, TextRules
from evalkit.models.encoder import DTYPES, Encoder, checkpoints, load_encoders

HEADS, EPS = 4, 1e-5


def layer_norm(x, weight, bias):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + EPS) * weight + bias


def rotate(x_HTK, theta):
    """Half-split (NeoX) RoPE over the full head dim; positions count every token from 0."""
    length, width = x_HTK.shape[1:]
    out = torch.empty_like(x_HTK)
    for position in range(length):
        for pair in range(width // 2):
            angle = position / theta ** (2 * pair / width)
            first, second = x_HTK[:, position, pair], x_HTK[:, position, pair + width // 2]
            out[:, position, pair] = first * math.cos(angle) - second * math.sin(angle)
            out[:, position, pair + width // 2] = second * math.cos(angle) + first * math.sin(angle)
    return out


def forward(tensors, ids, *, theta, attended=None):
    """Token vectors of one text in float64: post-norm blocks, erf GELU, softmax attention at scale 1/√width."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    x = t["roberta.embeddings.word_embeddings.weight"][ids] + t["roberta.embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(x, t["roberta.emb_ln.weight"], t["roberta.emb_ln.bias"])
    length, hidden = x.shape
    layer = 0
    while f"roberta.encoder.layers.{layer}.norm1.weight" in t:
        p = f"roberta.encoder.layers.{layer}."
        qkv = x @ t[f"{p}mixer.Wqkv.weight"].T + t[f"{p}mixer.Wqkv.bias"]
        q, k, v = (part.view(length, HEADS, -1).transpose(0, 1) for part in qkv.split(hidden, dim=1))
        logits = rotate(q, theta) @ rotate(k, theta).transpose(1, 2) / math.sqrt(hidden // HEADS)
        if attended is not None:
            logits[:, :, attended:] = -math.inf
        mixed = (logits.softmax(-1) @ v).transpose(0, 1).reshape(length, hidden)
        mixed = mixed @ t[f"{p}mixer.out_proj.weight"].T + t[f"{p}mixer.out_proj.bias"]
        x = layer_norm(x + mixed, t[f"{p}norm1.weight"], t[f"{p}norm1.bias"])
        inner = x @ t[f"{p}mlp.fc1.weight"].T + t[f"{p}mlp.fc1.bias"]
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        outer = inner @ t[f"{p}mlp.fc2.weight"].T + t[f"{p}mlp.fc2.bias"]
        x = layer_norm(x + outer, t[f"{p}norm2.weight"], t[f"{p}norm2.bias"])
        layer += 1
    x = x @ t["linear.weight"].T
    return x / x.norm(dim=1, keepdim=True)


def config_of(folders, *, attend=True, rope_theta="checkpoint"):
    return EncoderConfig(
        name="fixture",
        kind="late_interaction",
        backbone="jina_embeddings_v3",
        checkpoints={str(dim): CheckpointSource(path=str(folder)) for dim, folder in folders.items()},
        query=TextRules(max_tokens=32, marker="[QueryMarker]", expansion=True, attend_to_expansion=attend),
        document=TextRules(max_tokens=300, marker="[DocumentMarker]"),
        head="linear",
        pooling="tokens",
        normalize=True,
        skiplist="none",
        dtype="float32",
        rope_theta=rope_theta,
    )


def load(config):
    return load_encoders(config, checkpoints(config, config.dims), device=torch.device("cpu"))


TEXTS = ["hello world", "a b c", "the the a . b , hello " * 12, ""]


@pytest.mark.parametrize("attend", [True, False])
def test_query_vectors_equal_the_float64_reference_with_expansion(tmp_path, attend):
    folder = write_jina_checkpoint(tmp_path / "m", dim=16)
    (encoder,) = load(config_of({16: folder}, attend=attend))
    tokens = encoder.tokenize_queries(TEXTS)
    vectors, counts = encoder.vectors(encoder.batch(tokens, skip_punctuation=False))[16]
    assert counts.tolist() == [32] * len(TEXTS)
    tensors = load_file(folder / "model.safetensors")
    wanted = torch.cat(
        [forward(tensors, text.ids, theta=10000.0, attended=None if attend else text.attended) for text in tokens]
    )
    delta = float((vectors - wanted).abs().max())
    print(f"max |Δ| of jina-colbert-v2's queries against float64: {delta:.2e}")
    assert delta < 1e-5


def test_document_vectors_equal_the_float64_reference_in_a_padded_batch(tmp_path):
    folder = write_jina_checkpoint(tmp_path / "m", dim=16)
    (encoder,) = load(config_of({16: folder}))
    tokens = encoder.tokenize_documents(TEXTS)
    vectors, counts = encoder.vectors(encoder.batch(tokens, skip_punctuation=True))[16]
    assert counts.tolist() == [len(text.ids) for text in tokens]
    tensors = load_file(folder / "model.safetensors")
    wanted = torch.cat([forward(tensors, text.ids, theta=10000.0) for text in tokens])
    delta = float((vectors - wanted).abs().max())
    print(f"max |Δ| of jina-colbert-v2's documents against float64: {delta:.2e}")
    assert delta < 1e-5


def test_the_rope_base_changes_vectors_and_can_be_overridden(tmp_path):
    folder = write_jina_checkpoint(tmp_path / "m", dim=16)
    (encoder,) = load(config_of({16: folder}, rope_theta=20000.0))
    tokens = encoder.tokenize_documents(TEXTS[:1])
    vectors, _ = encoder.vectors(encoder.batch(tokens, skip_punctuation=True))[16]
    tensors = load_file(folder / "model.safetensors")
    assert (vectors - forward(tensors, tokens[0].ids, theta=20000.0)).abs().max() < 1e-5
    assert (vectors - forward(tensors, tokens[0].ids, theta=10000.0)).abs().max() > 1e-4


def test_a_config_without_a_rope_base_means_10000_and_not_the_native_classs_20000(tmp_path):
    folder = write_jina_checkpoint(tmp_path / "m", dim=16)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del values["rotary_emb_base"]
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    (encoder,) = load(config_of({16: folder}))
    tokens = encoder.tokenize_documents(TEXTS[:1])
    vectors, _ = encoder.vectors(encoder.batch(tokens, skip_punctuation=True))[16]
    tensors = load_file(folder / "model.safetensors")
    assert encoder.rope_theta == 10000.0
    assert (vectors - forward(tensors, tokens[0].ids, theta=10000.0)).abs().max() < 1e-5
    assert (vectors - forward(tensors, tokens[0].ids, theta=20000.0)).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dims_with_equal_backbones_share_one_pass_and_do_not_move_each_other(tmp_path, dtype):
    folders = {dim: write_jina_checkpoint(tmp_path / str(dim), dim=dim) for dim in (16, 12, 8)}
    config = dataclasses.replace(config_of(folders), dtype=dtype)
    found = checkpoints(config, config.dims)
    for some in ((16, 12, 8), (16,), (12,), (8,), (8, 16)):
        (encoder,) = load_encoders(config, {dim: found[dim] for dim in some}, device=torch.device("cpu"))
        assert tuple(encoder.heads) == some
        tokens = encoder.tokenize_documents(TEXTS)
        vectors = encoder.vectors(encoder.batch(tokens, skip_punctuation=True))
        if len(some) == 3:
            shared = vectors
        for dim in some:
            assert torch.equal(vectors[dim][0], shared[dim][0])


def with_heads(heads, *, dtype):
    """An encoder of published dims whose projection alone is asked for; no backbone is at work."""
    return Encoder(
        config=dataclasses.replace(config_of(dict.fromkeys((128, 96, 64), "none")), dtype=dtype),
        module=torch.nn.Identity(),
        heads=heads,
        vocabulary=None,
        skipped=torch.zeros(0, dtype=torch.int64),
        device=torch.device("cpu"),
        dtype=DTYPES[dtype],
        rope_theta=None,
    )


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 300),
    hidden=st.sampled_from([24, 128, 768, 1024]),
    some=st.lists(st.sampled_from([128, 96, 64]), min_size=1, max_size=2, unique=True),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_dims_bits_do_not_depend_on_which_heads_are_in_use(rows, hidden, some, dtype, seed):
    """At the sizes of the published models, where a GEMM of another width does add in another order (fp32, 1024)."""
    draw = torch.Generator().manual_seed(seed)
    hidden_XH = torch.randn(rows, hidden, generator=draw).to(DTYPES[dtype])
    heads = {dim: torch.randn(dim, hidden, generator=draw).to(DTYPES[dtype]) for dim in (128, 96, 64)}
    together = with_heads(heads, dtype=dtype)._projected(hidden_XH)
    apart = with_heads({dim: heads[dim] for dim in some}, dtype=dtype)._projected(hidden_XH)
    assert list(apart) == some
    for dim in some:
        assert torch.equal(apart[dim], together[dim])
        exact_XD = hidden_XH.double() @ heads[dim].double().T
        torch.testing.assert_close(apart[dim].double(), exact_XD, rtol=1e-2, atol=0.2)  # this head's and no other's


def test_dims_with_different_backbones_run_apart_and_evalkit_says_so(tmp_path, caplog):
    folders = {
        16: write_jina_checkpoint(tmp_path / "16", dim=16, seed=1),
        8: write_jina_checkpoint(tmp_path / "8", dim=8, seed=2),
    }
    assert [tuple(encoder.heads) for encoder in load(config_of(folders))] == [(16,), (8,)]
    assert "backbones of dims 16 / 8 differ by content" in caplog.text
