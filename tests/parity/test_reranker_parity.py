"""The re-ranker against an independent float64 implementation, and over a run."""

import dataclasses
import math

import pytest
import torch
from checkpoints import HEADS, publish, write_colbertv2, write_jina_reranker
from safetensors.torch import load_file
from typer.testing import CliRunner

from evalkit.cli import app
from evalkit.config.settings import CheckpointSource, RerankerConfig
from evalkit.errors import ConfigError, ModelError, ScoreError
from evalkit.models.reranker import load_reranker
from evalkit.run.rerank import rerank
from evalkit.storage.trec import read_run
from evalkit.types import Dataset, Document, Hit, Query

REPO = "jinaai/jina-reranker-v2-base-multilingual"
PINNED = "126747772a932960028d9f4dc93bd5d9c4869be4"


def norm(x, t, name, eps=1e-5):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + eps).sqrt() * t[f"{name}.weight"] + t[
        f"{name}.bias"
    ]


def linear(x, t, name):
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]


def score(t, ids):
    """One pair's logit: XLM-R from position 2 on, then dense, tanh, out_proj of the first token."""
    x = t["roberta.embeddings.word_embeddings.weight"][ids] + t["roberta.embeddings.token_type_embeddings.weight"][0]
    x = norm(x + t["roberta.embeddings.position_embeddings.weight"][2 : 2 + len(ids)], t, "roberta.emb_ln")
    length, hidden = x.shape
    for layer in range(2):
        at = f"roberta.encoder.layers.{layer}."
        qkv = linear(x, t, f"{at}mixer.Wqkv").split(hidden, dim=1)
        q, k, v = (part.view(length, HEADS, -1).transpose(0, 1) for part in qkv)
        mixed = ((q @ k.transpose(1, 2) / math.sqrt(hidden // HEADS)).softmax(-1) @ v).transpose(0, 1)
        x = norm(x + linear(mixed.reshape(length, hidden), t, f"{at}mixer.out_proj"), t, f"{at}norm1")
        inner = linear(x, t, f"{at}mlp.fc1")
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = norm(x + linear(inner, t, f"{at}mlp.fc2"), t, f"{at}norm2")
    return float(linear(linear(x[0], t, "classifier.dense").tanh(), t, "classifier.out_proj"))


def config_of(folder, **more):
    return RerankerConfig(
        name="fixture", checkpoint=CheckpointSource(path=str(folder)), max_tokens=64, dtype="float32", **more
    )


@pytest.fixture
def folder(tmp_path):
    return write_jina_reranker(tmp_path / "m")


QUERY, DOCUMENTS = "hello world", ["a b c", "the the a . b , hello " * 12, "", "world !"]


def test_scores_equal_the_float64_reference_in_a_padded_batch(folder):
    reranker = load_reranker(config_of(folder), device=torch.device("cpu"))
    pairs = reranker.pairs(QUERY, DOCUMENTS)
    assert max(map(len, pairs)) == 64
    assert pairs[2][-3:] == [2, 2, 2]
    tensors = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    ours = reranker.scores(pairs)
    worst = max(abs(mine - score(tensors, pair)) for mine, pair in zip(ours, pairs, strict=True))
    print(f"max |Δ| of the re-ranker against float64: {worst:.2e}")
    assert worst < 1e-5


class Shelf:
    def fingerprint(self):
        return "shelf"

    def documents(self, start=0, stop=None):
        yield from [Document(f"d{place}", "", text) for place, text in enumerate(DOCUMENTS)][start:stop]


def dataset_of(*queries):
    rules = {"name": "shelf", "split": "test", "language": "en", "drop_self": False, "main_metric": "ndcg@10"}
    return Dataset(**rules, corpus=Shelf(), queries=queries, qrels={}, query_groups={}, source="test")


def test_a_run_is_reordered_by_the_new_scores_down_to_the_depth(folder):
    reranker = load_reranker(config_of(folder), device=torch.device("cpu"))
    run = {"q": [Hit("d1", 3.0), Hit("d0", 2.0), Hit("d3", 1.0)], "unasked": [Hit("d0", 1.0)]}
    done = []
    new = rerank(
        run,
        dataset_of(Query("q", QUERY)),
        reranker,
        depth=2,
        batch_tokens=64,
        advance=lambda documents, tokens: done.append(documents),
    )
    wanted = dict(zip(["d1", "d0"], reranker.scores(reranker.pairs(QUERY, [DOCUMENTS[1], DOCUMENTS[0]])), strict=True))
    assert [hit.document_id for hit in new["q"]] == sorted(wanted, key=wanted.get, reverse=True)
    assert all(abs(hit.score - wanted[hit.document_id]) < 1e-5 for hit in new["q"])
    assert (list(new), done) == (["q"], [2])


def test_a_document_that_the_corpus_has_not_is_named(folder):
    reranker = load_reranker(config_of(folder), device=torch.device("cpu"))
    run = {"q": [Hit("nowhere", 1.0)]}
    with pytest.raises(ScoreError, match="1 documents of the run are not in shelf, 'nowhere' first"):
        rerank(run, dataset_of(Query("q", "a")), reranker, depth=9, batch_tokens=64, advance=lambda *_: None)


def test_another_architecture_is_no_reranker(tmp_path):
    with pytest.raises(ModelError, match="has model_type 'bert', wanted xlm-roberta for a re-ranker"):
        load_reranker(config_of(write_colbertv2(tmp_path)), device=torch.device("cpu"))


def test_pairs_longer_than_the_learned_positions_are_refused_on_loading(folder):
    with pytest.raises(ModelError, match=r"reranker\.max_tokens=139, but the model has 138 positions"):
        load_reranker(dataclasses.replace(config_of(folder), max_tokens=139), device=torch.device("cpu"))


def test_a_pair_needs_room(tmp_path):
    with pytest.raises(ConfigError, match=r"reranker\.max_tokens=7: wanted at least 8"):
        RerankerConfig(name="n", checkpoint=CheckpointSource(path=str(tmp_path)), max_tokens=7, dtype="float32")


def test_scores_that_are_not_finite_are_refused(folder):
    reranker = load_reranker(config_of(folder), device=torch.device("cpu"))
    reranker.module.classifier.out_proj.bias.fill_(torch.nan)
    with pytest.raises(ModelError, match=r"not finite; rerun with reranker\.dtype=float32"):
        reranker.scores(reranker.pairs("a", ["b"]))


def test_the_verb_reranks_a_run_file_by_revision_offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    publish(tmp_path / "hub", REPO, write_jina_reranker, revision=PINNED)
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "text": "hello"}\n{"_id": "b", "text": "world the"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "1", "text": "hello world"}\n')
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n")
    (tmp_path / "run.trec").write_text("1 Q0 b 1 2.0 x\n1 Q0 a 2 1.0 x\n")
    words = ["rerank", str(tmp_path / "run.trec"), "dataset=folder", f"dataset.path={tmp_path}"]
    words += [
        "--out",
        str(tmp_path / "new.trec"),
        "reranker=jina-reranker-v2-base-multilingual",
        "reranker.max_tokens=64",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert f"{REPO}@{PINNED}, depth 100" in result.output
    assert "ndcg@10\t0.63093 → " in result.output
    assert {hit.document_id for hit in read_run(tmp_path / "new.trec")["1"]} == {"a", "b"}
    missing = CliRunner().invoke(app, [*words[:4], "--out", str(tmp_path / "n.trec")])
    assert isinstance(missing.exception, ConfigError)
    assert "no re-ranker chosen; wanted reranker=NAME" in str(missing.exception)


def test_a_checkpoint_that_cannot_be_had_is_told_with_the_rerankers_own_settings(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    source = CheckpointSource(repo=REPO, revision=PINNED)
    config = dataclasses.replace(config_of(tmp_path), checkpoint=source)
    with pytest.raises(ModelError, match=r"give the folder of a copy: reranker\.checkpoint\.path=DIR$") as caught:
        load_reranker(config, device=torch.device("cpu"))
    assert caught.value.tried is not None
    assert caught.value.tried.what == f"{REPO}@{PINNED}"


def test_pickled_weights_are_told_with_the_rerankers_own_setting(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"set reranker\.allow_pickle=true"):
        load_reranker(config_of(folder), device=torch.device("cpu"))
