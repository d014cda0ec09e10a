"""The published scores as data, the verdict's boundaries, and the card's own arithmetic."""

from collections import Counter

import pytest

from evalkit.errors import ScoreError
from evalkit.published import PublishedScore, audit, find, published_scores, rounded, verdict


def test_the_card_has_all_its_cells():
    card = Counter((score.table, score.metric) for score in published_scores() if score.source == "card")
    assert card == {
        ("beir", "ndcg@10"): 13 * 4,
        ("msmarco", "mrr@10"): 4,
        ("miracl", "ndcg@10"): 18 * 2,
        ("mmarco", "mrr@10"): 13 * 3,
        ("matryoshka", "ndcg@10"): 5 * 3,
        ("matryoshka", "mrr@10"): 3,
    }


@pytest.mark.parametrize(
    ("system", "dim", "dataset", "metric", "value"),
    [
        ("jina-colbert-v2", 128, "beir/nfcorpus", "ndcg@10", 0.346),
        ("jina-colbert-v2", 64, "beir/nfcorpus", "ndcg@10", 0.347),
        ("jina-colbert-v2", 96, "msmarco/dev-small", "mrr@10", 0.391),
        ("jina-colbert-v2", 128, "miracl/th", "ndcg@10", 0.772),
        ("jina-colbert-v1-en", 128, "beir/arguana", "ndcg@10", 0.494),
        ("colbertv2", 128, "beir/webis-touche2020", "ndcg@10", 0.260),
        ("mdpr", None, "miracl/yo", "ndcg@10", 0.396),
        ("colbert-xm", 128, "mmarco/nl", "mrr@10", 0.275),
        ("bm25", None, "mmarco/zh", "mrr@10", 0.116),
    ],
)
def test_cells_say_what_the_card_says(system, dim, dataset, metric, value):
    card = [score for score in find(system, dim, dataset, metric) if score.source == "card"]
    assert [score.value for score in card] == [value]


def test_other_sources_stand_behind_the_card():
    assert [(score.source, score.value) for score in find("bm25", None, "beir/nfcorpus", "ndcg@10")] == [
        ("card", 0.325),
        ("anserini", 0.3254),
    ]


def test_the_audit_finds_exactly_the_averages_that_do_not_follow_from_their_rows():
    broken = {(a.stated.table, a.stated.system, a.stated.value): a for a in audit() if not a.holds}
    assert {key: round(a.recomputed, 4) for key, a in broken.items()} == {
        ("miracl", "jina-colbert-v2", 0.627): 0.6228,
        ("miracl", "mdpr", 0.427): 0.4184,
        ("mmarco", "bm25", 0.141): 0.1388,
    }
    assert ("miracl/id",) in broken["miracl", "jina-colbert-v2", 0.627].explained_by_dropping
    assert ("miracl/id",) in broken["miracl", "mdpr", 0.427].explained_by_dropping
    assert len(audit()) == 4 + 2 + 3 + 3


def cell(value, digits=3):
    return PublishedScore("s", None, "d", "ndcg@10", value, digits, "card", "run", "t", "")


@pytest.mark.parametrize(
    ("measured", "label"),
    [
        (0.3254, "MATCH"),
        (0.3245, "MATCH"),
        (0.32449, "NEAR"),
        (0.326, "NEAR"),
        (0.3261, "HIGHER"),
        (0.3239, "LOWER"),
        (None, "NOT-RUN"),
    ],
)
def test_a_verdict_is_taken_at_the_published_digits(measured, label):
    assert verdict(measured, cell(0.325)).label == label


def test_a_measured_deviation_or_a_declared_loss_widens_near():
    assert verdict(0.328, cell(0.325), deviation=0.001).label == "NEAR"
    assert verdict(0.328, cell(0.325), declared_loss=0.003).label == "NEAR"
    assert verdict(0.3281, cell(0.325), deviation=0.001).label == "HIGHER"


def test_a_known_difference_is_named_whatever_the_value():
    assert verdict(0.325, cell(0.325), differs=["split"]) == ("PROTOCOL-DIFFERS", ("split",))


def test_halves_are_rounded_up_as_people_do():
    assert [rounded(value, 3) for value in (0.0005, 0.1235, 0.9995)] == [0.001, 0.124, 1.0]


@pytest.mark.parametrize("text", ["", "[1]", "table: t\n", "table: {", "systems: 5\ntable: t\nmetric: m\ndigits: 3\n"])
def test_a_file_that_is_no_table_is_one_clear_line(tmp_path, text):
    (tmp_path / "broken.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ScoreError, match=r"broken\.yaml: not a table of published scores") as caught:
        published_scores(tmp_path)
    assert "\n" not in str(caught.value)
