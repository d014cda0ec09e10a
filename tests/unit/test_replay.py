"""Replaying a saved run: which rule set lands on which published number."""

import dataclasses
import json

import pytest
import yaml
from report_material import cell, late, put

from evalkit.analysis import replay
from evalkit.config.compose import compose
from evalkit.errors import ScoreError
from evalkit.report import verbs
from evalkit.scoring import metrics
from evalkit.storage import cell_config, results, trec
from evalkit.types import Hit

KEPT, CLEAN, QUERIES = 64, 35, 239
"""Queries that found themselves first, queries that did not, and all: .4142 without the first hits, .315 with them."""


def arguana(folder, *, drop_self):
    """BM25 on ArguAna as both Anserini (own id dropped) and the card (kept) scored it, from one and the same run."""
    run, dropped, qrels = {}, {}, {}
    for place in range(QUERIES):
        query = f"q{place}"
        qrels[query] = {f"d{place}": 1, query: 0}
        own, found = Hit(query, 2.0), Hit(f"d{place}", 1.0)
        if place < KEPT:
            dropped[query], run[query] = [own], [found]
        elif place < KEPT + CLEAN:
            run[query] = [found]
        else:
            run[query] = [Hit("other", 1.0)]
    if not drop_self:
        run = {query: [*dropped.get(query, []), *hits] for query, hits in run.items()}
    value = metrics.score(run, qrels).means["ndcg@10"]
    scores = cell(
        dataset="beir/arguana",
        metrics={"ndcg@10": value, "mrr@10": value, "recall@100": value},
        protocol={**cell().protocol, "drop_self": drop_self, "corpus": "1"},
    )
    put(folder, scores, run=run, qrels=qrels, dropped=dropped if drop_self else None)
    material = replay.load(folder, scores)
    replayed = replay.replay(material, "ndcg@10")
    return replayed, {one.score.source: one for one in replay.reproductions(material, replayed, "ndcg@10")}


def test_self_ids_kept_are_the_difference_between_the_card_and_anserini(tmp_path):
    replayed, reproductions = arguana(tmp_path, drop_self=False)
    assert round(replayed[0].value, 3) == 0.315
    assert reproductions["card"].verdict.label == "MATCH"
    assert reproductions["anserini"].verdict == ("PROTOCOL-DIFFERS", ("drop_self is off, published with on",))
    assert next(one.changed for one in reproductions["anserini"].reproduced_by) == ("the query's own id dropped",)


def test_what_the_self_id_rule_took_out_can_be_put_back(tmp_path):
    replayed, reproductions = arguana(tmp_path, drop_self=True)
    assert round(replayed[0].value, 4) == 0.4142
    assert reproductions["anserini"].verdict.label == "MATCH"
    assert reproductions["card"].verdict == ("PROTOCOL-DIFFERS", ("drop_self is on, published with off",))
    assert [one.changed for one in reproductions["card"].reproduced_by] == [("the query's own id kept",)]
    assert reproductions["card"].score.slip


def test_a_wrong_query_length_is_named_and_no_scoring_rule_hides_it(tmp_path):
    scores = late(query_tokens=16, value=0.30)
    put(tmp_path, scores)
    material = replay.load(tmp_path, scores)
    card = {
        one.score.source: one for one in replay.reproductions(material, replay.replay(material, "ndcg@10"), "ndcg@10")
    }["card"]
    assert card.verdict == ("PROTOCOL-DIFFERS", ("query.max_tokens is 16, published with 32",))


def material_of(run, qrels, **changes):
    scores = cell(**{"protocol": {"drop_self": False, "depth": 100}, **changes})
    return replay.Material(scores, {query: list(hits) for query, hits in run.items()}, qrels, 100)


def values(material, metric="ndcg@10"):
    return {"; ".join(one.changed): one for one in replay.replay(material, metric)}


def test_ties_are_ranked_four_ways():
    material = material_of({"q": [Hit("b", 1.0), Hit("a", 1.0)]}, {"q": {"a": 1, "b": 0}})
    found = {words: round(one.value, 4) for words, one in values(material).items()}
    assert found[""] == found["ties with relevant documents last"] == 0.6309
    assert found["ties by document id ascending (Anserini)"] == found["ties with relevant documents first"] == 1.0


