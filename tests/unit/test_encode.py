"""Encoding: batches of few shapes, batches that do not fit, devices that fail, vectors that are not finite."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from checkpoints import write_colbertv2, write_jina_embeddings_v2, write_mdpr
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from evalkit.config.compose import compose
from evalkit.errors import DeviceError, ModelError
from evalkit.models.encoder import Encoder, checkpoints, load_encoders
from evalkit.run import auto, canary, pipeline, shard_step
from evalkit.run.batching import batches, packed_batches, padded_batches, widths
from evalkit.run.cells import plan
from evalkit.run.encode import Encoding, device_errors, encode

CPU = torch.device("cpu")
DIM = 16
QUIET = Console(quiet=True)
TEXTS = ["hello world", "a b c", "the the a . b , hello " * 12, "", "b a c", "hello", "world, world!", "a " * 30, "b"]
TEXTS += ["a the the . b , hello " * 12]  # as long as TEXTS[2]: a batch of two
IDS = [f"d{place}" for place in range(len(TEXTS))]


def load(write, folder, name, **changes):
    folder.mkdir()
    write(folder)
    model = compose([f"model={name}"]).model
    source = dataclasses.replace(next(iter(model.checkpoints.values())), path=str(folder))
    dim = DIM if model.head == "linear" else 24
    changes = {"allow_pickle": True, "checkpoints": {str(dim): source}, **changes}
    model = dataclasses.replace(model, **changes)
    (encoder,) = load_encoders(model, checkpoints(model, model.dims), device=CPU)
    return encoder


@pytest.fixture
def colbert(tmp_path):
    return load(lambda folder: write_colbertv2(folder, dim=DIM), tmp_path / "m", "colbertv2")


def encoded(encoder, *, batch_tokens=4096, storage=torch.float32, documents=True, **more):
    tokens = (encoder.tokenize_documents if documents else encoder.tokenize_queries)(TEXTS)
    options = {"documents": documents, "batch_tokens": batch_tokens, "storage": storage, **more}
    ((_, shard),) = encode(IDS, tokens, encoder, Encoding(**options)).items()
    return shard


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 320), max_size=200),
    batch_tokens=st.integers(1, 5000),
    longest=st.sampled_from([32, 256, 300]),
    packed=st.booleans(),
)
def test_every_text_is_in_one_batch_that_holds_it_and_fits_the_budget(lengths, batch_tokens, longest, packed):
    lengths_N = np.array(lengths, dtype=np.int64)
    found = list(
        packed_batches(lengths_N, batch_tokens=batch_tokens)
        if packed
        else padded_batches(lengths_N, batch_tokens=batch_tokens, longest=longest)
    )
    assert sorted(row for batch in found for row in batch.rows.tolist()) == list(range(len(lengths)))
    for batch in found:
        assert batch.size(lengths_N) <= batch_tokens or len(batch.rows) == 1
        assert packed or int(lengths_N[batch.rows].max()) <= batch.width
    in_order = [lengths[row] for batch in found for row in batch.rows]
    assert in_order == sorted(lengths, reverse=True)


def test_widths_end_at_the_models_length_and_are_five_percent_apart():
    steps_up = widths(300)
    assert (steps_up[0], steps_up[-1], len(steps_up)) == (1, 300, 86)
    assert all(after <= max(before + 1, 1.05 * before + 1) for before, after in pairwise(steps_up))


def test_a_long_run_meets_its_shapes_early():
    """Random texts: were batches filled to the budget at any width, every shard would bring shapes of its own."""
    generator = np.random.default_rng(0)
    full = {(max(1, 2048 // width), int(width)) for width in widths(300)}
    shapes, met = set(), []
    for _ in range(1000):
        lengths_N = np.minimum(generator.integers(4, 400, size=int(generator.integers(100, 300))), 300)
        found = padded_batches(lengths_N, batch_tokens=2048, longest=300)
        shapes |= {(len(batch.rows), batch.width) for batch in found}
        met.append(len(shapes))
    assert all(texts & (texts - 1) == 0 for texts, _ in shapes - full)

    assert met[-1] - met[100] < 0.25 * met[-1]
    assert met[-1] <= sum(1 + int(texts).bit_length() for texts, _ in full)


def test_large_shards_lose_less_than_three_percent_to_padding():
    lengths_N = np.minimum(np.random.default_rng(0).gamma(4, 30, size=6000).astype(np.int64) + 3, 300)
    places = sum(batch.size(lengths_N) for batch in padded_batches(lengths_N, batch_tokens=4096, longest=300))
    assert 1 - lengths_N.sum() / places < 0.03


def test_batches_of_a_reranker_are_cut_by_the_same_rule():
    assert list(batches([5, 1, 5, 3], batch_tokens=10)) == [[0, 2], [3], [1]]
    assert list(batches([], batch_tokens=10)) == []


def test_vectors_do_not_depend_on_the_size_of_batches(colbert):
    wanted = encoded(colbert, batch_tokens=4096)
    for batch_tokens in (1, 40, 333):
        found = encoded(colbert, batch_tokens=batch_tokens)
        assert found.vectors.lengths_N.tolist() == wanted.vectors.lengths_N.tolist()
        assert torch.equal(found.vectors.rows_XD, wanted.vectors.rows_XD)


def test_a_texts_bits_depend_on_nothing_but_the_text(colbert):
    """Neither on how many other texts there are and how long, nor on the cores that share them."""
    wanted = dict(
        zip(
            IDS, torch.split(encoded(colbert).vectors.rows_XD, encoded(colbert).vectors.lengths_N.tolist()), strict=True
        )
    )
    threads = torch.get_num_threads()
    try:
        for cores, places in ((1, [0, 2, 4]), (2, [1, 2, 3, 5, 8]), (3, [8, 7, 6, 2])):
            torch.set_num_threads(cores)
            tokens = colbert.tokenize_documents([TEXTS[place] for place in places])
            options = {"documents": True, "batch_tokens": 64, "storage": torch.float32}
            (some,) = encode([IDS[place] for place in places], tokens, colbert, Encoding(**options)).values()
            for identifier, of_text in zip(
                some.ids, torch.split(some.vectors.rows_XD, some.vectors.lengths_N.tolist()), strict=True
            ):
                assert torch.equal(of_text, wanted[identifier])
    finally:
        torch.set_num_threads(threads)


def test_equal_texts_have_equal_vectors_and_are_encoded_once(colbert):
    """Many of one text, so that encoded apart they would fall into batches of several shapes."""
    seen = []
    encoder = dataclasses.replace(colbert, module=Small(colbert.module, 10**9, None))
    texts = ["the world , hello"] * 37 + ["a b"] + ["the world , hello"] * 4 + ["a b"]
    ids = [str(place) for place in range(len(texts))]
    options = {"documents": True, "batch_tokens": 8, "storage": torch.float32}
    heard = {"on_batch": lambda count, tokens: seen.append((count, tokens))}
    (shard,) = encode(ids, encoder.tokenize_documents(texts), encoder, Encoding(**options, **heard)).values()
    vectors = torch.split(shard.vectors.rows_XD, shard.vectors.lengths_N.tolist())
    assert all(torch.equal(vectors[place], vectors[texts.index(text)]) for place, text in enumerate(texts))
    assert len(encoder.module.seen) == 2
    assert sum(count for count, _ in seen) == len(texts)
    assert sum(tokens for _, tokens in seen) == int(encoder.tokenize_documents(texts).lengths_N.sum())


class Small(nn.Module):
    """A module whose device holds some tokens at most."""

    def __init__(self, module, tokens, error):
        super().__init__()
        self.module, self.tokens, self.error, self.seen = module, tokens, error, []
        self.config = module.config

    def forward(self, input_ids, **more):
        if input_ids.numel() > self.tokens:
            raise self.error
        self.seen.append(input_ids.numel())
        return self.module(input_ids=input_ids, **more)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "python", "cpu"])
def test_a_batch_that_does_not_fit_is_halved_and_the_vectors_are_the_same(colbert, error, attention):
    wanted = encoded(colbert)
    small = Small(colbert.module, 120, error)
    heard = []
    encoder = dataclasses.replace(colbert, module=small, attention=attention)
    found = encoded(encoder, on_halved=lambda tokens, reason: heard.append((tokens, reason)))
    assert found.vectors.lengths_N.tolist() == wanted.vectors.lengths_N.tolist()
    assert (found.vectors.rows_XD - wanted.vectors.rows_XD).abs().max() < 1e-5
    assert heard
    assert heard[-1][0] < 4096
    assert heard[0][1] == (str(error) or "MemoryError")
    assert max(small.seen) <= 120


def test_batches_behind_one_that_did_not_fit_are_as_small(colbert):
    """Otherwise every batch of a long run would fail before it is halved."""
    heard = []
    words = TEXTS[2].split()
    long = [" ".join([*words[:place], "world", *words[place + 1 :]]) for place in range(40)]
    small = Small(colbert.module, 700, MemoryError())
    encoder = dataclasses.replace(colbert, module=small)
    options = {"documents": True, "batch_tokens": 1000, "storage": torch.float32}
    tokens = encoder.tokenize_documents(long)
    encoding = Encoding(**options, on_halved=lambda *said: heard.append(said))
    encode([str(place) for place in range(40)], tokens, encoder, encoding)
    assert len(heard) == 1


def test_a_text_that_does_not_fit_on_its_own_is_named(colbert):
    encoder = dataclasses.replace(colbert, module=Small(colbert.module, 20, MemoryError("no room")))
    with pytest.raises(
        DeviceError, match=r"text 'd[279]' of \d+ tokens does not fit memory on its own \(no room\); wanted a larger"
    ):
        encoded(encoder, on_halved=lambda *_: None)


def test_other_errors_of_a_module_are_not_taken_for_lack_of_memory(colbert):
    encoder = dataclasses.replace(colbert, module=Small(colbert.module, 20, RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        encoded(encoder)


SMALL_RUN = ["dataset.demo.documents=150", "dataset.demo.queries=50", "dim=64", "store.shard_tokens=4000"]


def run(tmp_path, *words):
    places = [f"results_dir={tmp_path / 'r'}", f"cache_dir={tmp_path / 'c'}"]
    (cell,) = pipeline.run(compose([*SMALL_RUN, *words, *places]), console=QUIET)
    return cell


def test_a_run_whose_batches_did_not_fit_says_so_once_and_records_it(tmp_path, monkeypatch, caplog):
    wanted = run(tmp_path / "whole")
    vectors, failed = Encoder.vectors, []

    def limited(self, batch):
        if len(batch.ids_BT) != len(canary.TEXTS) and batch.ids_BT.numel() > 300:  # the canary's own batch may pass
            failed.append(batch.ids_BT.numel())
            msg = "CUDA out of memory"
            raise torch.OutOfMemoryError(msg)
        return vectors(self, batch)

    monkeypatch.setattr(Encoder, "vectors", limited)
    cell = run(tmp_path / "small")
    said = [record.getMessage() for record in caplog.records if "did not fit" in record.getMessage()]
    assert len(said) == 1
    assert 1 < len(failed) < 4, "a later shard tried again what had not fitted"
    assert said[0].startswith("a batch did not fit memory (CUDA out of memory): batches hold ")
    assert 0 < cell.counts["fitted_batch_tokens"] <= 300
    assert "fitted_batch_tokens" not in wanted.counts
    assert cell.metrics == pytest.approx(wanted.metrics, abs=0.02)


@pytest.mark.parametrize(
    "error", [torch.AcceleratorError("CUDA error: misaligned address\nCompile with"), RuntimeError("CUDA error: x")]
)
def test_a_device_that_fails_is_one_clear_line(error):
    wanted = r"^device cuda:1 failed \(CUDA error: [a-z ]+\); finished shards are kept: run the same command again when"
    with pytest.raises(DeviceError, match=wanted), device_errors(torch.device("cuda:1")):
        raise error


def test_other_failures_are_not_laid_to_the_device():
    with pytest.raises(RuntimeError, match="not a device's"), device_errors(CPU):
        raise RuntimeError("not a device's")


def test_a_device_that_disappears_leaves_the_finished_shards(tmp_path, monkeypatch):
    wanted = run(tmp_path / "whole")
    vectors, documents = Encoder.vectors, []

    def failing(self, batch):
        documents.append(len(batch.ids_BT))
        if sum(documents) > 120:
            msg = "CUDA error: the launch timed out and was terminated"
            raise torch.AcceleratorError(msg)
        return vectors(self, batch)

    with monkeypatch.context() as broken:
        broken.setattr(Encoder, "vectors", failing)
        with pytest.raises(DeviceError, match="device cpu failed"):
            run(tmp_path / "broken")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "broken" / "c").rglob("*.safetensors")}
    assert kept
    assert len(kept) < len(list((tmp_path / "whole" / "c").rglob("*.safetensors")))
    again = run(tmp_path / "broken")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert again.metrics == wanted.metrics


FAMILIES = {
    "colbertv2": lambda folder: write_colbertv2(folder, dim=DIM),
    "mdpr": write_mdpr,
    "jina-embeddings-v2-base-en": write_jina_embeddings_v2,
}


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
@pytest.mark.parametrize("documents", [True, False], ids=["documents", "queries"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_vector_that_is_not_finite_names_its_text(tmp_path, name, documents, attention):
    encoder = load(FAMILIES[name], tmp_path / "m", name)
    encoder = dataclasses.replace(encoder, attention=attention)
    bang = encoder.vocabulary.tokenizer.token_to_id("!")
    embedding = next(values for key, values in encoder.module.named_parameters() if "word_embeddings" in key)
    embedding[bang] = torch.inf
    wanted = rf"text 'd6' has a vector that is not finite \(model {name}:\d+, \w+\); rerun with model.dtype="
    with pytest.raises(ModelError, match=wanted):
        encoded(encoder, documents=documents, batch_tokens=100)


def test_a_norm_beyond_fp32_names_its_text_and_leaves_no_zero_vector(tmp_path):
    encoder = load(FAMILIES["colbertv2"], tmp_path / "m", "colbertv2")
    huge = dataclasses.replace(encoder, heads={DIM: encoder.heads[DIM] * 1e25})
    with pytest.raises(ModelError, match="has a vector that is not finite"):
        encoded(huge)


def test_a_value_that_only_half_precision_overflows_is_found_before_it_is_stored(tmp_path):
    encoder = load(FAMILIES["colbertv2"], tmp_path / "m", "colbertv2", normalize=False, verify=False)
    large = dataclasses.replace(encoder, heads={DIM: encoder.heads[DIM] * 1e6})
    assert torch.isfinite(encoded(large).vectors.rows_XD).all()
    with pytest.raises(ModelError, match="has a vector that is not finite"):
        encoded(large, storage=torch.float16)


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_vectors_that_stay_on_the_device_are_those_that_come_to_the_host(colbert, attention):
    encoder = dataclasses.replace(colbert, attention=attention)
    texts = [*TEXTS, TEXTS[2], *TEXTS[:3]]  # some of them several times
    ids = [str(place) for place in range(len(texts))]
    options = {"documents": True, "batch_tokens": 100, "storage": torch.float16}
    heard = []
    (host,), (device,) = (
        encode(
            ids,
            encoder.tokenize_documents(texts),
            encoder,
            Encoding(**options, resident=resident, on_batch=lambda *done: heard.append(done)),
        ).values()
        for resident in (False, True)
    )
    assert device.vectors.lengths_N.tolist() == host.vectors.lengths_N.tolist()
    assert torch.equal(device.vectors.rows_XD, host.vectors.rows_XD)
    assert sum(texts for texts, _ in heard) == 2 * len(ids)


def test_a_vector_that_is_not_finite_is_named_on_the_device_too(colbert):
    broken = dataclasses.replace(colbert, heads={DIM: colbert.heads[DIM] * torch.nan})
    with pytest.raises(ModelError, match="text 'd0' has a vector that is not finite"):
        encoded(broken, resident=True)


def test_hits_are_the_same_where_vectors_stay_on_the_device_to_be_searched(tmp_path, monkeypatch):
    stored = run(tmp_path / "stored", "store.keep=embeddings")
    monkeypatch.setattr(shard_step, "vectors_stay_on_gpu", lambda task: True)
    scored = run(tmp_path / "scored", "store.keep=topk")
    assert store_bytes(tmp_path / "stored")
    assert not store_bytes(tmp_path / "scored")
    folders = (tmp_path / name / "r" / "runs" / cell.run_id for name, cell in (("stored", stored), ("scored", scored)))
    assert len({(folder / "run.trec.gz").read_bytes() for folder in folders}) == 1


@pytest.mark.parametrize(
    ("keep", "device", "wanted"), [("topk", "cuda", True), ("embeddings", "cuda", False), ("topk", "cpu", False)]
)
def test_vectors_stay_on_a_gpu_alone_and_where_nothing_of_them_is_written(tmp_path, keep, device, wanted):
    words = ["model=demo", "dataset.demo.documents=100", "dataset.demo.queries=10", f"store.keep={keep}"]
    config = compose([*words, f"results_dir={tmp_path}/r", f"cache_dir={tmp_path}/c"])
    task = pipeline.prepare(config, console=QUIET)
    assert shard_step.vectors_stay_on_gpu(task._replace(device=torch.device(device))) == wanted


def store_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "c" / "stores").rglob("*.safetensors"))}


@pytest.mark.parametrize("workers", [1, 3])
def test_tokenising_ahead_changes_no_byte(tmp_path, workers, monkeypatch):
    run(tmp_path / "in-turn", "engine.tokenizer_workers=0")
    taken = []
    start = shard_step.Prefetcher.start
    monkeypatch.setattr(shard_step.Prefetcher, "start", lambda self, item: taken.append(item) or start(self, item))
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    monkeypatch.setenv("RAYON_NUM_THREADS", "2")
    run(tmp_path / "ahead", f"engine.tokenizer_workers={workers}")
    assert {shard.index for shard in taken} >= set(range(1, len(store_bytes(tmp_path / "ahead"))))
    assert store_bytes(tmp_path / "ahead") == store_bytes(tmp_path / "in-turn")


def test_batches_go_by_the_device_unless_a_number_is_asked_for():
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 1)
    assert auto.batch_tokens("auto", cpu) == auto.BATCH_TOKENS["cpu"]
    assert auto.batch_tokens("auto", cuda) == auto.BATCH_TOKENS["cuda"]
    assert auto.batch_tokens(77, cuda) == auto.batch_tokens(77, cpu) == 77


def test_the_number_of_tokens_and_not_auto_is_what_a_cell_records(tmp_path):
    words = ["model=demo", "dim=64", "dataset.demo.documents=100", "dataset.demo.queries=10"]
    config = compose([*words, f"results_dir={tmp_path}/r", f"cache_dir={tmp_path}/c", "engine.device=cpu"])
    (cell,) = plan(pipeline.prepare(config, console=QUIET))
    assert config.engine.batch_tokens == "auto"
    assert cell.protocol["batch_tokens"] == auto.BATCH_TOKENS["cpu"]
