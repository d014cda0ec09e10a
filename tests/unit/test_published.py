"""The published scores as data, the verdict's boundaries, and the card's own arithmetic."""

import math
from collections import Counter

import numpy as np
import pytest

from evalkit.config.compose import compose
from evalkit.errors import ScoreError
from evalkit.scoring.published import (
    PublishedScore,
    audit,
    claims,
    differing,
    disagreements,
    find,
    published_dir,
    published_means,
    published_scores,
    rounded,
    stated_averages,
    verdict,
)
from evalkit.storage import cell_config


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
        ("mdpr", 768, "miracl/yo", "ndcg@10", 0.396),
        ("colbert-xm", 128, "mmarco/nl", "mrr@10", 0.275),
        ("bm25", None, "mmarco/zh", "mrr@10", 0.116),
    ],
)
def test_cells_say_what_the_card_says(system, dim, dataset, metric, value):
    card = [score for score in find(system, dim, dataset, metric) if score.source == "card"]
    assert [score.value for score in card] == [value]


def test_every_published_score_and_mean_says_of_which_split_it_is():
    published = [*published_scores(), *(mean.score for mean in published_means())]
    assert [score for score in published if "split" not in score.settings] == []
    splits = {(score.dataset.split("/")[0], score.settings["split"]) for score in published}
    assert splits == {
        *((family, "test") for family in ("beir", "xquad", "nanobeir")),
        *((family, "dev") for family in ("msmarco", "miracl", "mmarco")),
    }


@pytest.mark.parametrize(("system", "dim"), [("bm25s", None), ("all-minilm-l6-v2", 384)])
def test_a_cell_on_another_split_differs_from_mtebs_figure_in_that(system, dim):
    (score,) = find(system, dim, "beir/nfcorpus", "ndcg@10")
    stated = score._replace(settings={"split": score.settings["split"]})
    assert differing(stated, {}, "train") == ("split is train, published with test",)
    assert differing(stated, {}, "test") == ()


def test_a_source_that_prints_a_score_twice_states_the_same_settings_for_it():
    """The two tables of the card would otherwise give two verdicts on one cell."""
    stated = {}
    for score in published_scores():
        cell = (score.source, score.system, score.dim, score.dataset, score.metric)
        stated.setdefault(cell, []).append(dict(score.settings))
    assert [cell for cell, settings in stated.items() if any(one != settings[0] for one in settings)] == []
    assert sum(len(settings) > 1 for settings in stated.values()) == 6  # dim 128 in the Matryoshka table


@pytest.mark.parametrize("dim", [128, 96, 64])
def test_dims_without_the_markers_differ_from_the_card_in_them(dim):
    score = next(one for one in find("jina-colbert-v2", dim, "msmarco/dev-small", "mrr@10") if one.source == "card")
    markers = score._replace(settings={name: one for name, one in score.settings.items() if name.endswith(".marker")})
    assert differing(markers, {"query": {"marker": None}, "document": {"marker": "[DocumentMarker]"}}, "dev") == (
        "query.marker is not set, published with [QueryMarker]",
    )


def test_other_sources_stand_behind_the_card():
    assert [(score.source, score.value) for score in find("bm25", None, "beir/nfcorpus", "ndcg@10")] == [
        ("card", 0.325),
        ("anserini", 0.3254),
    ]


def test_a_likely_slip_is_told_of_its_own_cell_only():
    slips = {(score.system, score.dataset): score.slip[:3] for score in published_scores() if score.slip}
    assert slips == {
        ("bm25", "beir/arguana"): "[A]",
        ("colbertv2", "beir/nq"): "[C]",
        ("mdpr", "miracl/yo"): "[A]",
    }


def test_the_card_says_of_every_column_whether_its_authors_ran_it():
    origins = {(score.system, score.origin) for score in published_scores() if score.source == "card"}
    assert origins == {
        ("jina-colbert-v2", "run"),
        ("jina-colbert-v1-en", "run"),
        ("colbertv2", "quoted"),
        ("bm25", "quoted"),
        ("mdpr", "quoted"),
        ("colbert-xm", "quoted"),
    }


