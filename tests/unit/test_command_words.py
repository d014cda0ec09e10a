"""The words of the command line: one grammar for every verb, runs by system and dim, and what names are taken for."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

from evalkit import __version__, cli
from evalkit.config.compose import compose
from evalkit.errors import ScoreError, StoreError, lines
from evalkit.run import jobs, pipeline
from evalkit.storage import results

ROOT = Path(__file__).parents[2]
COMMITTED = str(ROOT / "results")
SMALL = ["dataset.demo.documents=60", "dataset.demo.queries=6"]


@pytest.fixture
def evalkit(tmp_path, monkeypatch):
    """Type a command in an empty folder; return its exit code, what it tabled, and all else that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))

    def typed(*words):
        tables, progress = io.StringIO(), io.StringIO()
        monkeypatch.setattr(cli, "_out", Console(file=tables, width=200, highlight=False))
        monkeypatch.setattr(cli, "_err", Console(file=progress, width=200))
        done = CliRunner().invoke(cli.app, [str(word) for word in words])
        error = "" if done.exception is None or isinstance(done.exception, SystemExit) else str(done.exception)
        return done.exit_code, tables.getvalue(), done.output + progress.getvalue() + error

    return typed


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    words = ["model=demo", "dim=[128,64]", *SMALL, f"results_dir={folder}/results", f"cache_dir={folder}/cache"]
    pipeline.run(compose(words), console=Console(quiet=True))
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("ls", "runs"),
        ("compare", "demo"),
        ("replay", "demo:64"),
        ("plan", "model=bm25"),
        ("status",),
        ("cache", "ls"),
        ("audit",),
        ("report", "--check"),
    ],
    ids=" ".join,
)
def test_every_verb_takes_folders_in_both_spellings(evalkit, words):
    settings = evalkit(*words, f"results_dir={COMMITTED}", "cache_dir=there")
    options = evalkit(*words, "--results-dir", COMMITTED, "--cache-dir=there")
    assert free_disk_aside(settings) == free_disk_aside(options)
    assert "No such option" not in settings[2]
    assert "setting " not in settings[2]


def free_disk_aside(typed):
    return [re.sub(r"[0-9.]+ [kMGT]B free", "… free", str(part)) for part in typed]


def test_a_folder_that_is_left_out_is_said(evalkit):
    code, _, said = evalkit("plan", "--results-dir")
    assert code != 0
    assert "--results-dir got nothing, wanted a folder" in said


def test_the_version_and_short_help_are_given(evalkit):
    assert evalkit("--version")[2] == f"evalkit {__version__}\n"
    for words in (("-h",), ("run", "-h"), ("cache", "ls", "-h")):
        code, _, said = evalkit(*words)
        assert code == 0
        assert "Usage:" in said


def test_the_help_has_a_whole_sentence_for_every_verb(evalkit):
    listed = evalkit("--help")[2].partition("Commands:")[2].splitlines()
    sentences = [line.split(maxsplit=1)[1] for line in listed if line.strip()]
    assert len(sentences) == 15
    for sentence in sentences:
        assert sentence.endswith(".")
        assert not sentence.endswith("..")
        assert len(sentence) <= 60


def test_runs_are_named_by_system_and_dim_or_by_dims_of_one_model(evalkit):
    place = f"results_dir={COMMITTED}"
    named = evalkit("compare", "demo:128", "demo:64", place)
    assert named[0] == 0
    assert evalkit("compare", "128", "64", "model=demo", place) == named
    assert evalkit("compare", "model=demo", "dim=[128,64]", place) == named
    rows = [line.split()[:5] for line in named[1].splitlines() if line.startswith("demo")]
    assert [(row[1], row[4]) for row in rows[:2]] == [("128", "base"), ("64", "+0.0031")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("compare", "model=dmeo"), "model=dmeo: no finished cell has it; did you mean demo?"),
        (("replay", "demo:65"), "cell 'demo:65' unknown; did you mean demo:"),
        (("replay", "demo"), "cell 'demo' names 3: demo:128 on demo, demo:96 on demo, demo:64 on demo; "),
        (("compare", "bm25s"), "wanted two or more on one dataset and split (evalkit ls runs)"),
    ],
)
def test_a_run_that_is_not_clear_is_answered_with_what_can_be_typed(evalkit, words, message):
    code, _, said = evalkit(*words, f"results_dir={COMMITTED}")
    assert code == 1
    assert message in said
    assert not re.search(r"\.[0-9a-f]{10}\b", said)  # no lists of run ids


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("dataset=msmarco", "dataset 'msmarco' unknown; did you mean msmarco/dev-small"),
        ("path=x", "setting 'path' unknown; did you mean dataset.path?"),
        ("batch_size=8", "setting 'batch_size' unknown; did you mean engine.batch_tokens?"),
        ("force=true", "setting 'force' unknown; did you mean --force?"),
        ("beir/nfcorpus", "got 'beir/nfcorpus', wanted setting=value; did you mean dataset=beir/nfcorpus?"),
        ("device=cpu", "setting 'device' unknown; did you mean engine.device?"),
    ],
)
def test_a_word_is_answered_with_what_it_most_likely_means(evalkit, word, message):
    code, _, said = evalkit("run", word)
    assert code != 0
    assert message in said


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("evalkit ru", ["run"]),
        ("evalkit run mod", ["model="]),
        ("evalkit run model=jina-colbert", ["model=jina-colbert-v1-en", "model=jina-colbert-v2"]),
        ("evalkit plan model=bm25 dataset=beir/scif", ["dataset=beir/scifact"]),
        ("evalkit check engine.dev", ["engine.device="]),
        ("evalkit run -m model=demo,jina-colbert-v2", ["model=demo,jina-colbert-v2"]),
        ("evalkit cache ver", ["verify"]),
    ],
)
def test_a_shell_completes_verbs_groups_and_names(monkeypatch, capsys, typed, wanted):
    monkeypatch.setenv("_EVALKIT_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", typed)
    with pytest.raises(SystemExit):
        get_command(cli.app).main(args=[], prog_name="evalkit")
    assert re.findall(r'"([^"]+)":?', capsys.readouterr().out.replace('\\"', ""))[: len(wanted)] == wanted


