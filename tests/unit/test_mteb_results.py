"""Results that mteb made, read as systems of the leaderboard."""

import json

import pytest
from report_material import late, put
from typer.testing import CliRunner

from evalkit.cli import app
from evalkit.errors import EvalkitError
from evalkit.report import build
from evalkit.scoring import mteb_results

SCORES = {"ndcg_at_10": 0.34567, "mrr_at_10": 0.5, "recall_at_100": 0.25, "nauc_ndcg_at_10_max": float("nan")}


def write(folder, *, task="NFCorpus", scores=None, model="org__colbert", meta=True, **changes):
    """Write a result as mteb does, NaN and all."""
    path = folder / model / "abc123" / f"{task}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {"test": [{**SCORES, "main_score": 0.34567, "hf_subset": "default", "languages": ["eng-Latn"]}]}
    values = {
        "dataset_revision": "ec0f",
        "task_name": task,
        "mteb_version": "2.26.24",
        "scores": entries if scores is None else scores,
        "evaluation_time": 1.0,
        "kg_co2_emissions": None,
        **changes,
    }
    path.write_text(json.dumps(values), encoding="utf-8")
    if meta:
        about = {"name": model.replace("__", "/"), "revision": "abc123", "memory_usage_mb": float("nan")}
        (path.parent / "model_meta.json").write_text(json.dumps(about), encoding="utf-8")
    return path


def score(path, *words):
    done = CliRunner().invoke(app, ["score", "--mteb", str(path), *map(str, words)])
    return done.output if done.exception is None else str(done.exception)


def test_a_result_is_told_with_the_release_that_measured_it(tmp_path):
    assert score(write(tmp_path)).splitlines()[:5] == [
        "org/colbert at abc123, task NFCorpus: measured by mteb 2.26.24",
        "beir/nfcorpus (test)",
        "ndcg@10\t0.34567",
        "mrr@10\t0.50000",
        "recall@100\t0.25000",
    ]
    assert "measured by mteb of an unknown version" in score(write(tmp_path, mteb_version=None, meta=False))


def test_a_named_system_gets_verdicts_that_name_the_other_release(tmp_path):
    entries = {"validation": [{**SCORES, "ndcg_at_10": 0.94357, "hf_subset": "en"}, {**SCORES, "hf_subset": "es"}]}
    shown = score(write(tmp_path, task="XQuADRetrieval", scores=entries), "model=all-minilm-l6-v2").splitlines()
    assert [line for line in shown if line.startswith("xquad")] == ["xquad/en (test)", "xquad/es (test)"]
    verdicts = [line for line in shown if "mteb 1.12.75" in line]
    assert verdicts[0] == "ndcg@10\tMATCH (mteb 1.12.75 0.94357 for all-minilm-l6-v2:384, Δ +0.0000)"
    assert verdicts[1].startswith("ndcg@10\tLOWER (mteb 1.12.75 0.63229")


def test_what_is_kept_is_a_system_of_every_table(tmp_path):
    put(tmp_path, late())
    path = write(tmp_path / "theirs")
    assert "evalkit report tables it as mteb:org/colbert" in score(path, "--keep", f"results_dir={tmp_path}")
    made = build.build(tmp_path)
    assert made.problems == ()
    text = {name: data.decode() for name, data in made.files.items()}
    assert "| mteb:org/colbert (mteb 2.26.24) | – | beir/nfcorpus | 0.34567 |" in text["tables/runs.md"]
    row = '"mteb 2.26.24: org__colbert/abc123/NFCorpus.json, beir/nfcorpus",mteb:org/colbert,,beir/nfcorpus,test,all'
    assert f"{row},ndcg@10,0.34567\n" in text["tables/runs.csv"]
    assert "| mteb:org/colbert | – | 1 of 13 |" in text["tables/leaderboard.md"]
    assert "- mteb:org/colbert on beir/nfcorpus: measured by mteb 2.26.24." in text["tables/leaderboard.md"]
    own = text["site/index.html"].split('id="own"')[1].split("</section>")[0]
    assert "mteb:org/colbert" in own
    assert "0.34567" in own
    assert "mteb 2.26.24" in own
    board = build.leaderboard(tmp_path)
    assert "mteb:org/colbert" in {system.name for system in board.systems}


