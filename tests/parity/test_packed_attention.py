"""Packed texts have the vectors of padded ones on every architecture, and no kernel is trusted before it is tried."""

import dataclasses
import logging
import sys

import numpy as np
import pytest
import torch
from checkpoints import DIM, FAMILIES
from rich.console import Console

from evalkit.config.compose import compose
from evalkit.models import attention
from evalkit.models.backbones import jina_bert
from evalkit.models.encoder import PackedBatch, attention_path, checkpoints, load_encoders
from evalkit.run import canary, pipeline
from evalkit.run.encode import Encoding, encode

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TEXTS = [
    "hello world",
    "a b c",
    "the the a . b , hello " * 12,
    "",
    "hello <pad> [PAD] world",  # a pad id inside a text: XMOD passes over it when it counts positions
    "b a c",
    "hello, hello! " * 7,
]


def fixture(name, folder, *, pooling=None, attend=None, adapter=None):
    folder.mkdir()
    FAMILIES[name](folder)
    model = compose([f"model={name}"]).model
    source = dataclasses.replace(next(iter(model.checkpoints.values())), path=str(folder))
    query = model.query if attend is None else dataclasses.replace(model.query, attend_to_expansion=attend)
    model = dataclasses.replace(
        model,
        dtype="float32",
        allow_pickle=True,
        checkpoints={str(DIM if model.head == "linear" else 24): source},
        query=query,
        verify=False,  # either attention is tried, whichever the checkpoint was trained with
        adapter=adapter or model.adapter,
        pooling=pooling or model.pooling,
    )
    (padded,) = load_encoders(model, checkpoints(model, model.dims), device=CPU)
    return padded, dataclasses.replace(padded, attention="varlen")


def vectors(encoder, texts, *, documents):
    ((vectors_XD, counts),) = encoder.vectors(encoder.batch(texts, skip_punctuation=documents)).values()
    return vectors_XD, counts.tolist()


