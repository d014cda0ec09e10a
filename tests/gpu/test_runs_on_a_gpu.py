"""Whole runs on a GPU: the CPU's rankings, memory that runs out, numbers that overflow."""

import json

import pytest
import torch
from gpu_device import CPU, DEVICE, ON_GPU, invented, loaded, needs_gpu
from rich.console import Console

from evalkit.config.compose import compose
from evalkit.errors import ModelError
from evalkit.maxsim import rescore
from evalkit.ragged import ragged
from evalkit.ranking import floors, no_hits
from evalkit.run import pipeline
from evalkit.run.encode import Encoding, encode
from evalkit.run.search import search_shard
from evalkit.storage import trec
from evalkit.storage.shard_files import ShardVectors

pytestmark = pytest.mark.gpu
DOCUMENTS, QUERIES = (600, 100) if ON_GPU else (60, 8)
SIZE = [f"dataset.demo.documents={DOCUMENTS}", f"dataset.demo.queries={QUERIES}"]
DIMS = "dim=[128,96,64]" if ON_GPU else "dim=64"


def run(folder, *words, device=DEVICE.type):
    places = [f"results_dir={folder / 'r'}", f"cache_dir={folder / 'c'}", f"engine.device={device}"]
    cells = pipeline.run(compose(["model=demo", DIMS, *SIZE, *places, *words]), console=Console(quiet=True))
    return cells, [trec.read_run(folder / "r" / "runs" / cell.run_id / "run.trec.gz") for cell in cells]


def test_a_run_in_fp32_ranks_as_the_cpu_does_but_for_scores_that_differ_in_last_bits(tmp_path):
    cells, found = run(tmp_path / "gpu", "store.shard_tokens=8000")
    wanted_cells, wanted = run(tmp_path / "cpu", "store.shard_tokens=8000", device="cpu")
    for cell, wanted_cell, ours, theirs in zip(cells, wanted_cells, found, wanted, strict=True):
        assert cell.metrics == pytest.approx(wanted_cell.metrics, abs=2e-3)
        assert not [name for name in cell.environment if "given_up" in name]
        for query, hits in theirs.items():
            scores = {hit.document_id: hit.score for hit in hits}
            least = min(scores.values())
            for place, hit in enumerate(ours[query]):
                assert hit.score == pytest.approx(hits[place].score, abs=2e-3)
                assert scores.get(hit.document_id, least) == pytest.approx(hit.score, abs=2e-3)


def test_the_cpus_vectors_searched_on_the_gpu_give_its_run_to_the_bit(tmp_path):
    """One store of embeddings, two searches: the run file is the CPU's."""
    texts = invented(400 if ON_GPU else 30, seed=3)
    encoder = loaded("jina-colbert-v2", tmp_path / "m", device=CPU, dtype="float32")
    ids, options = [f"d{place:04d}" for place in range(len(texts))], {"batch_tokens": 2048, "storage": torch.float16}
    (shard,) = encode(ids, encoder.tokenize_documents(texts), encoder, Encoding(documents=True, **options)).values()
    asked = encoder.tokenize_queries(texts[:10])
    (queries,) = encode(
        [f"q{place}" for place in range(10)], asked, encoder, Encoding(documents=False, **options)
    ).values()
    search = {"depth": 20, "floor_Q": floors(no_hits(), queries=10, depth=20)}
    wanted = search_shard(queries, shard, device=CPU, **search)
    found = search_shard(queries, shard, device=DEVICE, **search)
    assert [column.tolist() for column in found] == [column.tolist() for column in wanted]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"] if ON_GPU else ["float32"])
def test_what_is_scored_while_encoding_is_what_stored_embeddings_give(tmp_path, dtype):
    words = [f"model.dtype={dtype}", "store.shard_tokens=8000"]
    _, kept = run(tmp_path / "kept", *words)
    _, dropped = run(tmp_path / "dropped", *words, "store.keep=topk")
    assert kept == dropped
    assert not list((tmp_path / "dropped" / "c").glob("stores/*/*.safetensors"))


@needs_gpu
def test_a_batch_that_does_not_fit_is_halved_for_real(tmp_path):
    encoder = loaded("jina-colbert-v2", tmp_path / "m", device=DEVICE, dtype="float32", attention="sdpa")
    texts = encoder.tokenize_documents(invented(4000, longest=200))
    ids, said = [str(place) for place in range(len(texts))], []
    options = {"documents": True, "storage": torch.float32}
    (wanted,) = encode(ids, texts, encoder, Encoding(batch_tokens=8192, **options)).values()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (192 << 20)) / total)
    try:
        heard = {"on_halved": lambda tokens, reason: said.append((tokens, reason))}
        (found,) = encode(ids, texts, encoder, Encoding(batch_tokens=1 << 20, **options, **heard)).values()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert said, "every batch fitted: nothing was provoked"
    assert "out of memory" in said[0][1]
    assert (found.vectors.rows_XD - wanted.vectors.rows_XD).abs().max() < 1e-4


@needs_gpu
def test_a_search_that_does_not_fit_goes_on_in_smaller_blocks_for_real(monkeypatch):
    monkeypatch.setattr(rescore, "_FITTING", {})
    generator = torch.Generator().manual_seed(0)
    lengths, query_lengths = torch.randint(20, 150, (20_000,), generator=generator), torch.full((600,), 32)

    def unit(kind, lengths_N):
        rows_XD = torch.randn(int(lengths_N.sum()), 128, generator=generator)
        rows_XD = torch.nn.functional.normalize(rows_XD, dim=1).half()
        return ShardVectors(tuple(f"{kind}{place:05d}" for place in range(len(lengths_N))), ragged(rows_XD, lengths_N))

    shard, queries = unit("d", lengths), unit("q", query_lengths)
    search = {"depth": 100, "floor_Q": floors(no_hits(), queries=600, depth=100), "device": DEVICE}
    wanted = search_shard(queries, shard, **search)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (1400 << 20)) / total)
    try:
        found = search_shard(queries, shard, **search)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert rescore._FITTING, "everything fitted: nothing was provoked"
    assert [column.tolist() for column in found] == [column.tolist() for column in wanted]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"] if ON_GPU else ["bfloat16"])
def test_a_vector_that_is_not_finite_in_half_precision_is_named(tmp_path, dtype):
    encoder = loaded("jina-colbert-v2", tmp_path / "m", device=DEVICE, dtype=dtype)
    (head_DH,) = encoder.heads.values()
    head_DH.fill_(torch.finfo(head_DH.dtype).max)
    texts = encoder.tokenize_documents(["hello world", "a b c"])
    encoding = Encoding(documents=True, batch_tokens=4096, storage=torch.float16)
    with pytest.raises(ModelError, match=rf"text 'first' has a vector that is not finite .* {dtype}\); rerun"):
        encode(["first", "second"], texts, encoder, encoding)


def test_a_shard_says_what_its_encoding_and_its_search_took(tmp_path):
    run(tmp_path, "store.shard_tokens=8000")
    manifests = [json.loads(path.read_text())["facts"] for path in (tmp_path / "c").glob("topk/*/*.json")]
    assert manifests
    assert all(facts["encode_s"] >= 0 and facts["search_s"] >= 0 for facts in manifests)
