"""ranx as evalkit uses it against pytrec_eval, on random runs full of ties, gaps and odd grades."""

import numpy as np
import pytest
import pytrec_eval

from evalkit.config.settings import METRICS, selected_metrics
from evalkit.scoring.metrics import score
from evalkit.types import Hit


def random_case(seed):
    """A few queries with few distinct scores, gaps, empty lists, unjudged documents and grades from -1 to 3."""
    draw = np.random.default_rng(seed)
    documents = [f"{'dé文'[draw.integers(3)]}{i}" for i in range(150)]
    qrels, run = {}, {}
    for q in range(draw.integers(1, 12)):
        judged = draw.choice(150, size=draw.integers(1, 130), replace=False)
        qrels[f"q{q}"] = {documents[d]: int(draw.integers(-1, 4)) for d in judged}
        if draw.random() < 0.15:
            continue
        found = draw.choice(150, size=draw.integers(0, 150), replace=False)
        levels = draw.integers(1, 30)
        run[f"q{q}"] = [Hit(documents[d], float(np.float32(draw.integers(levels) / 7))) for d in found]
    return run, qrels


def trec_eval(run, qrels):
    """trec_eval's values; queries that it leaves out (missing or without hits) are 0, and MRR is cut at 10."""
    plain = {q: {hit.document_id: hit.score for hit in hits} for q, hits in run.items() if hits}
    values = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10", "recall_100"}).evaluate(plain)
    cut = {
        q: dict(sorted(hits.items(), key=lambda item: (item[1], item[0].encode()), reverse=True)[:10])
        for q, hits in plain.items()
    }
    ranks = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(cut)
    return {
        q: {
            "ndcg@10": values.get(q, {}).get("ndcg_cut_10", 0.0),
            "mrr@10": ranks.get(q, {}).get("recip_rank", 0.0),
            "recall@100": values.get(q, {}).get("recall_100", 0.0),
        }
        for q in qrels
    }


@pytest.mark.parametrize("block", range(10))
def test_every_query_of_random_runs_full_of_ties_scores_as_in_trec_eval(block):
    for seed in range(40 * block, 40 * block + 40):
        run, qrels = random_case(seed)
        scored, wanted = score(run, qrels), trec_eval(run, qrels)
        for query, values in wanted.items():
            assert scored.per_query[query] == pytest.approx(values, abs=1e-9), (seed, query)
        for metric, mean in scored.means.items():
            assert mean == pytest.approx(np.mean([values[metric] for values in wanted.values()]), abs=1e-12)


TREC_EVAL = {
    "map": "map",
    "map@20": "map_cut_20",
    "mrr": "recip_rank",
    "ndcg": "ndcg",
    "ndcg@5": "ndcg_cut_5",
    "precision@10": "P_10",
    "recall@30": "recall_30",
    "hit_rate@5": "success_5",
    "r-precision": "Rprec",
}
"""What else a run may be scored by, and what trec_eval calls it."""


def test_metrics_that_may_be_added_are_trec_evals():
    asked = {"map", "map_cut.20", "recip_rank", "ndcg", "ndcg_cut.5", "P.10", "recall.30", "success.5", "Rprec"}
    for seed in range(60):
        run, qrels = random_case(seed)
        assert set(selected_metrics(list(TREC_EVAL), depth=100)) == {*METRICS, *TREC_EVAL}
        scored = score(run, qrels, list(TREC_EVAL))
        plain = {q: {hit.document_id: hit.score for hit in hits} for q, hits in run.items() if hits}
        wanted = pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(plain)
        for query, values in scored.per_query.items():
            theirs = wanted.get(query, {})
            mine = {name: values[name] for name in TREC_EVAL}
            assert mine == pytest.approx({name: theirs.get(TREC_EVAL[name], 0.0) for name in TREC_EVAL}, abs=1e-9), seed


def test_f1_and_exponential_gain_by_hand():
    """One of two relevant documents at rank 2 of 2: precision and recall 1/2; gains 2^3 - 1 and 2^1 - 1."""
    qrels = {"q": {"a": 3, "b": 1}}
    run = {"q": [Hit("x", 2.0), Hit("a", 1.0)]}
    values = score(run, qrels, ["f1@2", "ndcg_burges@2", "recall@2-l2"]).per_query["q"]
    ideal = 7 / np.log2(2) + 1 / np.log2(3)
    assert values == pytest.approx({"f1@2": 0.5, "ndcg_burges@2": 7 / np.log2(3) / ideal, "recall@2-l2": 1.0})