def test_results_of_mteb_alone_make_a_report(tmp_path):
    score(write(tmp_path / "theirs"), "--keep", f"results_dir={tmp_path}")
    done = CliRunner().invoke(app, ["report", "--results-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "| mteb:org/colbert (mteb 2.26.24) |" in done.output


def test_a_record_that_was_edited_and_two_of_one_cell_are_left_out_and_told(tmp_path):
    score(write(tmp_path / "theirs"), "--keep", f"results_dir={tmp_path}")
    (kept,) = (tmp_path / "mteb").rglob("*.json")
    whole = kept.read_text("utf-8")
    kept.write_text(whole.replace("0.34567", "0.94567"), encoding="utf-8")
    cells, problems = mteb_results.kept(tmp_path)
    assert cells == ()
    assert len(problems) == 1
    assert "beir-nfcorpus.json: was damaged or edited (its content has checksum" in problems[0]
    kept.write_text(whole, encoding="utf-8")
    other = kept.parents[1] / "def" / kept.name
    other.parent.mkdir()
    other.write_text(whole, encoding="utf-8")
    cells, problems = mteb_results.kept(tmp_path)
    assert cells == ()
    assert problems[0].startswith("mteb:org/colbert on beir/nfcorpus: got 2 results, ")
    assert problems[0].endswith("; remove all but one")


def test_results_of_two_revisions_or_releases_have_no_mean(tmp_path):
    def mean(**second):
        folder = tmp_path / str(second)
        for family, changes in (("en", {}), ("es", second)):
            entries = {"validation": [{**SCORES, "hf_subset": family}]}
            path = write(folder / family, task="XQuADRetrieval", scores=entries, meta=False, **changes)
            if (revision := changes.get("revision")) is not None:
                path = path.parent.rename(path.parents[1] / revision) / path.name
            score(path, "--keep", f"results_dir={folder}")
        board = build.leaderboard(folder)
        (found,) = (one for (_, name), one in board.standings.items() if name == "xquad ndcg@10" and one.measured_on)
        return found

    assert mean().measured == pytest.approx(0.34567)
    differs = "is not the same on every dataset"
    assert mean(mteb_version="2.1.0")[1:] == (None, ("xquad/en", "xquad/es"), (f"the release of mteb {differs}",))
    assert mean(revision="def456")[1:] == (None, ("xquad/en", "xquad/es"), (f"the model's revision {differs}",))


BAD = {
    "another task": ({"task": "STS12"}, (), "got a result of task 'STS12', which is no dataset of evalkit; wanted"),
    "another dataset": (
        {},
        ("dataset=beir/fiqa",),
        "got a result of task NFCorpus, wanted one of FiQA2018 (",
    ),
    "no metric": ({"scores": {"test": [{"mrr_at_10": 0.5}]}}, (), "got no ndcg_at_10 for beir/nfcorpus, wanted"),
    "no mean": (
        {"scores": {"test": [{**SCORES, "ndcg_at_10": 34.5}]}},
        (),
        "got ndcg_at_10 34.5 for beir/nfcorpus, wanted a number from 0 to 1",
    ),
    "another split": (
        {"scores": {"dev": [SCORES]}},
        (),
        "got splits and subsets dev/default, wanted test/default for beir/nfcorpus (test)",
    ),
    "another subset": (
        {"task": "XQuADRetrieval", "scores": {"validation": [{**SCORES, "hf_subset": "vi"}]}},
        (),
        "got subsets vi of XQuADRetrieval, wanted ar, en, es, ru",
    ),
    "a subset twice": (
        {"scores": {"test": [SCORES, {**SCORES, "ndcg_at_10": 0.1}]}},
        (),
        "got subset 'default' of split 'test' twice, wanted every subset once; keep the entry that is meant",
    ),
    "a split of the user's own that no table can name": (
        {"task": "Own", "scores": {"a/b": [SCORES]}},
        ("dataset=demo",),
        "got split 'a/b', ",
    ),
    "no subsets": (
        {"scores": {"test": [0.5]}},
        (),
        "got scores of split 'test' that are not a list of subsets",
    ),
    "no scores": ({"scores": 5}, (), "got no scores, wanted a result that mteb"),
    "no task": ({"task_name": None}, (), "got no task_name, wanted a result that mteb"),
    "no model": ({"model": "..evil", "meta": False}, (), "got model '..evil', wanted letters, digits and"),
}


@pytest.mark.parametrize(("changes", "words", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_used_is_told_in_one_line(tmp_path, changes, words, message):
    said = score(write(tmp_path, **changes), *words)
    assert message in said
    assert "\n" not in said.strip()


def test_a_file_cut_short_is_told_in_one_line(tmp_path):
    path = write(tmp_path)
    path.write_text(path.read_text("utf-8")[:80], encoding="utf-8")
    assert f"{path}: cannot be read as JSON (" in score(path)
    meta = write(tmp_path).parent / "model_meta.json"
    meta.write_text("{", encoding="utf-8")
    assert f"{meta}: cannot be read as JSON (" in score(path)
    assert "cannot be read as JSON (No such file or directory)" in score(tmp_path / "gone.json")


def test_a_task_of_the_users_own_is_named_by_its_dataset_and_keeps_its_own_split_and_subset(tmp_path):
    def told(kept, **entries):
        path = write(tmp_path, task="DemoTask", scores=entries)
        return score(path, "dataset=demo", "--keep", f"results_dir={tmp_path / kept}")

    assert "demo (test)\nndcg@10\t0.34567" in told("test", test=[SCORES])
    assert "demo (test, subset fr)\nndcg@10\t0.34567" in told("test-fr", test=[{**SCORES, "hf_subset": "fr"}])
    assert "demo (train)\nndcg@10\t0.34567" in told("train", train=[SCORES])
    assert "| mteb:org/colbert (mteb 2.26.24) | – | demo (train) |" in build.build(tmp_path / "train").files[
        "tables/runs.md"
    ].decode("utf-8")
    assert "demo (train, subset fr)\nndcg@10" in told("train-fr", train=[{**SCORES, "hf_subset": "fr"}])
    ((kept,), problems) = mteb_results.kept(tmp_path / "train-fr")
    assert (kept.split, kept.environment["subset"], problems) == ("train", "fr", ())


def test_a_kept_result_is_not_replaced_by_one_of_another_split_or_subset(tmp_path):
    def told(**entries):
        return score(
            write(tmp_path, task="DemoTask", scores=entries), "dataset=demo", "--keep", f"results_dir={tmp_path}"
        )

    told(test=[SCORES])
    said = told(train=[SCORES])
    assert "keeps split 'test', got a result of split 'train'; keep it in another results_dir, or remove that" in said
    assert "keeps subset None, got a result of subset 'fr'" in told(test=[{**SCORES, "hf_subset": "fr"}])
    told(test=[{**SCORES, "main_score": 0.5, "ndcg_at_10": 0.5}])
    ((kept,), _) = mteb_results.kept(tmp_path)
    assert (kept.split, kept.metrics["ndcg@10"]) == ("test", 0.5)


def test_score_without_a_dataset_and_keep_without_mteb_are_refused(tmp_path):
    (tmp_path / "run.trec").write_text("q Q0 d 1 1.0 t\n", encoding="utf-8")
    for words, message in (((), "got no dataset, wanted dataset=NAME"), (("--keep",), "--keep is for --mteb")):
        done = CliRunner().invoke(app, ["score", str(tmp_path / "run.trec"), *words])
        assert isinstance(done.exception, EvalkitError)
        assert message in str(done.exception)


def test_a_result_of_mteb_has_no_other_name(tmp_path):
    done = CliRunner().invoke(app, ["score", str(tmp_path / "Task.json"), "--mteb", "--system", "mine"])
    assert isinstance(done.exception, EvalkitError)
    assert "got --system mine with --mteb, wanted one of them" in str(done.exception)
