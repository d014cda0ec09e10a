"""Metric values that can be worked out on paper."""

import math
import sys

import pytest

from evalkit.errors import ScoreError
from evalkit.scoring.metrics import score
from evalkit.types import Hit


def hits(*documents):
    return [Hit(document, float(len(documents) - place)) for place, document in enumerate(documents)]


def test_ndcg_has_linear_gain():
    qrels = {"q": {"a": 3, "b": 1}}
    scored = score({"q": hits("b", "a")}, qrels)
    assert scored.means["ndcg@10"] == pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)))
    assert scored.means["mrr@10"] == 1.0
    assert scored.means["recall@100"] == 1.0


def test_mrr_looks_at_ten_documents():
    found = hits(*(f"x{i:02d}" for i in range(10)), "a")
    assert score({"q": found}, {"q": {"a": 1}}).means["mrr@10"] == 0.0
    assert score({"q": found[1:]}, {"q": {"a": 1}}).means["mrr@10"] == pytest.approx(1 / 10)


def test_a_missing_query_scores_zero_and_stays_in_the_mean():
    scored = score({"q1": hits("a")}, {"q1": {"a": 1}, "q2": {"a": 1}})
    assert scored.means == {"ndcg@10": 0.5, "mrr@10": 0.5, "recall@100": 0.5}
    assert scored.per_query["q2"] == {"ndcg@10": 0.0, "mrr@10": 0.0, "recall@100": 0.0}


def test_an_empty_hit_list_scores_zero():
    assert score({"q": []}, {"q": {"a": 1}}).means["ndcg@10"] == 0.0


def test_a_query_whose_judgements_are_all_zero_scores_zero_and_stays_in_the_mean():
    assert score({"q": hits("a"), "p": hits("b")}, {"q": {"a": 0}, "p": {"b": 1}}).means["ndcg@10"] == 0.5


def test_a_query_that_is_not_judged_is_ignored():
    assert score({"q": hits("a"), "stray": hits("z")}, {"q": {"a": 1}}).means["ndcg@10"] == 1.0


def test_of_equal_scores_the_higher_id_counts_as_ranked_first():
    tied = {"q": [Hit("a", 1.0), Hit("b", 1.0)]}
    assert score(tied, {"q": {"b": 1}}).means["mrr@10"] == 1.0
    assert score(tied, {"q": {"a": 1}}).means["mrr@10"] == 0.5


def test_one_metric_alone_is_the_same_number():
    assert score({"q": hits("a")}, {"q": {"a": 1}}, ["mrr@10"]).means == {"mrr@10": 1.0}


def test_a_query_without_judgements_scores_zero_and_stays_in_the_mean():
    assert score({"q": hits("a")}, {"q": {"a": 1}, "p": {}}).means["ndcg@10"] == 0.5


def test_negative_grades_are_not_relevant_and_lower_nothing():
    scored = score({"q": hits("a", "b")}, {"q": {"a": -1, "b": 1}})
    assert scored.means == pytest.approx({"ndcg@10": 1 / math.log2(3), "mrr@10": 0.5, "recall@100": 1.0})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_without_an_order_is_refused(value):
    with pytest.raises(ScoreError, match=rf"query 'q', document 'a': got score {value}, wanted a finite number"):
        score({"q": [Hit("b", 1.0), Hit("a", value)]}, {"q": {"a": 1}})


def test_a_document_that_stands_twice_is_refused():
    with pytest.raises(ScoreError, match="query 'q': got document 'a' twice, wanted every document once"):
        score({"q": [Hit("a", 2.0), Hit("a", 1.0)]}, {"q": {"a": 1}})


@pytest.mark.parametrize(
    "error", [RuntimeError("cannot cache function: no locator available"), PermissionError(13, "Permission denied")]
)
def test_where_ranx_cannot_write_its_caches_the_remedy_is_named(monkeypatch, error):
    class Unwritable:
        def find_spec(self, name, path=None, target=None):
            if name == "ranx":
                raise error

    monkeypatch.delitem(sys.modules, "ranx", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Unwritable(), *sys.meta_path])
    with pytest.raises(ScoreError, match=r"ranx cannot be imported \(.*\); it needs a writable home folder: set HOME"):
        score({"q": hits("a")}, {"q": {"a": 1}})


def test_nothing_judged_is_refused():
    with pytest.raises(ScoreError, match="no query is judged"):
        score({"q": hits("a")}, {})
