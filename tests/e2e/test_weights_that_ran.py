"""A run is judged by the weights that it loaded, whatever system the command line names."""

import csv
import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from checkpoints import publish
from rich.console import Console
from safetensors.torch import load_file, save_file
from shared_material import minilm
from typer.testing import CliRunner

from evalkit.cli import app
from evalkit.config.compose import compose
from evalkit.errors import EvalkitError, ScoreError
from evalkit.models import demo, weights
from evalkit.models.checkpoint import resolve
from evalkit.models.encoder import checkpoints, load_encoders
from evalkit.report.table import markdown, rows
from evalkit.run import pipeline, published_vectors
from evalkit.run.finding import HELLO, vectors_of, vocabulary_rows
from evalkit.storage import results, seal

DEMO = Path(next(iter(demo.__path__))) / "demo-colbert"
COMMIT = "4cf816e5e2b03167b132a3c847a9ecd48ba708e1"
"""The pinned commit of jinaai/jina-colbert-v2."""
SHOWN = "(model.safetensors xxh3 565b2ed0…), published with jinaai/jina-colbert-v2@4cf816e5"
WORDS = ["apple", "bread", "chair", "dance", "eagle", "flame", "grape", "house"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a model over eight documents that are called beir/fiqa, the size of which is accepted as a deviation."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "data"
    (folder / "qrels").mkdir(parents=True)
    corpus = [json.dumps({"_id": f"d{place}", "title": "", "text": word}) for place, word in enumerate(WORDS)]
    (folder / "corpus.jsonl").write_text("\n".join(corpus), encoding="utf-8")
    queries = [json.dumps({"_id": f"q{place}", "text": word}) for place, word in enumerate(WORDS[:2])]
    (folder / "queries.jsonl").write_text("\n".join(queries), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t1\n", encoding="utf-8")
    words = ["dataset=beir/fiqa", f"dataset.path={folder}", "dataset.verify=false"]
    words += [f"results_dir={tmp_path / 'results'}", f"cache_dir={tmp_path / 'cache'}"]

    def run(*overrides):
        (cell,) = pipeline.run(compose([*words, *overrides]), console=Console(quiet=True))
        return cell

    return run


def report(tmp_path, system):
    """Report, and see that nothing of these runs counts for the system or leaves under its name."""
    results_dir = tmp_path / "results"
    made = CliRunner().invoke(app, ["report", "--results-dir", str(results_dir)])
    assert made.exit_code == 0, made.stderr
    assert CliRunner().invoke(app, ["report", "--results-dir", str(results_dir), "--check"]).exit_code == 0
    assert [path for path in (results_dir / "tables").rglob("*") if system in path.as_posix().split("tables")[1]] == []
    text = (results_dir / "tables" / "cells.csv").read_text(encoding="utf-8")
    assert {row["verdict"] for row in csv.DictReader(io.StringIO(text))} == {"NOT-RUN"}
    page = (results_dir / "site" / "index.html").read_text(encoding="utf-8")
    assert "0 of 57 cells of jina-colbert-v2 measured." in page
    assert "compares it with, none was measured." in page
    assert "Cells measured in addition to the card: 0 " in page
    return made.stdout


def test_demo_weights_under_the_name_of_jina_colbert_v2_are_told(run, tmp_path):
    folder = shutil.copytree(DEMO, tmp_path / "copy")
    named = ["model=jina-colbert-v2", "dim=128", "model.dtype=float32"]
    cell = run(*named, f"model.checkpoints.128.path={folder}")
    assert cell.environment["checkpoint"]["proof"] is None
    assert cell.environment["checkpoint"]["parameters"] == 755_712
    wanted = f"weights are folder {folder.name} {SHOWN}"
    assert weights.differing(cell) == (wanted,)
    assert wanted in markdown(rows([cell]))  # as the command prints it
    text = report(tmp_path, "jina-colbert-v2")
    assert "PROTOCOL-DIFFERS: dataset beir/fiqa" in text
    assert f"; {wanted} | card |" in text


@pytest.mark.parametrize("linked", [False, True], ids=["plain files", "blobs"])
def test_demo_weights_in_the_pinned_snapshot_are_told(run, tmp_path, linked):
    """Plain files are nobody's; as blobs they claim to be the commit, and are too few by 558 million parameters."""
    snapshot = publish(
        tmp_path / "hub",
        "jinaai/jina-colbert-v2",
        lambda folder: shutil.copytree(DEMO, folder, dirs_exist_ok=True),
        revision=COMMIT,
    )
    if not linked:
        for path in list(snapshot.iterdir()):
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
    cell = run("model=jina-colbert-v2", "dim=128", "model.dtype=float32")
    assert cell.environment["checkpoint"]["proof"] == ("repository" if linked else None)
    ours, theirs = SHOWN.split(", ")
    wanted = (
        f"weights are jinaai/jina-colbert-v2@4cf816e5 {ours} of 755,712 parameters, {theirs} of 559,497,216"
        if linked
        else f"weights are jinaai/jina-colbert-v2@4cf816e5 {SHOWN}; nothing proves that its files are that commit's"
    )
    assert weights.differing(cell) == (wanted,)
    assert wanted in report(tmp_path, "jina-colbert-v2")


def test_minilm_with_noise_in_one_layer_is_told_and_a_plain_copy_is_minilm(run, tmp_path):
    minilm()
    own = resolve(compose(["model=all-minilm-l6-v2"]).model.checkpoints["384"]).folder
    folder = shutil.copytree(own, tmp_path / "copy")
    copied = run("model=all-minilm-l6-v2", f"model.checkpoints.384.path={folder}")
    assert copied.environment["checkpoint"]["proof"] == "checksums"
    assert weights.differing(copied) == ()
    tensors = load_file(folder / "model.safetensors")
    name = "encoder.layer.3.output.dense.weight"
    noise = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
    save_file({**tensors, name: tensors[name] + 1e-3 * noise}, folder / "model.safetensors")
    noisy = run("model=all-minilm-l6-v2", f"model.checkpoints.384.path={folder}")
    assert noisy.run_id != copied.run_id
    assert noisy.environment["checkpoint"]["proof"] is None
    (line,) = weights.differing(noisy)
    checksum = noisy.protocol["checkpoint"]["model.safetensors"][:8]
    assert line == (
        f"weights are folder {folder.name} (model.safetensors xxh3 {checksum}…), "
        "published with sentence-transformers/all-MiniLM-L6-v2"
    )
    assert line in report(tmp_path, "all-minilm-l6-v2")


def test_the_canary_proves_a_copy_by_the_published_vectors(run, tmp_path, monkeypatch):
    """The demo stands in for jina-colbert-v2: its own vectors are what is published, its size what is packaged."""
    folder = shutil.copytree(DEMO, tmp_path / "copy")
    words = ["model=jina-colbert-v2", "dim=128", "model.dtype=float32", f"model.checkpoints.128.path={folder}"]
    model = compose(words).model
    (encoder,) = load_encoders(model, checkpoints(model, [128]), device=torch.device("cpu"))
    (query,), (document,) = (
        vectors_of(encoder, tokenize([HELLO]), documents=documents)[128]
        for tokenize, documents in ((encoder.tokenize_queries, False), (encoder.tokenize_documents, True))
    )
    stand_in = dataclasses.replace(
        published_vectors.packaged()[0],
        vocabulary=vocabulary_rows(encoder),
        query=tuple(tuple(row) for row in query[:, :5].tolist()),
        document=tuple(tuple(row) for row in document[:, :5].tolist()),
    )
    monkeypatch.setattr(published_vectors, "packaged", lambda: (stand_in,))
    cell = run(*words)
    assert cell.environment["checkpoint"]["proof"] == "vectors"
    (line,) = weights.differing(cell)
    assert line.endswith("of 755,712 parameters, published with jinaai/jina-colbert-v2@4cf816e5 of 559,497,216")
    packaged = tmp_path / "packaged" / "model"
    packaged.mkdir(parents=True)
    source = {"repo": "jinaai/jina-colbert-v2", "revision": COMMIT}
    facts = {"name": "jina-colbert-v2", "checkpoints": {"128": source}, "parameters": 755_712}
    (packaged / "jina-colbert-v2.yaml").write_text(yaml.safe_dump(facts), encoding="utf-8")
    monkeypatch.setattr(weights, "configs_dir", lambda: packaged.parent)
    assert weights.differing(cell) == ()


def test_an_edited_protocol_is_refused_by_the_report_and_by_the_run_itself(run, tmp_path):
    cell = run("model=bm25", "model.k1=1.5")
    (path,) = (tmp_path / "results").rglob("scores.json")
    values = seal.read(path.read_bytes())
    values["protocol"]["k1"] = 0.9  # as published
    path.write_text(json.dumps(seal.seal(values)), encoding="utf-8")
    with pytest.raises(ScoreError, match=f"run_id is {cell.run_id}, wanted beir-fiqa.test.bm25"):
        results.read(path)
    with pytest.raises(EvalkitError, match="one of them was changed since the cell was computed; delete it and run "):
        run("model=bm25", "model.k1=1.5")
    done = CliRunner().invoke(app, ["report", "--results-dir", str(tmp_path / "results")])
    assert "no finished cell under" in str(done.exception)
    assert str(path) in str(done.exception)
