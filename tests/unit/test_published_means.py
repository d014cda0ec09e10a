"""A mean that is published without its rows: measured only as a whole, under one protocol, and then judged."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from report_material import cell, late, put

from evalkit.analysis import comparability
from evalkit.config.compose import compose
from evalkit.datasets.hub import HubCorpus
from evalkit.report import boards, build, table, verdicts
from evalkit.report.card import JudgedMean, Standing, Waiver, card_tables, judge, judge_means, leaderboard
from evalkit.report.sheets import card_sheet, leaderboard_sheet, markdown, means_sheet
from evalkit.scoring.published import published_means
from evalkit.storage import keys
from evalkit.storage.results import CellScores
from evalkit.types import Dataset

NANO = published_means()[0].datasets


def runs(value: float = 0.6517, **changes: object) -> list[CellScores]:
    """Return jina-colbert-v2 on all 13 sets: a tenth above the mean on one, a tenth below it on another."""
    spread = {NANO[0]: 0.1, NANO[1]: -0.1}
    made = [late(dataset=name, value=value + spread.get(name, 0.0), **changes) for name in NANO]
    plain = {"drop_self": False, "dtype": "bfloat16"}
    return [dataclasses.replace(one, protocol={**one.protocol, **plain, "corpus": one.dataset}) for one in made]


def judged(cells: list[CellScores], source: str = "sentence-transformers", **more: list[Waiver]) -> JudgedMean:
    (found,) = (
        one
        for one in judge_means(cells, **more)
        if (one.mean.score.system, one.mean.score.source) == ("jina-colbert-v2", source)
    )
    return found


def test_thirteen_runs_of_one_protocol_have_a_mean_and_a_verdict() -> None:
    found = judged(runs())
    assert found.measured == pytest.approx(0.6517, abs=1e-12)
    assert (found.verdict.label, found.delta) == ("MATCH", pytest.approx(0, abs=1e-12))
    assert judged(runs(0.6523)).verdict.label == "NEAR"
    assert judged(runs(0.6400)).verdict.label == "LOWER"


def test_a_part_of_the_sets_is_no_mean() -> None:
    found = judged(runs()[:12])
    assert (found.measured, found.verdict.label, len(found.cells)) == (None, "NOT-RUN", 12)


def test_a_sweep_over_all_sets_ends_with_their_mean_and_its_verdict() -> None:
    whole = runs(0.64)
    (hakari, other) = [line for line in shown(whole) if "mean of nanobeir (13)" in line]
    assert hakari.split()[:7] == ["jina-colbert-v2", "128", "mean", "of", "nanobeir", "(13)", "0.64000"]
    assert hakari.split()[7:] == ["0.6513", "-0.0113", "LOWER", "hakari-bench"]
    assert "0.6517  -0.0117  LOWER" in other
    assert not [line for line in shown(whole[:12]) if "mean of" in line]
    mine = [dataclasses.replace(one, model="mine") for one in whole]
    (line,) = [line for line in shown(mine) if "mean of nanobeir (13)" in line]
    assert line.split()[6:8] == ["0.64000", "–"]


def test_a_sweep_over_a_setting_ends_without_a_mean_of_one_of_its_values() -> None:
    """Each of the 13 sets has two results: a mean would be over either, and not say over which."""
    one, other = ([named(each, **{"model": "mine", **plain}) for each in runs(0.64)] for plain in ({}, {"dtype": 1}))
    assert [mean.value for mean in table.collection_means(one)] == [pytest.approx(0.64)]
    assert table.collection_means([*one, *other]) == []
    assert judged([*runs(), named(runs()[0], dtype="float32")]).verdict.label == "NOT-RUN"


def named(one: CellScores, *, model: str = "jina-colbert-v2", **settings: object) -> CellScores:
    """Return a cell of another system, or with other settings, under its own run id."""
    protocol = {**one.protocol, **settings}
    run_id = keys.run_id(one.dataset, one.split, model, one.dim, protocol)
    return dataclasses.replace(one, model=model, protocol=protocol, run_id=run_id)


def test_metrics_that_were_asked_for_are_shown() -> None:
    one = cell()
    asked = dataclasses.replace(one, metrics={**one.metrics, "map": 0.12345})
    header, row, *_ = shown([asked])
    assert header.split()[-1] == "map"
    assert row.split()[-1] == "0.12345"


def shown(cells: list[CellScores]) -> list[str]:
    return list(table.terminal(table.rows(cells), means=table.collection_means(cells)).lines())


def test_runs_of_two_protocols_have_no_mean() -> None:
    odd, *others = runs()
    other = dataclasses.replace(odd, protocol={**odd.protocol, "dtype": "float32"})
    found = judged([other, *others])
    assert found.measured is None
    assert found.verdict == ("PROTOCOL-DIFFERS", ("dtype is not the same on every dataset",))


def test_what_only_the_machine_decided_is_no_other_protocol() -> None:
    odd, *others = runs()
    other = dataclasses.replace(odd, protocol={**odd.protocol, "batch_tokens": 1, "attention": "varlen"})
    assert judged([other, *others]).verdict.label == "MATCH"


def test_a_setting_that_differs_from_the_published_one_is_named_once() -> None:
    changed = [dataclasses.replace(one, protocol={**one.protocol, "dtype": "float32"}) for one in runs(0.6513)]
    found = judged(changed, "hakari-bench")
    assert found.measured == pytest.approx(0.6513)
    assert found.verdict == ("PROTOCOL-DIFFERS", ("dtype is float32, published with bfloat16",))


def test_a_run_of_other_weights_measures_no_mean() -> None:
    odd, *others = runs()
    found = judged([dataclasses.replace(odd, deviations=("other documents",)), *others])
    assert (found.measured, found.verdict.label) == (None, "NOT-RUN")


def test_a_mean_that_is_lower_can_be_waived() -> None:
    waiver = Waiver("jina-colbert-v2", 128, "nanobeir", "ndcg@10", "sentence-transformers", 0.64, "known")
    assert judged(runs(0.64), waivers=[waiver]).waiver == waiver
    assert judged(runs(), waivers=[waiver]).waiver is None


def test_the_sheet_says_how_much_of_a_mean_is_measured() -> None:
    rows = markdown(means_sheet(judge_means(runs()[:12]))).splitlines()
    published = [row for row in rows if "sentence-transformers |" in row and "jina-colbert-v2" in row]
    assert published == [
        "| jina-colbert-v2:128 | nanobeir (13) | NDCG@10 | sentence-transformers | 0.6517 | 12 of 13 | – | NOT-RUN |"
    ]


def test_a_report_tables_the_means_and_names_one_that_is_lower(tmp_path: Path) -> None:
    put(tmp_path, cell())
    for one in runs(0.64):
        put(tmp_path, late(dataset=one.dataset, value=one.metrics["ndcg@10"], protocol=one.protocol))
    made = build.build(tmp_path)
    assert "| 0.6517 | 0.64000 | -0.0117 | LOWER |" in made.files["tables/means.md"].decode()
    assert (
        "jina-colbert-v2:128 on nanobeir: ndcg@10 0.64000 is LOWER than sentence-transformers's 0.6517" in made.unwaived
    )


def test_a_run_file_is_a_search_and_no_second_stage() -> None:
    config = compose(["model=jina-colbert-v2", "dim=128", "dataset=beir/quora"])
    corpus = HubCorpus("owner/name@commit", ())
    dataset = Dataset("beir/quora", "test", "en", corpus, (), {}, True, "ndcg@10", {}, "hub", 0)
    found = verdicts.lines(config, dataset, {"ndcg@10": 0.887})
    assert [line.partition(" (")[0] for line in found] == [
        "ndcg@10\tMATCH",
        "ndcg@10\tPROTOCOL-DIFFERS: first_stage is none, published with jina-embeddings-v3 top 100",
    ]


def test_a_declared_setting_that_no_score_states_counts_too() -> None:
    config = compose(["model=bm25", "model.ties=trec_eval", "dataset=beir/quora"])
    dataset = Dataset("beir/quora", "test", "en", HubCorpus("o/n@c", ()), (), {}, True, "ndcg@10", {}, "hub", 0)
    edited = "ndcg@10\tPROTOCOL-DIFFERS: ties is trec_eval, anserini in the config of bm25 (card "
    assert verdicts.lines(config, dataset, {"ndcg@10": 0.789}, declared=["ties"])[0].startswith(edited)
    assert verdicts.lines(config, dataset, {"ndcg@10": 0.789})[0].startswith("ndcg@10\tMATCH (card ")


def with_query(one: CellScores, **rules: object) -> CellScores:
    return dataclasses.replace(one, protocol={**one.protocol, "query": {**one.protocol["query"], **rules}})


def test_a_system_without_published_means_has_none_over_two_protocols_either() -> None:
    odd, *others = [dataclasses.replace(one, model="mine") for one in runs(0.64)]
    mixed = [with_query(odd, max_tokens=64), *others]
    (line,) = [line for line in shown(mixed) if "mean of nanobeir (13)" in line]
    assert line.split()[6:8] == ["–", "–"]
    assert [line for line in shown(mixed) if "query.max_tokens is not the same on every dataset" in line]


def test_runs_on_another_split_of_all_sets_are_no_mean_of_the_sets() -> None:
    others = [dataclasses.replace(one, split="dev") for one in runs()]
    assert (judged(others).measured, judged(others).verdict.label) == (None, "NOT-RUN")
    assert not table.collection_means([dataclasses.replace(one, model="mine") for one in others])


def board_of(cells: list[CellScores], system: str, collection: str) -> Standing:
    found = leaderboard(card_tables(judge(cells)), cells).standings
    return next(one for (each, name), one in found.items() if (each.name, name) == (system, collection))


def own(*datasets: str) -> list[CellScores]:
    return [dataclasses.replace(late(dataset=name, value=0.2), model="mine") for name in datasets]


def test_the_leaderboard_averages_no_runs_of_one_system_under_two_protocols() -> None:
    first, second = own("law/a", "law/b")
    assert board_of([first, second], "mine", "law ndcg@10").measured == pytest.approx(0.2)
    mixed = [first, with_query(second, prompt="query: ")]
    reason = "query.prompt is not the same on every dataset"
    assert board_of(mixed, "mine", "law ndcg@10") == (None, None, ("law/a", "law/b"), (reason,))
    sheet = leaderboard_sheet(leaderboard(card_tables(judge(mixed)), mixed))
    place = sheet.header.index("law-2 NDCG@10 measured")
    assert [row[place] for row in sheet.rows if row[0] == "mine:128"] == ["–"]
    assert f"mine:128 has no mean on law: {reason}." in sheet.notes
    (own_board,) = boards.own_boards(mixed, judge(mixed))
    (system,) = own_board.systems
    assert (own_board.means[system], own_board.differs[system]) == (None, (reason,))


def test_an_average_of_the_card_is_over_one_protocol() -> None:
    names = ("nfcorpus", "fiqa", "trec-covid", "hotpotqa", "nq")
    first, *others = [late(value=0.6, dataset=f"beir/{name}") for name in names]
    mixed = [dataclasses.replace(first, protocol={**first.protocol, "stored_dtype": "float32"}), *others]
    (matryoshka,) = (one for one in card_tables(judge(mixed)) if one.name == "matryoshka")
    average = matryoshka.averages[matryoshka.systems[0]]
    reason = "stored_dtype is not the same on every dataset"
    assert (average.measured, average.rows_measured, average.differs) == (None, 5, (reason,))
    assert card_sheet(matryoshka).rows[-1][2].endswith(" → –")
    assert f"jina-colbert-v2:128 has no measured average: {reason}." in card_sheet(matryoshka).notes


def test_settings_that_the_model_gives_per_dataset_are_one_protocol() -> None:
    """The lengths of ColBERT on BEIR, also under another name; others are another protocol."""
    lengths = {"beir/arguana": 300, "beir/climate-fever": 64, "beir/fiqa": 32}
    for model in ("colbertv2", "mine"):
        cells = [
            dataclasses.replace(with_query(late(dataset=name), max_tokens=length), model=model)
            for name, length in lengths.items()
        ]
        assert comparability.varying(cells) == ()
        other = [with_query(cells[0], max_tokens=200), *cells[1:]]
        assert comparability.varying(other) == ("query.max_tokens",)


def test_an_analyzer_may_depend_on_the_language_and_k1_on_the_dataset() -> None:
    def on(dataset: str, language: str, **settings: object) -> CellScores:
        one = cell(dataset=dataset, language=language)
        return dataclasses.replace(one, protocol={**one.protocol, **settings})

    thai, finnish = on("law/th", "th", analyzer="thai"), on("law/fi", "fi", analyzer="finnish")
    assert comparability.varying([thai, finnish]) == ()
    assert comparability.varying([thai, finnish, on("law/fi2", "fi", analyzer="standard")]) == ("analyzer",)
    assert comparability.varying([on("mmarco/ru", "ru", k1=0.82, b=0.68), on("beir/nq", "en")]) == ()
    assert comparability.varying([on("mmarco/ru", "ru", k1=1.2), on("beir/nq", "en")]) == ("k1",)


def test_the_dataset_decides_whether_self_ids_are_dropped() -> None:
    def on(dataset: str, *, dropped: bool, **counts: int) -> CellScores:
        one = cell(dataset=dataset)
        return dataclasses.replace(one, counts=counts, protocol={**one.protocol, "drop_self": dropped})

    assert comparability.varying([on("beir/nq", dropped=True), on("nanobeir/nq", dropped=False)]) == ()
    assert comparability.varying([on("law/a", dropped=True), on("law/b", dropped=False)]) == ()
    kept = on("beir/fiqa", dropped=False, kept_self=3)
    assert comparability.varying([on("beir/nq", dropped=True), kept]) == ("drop_self",)
    none = on("beir/fiqa", dropped=False, kept_self=0)
    assert comparability.varying([on("beir/nq", dropped=True), none]) == ()


def test_the_exceptions_of_a_published_table_are_one_protocol() -> None:
    """The card's BM25 keeps self-ids on ArguAna alone."""
    protocol = cell().protocol
    kept = cell(dataset="beir/arguana", protocol={**protocol, "drop_self": False})
    assert comparability.varying([cell(), kept]) == ()
    assert comparability.varying([cell(), dataclasses.replace(kept, model="mine")]) == ("drop_self",)
