"""evalkit from Python: finished cells, frames of a run's files, and the tables as frames."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pandas as pd
import pytest
from report_material import cell, late, put

import evalkit
from evalkit import api
from evalkit.config.compose import compose
from evalkit.errors import ConfigError, EvalkitError, ScoreError
from evalkit.report import frames, sheets
from evalkit.storage.paths import default_results_dir
from evalkit.types import Hit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(
        tmp_path,
        late(value=0.5),
        per_query={"q1": 1.0, "q2": 0.0},
        run={"q1": [Hit("d1", 2.0), Hit("d3", 1.0)], "q2": [Hit("d9", 1.0)]},
    )
    put(tmp_path, late(dim=64, value=0.25), per_query={"q1": 0.5, "q2": 0.0})
    return tmp_path


def test_finished_runs_are_looked_for_where_runs_are_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALKIT_RESULTS", str(folder))
    assert evalkit.load("jina-colbert-v2-64").cell.metrics["ndcg@10"] == 0.25
    assert [row["other"] for row in evalkit.compare().to_dict("records")] == ["jina-colbert-v2-64"]
    assert evalkit.leaderboard().shape == evalkit.leaderboard(results_dir=folder).shape
    assert default_results_dir() == compose([]).results_dir


def test_the_function_and_the_package_of_that_name_are_one() -> None:
    """Whoever imported what before: the name is the package, and the package can be called."""
    asked = "import evalkit, sys; {}; print(callable(evalkit.run), evalkit.run is sys.modules['evalkit.run'])"
    for before in ("pass", "import evalkit.run.jobs", "from evalkit import api"):
        done = subprocess.run([sys.executable, "-c", asked.format(before)], capture_output=True, text=True, check=True)
        assert done.stdout == "True True\n", before


def test_importing_evalkit_imports_nothing_else() -> None:
    names = "sorted(name for name in sys.modules if name.startswith('evalkit'))"
    asked = f"import sys, evalkit; print({names}, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == "['evalkit'] False\n"
    assert {"run", "load", "leaderboard", "compare"} <= set(dir(evalkit))


def test_the_command_line_starts_without_pandas() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, evalkit.cli; print('pandas' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"


def test_words_of_several_values_are_a_sweep_and_finished_cells_are_read_again(tmp_path: Path) -> None:
    words = ("model=bm25", "model.k1=0.9,1.2", f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache")
    first = evalkit.run(*words)
    assert [one.protocol["k1"] for one in first] == [0.9, 1.2]
    assert [one.run_id for one in evalkit.run(*words)] == [one.run_id for one in first]
    assert len(list((tmp_path / "results" / "runs").iterdir())) == 2
    found = evalkit.load(first[0].run_id, results_dir=tmp_path / "results")
    assert found.cell == first[0]
    assert found.per_query["ndcg@10"].mean() == pytest.approx(first[0].metrics["ndcg@10"], abs=1e-12)
    assert set(found.ranking["query"]) <= set(found.per_query.index) == set(found.qrels["query"])


def test_a_wrong_word_is_told_as_on_the_command_line() -> None:
    with pytest.raises(ConfigError, match="model 'dmo' unknown; did you mean demo"):
        evalkit.run("model=dmo")


def test_a_runs_files_come_as_frames(folder: Path) -> None:
    found = evalkit.load("jina-colbert-v2-128", results_dir=folder)
    assert found.ranking.to_dict("list") == {
        "query": ["q1", "q1", "q2"],
        "document": ["d1", "d3", "d9"],
        "rank": [1, 2, 1],
        "score": [2.0, 1.0, 1.0],
    }
    assert found.per_query["ndcg@10"].to_dict() == {"q1": 1.0, "q2": 0.0}
    assert found.per_query.index.name == "query"
    assert found.qrels.to_dict("records") == [
        {"query": "q1", "document": "d1", "grade": 1},
        {"query": "q2", "document": "d2", "grade": 1},
    ]


def test_a_name_that_fits_no_run_or_several_is_refused(folder: Path) -> None:
    with pytest.raises(ScoreError, match="bm26"):
        evalkit.load("bm26", results_dir=folder)
    with pytest.raises(ScoreError, match="jina-colbert-v2"):
        evalkit.load("jina-colbert-v2", results_dir=folder)


def test_an_edited_table_of_queries_is_refused(folder: Path) -> None:
    found = evalkit.load("jina-colbert-v2-64", results_dir=folder)
    path = folder / "runs" / found.cell.run_id / "per_query.tsv"
    path.write_text(path.read_text(encoding="utf-8").replace("q2", "q3"), encoding="utf-8")
    with pytest.raises(EvalkitError, match=r"per_query\.tsv"):
        evalkit.load("jina-colbert-v2-64", results_dir=folder)


def test_a_comparison_is_a_row(folder: Path) -> None:
    """Δ by hand: q1 loses a half, q2 nothing."""
    (row,) = evalkit.compare(results_dir=folder).to_dict("records")
    assert (row["base"], row["other"], row["metric"]) == ("jina-colbert-v2-128", "jina-colbert-v2-64", "ndcg@10")
    assert (row["base_value"], row["other_value"], row["delta"]) == (0.5, 0.25, -0.25)
    assert (row["queries"], row["wins"], row["losses"]) == (2, 0, 1)
    assert row["p"] == row["p_holm"]


def test_the_leaderboard_has_published_and_measured_means(folder: Path) -> None:
    put(folder, cell(dataset="folder/mine", metrics={"ndcg@10": 0.75, "mrr@10": 0.5, "recall@100": 1.0}))
    board = evalkit.leaderboard(results_dir=folder)
    assert board.index.names == ["system", "dim"]
    assert board.loc[("jina-colbert-v2", 128), ("BEIR", "ndcg@10", 13, "published")] == 0.531
    assert np.isnan(board.loc[("jina-colbert-v2", 128), ("BEIR", "ndcg@10", 13, "measured")])
    assert board.loc[("bm25", 0), ("folder", "ndcg@10", 1, "measured")] == 0.75
    assert set(board.dtypes) == {np.dtype("float64")}


def test_text_stays_text_in_a_frame_and_its_csv() -> None:
    rows = [("a,b", "", '"x"'), ("–", "0.10", "line\nbreak")]
    assert sheets.csv_text(("name", "value", "value"), rows) == (
        'name,value,value\n"a,b",,"""x"""\n–,0.10,line\\nbreak\n'
    )
    assert isinstance(frames.texts(("a",), []), pd.DataFrame)
    assert sheets.csv_text(("a", "b"), []) == "a,b\n"


def test_the_documentation_fits_a_screen() -> None:
    assert len(str(api.__doc__).splitlines()) <= 45


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """Call functions in a thread each, at the same moment; return what they return, or raise."""
    together = threading.Barrier(len(calls))

    def meet(call: Callable[[], Any]) -> Any:
        together.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(meet, calls))


@pytest.fixture
def hydra_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give other threads the time to begin while one of them composes."""
    begin = hydra.initialize_config_dir

    def slow(*words: Any, **settings: Any) -> Any:
        time.sleep(0.1)
        return begin(*words, **settings)

    monkeypatch.setattr(hydra, "initialize_config_dir", slow)


