"""A mean that is published without its rows: measured only as a whole, under one protocol, and then judged."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from report_material import cell, late, put

from evalkit.config.compose import compose
from evalkit.datasets.hub import HubCorpus
from evalkit.report import build, table, verdicts
from evalkit.report.card import JudgedMean, Waiver, judge_means
from evalkit.report.sheets import markdown, means_sheet
from evalkit.scoring.published import published_means
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
    waiver = Waiver("jina-colbert-v2", 128, "nanobeir", "ndcg@10", "sentence-transformers", "known")
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
    assert "jina-colbert-v2 on nanobeir: ndcg@10 0.64000 is LOWER than sentence-transformers's 0.6517" in made.unwaived


def test_a_run_file_is_a_search_and_no_second_stage() -> None:
    config = compose(["model=jina-colbert-v2", "dim=128", "dataset=beir/quora"])
    corpus = HubCorpus("owner/name@commit", ())
    dataset = Dataset("beir/quora", "test", "en", corpus, (), {}, True, "ndcg@10", {}, "hub", 0)
    found = verdicts.lines(config, dataset, {"ndcg@10": 0.887})
    assert [line.partition(" (")[0] for line in found] == [
        "ndcg@10\tMATCH",
        "ndcg@10\tPROTOCOL-DIFFERS: first_stage is none, published with jina-embeddings-v3 top 100",
    ]