def test_missing_queries_leave_the_mean_only_when_asked():
    material = material_of({"q": [Hit("a", 1.0)]}, {"q": {"a": 1}, "p": {"a": 1}})
    found = values(material)
    assert (found[""].value, found[""].queries) == (0.5, 2)
    skipped = found["queries without hits left out of the mean"]
    assert (skipped.value, skipped.queries) == (1.0, 1)


def test_queries_without_a_relevant_document_leave_the_mean_only_when_asked():
    material = material_of({"q": [Hit("a", 1.0)], "p": [Hit("a", 1.0)]}, {"q": {"a": 1}, "p": {"a": 0}})
    found = values(material)
    assert (found[""].value, found["only queries that have a relevant document"].value) == (0.5, 1.0)


def test_grades_above_one_have_two_gains():
    material = material_of({"q": [Hit("a", 2.0), Hit("b", 1.0)]}, {"q": {"a": 1, "b": 2}})
    found = values(material)
    assert found[""].value == pytest.approx((1 + 2 / 1.585) / (2 + 1 / 1.585), abs=1e-4)
    exponential = found["exponential gain (2^grade - 1)"].value
    assert exponential == pytest.approx((1 + 3 / 1.585) / (3 + 1 / 1.585), abs=1e-4)


def test_dropping_after_the_cut_loses_the_last_place():
    hits = [Hit("q", 20.0), *(Hit(f"d{place}", 10.0 - place) for place in range(10))]
    material = material_of({"q": hits}, {"q": {"d9": 1}}, protocol={"drop_self": True, "depth": 100})
    found = values(material)
    assert found[""].value == pytest.approx(1 / 3.4594, abs=1e-4)
    assert found["the query's own id dropped after the cut, not before"].value == 0.0


def test_other_cutoffs_are_tried_as_deep_as_the_run_goes():
    material = material_of({"q": [Hit("a", 1.0)]}, {"q": {"a": 1}})
    assert {"cutoff 5", "cutoff 20", "cutoff 100"} <= set(values(material, "mrr@10"))
    shallow = material._replace(depth=10)
    assert "cutoff 20" not in values(shallow, "mrr@10")


def test_named_parts_of_the_queries_stand_among_the_rules():
    material = material_of({"q": [Hit("a", 1.0)]}, {"q": {"a": 1}}, groups={"same-language": {"ndcg@10": 0.75}})
    assert values(material)["only the queries of same-language"].value == 0.75


def test_rules_that_leave_no_query_are_refused():
    material = material_of({}, {"q": {"a": 1}})
    rules = replay.own_rules(material, "ndcg@10")._replace(missing="skip")
    with pytest.raises(ScoreError, match="hits left out of the mean: got no query, wanted at least one"):
        replay.score(material, rules, "ndcg@10")