@pytest.mark.usefixtures("hydra_slow")
def test_calls_in_several_threads_give_what_calls_one_after_the_other_give(tmp_path: Path) -> None:
    sizes = range(2)
    words = [("model=bm25", "dataset.demo.documents=60", f"dataset.demo.queries={size + 8}") for size in sizes]

    def run(folder: str, number: int) -> tuple[Any, ...]:
        where = (f"results_dir={tmp_path}/{folder}/{number}", f"cache_dir={tmp_path}/{folder}/{number}/cache")
        return tuple((cell.run_id, cell.metrics, cell.counts) for cell in evalkit.run(*words[number], *where))

    wanted = [run("alone", number) for number in sizes]
    assert wanted[0] != wanted[1]
    assert in_threads(*(partial(run, "together", number) for number in sizes)) == wanted


@pytest.mark.usefixtures("hydra_slow")
def test_settings_are_composed_by_one_thread_at_a_time() -> None:
    calls = [partial(compose, [f"dataset.demo.queries={size}"]) for size in (8, 9)] * 2
    assert [config.dataset.demo and config.dataset.demo.queries for config in in_threads(*calls)] == [8, 9, 8, 9]


def test_calls_in_several_threads_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = [0], [0]

    def slow(*_: Any, **__: Any) -> list[Any]:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.2)
        running[0] -= 1
        return []

    def load(*_: Any, **__: Any) -> None:
        slow()

    monkeypatch.setattr("evalkit.run.pipeline.run", slow)
    monkeypatch.setattr("evalkit.mteb.lucene.check_settings", load)
    monkeypatch.setattr("evalkit.mteb._meta", load)
    where = f"cache_dir={tmp_path}"
    encode = partial(evalkit.mteb.encoder, "model=bm25", where)
    in_threads(partial(evalkit.run, "model=bm25", where), partial(evalkit.run, "model=bm25", where), encode)
    assert most == [1]
