"""Any system as a model of mteb: with a fake of mteb's own search here, with mteb itself where it is installed."""

import enum
import sys
from types import ModuleType, SimpleNamespace

import mteb_parity
import numpy as np
import pytest
import pytrec_eval
import torch

import evalkit
from evalkit import datasets
from evalkit.config import compose
from evalkit.errors import ConfigError
from evalkit.maxsim.reference import maxsim

SMALL = ("dataset.demo.documents=60", "dataset.demo.queries=6")


class Meta(SimpleNamespace):
    """mteb's ModelMeta, as far as it is used."""

    @classmethod
    def create_empty(cls, overwrites):
        assert "/" in overwrites["name"]  # mteb wants organisation/name
        return cls(**{"revision": "no_revision_available", **overwrites})


class Scoring(enum.Enum):
    COSINE = "cosine"
    DOT_PRODUCT = "dot"
    MAX_SIM = "MaxSim"


@pytest.fixture
def fake(monkeypatch):
    top, models, meta = ModuleType("mteb"), ModuleType("mteb.models"), ModuleType("mteb.models.model_meta")
    models.ModelMeta = meta.ModelMeta = Meta
    meta.ScoringFunction = Scoring
    for module in (top, models, meta):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def batches(rows, size=7):
    return [{"text": rows[begin : begin + size]} for begin in range(0, len(rows), size)]


def search(model, dataset, *, chunk, depth=100):
    """Search as mteb's SearchEncoderWrapper does: queries once, documents by chunks, the best of each."""
    settings = {"task_metadata": None, "hf_split": "test", "hf_subset": "default", "batch_size": 32}
    asked = model.encode(batches([query.text for query in dataset.queries]), prompt_type="query", **settings)
    documents = list(dataset.corpus.documents())
    found = {query.id: {} for query in dataset.queries}
    for begin in range(0, len(documents), chunk):
        some = documents[begin : begin + chunk]
        vectors = model.encode(batches([one.joined() for one in some]), prompt_type="document", **settings)
        score_QN = model.similarity(asked, vectors)
        best_QK, place_QK = torch.topk(score_QN, min(depth + 1, len(some)), dim=1)
        for query, best, places in zip(dataset.queries, best_QK.tolist(), place_QK.tolist(), strict=True):
            found[query.id] |= {some[place].id: score for place, score in zip(places, best, strict=True)}
    return found


def ndcg(run, qrels):
    values = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    return round(sum(one["ndcg_cut_10"] for one in values.values()) / len(values), 5)


@pytest.mark.parametrize(("words", "kind"), [(("model=demo", "dim=64"), "MaxSim")])
def test_what_mteb_would_score_is_what_evalkit_scores(tmp_path, fake, words, kind):
    where = (*words, *SMALL, f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache")
    (cell,) = evalkit.run(*where)
    model = evalkit.mteb.encoder(*where)
    assert model.mteb_model_meta.name == "evalkit/demo-64"
    assert model.mteb_model_meta.embed_dim == 64
    assert model.mteb_model_meta.similarity_fn_name.value == kind
    dataset = datasets.load(compose.compose(where).dataset)
    for chunk in (60, 13):
        assert ndcg(search(model, dataset, chunk=chunk), dataset.qrels) == round(cell.metrics["ndcg@10"], 5)


def test_similarity_is_maxsim_of_vectors_in_every_form_that_mteb_hands_over(tmp_path, fake):
    model = evalkit.mteb.encoder("model=demo", "dim=64", f"cache_dir={tmp_path}")
    queries = model.encode(batches(["red", "green blue"]), prompt_type="query")
    documents = model.encode(batches(["red apples fall", "a", "the blue sea"]), prompt_type="document")
    assert [one.dtype for one in documents] == [torch.float16] * 3
    wanted_QN = torch.tensor([[maxsim(query, document) for document in documents] for query in queries])
    assert torch.equal(model.similarity(queries, documents), wanted_QN)
    assert torch.equal(model.similarity(queries[0].unsqueeze(0), documents), wanted_QN[:1])  # a re-ranking task's form
    assert torch.equal(model.similarity([one.numpy() for one in queries], documents), wanted_QN)
    assert torch.equal(model.similarity_pairwise(queries, documents[:2]), wanted_QN.diagonal())
    assert model.similarity(queries, []).shape == (2, 0)
    assert model.encode([]) == []


def test_embeddings_of_another_dim_or_number_are_refused(tmp_path, fake):
    model = evalkit.mteb.encoder("model=demo", "dim=64", f"cache_dir={tmp_path}")
    with pytest.raises(ConfigError, match=r"demo-64: got embeddings of shape \(2, 32\), wanted \(vectors, 64\)"):
        model.similarity([np.zeros((2, 32), dtype=np.float32)], [np.zeros((2, 32), dtype=np.float32)])
    ones = torch.ones(3, 2, 64)
    with pytest.raises(ConfigError, match="got 2 and 3 texts, wanted as many on both sides"):
        model.similarity_pairwise(ones[:2], ones)


def test_bm25_searches_as_mteb_asks_it_to(tmp_path, fake):
    where = ("model=bm25", *SMALL, f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache")
    (cell,) = evalkit.run(*where)
    model = evalkit.mteb.encoder(*where)
    assert model.mteb_model_meta.name == "evalkit/bm25"
    dataset = datasets.load(compose.compose(where).dataset)
    model.index([one._asdict() for one in dataset.corpus.documents()], hf_split="test")
    queries = [query._asdict() for query in dataset.queries]
    found = model.search(queries, top_k=100, hf_split="test")
    assert ndcg(found, dataset.qrels) == round(cell.metrics["ndcg@10"], 5)
    first, *rest = found[queries[0]["id"]]
    few = model.search(queries[:1], top_k=1, top_ranked={queries[0]["id"]: [rest[0], first]})
    assert few == {queries[0]["id"]: {first: found[queries[0]["id"]][first]}}


def test_several_dims_and_a_missing_mteb_are_told(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"got dims 128, 64, wanted one: .*; give dim=N"):
        evalkit.mteb.encoder("model=demo", "dim=[128,64]")
    monkeypatch.setitem(sys.modules, "mteb", None)
    for words in (("model=demo", "dim=64"), ("model=bm25",)):
        with pytest.raises(ConfigError, match=r"mteb cannot be imported \(.*\), wanted version 2: pip install"):
            evalkit.mteb.encoder(*words, f"cache_dir={tmp_path}")


def test_mteb_itself_gives_the_same_five_digits(tmp_path, capsys):
    pytest.importorskip("mteb", reason="mteb is not installed (pip install 'evalkit[mteb]')")
    where = (*SMALL, f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache")
    for words in (("model=demo", "dim=64"), ("model=bm25",)):
        assert mteb_parity.main([*words, *where]) == 0
        assert capsys.readouterr().out.count("equal") == 3