def test_the_audit_finds_exactly_the_averages_that_do_not_follow_from_their_rows():
    broken = {(a.stated.table, a.stated.system, a.stated.value): a for a in audit() if not a.holds}
    assert {key: round(a.recomputed, 4) for key, a in broken.items()} == {
        ("miracl", "jina-colbert-v2", 0.627): 0.6228,
        ("miracl", "mdpr", 0.427): 0.4184,
        ("mmarco", "bm25", 0.141): 0.1388,
    }
    assert {system: a.explained_by_dropping for (_, system, _), a in broken.items()} == {
        "jina-colbert-v2": (("miracl/id",),),
        "mdpr": (("miracl/id",),),
        "bm25": (("mmarco/ar",), ("mmarco/zh",)),
    }
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
        (0.32449999999999996, "MATCH"),  # a mean of .3245 as its summation may leave it
        (0.3260000000000001, "NEAR"),
        (0.32399999999999995, "NEAR"),
        (None, "NOT-RUN"),
    ],
)
def test_a_verdict_is_taken_at_the_published_digits(measured, label):
    assert verdict(measured, cell(0.325)).label == label


def test_a_measured_deviation_or_a_declared_loss_widens_near():
    assert verdict(0.328, cell(0.325), deviation=0.001).label == "NEAR"
    assert verdict(0.328, cell(0.325), declared_loss=0.003).label == "NEAR"
    assert verdict(0.3281, cell(0.325), deviation=0.001).label == "HIGHER"


@pytest.mark.parametrize("deviation", [0.0017, 0.0033, 0.0034, 0.0039, 0.0045])
def test_three_deviations_are_near_where_floats_would_fall_short(deviation):
    assert verdict(round(0.325 + 3 * deviation, 4), cell(0.325), deviation=deviation).label == "NEAR"


def test_numpys_numbers_are_measured_values():
    assert verdict(np.float64(0.325), cell(0.325)).label == "MATCH"
    assert verdict(np.float32(0.325), cell(0.325)).label == "MATCH"


@pytest.mark.parametrize("measured", [math.nan, math.inf])
def test_a_measured_value_that_is_no_number_gets_no_verdict(measured):
    with pytest.raises(ScoreError, match=rf"s on d: got ndcg@10 {measured}, wanted a finite number"):
        verdict(measured, cell(0.325))


def test_a_known_difference_is_named_whatever_the_value():
    assert verdict(0.325, cell(0.325), differs=["split"]) == ("PROTOCOL-DIFFERS", ("split",))


def test_halves_are_rounded_up_as_people_do():
    assert [rounded(value, 3) for value in (0.0005, 0.1235, 0.9995)] == [0.001, 0.124, 1.0]


