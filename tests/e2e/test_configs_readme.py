"""Every command of configs/README.md, run in its order as a reader would: a model and a dataset of their own."""

import json
import re
import shlex
import shutil
from pathlib import Path

import yaml
from fake_hub import FakeHub
from typer.testing import CliRunner

from evalkit.cli import app
from evalkit.config.settings import CONFIGS
from evalkit.storage import results

ROOT = Path(__file__).parents[2]
README = (ROOT / "configs" / "README.md").read_text("utf-8")
CHECKPOINT = ROOT / "tests" / "fixtures" / "parity" / "pylate_layouts" / "modernbert"
COMMANDS = re.findall(r"^evalkit ([^#\n]+)", README, re.MULTILINE)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_data(folder):
    (folder / "qrels").mkdir(parents=True)
    documents = [("d1", "los gatos duermen"), ("d2", "los perros corren"), ("d3", "un gato come")]
    lines = [json.dumps({"_id": name, "text": text}) for name, text in documents]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": "gatos"}), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td3\t1\n", encoding="utf-8")


def test_a_reader_adds_a_model_and_a_dataset_by_the_readme_alone(tmp_path, monkeypatch):
    assert len(COMMANDS) == 9
    shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    write_data(tmp_path / "my_data")
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CONFIGS, str(tmp_path / "mine"))
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    with FakeHub() as server:
        server.stand_in(monkeypatch, tmp_path / "hub")
        server.publish("lightonai/GTE-ModernColBERT-v1", CHECKPOINT, commit=COMMIT)
        for command in COMMANDS:
            done = CliRunner().invoke(app, shlex.split(command))
            assert done.exit_code == 0, (command, done.output, done.exception)
    cells = {(cell.model, cell.dim, cell.dataset): cell for cell in results.read_all(tmp_path / "evalkit-results")}
    assert set(cells) == {
        ("checkpoint", 16, "demo"),
        ("GTE-ModernColBERT-v1", 16, "demo"),
        ("house-colbert", 16, "demo"),
        ("house-colbert", 16, "tickets"),
        ("bm25", None, "folder/my_data"),
        ("bm25", None, "tickets"),
    }
    # One checkpoint by three names: the same vectors, so the same scores.
    assert len({json.dumps(cell.metrics) for (_, _, dataset), cell in cells.items() if dataset == "demo"}) == 1
    bm25 = cells["bm25", None, "tickets"]
    assert bm25.metrics["map"] == bm25.metrics["recall@50"] == 1.0  # stemmed as Spanish, gatos is gato
    assert bm25.protocol["analyzer"] == "spanish"


def test_a_dataset_of_the_lines_that_the_readme_shows_is_read(tmp_path, monkeypatch):
    lines = README.split("```\n{")[1].split("```")[0].splitlines()
    document, query, judgement = "{" + lines[0], *lines[1:]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_data" / "qrels").mkdir(parents=True)
    (tmp_path / "my_data" / "corpus.jsonl").write_text(document, encoding="utf-8")
    (tmp_path / "my_data" / "queries.jsonl").write_text(query, encoding="utf-8")
    for header in ("query-id\tcorpus-id\tscore\n", ""):
        (tmp_path / "my_data" / "qrels" / "test.tsv").write_text(f"{header}{judgement}\n", encoding="utf-8")
        words = ["model=bm25", "dataset=./my_data", "dataset.language=es", "cache_dir=cache"]
        done = CliRunner().invoke(app, ["run", *words, f"results_dir=results-{len(header)}"])
        assert done.exit_code == 0, done.output
        (found,) = results.read_all(tmp_path / f"results-{len(header)}")
        assert found.metrics["ndcg@10"] == 1.0


def test_the_files_that_the_readme_names_are_where_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CONFIGS, str(tmp_path / "mine"))
    shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    write_data(tmp_path / "my_data")
    (tmp_path / "mine").mkdir()
    for command in (command for command in COMMANDS if command.startswith("new")):
        done = CliRunner().invoke(app, [*shlex.split(command), *(["--cache-dir", "c"] if "dataset" in command else [])])
        assert done.exit_code == 0, done.output
    for name in ("mine/model/house-colbert.yaml", "mine/dataset/tickets.yaml"):
        assert name in README
        assert yaml.safe_load(Path(name).read_text("utf-8"))["name"] == Path(name).stem
