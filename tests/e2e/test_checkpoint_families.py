"""Every family of checkpoints goes the whole way, from a hub cache without a network to a scored run."""

import json

import pytest
from checkpoints import (
    CLIP_HIDDEN,
    publish,
    write_colbert_xm,
    write_colbertv2,
    write_jina_checkpoint,
    write_jina_clip,
    write_jina_colbert_v1,
    write_jina_embeddings_v2,
    write_mdpr,
    write_qk_norm,
)
from rich.console import Console
from safetensors.torch import load_file, save_file

from evalkit.config.compose import compose
from evalkit.errors import ModelError
from evalkit.run import pipeline

FAMILIES = {
    "jina-colbert-v2": (write_jina_checkpoint, 96, ["model.dtype=float32"]),
    "jina-colbert-v1-en": (write_jina_colbert_v1, 128, []),
    "colbertv2": (write_colbertv2, 128, []),
    "colbert-xm": (write_colbert_xm, 128, ["model.adapter=de_DE"]),
    "mdpr": (lambda folder, dim: write_mdpr(folder), 24, ["model.allow_pickle=true"]),
    "jina-embeddings-v2-base-es": (lambda folder, dim: write_qk_norm(folder, outer_norms=True), 24, []),
    "jina-clip-v1": (lambda folder, dim: write_jina_clip(folder), CLIP_HIDDEN, []),
    "jina-embeddings-v2-base-de": (lambda folder, dim: write_jina_embeddings_v2(folder), 24, []),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    small = ["dataset.demo.documents=150", "dataset.demo.queries=50"]
    places = [f"results_dir={tmp_path / 'results'}", f"cache_dir={tmp_path / 'cache'}"]

    def run(name, dim, *overrides, write):
        repo = f"fixtures/{name}"
        snapshot = publish(tmp_path / "hub", repo, write)
        words = [f"model={name}", f"dim={dim}", f"model.checkpoints.{dim}.repo={repo}", *small, *places, *overrides]
        words += [f"model.checkpoints.{dim}.revision={snapshot.name}"]
        (cell,) = pipeline.run(compose(words), console=Console(quiet=True))
        return cell, snapshot

    return run


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_runs_on_the_demo_and_records_its_commit(run, name, tmp_path):
    write, dim, overrides = FAMILIES[name]
    cell, snapshot = run(name, dim, *overrides, write=lambda folder: write(folder, dim=dim))
    assert 0 <= cell.metrics["ndcg@10"] <= 1
    (path,) = (tmp_path / "results").rglob("scores.json")
    recorded = json.loads(path.read_text(encoding="utf-8"))
    assert recorded["environment"]["checkpoint"]["revision"] == snapshot.name
    config = (path.parent / "config.yaml").read_text(encoding="utf-8")
    assert "trust_remote_code: false" in config


def test_the_canary_stops_a_run_before_anything_is_encoded(run, tmp_path):
    def write(folder):
        write_colbertv2(folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["linear.weight"].zero_()
        save_file(tensors, folder / "model.safetensors")

    with pytest.raises(ModelError, match="fails the canary, query norms at 128"):
        run("colbertv2", 128, write=write)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