def test_bash_which_parts_words_at_the_sign_gets_the_value_alone(monkeypatch, capsys):
    monkeypatch.setenv("_EVALKIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "evalkit run model = jina-colbert")
    monkeypatch.setenv("COMP_CWORD", "4")
    with pytest.raises(SystemExit):
        get_command(cli.app).main(args=[], prog_name="evalkit")
    assert capsys.readouterr().out.split() == ["jina-colbert-v1-en", "jina-colbert-v2"]


def test_a_dim_that_cannot_be_had_does_not_stop_the_others(finished, evalkit):
    words = ("model=demo", "dim=[128,64]", *SMALL, "model.checkpoints.64.path=nowhere", f"cache_dir={finished}/cache")
    for sweep in ((), ("-m",)):
        code, table, said = evalkit("run", *sweep, *words)
        assert code == 1
        rows = {line.split()[1]: line.split() for line in table.splitlines() if line.startswith("demo")}
        assert rows.keys() == {"128", "64"}
        assert re.fullmatch(r"0\.\d{5}", rows["128"][3])
        assert "NOT-RUN" in rows["64"]
        assert "nowhere" in table.splitlines()[-1]
        assert "demo:64 on demo: " in said
    code, _, said = evalkit("check", *words)
    assert code == 1
    assert "dim 64, one backbone\n  FAILED      checkpoint: " in said
    assert "dim 128, one backbone" in said


def test_what_finished_earlier_says_when_on_what_and_where_and_force_runs_again(finished, evalkit, tmp_path):
    words = ("run", "model=demo", "dim=[128,64]", *SMALL, f"cache_dir={finished}/cache")
    code, table, said = evalkit(*words, f"results_dir={finished}/results")
    assert code == 0
    date = re.search(
        r"demo:128, demo:64 on demo: finished earlier \((\d{4}-\d\d-\d\d), on .+?\), read from (.*);", said
    )
    assert date[2] == f"{finished}/results"
    (path,) = (finished / "results" / "runs").glob("demo.test.demo-64.*/scores.json")
    before = path.read_bytes()
    code, again, said = evalkit(*words, f"results_dir={finished}/results", "--force")
    assert (code, again) == (0, table)
    assert "finished earlier" not in said
    assert path.read_bytes() != before
    assert results.read(path).metrics["ndcg@10"] == pytest.approx(float(table.splitlines()[2].split()[3]), abs=1e-5)


def test_the_projects_own_results_are_read_by_name_only_and_said_to_be_its_own(finished, evalkit, tmp_path):
    (tmp_path / "results" / "published").mkdir(parents=True)
    (tmp_path / "results" / "runs").symlink_to(finished / "results" / "runs")
    code, table, said = evalkit("ls", "runs")
    assert (code, table.count("\n")) == (0, 1)
    assert "no finished cell under evalkit-results; " in said
    assert "for the project's own published results: --results-dir results" in said
    words = ("run", "model=demo", "dim=[128,64]", *SMALL, f"cache_dir={finished}/cache")
    assert (
        "read from results (the project's own published results); --force" in evalkit(*words, "results_dir=results")[2]
    )


def test_status_of_a_results_folder_lists_no_failure_of_another(finished, evalkit, tmp_path):
    for name in ("one", "other"):
        config = compose(["model=bm25", *SMALL, f"results_dir={tmp_path / name}", f"cache_dir={tmp_path}/cache"])
        with pytest.raises(ScoreError, match=name), jobs.recorded(config):
            raise ScoreError(name)
    code, table, said = evalkit("status", f"results_dir={tmp_path}/one")
    assert (code, table.count("failed")) == (1, 1)
    assert ": one" in said
    assert ": other" not in said


def test_an_error_that_is_its_own_cause_is_told_once():
    first, second = StoreError("no space"), StoreError("no space left")
    first.__cause__, second.__cause__ = second, first
    assert lines(first) == ["no space"]