def assert_equal_vectors(padded, packed):
    for texts, documents in ((padded.tokenize_queries(TEXTS), False), (padded.tokenize_documents(TEXTS), True)):
        assert isinstance(packed.batch(texts, skip_punctuation=documents), PackedBatch)
        ours, counts = vectors(packed, texts, documents=documents)
        wanted, wanted_counts = vectors(padded, texts, documents=documents)
        assert counts == wanted_counts
        assert (ours - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_equals_padded_in_every_family(name, tmp_path):
    assert_equal_vectors(*fixture(name, tmp_path / "m"))


@pytest.mark.parametrize("attend", [True, False])
@pytest.mark.parametrize("name", ["jina-colbert-v2", "jina-colbert-v1-en", "colbertv2", "colbert-xm"])
def test_packed_equals_padded_whether_or_not_masks_are_attended_to(name, attend, tmp_path):
    padded, packed = fixture(name, tmp_path / "m", attend=attend)
    assert_equal_vectors(padded, packed)
    packing = packed.batch(packed.tokenize_queries(TEXTS), skip_punctuation=False).packing
    assert (packing.attended_Y is None) == attend


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("name", ["mdpr", "jina-embeddings-v2-base-en"])
def test_packed_equals_padded_for_both_poolings(name, pooling, tmp_path):
    assert_equal_vectors(*fixture(name, tmp_path / "m", pooling=pooling))


def test_packed_equals_padded_under_the_adapter_of_another_language(tmp_path):
    assert_equal_vectors(*fixture("colbert-xm", tmp_path / "m", adapter="de_DE"))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_packed_text_does_not_know_its_neighbours(name, tmp_path):
    _, packed = fixture(name, tmp_path / "m")
    texts = packed.tokenize_documents(TEXTS)
    together, counts = vectors(packed, texts, documents=True)
    for text, ours in zip(texts, together.split(counts), strict=True):
        alone, _ = vectors(packed, [text], documents=True)
        assert (ours - alone).abs().max() < 1e-5


def test_an_encoder_that_packs_still_encodes_padded_batches_to_the_bit(tmp_path):
    """The module of both is one: transformers' interface hands a batch without packing on to sdpa."""
    padded, packed = fixture("colbertv2", tmp_path / "m", attend=False)
    batch = padded.batch(padded.tokenize_queries(TEXTS), skip_punctuation=False)
    before = dataclasses.replace(padded, module=padded.module)
    padded.module.config._attn_implementation = "sdpa"
    (wanted,) = before.vectors(batch).values()
    attention.enable(packed.module, packed.config)
    (ours,) = padded.vectors(batch).values()
    assert torch.equal(ours[0], wanted[0])


def test_encoding_in_packed_batches_equals_encoding_in_padded_ones(tmp_path):
    padded, packed = fixture("jina-colbert-v2", tmp_path / "m")
    texts = padded.tokenize_documents(TEXTS)
    encoding = Encoding(documents=True, batch_tokens=60, storage=torch.float32)
    shards = [encode(list("abcdefg"), texts, encoder, encoding)[DIM] for encoder in (padded, packed)]
    assert shards[0].vectors.lengths_N.tolist() == shards[1].vectors.lengths_N.tolist()
    assert (shards[0].vectors.rows_XD - shards[1].vectors.rows_XD).abs().max() < 1e-5


def leak(packing):
    """What is wrong when lengths do not reach the kernel: all texts are one."""
    return [(slice(0, int(packing.offsets_q[-1])), slice(0, int(packing.offsets_k[-1])), 1)]


@pytest.mark.parametrize("name", ["jina-colbert-v2", "colbertv2", "colbert-xm", "mdpr"])
def test_the_check_finds_texts_that_attend_to_their_neighbours(name, tmp_path, monkeypatch):
    padded, _ = fixture(name, tmp_path / "m")
    assert {finding.verdict for finding in canary.packing(padded)} == {"ok"}
    monkeypatch.setattr(attention, "equal_lengths", leak)
    findings = list(canary.packing(padded))
    assert "FAILED" in {finding.verdict for finding in findings}
    assert all("texts attend to their neighbours" in finding.cause for finding in findings if finding.cause)


def test_the_check_finds_alibi_that_does_not_reach_packed_texts(tmp_path, monkeypatch):
    padded, _ = fixture("jina-colbert-v1-en", tmp_path / "m")
    assert {finding.verdict for finding in canary.packing(padded)} == {"ok"}

    def without(*heads, scale, bias_ATT):
        return attention.packed_attention(*heads, scale=scale)

    monkeypatch.setattr(jina_bert, "packed_attention", without)
    assert "FAILED" in {finding.verdict for finding in canary.packing(padded)}


def test_positions_that_run_on_from_text_to_text_are_found(tmp_path, monkeypatch):
    padded, _ = fixture("colbertv2", tmp_path / "m")
    monkeypatch.setattr(type(padded), "_positions", lambda self, table: np.arange(len(table.ids_X)) % 400)
    assert "FAILED" in {finding.verdict for finding in canary.packing(padded)}


def model(name="demo", **changes):
    return dataclasses.replace(compose([f"model={name}"]).model, **changes)


def test_the_path_enters_identity_under_its_name_and_device():
    assert attention_path(model(), "auto", CPU) == "sdpa/cpu"
    assert attention_path(model(), "sdpa", CPU) == "sdpa/cpu"
    assert attention_path(model(), "varlen", CPU) == "varlen/cpu"


@pytest.fixture
def fresh(caplog):
    for cached in (attention.probe, attention.flash_version, attention.warn_once):
        cached.cache_clear()
    caplog.set_level(logging.WARNING)
    yield caplog
    for cached in (attention.probe, attention.flash_version, attention.warn_once):
        cached.cache_clear()


def test_what_cannot_be_packed_is_padded_and_said_once(fresh):
    cases = [
        ("flash", model(), CPU, "engine.attention=flash: flash-attn runs on CUDA only; sdpa is used instead"),
        ("varlen", model(), CUDA, r"needs half precision (model.dtype=bfloat16); sdpa is used instead"),
        ("varlen", model("jina-colbert-v1-en", dtype="bfloat16"), CUDA, "no packed kernel supports ALiBi"),
        ("varlen", model(trust_remote_code=True), CPU, "a checkpoint's own code may not accept packed texts; sdpa is"),
    ]
    for asked, config, device, message in cases:
        fresh.clear()
        chosen = [attention.choose(asked, config=config, device=device) for _ in range(2)]
        assert [choice.path for choice in chosen] == ["sdpa", "sdpa"]
        assert message in chosen[0].problem
        assert [message in record.getMessage() for record in fresh.records] == [True]


def test_auto_pads_in_silence_where_packing_cannot_be_had(fresh):
    for config in (model(), model("jina-colbert-v1-en", dtype="bfloat16")):
        assert attention.choose("auto", config=config, device=CUDA) == ("sdpa", "")
    assert not fresh.records


@pytest.mark.parametrize(
    ("asked", "works", "installed", "path", "said"),
    [
        ("auto", {"flash", "varlen"}, True, "flash", ""),
        ("auto", {"varlen"}, False, "varlen", ""),
        ("auto", {"varlen"}, True, "varlen", "flash is broken; varlen is used instead"),
        ("auto", set(), True, "sdpa", "flash is broken; varlen is broken; sdpa is used instead"),
        ("flash", {"varlen"}, False, "varlen", "flash is broken; varlen is used instead"),
        ("varlen", {"flash", "varlen"}, True, "varlen", ""),
        ("varlen", {"flash"}, True, "sdpa", "varlen is broken; sdpa is used instead"),
    ],
)
def test_on_cuda_the_first_kernel_that_works_is_taken(fresh, monkeypatch, asked, works, installed, path, said):
    monkeypatch.setattr(attention, "probe", lambda path, device, dtype: "" if path in works else f"{path} is broken")
    monkeypatch.setattr(attention, "flash_version", lambda: "2.8.3" if installed else None)
    assert attention.choose(asked, config=model(dtype="bfloat16"), device=CUDA) == (path, said)


SOUND = """
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa
def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None):
    assert (max_seqlen_q, max_seqlen_k) == (5, 5)
    heads = lambda x, a, b: x[a:b].transpose(0, 1).unsqueeze(0)
    spans = zip(cu_seqlens_q.tolist(), cu_seqlens_q.tolist()[1:])
    return torch.cat([
        sdpa(heads(q, a, b), heads(k, a, b), heads(v, a, b), scale=softmax_scale)[0].transpose(0, 1) for a, b in spans
    ])
"""


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (SOUND, ""),
        ("raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c10')", "(ImportError: flash_attn_2_cuda.so"),
        ("raise OSError('libcudart.so.11.0: cannot open shared object file')", "(OSError: libcudart.so.11.0"),
        (
            "def flash_attn_varlen_func(*a, **k): raise RuntimeError('FlashAttention only supports Ampere GPUs')",
            "is unusable here (RuntimeError: FlashAttention only supports Ampere",
        ),
        ("def flash_attn_varlen_func(q, *a, **k): return q * 0 + 7", "gives wrong values here (off by"),
        ("", "(AttributeError: module 'flash_attn' has no attribute"),
    ],
    ids=["sound", "symbol", "library", "gpu", "values", "empty"],
)
def test_a_flash_attn_that_is_installed_but_does_not_fit_is_told_from_a_sound_one(
    fresh, tmp_path, monkeypatch, code, problem
):
    (tmp_path / "flash_attn.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    monkeypatch.setattr(attention, "flash_version", lambda: "2.8.3")
    found = attention.probe("flash", CPU, "bfloat16")
    sys.modules.pop("flash_attn", None)
    assert problem in found
    assert (found == "") == (problem == "")
    assert found == "" or found.startswith("flash-attn 2.8.3 ")


def test_a_flash_attn_that_is_not_there_is_named_with_its_extra(fresh):
    assert attention.probe("flash", CPU, "bfloat16") == "flash-attn is not installed (pip install 'evalkit[flash]')"


def test_torchs_own_kernel_is_not_taken_where_it_cannot_run(fresh):
    assert attention.probe("varlen", CPU, "bfloat16").startswith("torch's variable-length attention is unusable here (")


def refuse(said):
    raise RuntimeError(said)


@pytest.mark.parametrize(
    ("takes", "wanted"),
    [
        (lambda *heads, scale=None, num_splits=None: heads[0], {"num_splits": 1}),
        (lambda *heads, scale=None: heads[0], {}),
        (lambda *heads, scale=None, num_splits=None: refuse("FA3 alone") if num_splits else heads[0], {}),
    ],
    ids=["takes it", "does not know it", "takes it for another kernel"],
)
def test_torchs_kernel_is_asked_for_one_split_where_it_takes_the_option(monkeypatch, takes, wanted):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", takes)
    attention._varlen_options.cache_clear()
    attention._varlen_takes_scale.cache_clear()
    query, key, value = (torch.ones(2, 3, 12) for _ in range(3))
    lengths_N = np.array([2])
    packing = attention.packing_of(lengths_N, lengths_N, path="varlen")
    assert attention._varlen(query, key, value, packing, 0.5).shape == (2, 3, 12)
    assert attention._varlen_options(CPU) == wanted
    attention._varlen_options.cache_clear()
    attention._varlen_takes_scale.cache_clear()


def test_torchs_kernel_is_given_a_scale_only_where_it_is_not_the_default(monkeypatch):
    """A version without the argument gets queries that carry the scale instead."""
    given = []

    def knows_none(query, *others):
        given.append(query)
        return query

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", knows_none)
    caches = (attention._varlen_options, attention._varlen_takes_scale)
    for cached in caches:
        cached.cache_clear()
    lengths_N = np.array([2])
    packing = attention.packing_of(lengths_N, lengths_N, path="varlen")
    heads = [torch.ones(2, 3, 16) for _ in range(3)]
    attention._varlen(*heads, packing, 0.25)  # 16 ** -0.5, the default
    assert given[-1].unique().tolist() == [1.0]
    attention._varlen(*heads, packing, 0.5)
    assert given[-1].unique().tolist() == [2.0]
    for cached in caches:
        cached.cache_clear()


def test_heads_of_any_width_reach_the_kernels_in_steps_of_eight():
    (wide,) = attention._widened(torch.ones(2, 3, 12))
    assert wide.shape == (2, 3, 16)
    assert wide[..., 12:].abs().max() == 0


@pytest.mark.parametrize("asked", ["varlen", "flash"])
def test_a_run_records_its_path_and_what_was_given_up(tmp_path, asked):
    small = ["dataset.demo.documents=150", "dataset.demo.queries=50", "dim=64", f"engine.attention={asked}"]
    words = [*small, f"results_dir={tmp_path / 'r'}", f"cache_dir={tmp_path / 'c'}"]
    (cell,) = pipeline.run(compose(words), console=Console(quiet=True))
    assert cell.protocol["attention"] == {"varlen": "varlen/cpu", "flash": "sdpa/cpu"}[asked]
    given_up = cell.environment.get("attention_given_up", "")
    assert given_up.startswith("engine.attention=flash: flash-attn runs on CUDA only" if asked == "flash" else "")
    assert bool(given_up) == (asked == "flash")
