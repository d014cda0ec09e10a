"""The command line's tables at every width: no digit is cut, no name is lost, nothing is padded."""

import io
import re
from collections import Counter
from pathlib import Path

import pytest
from report_material import cell
from rich.console import Console
from typer.testing import CliRunner

from evalkit import cli
from evalkit.config.compose import compose
from evalkit.report import grid, rounding, table
from evalkit.report.grid import Column, Grid, Line
from evalkit.run import pipeline

ROOT = Path(__file__).parents[2]
WIDTHS = (60, 80, 100, 120, 200)
NUMBER = re.compile(r"(?<!\S)[<≈+-]?\d[\d,]*(\.\d+)?(?!\S)")
LISTS = ("models", "datasets", "analyzers", "engines", "rerankers", "experiments", "settings", "runs")
COMMITTED = ["--results-dir", str(ROOT / "results")]
COMMANDS = [
    *(["ls", what, *(COMMITTED if what == "runs" else [])] for what in LISTS),
    ["ls", "runs", "--wide", *COMMITTED],
    ["ls", "models", "--wide"],
    ["ls", "datasets", "--wide"],
    ["audit"],
    ["compare", "all-minilm-l6-v2", "bm25", *COMMITTED],
    ["compare", "--wide", "demo", "bm25", *COMMITTED],
]
WHOLE: dict[tuple[str, ...], str] = {}
"""What a command prints where there is no width."""
SMALL = ["dataset.demo.documents=60", "dataset.demo.queries=6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    words = ["model=demo", "dim=[128,64]", *SMALL, f"results_dir={folder}/results", f"cache_dir={folder}/cache"]
    pipeline.run(compose(words), console=Console(quiet=True))
    return folder


def shown(words, width, monkeypatch):
    """Return what a command prints to a terminal of that width."""
    file = io.StringIO()
    monkeypatch.setattr(cli, "_out", Console(file=file, width=width, highlight=False))
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    return file.getvalue()


def numbers(text):
    text = text.replace("95 % of Δ", "")  # a column's name, which comes again where the column moved below
    return Counter(match[0] for match in NUMBER.finditer(text))


def fits(words, width, monkeypatch):
    if (key := tuple(words)) not in WHOLE:
        WHOLE[key] = shown(words, grid.UNBOUNDED, monkeypatch)
    whole, text = WHOLE[key], shown(words, width, monkeypatch)
    assert max(map(len, text.splitlines())) <= width
    assert not [line for line in (text + whole).splitlines() if line != line.rstrip()]
    assert numbers(text) == numbers(whole)
    return whole, text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_table_fits_the_terminal_with_every_digit(words, width, monkeypatch):
    whole, text = fits(words, width, monkeypatch)
    if width >= 80:
        assert "…" not in text.replace(" … ", "").replace("=…", "")
        for line in whole.splitlines():
            assert line.split()[0] in text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("verb", ["plan", "status", "cache ls", "replay", "explain", "run"])
def test_the_tables_of_a_run_fit_the_terminal(folder, verb, width, monkeypatch):
    places = [f"results_dir={folder}/results", f"cache_dir={folder}/cache"]
    options = ["--results-dir", f"{folder}/results"]
    words = {
        "plan": ["plan", "model=demo", *SMALL, *places],
        "status": ["status", *places],
        "cache ls": ["cache", "ls", *options, "--cache-dir", f"{folder}/cache"],
        "replay": ["replay", "demo-64", *options],
        "explain": ["explain", "demo-64", "--against", "demo-128", *options],
        "run": ["run", "model=demo", "dim=[128,64]", *SMALL, *places],
    }[verb]
    monkeypatch.chdir(folder)
    _, text = fits(words, width, monkeypatch)
    assert "demo" in text or verb == "replay"


def test_the_six_facts_of_a_cell_stand_on_its_line_at_80_columns(monkeypatch):
    lines = shown(["ls", "runs", *COMMITTED], 80, monkeypatch).splitlines()
    assert lines[0].split() == ["system", "dim", "dataset", "ndcg@10", "published", "Δ", "verdict"]
    row = next(line for line in lines if "xquad/ar" in line and "minilm" in line).split()
    assert row == ["all-minilm-l6-v2", "384", "xquad/ar", "0.03821", "0.03797", "+0.0002", "NEAR"]


def test_what_makes_a_protocol_differ_stands_whole_below_the_row():
    deviation = "dataset beir/nfcorpus: got 3,632 documents from hub mteb/nfcorpus, wanted 3,633 as published"
    paired = table.rows([cell(deviations=(deviation,))])
    lines = list(table.terminal(paired).lines(80))
    assert [line.split()[-1] for line in lines if line.startswith("bm25")] == ["PROTOCOL-DIFFERS"] * len(paired)
    assert " ".join(" ".join(lines).split()).count(deviation) == len(paired)


def test_wide_shows_every_metric_and_the_narrow_table_the_main_one(monkeypatch):
    narrow, wide = (shown(["ls", "runs", *more, *COMMITTED], 240, monkeypatch) for more in ([], ["--wide"]))
    assert "recall@100" not in narrow
    header = wide.splitlines()[0]
    assert all(name in header for name in ("mrr@10", "recall@100", "ndcg@10 cross-lingual", "source", "run id"))


def test_columns_that_matter_least_move_below_first_and_names_are_cut_last_in_their_middle():
    columns = (Column("system", "name"), Column("value", "number"), Column("a", moves=1), Column("b", moves=2))
    made = Grid(columns, [Line(("jina-embeddings-v2-base-en", "0.31594", "first", "second"), ("a note",))])
    assert list(made.lines(45)) == [
        "system                        value  a",
        "jina-embeddings-v2-base-en  0.31594  first",
        "  b second",
        "  a note",
    ]
    assert list(made.lines(35))[1:3] == ["jina-embeddings-v2-base-en  0.31594", "  a first · b second"]
    assert list(made.lines(25))[1] == "jina-emb…base-en  0.31594"


def test_a_wide_script_takes_two_columns_a_character():
    made = Grid((Column("name", "name"), Column("n", "number")), [Line(("日本語", "1")), Line(("ab", "2"))])
    assert list(made.lines()) == ["name    n", "日本語  1", "ab      2"]


def test_a_number_is_rounded_half_up_wherever_it_is_shown():
    scores = cell(metrics={"ndcg@10": 0.123455, "mrr@10": 0.5, "recall@100": 0.5})
    rows = table.rows([scores])
    assert rounding.fixed(0.123455, 5) == "0.12346"
    assert "0.12346" in "".join(table.terminal(rows).lines())
    assert "| 0.12346 |" in table.markdown(rows)


@pytest.mark.parametrize(("columns", "width"), [("80", 80), ("200", 200), ("", grid.UNBOUNDED), ("x", grid.UNBOUNDED)])
def test_a_pipe_has_no_width_unless_it_is_told_one(monkeypatch, columns, width):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.setenv("COLUMNS", columns)
    assert grid.terminal_width() == width