def without_judgements(folder, *, judgements):
    """A run of two queries, with the judgements left to its dataset, as the terms of some want it."""
    dataset = folder / "data"
    (dataset / "qrels").mkdir(parents=True)
    lines = {"corpus": ["d1", "d2"], "queries": ["q1", "q2"]}
    for name, ids in lines.items():
        text = "".join(json.dumps({"_id": one, "title": "", "text": one}) + "\n" for one in ids)
        (dataset / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (dataset / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n", encoding="utf-8")
    scores = cell(dataset="folder", counts={"documents": 2, "queries": 2, "judgements": judgements})
    path = put(folder, scores)
    (path / "qrels.trec.gz").unlink()
    config = compose(["model=bm25", "dataset=folder", f"dataset.path={folder}/moved"])
    (path / "config.yaml").write_text(yaml.safe_dump(cell_config.plain(config)), encoding="utf-8")
    results.write(scores, folder)
    return scores


def test_judgements_that_do_not_lie_beside_a_run_are_its_datasets(tmp_path):
    scores = without_judgements(tmp_path, judgements=2)
    material = replay.load(tmp_path, scores, dataset_path=tmp_path / "data")
    assert material.qrels == {"q1": {"d1": 1}, "q2": {"d2": 1}}


def test_a_run_without_its_judgements_says_how_to_get_them(tmp_path):
    scores = without_judgements(tmp_path, judgements=2)
    with pytest.raises(ScoreError, match=r"got no qrels\.trec\.gz, wanted .* give its folder by --dataset-path"):
        replay.load(tmp_path, scores)


def test_other_judgements_than_the_runs_are_refused(tmp_path):
    scores = without_judgements(tmp_path, judgements=3)
    with pytest.raises(ScoreError, match="got 2 judgements from folder, wanted the 3 of its scores"):
        replay.load(tmp_path, scores, dataset_path=tmp_path / "data")


def test_judgements_survive_and_bad_ones_are_named(tmp_path):
    qrels = {"q": {"d": 2, "e": -1}, "p": {"d": 0}}
    trec.write_qrels(qrels, tmp_path / "qrels.trec.gz")
    assert trec.read_qrels(tmp_path / "qrels.trec.gz") == qrels
    with pytest.raises(ScoreError, match="document id 'd 1' cannot be written; wanted no white space or NUL"):
        trec.write_qrels({"q": {"d 1": 1}}, tmp_path / "bad.gz")
    bad = {
        "q 0 d": "3 columns, wanted 4, as",
        "q 0 d 1.5": "relevance '1.5', wanted a",
        "q 0 d 1 x": "5 columns, wanted",
    }
    for line, message in bad.items():
        (tmp_path / "qrels").write_text(f"q 0 d 1\n{line}\n", encoding="utf-8")
        with pytest.raises(ScoreError, match=f"line 2: got {message}"):
            trec.read_qrels(tmp_path / "qrels")


def test_a_state_of_the_models_repository_is_named_with_the_run_that_was_made_in_it():
    attended = late(value=0.34)
    query = {**attended.protocol["query"], "attend_to_expansion": False}
    unattended = late(value=0.346, protocol={**attended.protocol, "query": query})
    (alone,) = verbs.state_lines(replay.other_states(attended, [attended]), "ndcg@10")
    assert alone.startswith("no rule of scoring: model.query.attend_to_expansion=false; its repository changed")
    assert alone.endswith("; run it with that setting")
    (beside,) = verbs.state_lines(replay.other_states(attended, [attended, unattended]), "ndcg@10")
    assert beside.endswith(f"; {unattended.run_id} has ndcg@10 0.34600")
    elsewhere = dataclasses.replace(unattended, protocol={**unattended.protocol, "corpus": "another"})
    (other,) = verbs.state_lines(replay.other_states(attended, [attended, elsewhere]), "ndcg@10")
    assert other.endswith("; run it with that setting")
    assert replay.other_states(unattended, [attended, unattended]) == []
    assert replay.other_states(cell(), [cell()]) == []


@pytest.mark.parametrize("cut", ["", "@5"])
@pytest.mark.parametrize("name", ["ndcg", "ndcg_burges", "map", "mrr", "recall", "precision", "hit_rate", "f1"])
def test_every_metric_is_replayed_as_it_was_scored(name, cut):
    run = {"q": [Hit(f"d{place}", 20.0 - place) for place in range(12)], "p": [Hit("d2", 1.0)]}
    qrels = {"q": {"d1": 1, "d3": 2, "d9": 3}, "p": {"d2": 2, "d5": 1}, "o": {"d1": 1}}
    for metric in (f"{name}{cut}", f"{name}{cut}-l2", "r-precision", "r-precision-l2"):
        found = values(material_of(run, qrels), metric)
        assert found[""].value == metrics.score(run, qrels, [metric]).means[metric]
        assert ("cutoff 20" in found) == (not metric.startswith("r-"))
        few = {query: grades for query, grades in qrels.items() if not metric.endswith("-l2") or query != "o"}
        if metric.endswith("-l2"):
            wanted = metrics.score(run, few, [metric]).means[metric]
            assert found["only queries that have a relevant document"].value == wanted


def test_the_two_gains_of_ndcg_are_each_others_change():
    material = material_of({"q": [Hit("a", 2.0), Hit("b", 1.0)]}, {"q": {"a": 1, "b": 2}})
    for cut in ("", "@5"):
        linear, exponential = values(material, f"ndcg{cut}"), values(material, f"ndcg_burges{cut}")
        assert linear["exponential gain (2^grade - 1)"].value == exponential[""].value
        assert exponential["linear gain"].value == linear[""].value


def test_a_metric_that_cannot_be_scored_again_is_named():
    material = material_of({"q": [Hit("a", 1.0)]}, {"q": {"a": 1}})
    with pytest.raises(
        ScoreError, match="got metric 'main_score', wanted one that can be scored again, such as ndcg@10"
    ):
        replay.replay(material, "main_score")
