"""Scores that others published, measured again on the real data: the whole flow, from a folder to scores.json."""

import json

import numpy as np
import pytest
import torch
from rich.console import Console
from shared_material import minilm, shared_data

from evalkit.config.compose import compose
from evalkit.models.encoder import checkpoints, load_encoders
from evalkit.run import pipeline
from evalkit.run.cells import plan
from evalkit.run.shard_step import encode_queries
from evalkit.storage import results, shard_files, trec
from evalkit.storage.paths import store_dir

QUIET = Console(quiet=True)


def measure(tmp_path, *words):
    config = compose([*words, f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache"])
    (cell,) = pipeline.run(config, console=QUIET)
    saved = json.loads((tmp_path / "results" / "runs" / cell.run_id / "scores.json").read_text(encoding="utf-8"))
    assert saved["metrics"] == cell.metrics
    return cell.metrics, config, cell


@pytest.mark.parametrize(
    ("model", "ndcg", "recall"), [("bm25", 0.3254, 0.2500), ("bm25-flat", 0.3218, 0.2457)], ids=["multifield", "flat"]
)
def test_bm25_on_nfcorpus_equals_anserini_at_its_four_digits(tmp_path, model, ndcg, recall):
    folder = shared_data("nfcorpus")
    metrics, _, _ = measure(tmp_path, f"model={model}", "dataset=beir/nfcorpus", f"dataset.path={folder}")
    assert round(metrics["ndcg@10"], 4) == pytest.approx(ndcg, abs=1.01e-4)
    assert round(metrics["recall@100"], 4) == pytest.approx(recall, abs=1.01e-4)


def test_minilm_on_nfcorpus_equals_mteb(tmp_path):
    minilm()
    words = ("model=all-minilm-l6-v2", "dataset=beir/nfcorpus", f"dataset.path={shared_data('nfcorpus')}")
    metrics, _, _ = measure(tmp_path, *words)
    assert metrics["ndcg@10"] == pytest.approx(0.31594, abs=1e-4)


@pytest.mark.parametrize(("language", "ndcg"), [("en", 0.94357), ("es", 0.63229), ("ar", 0.03797), ("ru", 0.21609)])
def test_minilm_on_xquad_equals_mteb(tmp_path, language, ndcg):
    minilm()
    folder = shared_data(f"xquad/{language}")
    metrics, _, _ = measure(tmp_path, "model=all-minilm-l6-v2", f"dataset=xquad/{language}", f"dataset.path={folder}")
    assert metrics["ndcg@10"] == pytest.approx(ndcg, abs=5e-4)


def test_late_interaction_minilm_on_nfcorpus_equals_sentence_transformers_and_brute_force(tmp_path):
    """One encoding of nfcorpus serves both: the published mean, and a sample of queries by float64 brute force."""
    minilm()
    words = ("model=all-minilm-l6-v2-late", "dataset=beir/nfcorpus", f"dataset.path={shared_data('nfcorpus')}")
    metrics, config, cell = measure(tmp_path, *words)
    assert metrics["ndcg@10"] == pytest.approx(0.35779, abs=5e-4)

    task = pipeline.prepare(config, console=QUIET)
    (planned,) = plan(task)
    found = checkpoints(config.model, [384])
    (encoder,) = load_encoders(config.model, found, device=torch.device("cpu"))
    queries = encode_queries(task, encoder)[384]
    folder = store_dir(config.cache_dir, planned.store_key)
    shards = [shard_files.vectors_from_arrays(shard_files.load(folder, shard.checksum)) for shard in task.survey.shards]
    run = trec.read_run(tmp_path / "results" / "runs" / cell.run_id / results.RUN)
    starts = [0, *queries.vectors.lengths_N.cumsum(0).tolist()]
    for place in range(0, len(queries.ids), 60):
        query_LD = queries.vectors.rows_XD[starts[place] : starts[place + 1]].double()
        hits = []
        for shard in shards:
            similarity_XL = shard.vectors.rows_XD.double() @ query_LD.T
            begin = np.concatenate([[0], np.cumsum(shard.vectors.lengths_N.numpy())[:-1]])
            scores = np.maximum.reduceat(similarity_XL.numpy(), begin, axis=0).sum(1).astype(np.float32)
            hits += zip(scores.tolist(), shard.ids, strict=True)
        wanted = sorted(hits, key=lambda hit: (hit[0], hit[1].encode()), reverse=True)[:100]
        found = [(float(np.float32(hit.score)), hit.document_id) for hit in run[queries.ids[place]]]
        assert found == wanted
