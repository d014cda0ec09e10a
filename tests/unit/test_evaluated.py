"""Cells are compared only if they were evaluated on the same corpus, queries and judgements of one split."""

import dataclasses

import pytest
from report_material import cell, late, put
from typer.testing import CliRunner

from evalkit.analysis import collected, compare
from evalkit.cli import app
from evalkit.errors import ScoreError
from evalkit.report import boards, build, page, pareto, places
from evalkit.scoring import reruns
from evalkit.storage import evaluated, results


def judged(checksum, made=cell, **changes):
    found = made(**changes)
    return dataclasses.replace(found, environment={**found.environment, results.QRELS_CHECKSUM: checksum})


def read(made=cell, **facts):
    return made(protocol={**made().protocol, **facts})


def evalkit(folder, *words):
    return CliRunner().invoke(app, [*words, "--results-dir", str(folder)])


OTHERS = [
    (judged("aa"), judged("bb", late), "judgements (aa, bb)", "scores a finished run again"),
    (read(corpus="1"), read(late, corpus="2"), "corpus (1, 2)", "the same copy of beir/nfcorpus, or give"),
    (read(queries="1"), read(late, queries="2"), "queries (1, 2)", "the same copy of beir/nfcorpus, or give"),
    (cell(), dataclasses.replace(late(), counts={"judgements": 3}), "(2 of them, 3 of them)", "scores a finished run"),
]


@pytest.mark.parametrize(("one", "other", "got", "remedy"), OTHERS)
@pytest.mark.parametrize("verb", ["compare", "explain"])
def test_cells_that_were_evaluated_on_something_else_are_not_compared(tmp_path, verb, one, other, got, remedy):
    put(tmp_path, one)
    put(tmp_path, other)
    words = ["compare"] if verb == "compare" else ["explain", one.run_id, "--against", other.run_id]
    done = evalkit(tmp_path, *words)
    assert done.exit_code == 1
    assert done.stdout == ""
    line = str(done.exception)
    assert "\n" not in line
    assert all(part in line for part in (one.run_id, other.run_id, got, remedy))


def test_older_cells_without_a_checksum_are_compared(tmp_path):
    cells = [judged("aa"), late()]
    for one in cells:
        put(tmp_path, one)
    assert len(compare.compare(cells, tmp_path)) == 1
    assert evaluated.differences(*cells) == evaluated.differences(judged("aa"), judged("aa", late)) == []


def test_two_cells_that_differ_are_refused_though_the_base_recorded_nothing(tmp_path):
    cells = [late(), judged("aa", late, dim=96), judged("bb", late, dim=64)]
    for one in cells:
        put(tmp_path, one)
    with pytest.raises(ScoreError, match=r"jina-colbert-v2-96\.\w+ and .*jina-colbert-v2-64\.\w+: differ in judgem"):
        compare.compare(cells, tmp_path)


def test_explain_refuses_another_set_of_queries_in_both_directions(tmp_path):
    put(tmp_path, cell())
    put(tmp_path, late(), per_query={"q1": 0.346})
    for words in (["bm25", "--against", "jina-colbert-v2"], ["jina-colbert-v2", "--against", "bm25"]):
        done = evalkit(tmp_path, "explain", *words)
        assert done.exit_code == 1
        assert "1 queries are in one only; wanted the same judged queries" in str(done.exception)


def test_explain_refuses_a_cell_on_another_dataset_or_split(tmp_path):
    put(tmp_path, cell())
    others = {
        "dataset (beir/nfcorpus, beir/fiqa)": cell(dataset="beir/fiqa"),
        "split (test, dev)": cell(split="dev"),
    }
    for got, other in others.items():
        put(tmp_path, other)
        done = evalkit(tmp_path, "explain", cell().run_id, "--against", other.run_id)
        assert done.exit_code == 1
        assert got in str(done.exception)


def test_a_message_about_cells_that_share_no_split_names_the_splits(tmp_path):
    cells = [cell(), late(split="dev")]
    for one in cells:
        put(tmp_path, one)
    with pytest.raises(
        ScoreError, match=r"bm25 on beir/nfcorpus \(test\), jina-colbert-v2:128 on .* \(dev\); wanted two"
    ):
        compare.compare(cells, tmp_path)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (judged("bb", late, value=0.34), "judgements"),
        (late(value=0.34, deviations=("9 documents, published with 10",)), "deviations"),
        (dataclasses.replace(late(value=0.34), counts={"judgements": 3}), "judgements"),
    ],
)
def test_what_was_scored_by_other_judgements_is_no_rerun(tmp_path, other, what):
    base = judged("aa", late)
    put(tmp_path / "reruns" / "other", other)
    found, (problem,) = reruns.measure([base], tmp_path)
    assert found == ()
    assert f"other/{base.run_id}: differs from {base.run_id} in {what}, wanted a re-run" in problem
    put(tmp_path / "reruns" / "other", judged("aa", late, value=0.34))
    assert reruns.measure([base], tmp_path)[1] == ()


