"""Metric values that can be worked out on paper."""

import math
import sys

import pytest

from evalkit.config.settings import selected_metrics
from evalkit.errors import ConfigError, ScoreError
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


RUN = {
    "long": hits("a", "x1", "b", "x2", "c", "x3", "d"),
    "short": hits("x1", "a"),
    "one": hits("b"),
    "none relevant": hits("x1", "x2", "x3"),
    "empty": [],
    "all zero": hits("a", "b"),
}
GRADES = {
    "long": {"a": 1, "b": 3, "c": 0, "d": 2, "e": 2, "f": -1},
    "short": {"a": 2, "b": 1, "c": 1},
    "one": {"b": 1},
    "none relevant": {"a": 3},
    "empty": {"a": 1},
    "all zero": {"a": 0, "b": 0},
    "not in the run": {"a": 1},
}
NAMES = ("ndcg", "ndcg_burges", "map", "mrr", "recall", "precision", "hit_rate", "f1", "r-precision")


def by_hand(name, cutoff, level, ranked, grades):
    """A metric of one query from its definition, without arrays."""
    considered = ranked[:cutoff] if cutoff else ranked
    relevant = {document for document, grade in grades.items() if grade >= level}
    places = [place for place, document in enumerate(considered, 1) if document in relevant]
    if not relevant:
        return 0.0
    if name.startswith("ndcg"):

        def discounted(documents):
            gains = [grades[document] if document in relevant else 0 for document in documents]
            gains = gains if name == "ndcg" else [2**gain - 1 for gain in gains]
            return sum(gain / math.log2(place + 1) for place, gain in enumerate(gains, 1))

        best = sorted(relevant, key=lambda document: -grades[document])
        return discounted(considered) / discounted(best[:cutoff] if cutoff else best)
    recall, retrieved = len(places) / len(relevant), cutoff or len(considered)
    precision = len(places) / retrieved if retrieved else 0.0
    return {
        "map": sum(count / place for count, place in enumerate(places, 1)) / len(relevant),
        "mrr": 1 / places[0] if places else 0.0,
        "recall": recall,
        "precision": precision,
        "hit_rate": float(bool(places)),
        "f1": 2 * precision * recall / (precision + recall) if places else 0.0,
        "r-precision": len(relevant.intersection(ranked[: len(relevant)])) / len(relevant),
    }[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_of_lists_of_unequal_length_is_what_its_definition_gives(name):
    cutoffs = (None,) if name == "r-precision" else (None, 1, 2, 3, 5, 9)
    for cutoff in cutoffs:
        for level in (None, 1, 2, 3, 4):
            metric = name + (f"@{cutoff}" if cutoff else "") + (f"-l{level}" if level else "")
            assert selected_metrics(metric, depth=9)[-1] == metric
            wanted = {
                query: by_hand(name, cutoff, level or 1, [hit.document_id for hit in RUN.get(query, [])], grades)
                for query, grades in GRADES.items()
            }
            scored = score(RUN, GRADES, [metric])
            assert {query: values[metric] for query, values in scored.per_query.items()} == pytest.approx(wanted), (
                metric
            )
            assert scored.means[metric] == pytest.approx(sum(wanted.values()) / len(wanted)), metric


def test_a_metric_of_a_query_does_not_depend_on_the_other_queries():
    metrics = [f"{name}{level}" for name in NAMES for level in ("", "-l2")]
    together = score(RUN, GRADES, metrics).per_query
    for query, grades in GRADES.items():
        assert score(RUN, {query: grades}, metrics).per_query[query] == together[query]


def test_a_cutoff_that_r_precision_would_ignore_is_refused():
    with pytest.raises(ConfigError, match=r"metric r-precision@5: got a cutoff, wanted none.*; write r-precision, or"):
        selected_metrics("r-precision@5", depth=100)