def test_a_mean_that_floats_leave_below_a_half_is_rounded_as_on_paper():
    (bm25,) = (one for one in stated_averages() if (one.table, one.system) == ("mmarco", "bm25"))
    kept = [value for dataset, value in bm25.rows.items() if dataset != "mmarco/fr"]
    mean = math.fsum(kept) / len(kept)  # 1.65 / 12 = .1375 on paper
    assert mean < 0.1375
    assert rounded(mean, 3) == 0.138


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "table: t\n",
        "table: {",
        "systems: 5\ntable: t\nmetric: m\ndigits: 3\n",
        "table: !!int\n",
        pytest.param(f"table: {'[' * 20_000}", id="deep nesting"),
    ],
)
def test_a_file_that_is_no_table_is_one_clear_line(tmp_path, text):
    (tmp_path / "broken.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ScoreError, match=r"broken\.yaml: not a table of published scores") as caught:
        published_scores(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("digits: 3", "digits: three", "got digits 'three', wanted the number of printed decimals"),
        (
            "0.396",
            "true",
            "got True for jina-colbert-v2 on msmarco/dev-small, wanted a number from 0 to 1 of 3 decimals",
        ),
        ("0.396", "39.6", "got 39.6 for jina-colbert-v2"),
        ("0.396", ".nan", "got nan for jina-colbert-v2"),
        ("0.396", "0.3961", "got 0.3961 for jina-colbert-v2"),
        ("system: colbertv2", "system: jina-colbert-v2", r"got \('jina-colbert-v2', 128\) in 2 columns, wanted one"),
        ("0.396", "0.396, msmarco/dev-small: 0.4", "got key 'msmarco/dev-small' twice"),
        ("    origin: run", "    origin: guessed", "got origin 'guessed' of jina-colbert-v2, wanted run or quoted"),
        (
            "    origin: run",
            "    origin: run\n    slips: {nq: s}",
            "got slips of jina-colbert-v2 on nq, which has no value",
        ),
        (
            "averages: []",
            "averages: [{system: x, dim: 1, value: 0.1}]",
            r"got an average of \('x', 1\), which has no col",
        ),
        (
            "averages: []",
            "averages: [{system: bm25, dim: null, value: 2}]",
            "got average 2, wanted a number from 0 to 1",
        ),
        ("averages: []", "averages: [{system: bm25, dim: null}]", "KeyError: 'value'"),
    ],
)
def test_a_table_that_cannot_be_so_is_refused(tmp_path, old, new, message):
    text = (published_dir() / "msmarco.yaml").read_text(encoding="utf-8")
    (tmp_path / "broken.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ScoreError, match=message) as caught:
        published_scores(tmp_path)
    assert "broken.yaml: " in str(caught.value)
    assert str(caught.value).endswith("; repair the file")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_utf_8_are_refused(tmp_path):
    (tmp_path / "broken.yaml").write_bytes(b"table: \xff\n")
    with pytest.raises(ScoreError, match=r"broken\.yaml: not a table of published scores \(UnicodeDecodeError"):
        published_scores(tmp_path)


def test_a_folder_without_tables_is_refused_not_taken_for_nothing_published(tmp_path):
    with pytest.raises(ScoreError, match=r"got no \*\.yaml, wanted the tables of published scores"):
        published_scores(tmp_path)


def test_settings_of_a_cell_are_the_tables_then_the_systems_then_its_own_exception():
    known = {(one.system, one.dataset): one for one in published_scores() if one.source == "card"}
    assert known["bm25", "beir/arguana"].settings["drop_self"] is False
    assert known["bm25", "beir/nfcorpus"].settings["drop_self"] is True
    assert known["colbertv2", "beir/arguana"].settings["query.max_tokens"] == 300
    assert known["colbertv2", "msmarco/dev-small"].settings["document.max_tokens"] == 180
    assert known["bm25", "msmarco/dev-small"].settings["k1"] == 0.82


def test_only_known_settings_are_compared_and_both_values_are_said():
    one = cell(0.3)._replace(settings={"split": "test", "fields": ["text", "title"], "drop_self": True})
    protocol = {"fields": ["text", "title"], "drop_self": True, "depth": 100}
    assert differing(one, protocol, "test") == ()
    assert differing(one, {"fields": ["contents"]}, "dev") == (
        "split is dev, published with test",
        "fields is contents, published with text+title",
        "drop_self is not set, published with on",
    )


def test_a_prompt_is_a_difference_from_a_score_that_states_none():
    one = cell(0.3)._replace(settings={"query.max_tokens": 32})
    assert differing(one, {"query": {"max_tokens": 32, "prompt": ""}, "document": {}}, "test") == ()
    prompted = {"query": {"max_tokens": 32, "prompt": "query:"}, "document": {"prompt": "passage:"}}
    assert differing(one, prompted, "test") == (
        "query.prompt is query:, published with none",
        "document.prompt is passage:, published with none",
    )
    with_prompt = one._replace(settings={"query.prompt": "query:", "document.prompt": "passage:"})
    assert differing(with_prompt, prompted, "test") == ()


@pytest.mark.parametrize("language", ["ar", "de", "es", "fr", "hi", "id", "it", "ja", "nl", "pt", "ru", "vi", "zh"])
def test_colbert_xm_is_published_with_the_adapter_of_each_collection(language):
    dataset = f"mmarco/{language}"
    (score,) = find("colbert-xm", 128, dataset, "mrr@10")
    config = compose(["model=colbert-xm", f"dataset={dataset}"])
    protocol = {**cell_config.plain(config.model), "drop_self": False}
    assert differing(score, protocol, "dev") == ()
    assert differing(score, {**protocol, "adapter": "en_XX"}, "dev") == (
        f"adapter is en_XX, published with {config.model.adapter}",
    )


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (
            "    origin: run\n    exceptions: {nq: {k1: 1}}",
            "got exceptions of jina-colbert-v2 on nq, which has no value",
        ),
        ("    origin: run\n    index_loss: 2", "got index_loss 2 of jina-colbert-v2, wanted a number from 0 to 1"),
        ("    origin: run\n    exceptions: {msmarco/dev-small: 5}", "not a table of published scores"),
    ],
)
def test_settings_and_losses_that_cannot_be_so_are_refused(tmp_path, new, message):
    text = (published_dir() / "msmarco.yaml").read_text(encoding="utf-8")
    (tmp_path / "broken.yaml").write_text(text.replace("    origin: run", new, 1), encoding="utf-8")
    with pytest.raises(ScoreError, match=message):
        published_scores(tmp_path)