def test_a_report_names_cells_with_other_judgements_and_tables_neither(tmp_path):
    changed, older = judged("aa", dataset="mine"), judged("bb", late, dataset="mine")
    for one in (changed, older, judged("cc", dataset="mine", split="dev"), late(dataset="mine", dim=96)):
        put(tmp_path, one)
    found = collected.collect(tmp_path, checksums={"mine": late().protocol["corpus"]})
    assert [line.partition(", other")[0] for line in found.problems] == [
        f"{changed.run_id}: judgements are aa",
        f"{older.run_id}: judgements are bb",
    ]
    assert "run the cells again on the same copy of the dataset (a finished run is scored again)" in found.problems[0]
    deviating = [one.run_id for one in found.cells if one.deviations]
    assert deviating == [changed.run_id, older.run_id]
    done = evalkit(tmp_path, "report")
    assert done.exit_code == 1
    assert "judgements are aa" in done.stderr


def test_a_cell_that_deviates_already_makes_no_other_deviate(tmp_path):
    put(tmp_path, judged("aa"))
    put(tmp_path, judged("bb", late, deviations=("2 judgements, published with 3",)))
    found = collected.collect(tmp_path, checksums={"beir/nfcorpus": late().protocol["corpus"]})
    assert found.problems == ()
    assert [len(one.deviations) for one in found.cells] == [0, 1]


def on_two_splits():
    cells = [cell(dataset="mine/words"), cell(dataset="mine/words", split="dev", metrics={"ndcg@10": 0.5})]
    return [*cells, late(dataset="mine/words", split="dev"), late(dataset="mine/words", dim=64)]


def test_every_table_names_a_split_that_is_not_the_usual_one(tmp_path):
    for one in on_two_splits():
        put(tmp_path, one)
    made = build.build(tmp_path)
    assert made.problems == ()
    assert [(row.cell.model, places.shown(row.cell)) for row in made.rows] == [
        ("bm25", "mine/words (dev)"),
        ("jina-colbert-v2", "mine/words (dev)"),
        ("bm25", "mine/words"),
        ("jina-colbert-v2", "mine/words"),
    ]
    done = evalkit(tmp_path, "report")
    assert done.stdout.count("| mine/words |") == done.stdout.count("| mine/words (dev) |") == 2
    compared = evalkit(tmp_path, "compare")
    assert compared.exit_code == 0
    assert "mine/words (dev)" in compared.stdout
    files = {name: data.decode() for name, data in made.files.items()}
    columns = [name.strip() for name in files["tables/leaderboard.md"].splitlines()[2].split("|")]
    assert [name for name in columns if name.startswith("mine") and name.endswith(" measured")] == [
        "mine NDCG@10 measured",
        "mine (dev) NDCG@10 measured",
    ]
    assert "| 64 | mine/words |" in files["tables/dims.md"]
    assert "| 128 | mine/words (dev) |" in files["tables/dims.md"]


def test_two_splits_are_two_panels_of_a_plot_and_two_names_on_the_page():
    cells = on_two_splits()
    found = pareto.points(cells, intervals={}, narrowed={})
    assert {name: [point.label for point in panel] for name, panel in found.items()} == {
        ("mine/words", "ndcg@10"): ["jina-colbert-v2:64"],
        ("mine/words (dev)", "ndcg@10"): ["jina-colbert-v2:128"],
    }
    found = boards.own_boards(cells, [])
    assert [(board.name, board.title, board.datasets) for board in found] == [
        ("board-mine-ndcg@10", "mine", ("mine/words",)),
        ("board-mine-dev-ndcg@10", "mine (dev)", ("mine/words (dev)",)),
    ]
    assert page._compared_under([judged("aa"), judged("bb", late), cell(split="dev")]) == {
        judged("aa").run_id: "beir/nfcorpus (judgements aa)",
        late().run_id: "beir/nfcorpus (judgements bb)",
        cell(split="dev").run_id: "beir/nfcorpus (dev)",
    }


def test_the_usual_split_is_the_one_of_the_datasets_config():
    assert places.shown(cell(dataset="mmarco/ru", split="dev")) == "mmarco/ru"
    assert places.shown(cell(dataset="mmarco/ru", split="test")) == "mmarco/ru (test)"


def test_the_split_does_not_separate_results_where_something_is_published():
    """Some published scores do not state their split, so a cell on another one could be taken for the published."""
    assert collected._own_split(cell(model="all-minilm-l6-v2", dim=384, dataset="beir/fiqa", split="dev")) == ""
    assert collected._own_split(cell(dataset="mine", split="dev")) == "dev"