def test_the_cells_that_other_sources_give_otherwise_are_the_slips_that_can_be_seen():
    found = {(one.card.system, one.card.dataset, one.other.value) for one in disagreements()}
    assert found == {("bm25", "beir/arguana", 0.4142), ("mdpr", "miracl/yo", 0.4439)}


def test_the_release_posts_average_is_the_cards_13_sets_and_ms_marco():
    (claim,) = claims()
    assert (claim.value, claim.also, claim.holds) == (0.521, ("msmarco/dev-small",), True)
    assert claim.recomputed == pytest.approx((13 * 0.53077 + 0.396) / 14, abs=1e-5)


def test_a_claim_over_what_the_card_has_not_is_refused(tmp_path):
    text = (published_dir() / "beir.yaml").read_text(encoding="utf-8")
    (tmp_path / "beir.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ScoreError, match=r"with msmarco/dev-small, wanted cells of the card; repair the claims"):
        claims(tmp_path)


NANO = (
    *("arguana", "climate-fever", "dbpedia-entity", "fever", "fiqa", "hotpotqa", "msmarco", "nfcorpus", "nq", "quora"),
    *("scidocs", "scifact", "webis-touche2020"),
)


def test_means_are_published_over_nanobeirs_thirteen_sets():
    found = {(one.score.system, one.score.source): one for one in published_means()}
    assert {name: one.score.value for name, one in found.items()} == {
        ("jina-colbert-v2", "sentence-transformers"): 0.6517,
        ("colbertv2", "sentence-transformers"): 0.6053,
        ("colbert-xm", "sentence-transformers"): 0.5915,
        ("jina-colbert-v2", "hakari-bench"): 0.6513,
    }
    assert {one.datasets for one in found.values()} == {tuple(f"nanobeir/{name}" for name in NANO)}
    assert found["jina-colbert-v2", "hakari-bench"].score.settings["dtype"] == "bfloat16"


def test_no_dataset_has_the_score_of_a_mean():
    assert find("jina-colbert-v2", 128, "nanobeir", "ndcg@10") == []


@pytest.mark.parametrize(
    ("score", "got"),
    [
        (("pylate", "colbertv2", "beir/nfcorpus"), "search is exact, published with plaid"),
        (("mteb", "colbertv2", "beir/scidocs"), "search is exact, published with plaid"),
        (
            ("jina-reranker-v3", "jina-colbert-v2", "beir/quora"),
            "first_stage is none, published with jina-embeddings-v3 top 100",
        ),
    ],
)
def test_what_was_not_searched_exactly_differs_from_an_exact_run_in_that(score, got):
    source, system, dataset = score
    (found,) = (one for one in find(system, 128, dataset, "ndcg@10") if one.source == source)
    assert differing(found, {}, "test") == (got,)


def test_mtebs_figures_name_their_release_where_it_is_known():
    versions = {(one.system, one.dataset): one.version for one in published_scores() if one.source == "mteb"}
    assert versions["colbertv2", "beir/scidocs"] == "mteb 2.7.18"
    assert versions["all-minilm-l6-v2", "xquad/ar"] == "mteb 1.12.75"
    assert versions["all-minilm-l6-v2", "beir/nfcorpus"] == ""


def test_a_score_by_an_index_or_behind_a_first_stage_contradicts_none_of_the_cards():
    assert {one.other.source for one in disagreements()}.isdisjoint({"jina-reranker-v3", "pylate", "mteb"})


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        ("value: 1.2, over: [a, b]", r"got 1\.2 as the m mean of s, wanted a number from 0 to 1 of 3 decimals"),
        ("value: 0.5, over: [a]", r"got \['a'\] under the m mean of s, wanted two or more datasets, each once"),
        ("value: 0.5, over: [a, a]", "wanted two or more datasets, each once"),
        ("value: 0.5", r"not a table of published scores \(KeyError: 'over'\)"),
    ],
)
def test_a_mean_that_cannot_be_is_refused_with_its_file(tmp_path, mean, message):
    head = "table: t\nmetric: ndcg@10\ndigits: 3\nsource: x\nprotocol: p\nsystems: []\naverages: []\n"
    (tmp_path / "t.yaml").write_text(f"{head}means:\n  - {{name: m, system: s, dim: null, origin: run, {mean}}}\n")
    with pytest.raises(ScoreError, match=message):
        published_means(tmp_path)
