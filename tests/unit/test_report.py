"""The report: what it makes, that it is the same each time, and what it says of files that it cannot use."""

import csv
import dataclasses
import gzip
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results
from report_material import cell, late, put
from typer.testing import CliRunner

from evalkit.analysis import comparability
from evalkit.cli import app
from evalkit.config.compose import compose
from evalkit.config.settings import configs_dir
from evalkit.errors import EvalkitError, ScoreError
from evalkit.models import weights
from evalkit.models.checkpoint import Checkpoint
from evalkit.report import build, exports, sheets, table
from evalkit.report.card import card_tables, judge, judge_runs, leaderboard, verdict_on
from evalkit.report.page import SYMBOLS
from evalkit.run.identity import vector_facts
from evalkit.scoring import metrics, published, reruns
from evalkit.storage import per_query_file, results, seal, trec
from evalkit.types import Hit

TABLES = ("beir", "msmarco", "miracl", "mmarco", "matryoshka", "leaderboard")


@pytest.fixture
def folder(tmp_path):
    put(tmp_path, cell())
    put(tmp_path, late())
    return tmp_path


def report(folder, *words):
    return CliRunner().invoke(app, ["report", "--results-dir", str(folder), *words])


def test_the_same_files_give_the_same_bytes(folder, tmp_path_factory):
    first, second = build.build(folder), build.build(folder)
    assert first.files == second.files
    out = tmp_path_factory.mktemp("out")
    assert report(folder, "--out", str(out)).exit_code == 0
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == set(first.files)


def test_every_table_comes_in_every_form(folder):
    files = build.build(folder).files
    assert {f"tables/{name}.{form}" for name in TABLES for form in ("md", "csv", "tex")} <= set(files)
    assert {"tables/cells.csv", "tables/runs.md", "tables/runs.csv", "site/index.html"} <= set(files)
    for name in TABLES:
        rows = list(csv.reader(io.StringIO(files[f"tables/{name}.csv"].decode())))
        assert len({len(row) for row in rows}) == 1


def test_a_cell_of_the_card_shows_published_measured_and_verdict(folder):
    text = build.build(folder).files["tables/beir.md"].decode()
    assert "| beir/nfcorpus | NDCG@10 | 0.346 → 0.34600 MATCH | 0.338 | 0.337 | 0.325 → 0.32545 MATCH |" in text


def test_all_149_cells_and_the_other_sources_stand_in_one_tidy_table(folder):
    rows = list(csv.DictReader(io.StringIO(build.build(folder).files["tables/cells.csv"].decode())))
    card = [row for row in rows if row["source"] == "card"]
    assert len(card) == 149
    assert {row["verdict"] for row in card} == {"MATCH", "NOT-RUN"}
    measured = [(row["source"], row["metric"], row["delta"]) for row in rows if row["run_id"] == cell().run_id]
    assert measured == [
        ("anserini", "ndcg@10", "+0.00005"),
        ("anserini", "recall@100", "+0.00000"),
        ("card", "ndcg@10", "+0.00045"),
    ]


def test_a_wrong_query_length_is_named_in_the_verdict(tmp_path):
    put(tmp_path, late(query_tokens=16, value=0.30))
    done = report(tmp_path)
    assert "PROTOCOL-DIFFERS: query.max_tokens is 16, published with 32" in done.stdout
    assert report(tmp_path, "--check").exit_code == 0


def test_self_ids_kept_are_named_in_the_verdict(tmp_path):
    kept = cell(protocol={**cell().protocol, "drop_self": False})
    put(tmp_path, kept)
    assert "PROTOCOL-DIFFERS: drop_self is off, published with on" in report(tmp_path).stdout


def test_a_partial_average_is_never_printed_as_the_cards(folder):
    text = build.build(folder).files["tables/beir.md"].decode()
    assert "| average of 13 | NDCG@10 | 0.531 (1 of 13 measured) | 0.502 | 0.496 | 0.440 (1 of 13 measured) |" in text
    assert "The average of 13 is over beir/nfcorpus, beir/fiqa," in text
    board = build.build(folder).files["tables/leaderboard.md"].decode()
    assert "| jina-colbert-v2:128 | 0.531 | 1 of 13 |" in board


def test_an_average_names_its_datasets_in_every_form(folder):
    files = build.build(folder).files
    for name, form in (("beir", "csv"), ("beir", "tex"), ("beir", "md"), ("leaderboard", "csv"), ("leaderboard", "md")):
        text = files[f"tables/{name}.{form}"].decode().replace(",", "")
        assert "beir/nfcorpus beir/fiqa beir/trec-covid beir/arguana" in text


def test_a_whole_average_is_printed_and_names_its_datasets():
    sets = ("nfcorpus", "fiqa", "trec-covid", "hotpotqa", "nq")
    corpora = [late(value=0.6, dataset=f"beir/{name}") for name in sets]
    tables = card_tables(judge(corpora))
    (matryoshka,) = (table for table in tables if table.name == "matryoshka")
    system = matryoshka.systems[0]
    assert matryoshka.averages[system].measured == pytest.approx(0.6)
    assert "→ 0.60000" in sheets.card_sheet(matryoshka).rows[-1][2]
    assert matryoshka.averages[system].metric == "ndcg@10"
    assert leaderboard(tables, corpora).standings[system, "beir"].measured is None


def test_a_run_under_another_protocol_enters_no_average():
    sets = ("nfcorpus", "fiqa", "trec-covid", "hotpotqa", "nq")
    corpora = [late(dataset=f"beir/{name}", query_tokens=16 if name == "nq" else 32) for name in sets]
    (matryoshka,) = (table for table in card_tables(judge(corpora)) if table.name == "matryoshka")
    average = matryoshka.averages[matryoshka.systems[0]]
    assert (average.measured, average.rows_measured) == (None, 4)


@pytest.mark.parametrize(
    ("found", "changed", "difference"),
    [
        (late(), {"skiplist": "none"}, "skiplist is none, stanford in the config of jina-colbert-v2"),
        (cell(), {"ties": "trec_eval"}, "ties is trec_eval, anserini in the config of bm25"),
        (cell(), {"lengths": "exact"}, "lengths is exact, lucene in the config of bm25"),
    ],
)
def test_an_edited_setting_is_another_protocol_though_the_card_does_not_state_it(found, changed, difference):
    """The packaged config decides what the system is."""
    edited = dataclasses.replace(found, protocol={**found.protocol, **changed})
    of_card = [row for row in table.rows([found, edited]) if row.published.source == "card"]
    assert [row.verdict for row in of_card] == [("MATCH", ()), ("PROTOCOL-DIFFERS", (difference,))]
    assert comparability.representative([found, edited]) == (found,)


def test_a_setting_that_was_edited_to_its_default_is_another_protocol_too():
    """A protocol leaves these settings out at their defaults; those of bm25s are others."""
    settings = {
        **cell().protocol,
        "fields": ["contents"],
        "k1": 1.5,
        "b": 0.75,
        "analyzer": "bm25s",
        "ties": "trec_eval",
    }
    as_config = {"lengths": "exact", "unmatched": "fill"}
    whole, edited = (cell(model="bm25s", protocol={**settings, **more}) for more in (as_config, {"lengths": "exact"}))
    of_mteb = [row.verdict for row in table.rows([whole, edited]) if row.published.metric == "ndcg@10"]
    assert [verdict.differs for verdict in of_mteb] == [(), ("unmatched is leave_out, fill in the config of bm25s",)]


def test_a_setting_of_the_datasets_family_or_language_is_no_edit():
    """BM25 has other values on MS MARCO, and an analyzer for each language."""
    (score,) = (one for one in published.find("bm25", None, "beir/nfcorpus", "ndcg@10") if one.source == "card")
    marco = {**cell().protocol, "k1": 0.82, "b": 0.68, "ties": "anserini"}
    chinese = {**cell().protocol, "fields": ["contents"], "analyzer": "cjk"}
    assert comparability.edited_settings(marco, score, system="bm25", dataset="msmarco/dev-small", language="en") == ()
    assert comparability.edited_settings(chinese, score, system="bm25", dataset="miracl/zh", language="zh") == ()
    assert comparability.edited_settings({"k1": 9}, score, system="mine", dataset="miracl/zh", language="zh") == ()
    stated = score._replace(settings={"k1": 1.2})
    assert comparability.edited_settings({"k1": 1.2}, stated, system="bm25", dataset="beir/nq", language="en") == ()


def test_higher_and_lower_fail_the_check_until_waived_with_a_reason(tmp_path):
    put(tmp_path, late(value=0.40))
    assert report(tmp_path).exit_code == 0
    done = report(tmp_path, "--check")
    assert done.exit_code == 1
    assert "jina-colbert-v2:128 on beir/nfcorpus: ndcg@10 0.40000 is HIGHER than card's 0.346" in done.stderr
    waiver = {
        "system": "jina-colbert-v2",
        "dim": 128,
        "dataset": "beir/nfcorpus",
        "metric": "ndcg@10",
        "source": "card",
    }
    (tmp_path / "waivers.yaml").write_text(
        yaml.safe_dump([{**waiver, "measured": 0.4, "reason": "index unknown"}]), encoding="utf-8"
    )
    assert report(tmp_path).exit_code == 0
    assert report(tmp_path, "--check").exit_code == 0
    assert "waived: index unknown" in (tmp_path / "tables" / "beir.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[{system: a, dim: 1, dataset: d, metric: m, source: card, measured: 0.4, reason: ''}]",
            "wanted a list of {system, dim, dataset",
        ),
        ("[{system: a}]", "wanted a list of {system, dim, dataset"),
        (
            "[{system: a, dim: 1, dataset: d, metric: m, source: card, measured: '0.4', reason: known}]",
            "measured the score that is accepted (0.38123)",
        ),
        ("{", "not YAML"),
        ("5", "got 5, wanted a list"),
    ],
)
def test_a_waiver_without_a_reason_is_refused(folder, text, message):
    (folder / "waivers.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ScoreError, match=r"waivers\.yaml: ") as caught:
        build.build(folder)
    assert message in str(caught.value)


def test_a_waiver_holds_for_a_score_that_differs_by_no_more_than_near(tmp_path):
    """In decimals, like verdicts: in binary floats .382 is more than .001 above .381."""
    put(tmp_path, late(value=0.382))
    entry = {"system": "jina-colbert-v2", "dim": 128, "dataset": "beir/nfcorpus", "metric": "ndcg@10", "source": "card"}
    entry |= {"measured": 0.381, "reason": "index unknown"}
    (tmp_path / "waivers.yaml").write_text(yaml.safe_dump([entry]), encoding="utf-8")
    assert build.build(tmp_path).unwaived == ()


@pytest.mark.parametrize("value", [0.402, 0.3], ids=["further", "other side"])
def test_a_waiver_ends_when_its_score_changes(tmp_path, value):
    put(tmp_path, late(value=value))
    entry = {"system": "jina-colbert-v2", "dim": 128, "dataset": "beir/nfcorpus", "metric": "ndcg@10", "source": "card"}
    entry |= {"measured": 0.4, "reason": "index unknown"}
    (tmp_path / "waivers.yaml").write_text(yaml.safe_dump([entry]), encoding="utf-8")
    made = build.build(tmp_path)
    assert len(made.unwaived) == 1
    (problem,) = made.problems
    what = "the waiver of jina-colbert-v2:128 on beir/nfcorpus (ndcg@10, card) is for 0.40000"
    assert problem == f"{tmp_path}/waivers.yaml: {what}, got {value:.5f}; remove it, or accept the new score"


def test_a_cell_of_an_index_that_is_lower_than_a_score_by_an_index_fails_the_check(tmp_path):
    source = weights.published_weights("colbertv2")
    checkpoint = {
        **late().environment["checkpoint"],
        "origin": source.checkpoints["128"].repo,
        "revision": source.checkpoints["128"].revision,
        "parameters": source.parameters,
    }
    protocol = {"query": {"max_tokens": 32}, "search": "plaid", "index": {"nbits": 4}}
    found = cell(
        model="colbertv2",
        dim=128,
        dataset="beir/scidocs",
        metrics={"ndcg@10": 0.12, "mrr@10": 0.5, "recall@100": 0.25},
        protocol={**protocol, "checkpoint": checkpoint["checksums"]},
        environment={**late().environment, "checkpoint": checkpoint},
    )
    put(tmp_path, found)
    made = build.build(tmp_path)
    shown = {row.published.source: row.verdict.label for row in made.rows}
    assert shown == {"card": "PROTOCOL-DIFFERS", "mteb": "LOWER", "pylate": "LOWER"}
    line = "colbertv2:128 on beir/scidocs: ndcg@10 0.12000 is LOWER than pylate's 0.154"
    assert line in made.unwaived
    entry = {"system": "colbertv2", "dim": 128, "dataset": "beir/scidocs", "metric": "ndcg@10", "source": "pylate"}
    (tmp_path / "waivers.yaml").write_text(
        yaml.safe_dump([{**entry, "measured": 0.12, "reason": "few clusters"}]), encoding="utf-8"
    )
    made = build.build(tmp_path)
    assert (line in made.unwaived, made.problems) == (False, ())


def test_messages_and_notes_on_a_cell_name_its_dim(tmp_path):
    """The card has .404 for two dims on fiqa."""
    for dim in (96, 64):
        put(tmp_path, late(dim=dim, dataset="beir/fiqa", value=0.39, protocol=without_corpus(dim)))
    waiver = {"system": "jina-colbert-v2", "dataset": "beir/fiqa", "metric": "ndcg@10", "source": "card"}
    entry = {**waiver, "dim": 64, "measured": 0.39, "reason": "index unknown"}
    (tmp_path / "waivers.yaml").write_text(yaml.safe_dump([entry]), encoding="utf-8")
    made = build.build(tmp_path)
    assert made.unwaived == ("jina-colbert-v2:96 on beir/fiqa: ndcg@10 0.39000 is LOWER than card's 0.404",)
    table = made.files["tables/matryoshka.md"].decode()
    assert "- jina-colbert-v2:64 on beir/fiqa: waived: index unknown.\n" in table


def without_corpus(dim):
    return {name: one for name, one in late(dim=dim).protocol.items() if name != "corpus"}


def test_a_waiver_that_waives_nothing_is_named(folder):
    entry = {"system": "bm25", "dim": None, "dataset": "beir/fiqa", "metric": "ndcg@10", "source": "card"}
    entry |= {"measured": 0.3, "reason": "once"}
    (folder / "waivers.yaml").write_text(yaml.safe_dump([entry]), encoding="utf-8")
    assert build.build(folder).problems == (
        f"{folder}/waivers.yaml: the waiver of bm25 on beir/fiqa (ndcg@10, card) waives nothing; remove it",
    )


def rerun(folder, name, **changes):
    put(folder / "reruns" / name, late(**changes))


def with_settings(**changes):
    return {"protocol": {**late().protocol, **changes}}


def test_a_deviation_is_measured_from_runs_of_the_cell_and_widens_near(tmp_path):
    put(tmp_path, late(value=0.352))
    assert " HIGHER " in report(tmp_path).stdout
    rerun(tmp_path, "bfloat16", value=0.348, **with_settings(dtype="bfloat16"))
    done = report(tmp_path)
    assert " NEAR " in done.stdout
    assert done.exit_code == 0
    table = (tmp_path / "tables" / "reruns.md").read_text(encoding="utf-8")
    # Two runs .004 apart: standard deviation .004 / sqrt(2) = .002828, three of them .008485.
    assert "| jina-colbert-v2 | 128 | beir/nfcorpus | NDCG@10 | 2 | 0.002828 | 0.008485 | dtype |" in table
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "re-run deviation 0.002828 over 2 results (dtype)" in page


def test_a_rerun_of_jina_colbert_v2_on_a_gpu_in_half_precision_is_one(tmp_path):
    """Its identity then names the RoPE frequencies' precision and the kernels too."""
    run = compose(["model=jina-colbert-v2"])
    checkpoint = Checkpoint(folder=tmp_path, origin="fixture", revision=None, checksums={})

    def facts(dtype, **how):
        return vector_facts(dataclasses.replace(run.model, dtype=dtype), run, checkpoint, 128, **how)

    on_a_cpu = facts("float32", attention="sdpa/cpu", batch_tokens=1024)
    on_a_gpu = facts("bfloat16", attention="varlen/cuda", batch_tokens=32_768, fused=True)
    changed = {name: fact for name, fact in on_a_gpu.items() if on_a_cpu.get(name) != fact}
    assert set(changed) == {"attention", "batch_tokens", "dtype", "elementwise", "rope_frequencies"}
    put(tmp_path, late(value=0.352))
    rerun(tmp_path, "gpu", value=0.350, **with_settings(**changed))
    found, problems = reruns.measure(build.build(tmp_path).cells, tmp_path)
    assert problems == ()
    assert {one.runs for one in found} == {2}


def test_a_rerun_on_another_machine_keeps_its_run_id(tmp_path):
    put(tmp_path, late(value=0.352))
    elsewhere = {**late().environment, "device": "NVIDIA", "packages": {"ranx": "1"}}
    rerun(tmp_path, "gpu", value=0.350, environment=elsewhere)
    (ndcg, *_), problems = reruns.measure(build.build(tmp_path).cells, tmp_path)
    assert (ndcg.runs, ndcg.differing, problems) == (2, ("device", "packages.ranx"), ())
    assert ndcg.value == pytest.approx(0.002 / 2**0.5)


def test_reruns_that_agree_leave_near_at_a_thousandth(tmp_path):
    put(tmp_path, late(value=0.352))
    rerun(tmp_path, "again", value=0.352)
    assert " HIGHER " in report(tmp_path).stdout


def test_ls_runs_gives_the_verdict_of_the_report(tmp_path):
    put(tmp_path, late(value=0.352))
    rerun(tmp_path, "bfloat16", value=0.348, **with_settings(dtype="bfloat16"))
    listed = CliRunner().invoke(app, ["ls", "runs", "--results-dir", str(tmp_path)])
    assert (listed.exit_code, " NEAR " in listed.stdout, " HIGHER " in listed.stdout) == (0, True, False)


def test_a_deviation_widens_near_of_the_cell_that_was_run_again_only(tmp_path):
    again, other = late(value=0.352), late(value=0.352, **with_settings(depth=50))
    rerun(tmp_path, "bfloat16", value=0.348, **with_settings(dtype="bfloat16"))
    for order in ([again, other], [other, again]):
        deviations, problems = reruns.measure(order, tmp_path)
        assert problems == ()
        rows = [row for row in table.rows(order, deviations=deviations) if row.published.source == "card"]
        judged = [(row.cell.run_id, row.verdict.label) for row in rows]
        assert dict(judged) == {again.run_id: "NEAR", other.run_id: "HIGHER"}
        runs = [one for one in judge_runs(order, deviations=deviations) if one.score.source == "card"]
        assert {(one.cell.run_id, one.verdict.label) for one in runs} == {*judged}


def test_a_deviation_on_one_split_is_not_shown_for_another(tmp_path):
    for split in ("test", "dev"):
        put(tmp_path, late(dataset="mine", split=split))
    rerun(tmp_path, "gpu", dataset="mine", split="dev", value=0.348, **with_settings(dtype="bfloat16"))
    made = build.build(tmp_path)
    # Two runs .002 apart: standard deviation .001414.
    assert "| jina-colbert-v2 | 128 | mine (dev) | NDCG@10 | 2 | 0.001414 |" in made.files["tables/reruns.md"].decode()
    assert made.files["site/index.html"].decode().count("re-run deviation 0.001414") == 1


def test_a_deviating_cell_is_marked_in_every_table_where_nothing_is_published(tmp_path):
    put(tmp_path, cell(model="own", dataset="beir/scifact", deviations=("got 10 documents, wanted 5,183",)))
    put(tmp_path, cell(model="own"))
    marked = "deviates: got 10 documents, wanted 5,183"
    done = report(tmp_path)
    assert done.exit_code == 0
    for text in (done.stdout, (tmp_path / "tables" / "runs.md").read_text(encoding="utf-8")):
        assert [line.split(" | ")[-2] for line in text.splitlines() if line.startswith("| own")] == ["–", marked]
    listed = CliRunner().invoke(app, ["ls", "runs", "--results-dir", str(tmp_path)]).stdout.splitlines()
    assert [line.split()[2] for line in listed if line.startswith("own")] == ["beir/nfcorpus", "beir/scifact"]
    assert listed[-1].strip() == marked


def test_reruns_with_a_metric_of_ones_own_are_tabled(tmp_path):
    for folder, value in ((tmp_path, 0.2), (tmp_path / "reruns" / "gpu", 0.22)):
        metrics = {**cell().metrics, "map": value}
        put(folder, cell(metrics=metrics))
    # Two runs .02 apart: standard deviation .02 / sqrt(2) = .014142.
    assert "| map | 2 | 0.014142 |" in build.build(tmp_path).files["tables/reruns.md"].decode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_tokens": 16}, f"gpu/{late(query_tokens=16).run_id}: differs from {late().run_id} in query.max_tokens"),
        ({"query_tokens": 16}, "in query.max_tokens, wanted a re-run (other attention, batch_tokens, cut, dtype, ele"),
        ({"dim": 64}, f"gpu/{late(dim=64).run_id}: got a cell that is not in the tables, wanted a re-run"),
    ],
)
def test_what_is_no_rerun_widens_nothing_and_is_named(tmp_path, changes, message):
    put(tmp_path, late(value=0.352))
    rerun(tmp_path, "gpu", **changes)
    done = report(tmp_path)
    assert done.exit_code == 1
    assert message in done.stderr
    assert " HIGHER " in done.stdout


def test_a_damaged_rerun_is_named(tmp_path):
    put(tmp_path, late())
    rerun(tmp_path, "gpu")
    (path,) = (tmp_path / "reruns").rglob("scores.json")
    path.write_text("{", encoding="utf-8")
    assert "not valid JSON" in report(tmp_path).stderr


def test_the_check_fails_when_a_file_drifted_is_missing_or_is_left_over(folder):
    assert report(folder).exit_code == 0
    assert report(folder, "--check").exit_code == 0
    (folder / "tables" / "beir.md").write_text("mine", encoding="utf-8")
    (folder / "tables" / "msmarco.tex").unlink()
    (folder / "tables" / "model-index" / "gone.yaml").write_text("", encoding="utf-8")
    done = report(folder, "--check")
    assert done.exit_code == 1
    assert f"{folder}/tables/beir.md: is not what the results say" in done.stderr
    assert f"{folder}/tables/msmarco.tex: is missing" in done.stderr
    assert f"{folder}/tables/model-index/gone.yaml: should not be there" in done.stderr
    assert (folder / "tables" / "beir.md").read_text(encoding="utf-8") == "mine"
    assert report(folder).exit_code == 0
    assert report(folder, "--check").exit_code == 0


def rewrite(path: Path, **changes):
    """Write other scores under a checksum that fits them, as another evalkit could."""
    scores = seal.unseal(json.loads((path / "scores.json").read_text(encoding="utf-8")))
    (path / "scores.json").write_text(json.dumps(seal.seal(scores | changes)), encoding="utf-8")


def damage_newer(folder):
    rewrite(folder / "runs" / late().run_id, schema_version=99)


def damage_cut(folder):
    path = folder / "runs" / late().run_id / "scores.json"
    path.write_text(path.read_text(encoding="utf-8")[:200], encoding="utf-8")


def damage_nan(folder):
    rewrite(folder / "runs" / late().run_id, metrics={"ndcg@10": float("nan"), "mrr@10": 0.1, "recall@100": 0.1})


def damage_overflow(folder):
    path = folder / "runs" / late().run_id / "scores.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"score": 0.5', '"score": 1e999'), encoding="utf-8")


def damage_no_main(folder):
    rewrite(folder / "runs" / late().run_id, metrics={"mrr@10": 0.1, "recall@100": 0.1})


def damage_types(folder):
    rewrite(folder / "runs" / late().run_id, metrics=5)


def damage_name(folder):
    rewrite(folder / "runs" / late().run_id, model=None)


def damage_range(folder):
    rewrite(folder / "runs" / late().run_id, metrics={"ndcg@10": 1.7, "mrr@10": 0.1, "recall@100": 0.1})


def damage_folder(folder):
    rewrite(folder / "runs" / late().run_id, run_id="elsewhere")


def damage_value(folder):
    rewrite(folder / "runs" / late().run_id, metrics={**late().metrics, "ndcg@10": 0.9})


def damage_twins(folder):
    put(folder, late(protocol={**late().protocol, "stored_dtype": "float32"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_newer, "schema_version is 99, this evalkit reads 2"),
        (damage_cut, "not valid JSON"),
        (damage_nan, "not valid JSON (got NaN, wanted a finite number)"),
        (damage_overflow, "not valid JSON (got inf, wanted a finite number)"),
        (damage_no_main, "got no ndcg@10, its main metric"),
        (damage_types, "metrics is 5, wanted an object"),
        (damage_name, "model is None, wanted a text"),
        (damage_range, "ndcg@10 is 1.7, wanted a number from 0 to 1"),
        (damage_folder, "run_id is 'elsewhere', wanted its folder's name"),
        (
            damage_value,
            "per_query.tsv: got a mean ndcg@10 of 0.346, wanted the 0.9 of scores.json; the cell is left out",
        ),
        (damage_twins, "jina-colbert-v2:128 on beir/nfcorpus: 2 results claim this cell"),
    ],
)
def test_one_bad_run_is_one_clear_line_and_the_rest_is_reported(folder, damage, message):
    damage(folder)
    done = report(folder)
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert message in line
    assert "0.325 | +0.0005 | MATCH | card" in done.stdout
    assert "jina-colbert-v2" not in done.stdout
    page = (folder / "site" / "index.html").read_text(encoding="utf-8")
    assert "<strong>Problems</strong>" in page
    assert "NaN" not in "".join(
        data.decode() for name, data in build.build(folder).files.items() if "index" not in name
    )


def test_two_runs_that_claim_a_cell_are_told_apart_by_their_settings(folder):
    damage_twins(folder)
    (problem,) = build.build(folder).problems
    assert "(they differ in stored_dtype)" in problem


def test_a_run_with_an_edited_protocol_takes_no_cell_from_the_run_with_the_published_one(folder):
    put(folder, late(query_tokens=16))
    made = build.build(folder)
    assert made.problems == ()
    ours = [row for row in made.rows if row.cell.dim == 128 and row.published.source == "card"]
    assert {row.cell.protocol["query"]["max_tokens"]: row.verdict.label for row in ours} == {
        32: "MATCH",
        16: "PROTOCOL-DIFFERS",
    }


def test_another_corpus_is_a_deviation_not_a_result(tmp_path):
    put(tmp_path, cell(protocol={**cell().protocol, "corpus": "0" * 32}))
    put(tmp_path, late())
    done = report(tmp_path)
    assert done.exit_code == 1
    assert ".bm25." in done.stderr
    assert ": corpus checksum is 0000" in done.stderr
    assert "PROTOCOL-DIFFERS: corpus checksum is 0000" in done.stdout
    assert "0.346 | +0.0000 | MATCH | card" in done.stdout


def test_where_no_checksum_is_known_runs_on_different_copies_are_named(tmp_path):
    found = []
    for model, corpus in (("bm25", "1"), ("mine", "2")):
        protocol = {**cell().protocol, "corpus": corpus}
        found.append(cell(model=model, dataset="beir/imagined", protocol=protocol))
        put(tmp_path, found[-1])
    assert [line.partition(",")[0] for line in build.build(tmp_path).problems] == [
        f"{found[0].run_id}: corpus checksum is 1",
        f"{found[1].run_id}: corpus checksum is 2",
    ]


def test_a_damaged_table_of_queries_costs_only_its_drill_down(folder):
    path = folder / "runs" / cell().run_id / "per_query.tsv"
    path.write_text("query_id\tndcg@10\nq1\tnan\n", encoding="utf-8")
    done = report(folder)
    assert done.exit_code == 1
    assert "per_query.tsv: not a complete table of queries" in done.stderr
    assert "| 0.325 | +0.0005 | MATCH | card |" in done.stdout


@pytest.fixture
def scored(tmp_path):
    """A run whose numbers follow from its files: q1 finds its document first, q2 second (mrr .5, ndcg .63093)."""
    run = {"q1": [Hit("d1", 2.0)], "q2": [Hit("x", 2.0), Hit("d2", 1.0)]}
    qrels = {"q1": {"d1": 1}, "q2": {"d2": 1}}
    again = metrics.score(run, qrels)
    path = put(tmp_path, cell(metrics=again.means), run=run, qrels=qrels)
    (path / "per_query.tsv").write_text(per_query_file.text(again.per_query, tuple(again.means)), encoding="utf-8")
    results.write(cell(metrics=again.means), tmp_path)
    assert report(tmp_path).stderr == ""
    return path


def test_a_run_file_that_was_edited_is_named_with_what_it_scores_now(scored):
    trec.write_run({"q1": [Hit("d1", 2.0)], "q2": [Hit("d2", 1.0)]}, scored / "run.trec.gz", tag="t")
    put(scored.parents[1], late())
    done = report(scored.parents[1])
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"evalkit: {scored}/run.trec.gz: was damaged or edited: got checksum ")
    assert "; query 'q2' scored again has ndcg@10 1.00000, its table says 0.63093 (mean 1.00000)" in line
    assert line.endswith("; the cell is left out: restore the file or run the cell again")
    assert done.exit_code == 1
    assert "| bm25 |" not in done.stdout
    assert "| jina-colbert-v2 |" in done.stdout


def test_judgements_that_were_edited_are_named(scored):
    trec.write_qrels({"q1": {"d1": 1}, "q2": {"x": 1}}, scored / "qrels.trec.gz")
    (problem,) = build.build(scored.parents[1]).problems
    assert problem.startswith(f"{scored}/qrels.trec.gz: was damaged or edited")
    assert "query 'q2' scored again has ndcg@10 1.00000, its table says 0.63093" in problem


def test_values_of_two_queries_that_were_exchanged_are_found_though_their_mean_is_the_same(scored):
    path = scored / "per_query.tsv"
    text = path.read_text("utf-8").replace("q1", "q3").replace("q2", "q1").replace("q3", "q2")
    path.write_text(text, encoding="utf-8")
    (problem,) = build.build(scored.parents[1]).problems
    assert problem.startswith(f"{path}: was damaged or edited")
    assert "scored again has ndcg@10" in problem


def test_a_file_that_was_packed_again_is_named_and_its_run_kept(scored):
    path = scored / "run.trec.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    made = build.build(scored.parents[1])
    (problem,) = made.problems
    assert problem.startswith(f"{path}: was damaged or edited")
    assert problem.endswith("; scored again it gives the same values: restore it")
    assert len(made.cells) == 1


@pytest.mark.parametrize("name", ["config.yaml", "dropped.trec.gz"])
def test_a_file_that_came_later_is_named(scored, name):
    (scored / name).write_bytes(b"later")
    made = build.build(scored.parents[1])
    (problem,) = made.problems
    assert problem.startswith(f"{scored}/{name}: was damaged or edited")
    assert "wanted no such file, by scores.json; no score depends on it" in problem
    assert len(made.cells) == 1


def test_a_run_file_that_is_no_run_any_more_is_one_line(scored):
    (scored / "run.trec.gz").write_bytes(b"not gzip")
    (problem,) = build.build(scored.parents[1]).problems
    assert "it cannot be scored again" in problem
    assert "\n" not in problem


def test_what_fits_its_checksum_is_not_scored_again(scored, monkeypatch):
    monkeypatch.setattr(metrics, "score", None)
    assert build.build(scored.parents[1]).problems == ()


def test_an_edited_number_or_name_in_scores_is_refused_by_the_files_name(scored):
    path = scored / "scores.json"
    whole = path.read_text(encoding="utf-8")
    for old, new in (
        ("recall@100", "recalL@100"),
        ('"score": 0.5', '"score": 0.6'),
        ('"split": "test"', '"split": "t"'),
    ):
        path.write_text(whole.replace(old, new), encoding="utf-8")
        with pytest.raises(
            ScoreError, match=r"scores\.json: was damaged or edited \(its content has checksum"
        ) as caught:
            results.read(path)
        assert "\n" not in str(caught.value)


def test_scores_without_a_checksum_are_refused(scored):
    path = scored / "scores.json"
    values = seal.read(path.read_bytes())
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ScoreError, match=r"scores\.json: was damaged or edited \(got no xxh3_128"):
        results.read(path)
    path.write_text(json.dumps(values | {"schema_version": 1}), encoding="utf-8")
    with pytest.raises(ScoreError, match="schema_version is 1, this evalkit reads 2; update evalkit or run the cell"):
        results.read(path)


def test_an_edited_file_of_a_rerun_is_named(tmp_path):
    put(tmp_path, late())
    rerun(tmp_path, "gpu")
    (path,) = (tmp_path / "reruns").rglob("run.trec.gz")
    path.write_bytes(b"")
    (line,) = report(tmp_path).stderr.splitlines()
    assert line.startswith(f"evalkit: {path}: was damaged or edited")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Empty CSV file"),
        ("query_id\tndcg@10\n", "no query"),
        ("query_id\tndcg@10\nq1\t0.5\nq2\t1.5\n", "[1.5] on line 3, wanted numbers from 0 to 1"),
        ("query_id\tndcg@10\nq1\t-0.1\n", "[-0.1] on line 2, wanted numbers from 0 to 1"),
        ("query_id\tndcg@10\nq1\n", "Expected 2 columns, got 1"),
        ("query_id\tndcg@10\nq1\t\n", "conversion error to double"),
        ("id\tndcg@10\nq1\t0.5\n", "query_id"),
    ],
)
def test_a_table_of_queries_that_is_not_whole_is_refused(tmp_path, text, message):
    (tmp_path / "per_query.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(ScoreError, match=r"per_query\.tsv: not a complete table of queries \(") as caught:
        per_query_file.read(tmp_path / "per_query.tsv")
    assert message in str(caught.value)


def test_a_table_of_queries_comes_back_as_it_was_written(tmp_path):
    values = {'"q"': {"ndcg@10": 1 / 3, "mrr@10": 0.0}, "NA": {"ndcg@10": 1e-5, "mrr@10": 1.0}}
    text = per_query_file.text(values, ("ndcg@10", "mrr@10"))
    (tmp_path / "per_query.tsv").write_text(text, encoding="utf-8")
    table = per_query_file.read(tmp_path / "per_query.tsv")
    assert table.queries == ('"q"', "NA")
    assert table.value_QM.tolist() == [[1 / 3, 0.0], [1e-5, 1.0]]
    assert table.column("mrr@10").tolist() == [0.0, 1.0]


def test_an_empty_results_folder_is_refused(tmp_path):
    done = CliRunner().invoke(app, ["report", "--results-dir", str(tmp_path)])
    assert isinstance(done.exception, EvalkitError)
    assert "no finished cell under" in str(done.exception)


def test_the_model_index_is_one_that_hugging_face_reads(folder):
    files = build.build(folder).files
    block = yaml.safe_load(files["tables/model-index/jina-colbert-v2-128.yaml"])
    name, found = model_index_to_eval_results(block["model-index"])
    assert name == "jina-colbert-v2-128"
    assert [(one.dataset_name, one.metric_type, one.metric_value) for one in found] == [
        ("NFCorpus", "ndcg_at_10", 0.346),
        ("NFCorpus", "mrr_at_10", 0.5),
        ("NFCorpus", "recall_at_100", 0.25),
    ]
    data = ModelCardData(model_name=name, eval_results=found)
    assert ModelCard(f"---\n{data.to_yaml()}\n---\ntext").data.eval_results == found


def test_the_smallest_scores_are_numbers_in_the_model_index(tmp_path):
    put(tmp_path, late(value=0.00005))
    text = build.build(tmp_path).files["tables/model-index/jina-colbert-v2-128.yaml"]
    (result,) = yaml.safe_load(text)["model-index"][0]["results"]
    assert [one["value"] for one in result["metrics"]] == [0.00005, 0.5, 0.25]


def test_the_evaluation_results_are_ones_that_hugging_face_reads(folder):
    files = build.build(folder).files
    (entry,) = parse_eval_result_entries(yaml.safe_load(files["tables/eval_results/jina-colbert-v2-128/NFCorpus.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("mteb/nfcorpus", "NFCorpus_default_test", 34.6)
    assert entry.dataset_revision is None  # the run did not say that it read the Hub's copy
    assert "ndcg@10 by evalkit 0.1.0, dim 128, corpus xxh3:" in entry.notes
    assert not [name for name in files if name.startswith("tables/eval_results/bm25")]  # no weights, no repository


def test_an_evaluation_result_names_the_revision_and_day_where_they_are_known():
    hub = {"repo": "mteb/nfcorpus", "revision": "ec0f"}
    environment = {"evalkit": "9", "finished": "2026-11-28T00:07:05+00:00", "dataset_source": "hub mteb/nfcorpus@ec0f"}
    cells = [
        late(environment=environment),
        late(dataset="nanobeir/fiqa", environment=environment),
        late(dataset="demo"),
    ]
    files = exports.eval_results(cells, {"beir/nfcorpus": hub})
    assert sorted(files) == ["jina-colbert-v2-128/NFCorpus.yaml", "jina-colbert-v2-128/NanoFiQA2018Retrieval.yaml"]
    first, second = (parse_eval_result_entries(yaml.safe_load(files[name]))[0] for name in sorted(files))
    assert (first.dataset_revision, first.date) == ("ec0f", "2026-11-28")
    assert (second.dataset_id, second.task_id) == ("mteb/NanoFiQA2018Retrieval", "NanoFiQA2018Retrieval_default_train")


def test_the_json_has_the_fields_of_mtebs_results(folder):
    files = build.build(folder).files
    result = json.loads(files["tables/mteb/jina-colbert-v2-128/4cf816e5e2b03167b132a3c847a9ecd48ba708e1/NFCorpus.json"])
    assert set(result) == {
        *("dataset_revision", "task_name", "mteb_version", "scores", "evaluation_time", "kg_co2_emissions"),
    }
    assert result["scores"]["test"] == [
        {
            "mrr_at_10": 0.5,
            "ndcg_at_10": 0.346,
            "recall_at_100": 0.25,
            "main_score": 0.346,
            "hf_subset": "default",
            "languages": ["eng-Latn"],
        }
    ]
    assert json.loads(
        files["tables/mteb/jina-colbert-v2-128/4cf816e5e2b03167b132a3c847a9ecd48ba708e1/model_meta.json"]
    )["revision"]


@pytest.mark.parametrize(
    ("dataset", "metric", "dropped", "counts", "label"),
    [
        # The card's .325 on nfcorpus is taken to be with the rule, its .187 on MS MARCO is without.
        ("beir/nfcorpus", "ndcg@10", False, {"kept_self": 0}, "MATCH"),
        ("beir/nfcorpus", "ndcg@10", False, {"kept_self": 3}, "PROTOCOL-DIFFERS"),
        ("beir/nfcorpus", "ndcg@10", False, {"dropped_self": 0}, "PROTOCOL-DIFFERS"),  # an older run: not counted
        ("msmarco/dev-small", "mrr@10", True, {"dropped_self": 0}, "MATCH"),
        ("msmarco/dev-small", "mrr@10", True, {"dropped_self": 3}, "PROTOCOL-DIFFERS"),
    ],
)
def test_a_self_id_rule_that_had_nothing_to_drop_is_no_other_protocol(dataset, metric, dropped, counts, label):
    (score,) = (one for one in published.find("bm25", None, dataset, metric) if one.source == "card")
    protocol = {**dict(score.settings), "drop_self": dropped}
    split = protocol.pop("split")
    run = cell(dataset=dataset, split=split, metrics={metric: score.value}, counts=counts, protocol=protocol)
    assert verdict_on(run, score).label == label


def variables(page, theme):
    """Return the colours that the page's CSS gives a theme, light ones where the dark theme names none."""
    rules = re.findall(r":root(\[data-theme=dark\])?\{([^}]*--bg[^}]*)\}", page)
    found = {name: dict(re.findall(r"--([\w-]+):([^;]+)", text)) for name, text in rules}
    return found[""] if theme == "light" else {**found[""], **found["[data-theme=dark]"]}


def luminance(colour):
    """WCAG 2.1's relative luminance of #rgb or #rrggbb."""
    digits = colour.strip().lstrip("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_wcags():
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_verdict_and_every_text_is_read_at_wcag_aa(folder, theme):
    colours = variables(build.build(folder).files["site/index.html"].decode(), theme)
    pairs = {(name, ground) for name in ("ink", "soft", "accent") for ground in ("bg", "panel", "head")}
    for label in (name.lower() for name in SYMBOLS):
        ground = colours[f"{label}-bg"]
        pairs |= (
            {(label, one) for one in ("bg", "panel", "head")} if ground == "transparent" else {(label, f"{label}-bg")}
        )
    measured = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in pairs}
    assert {pair: round(ratio, 2) for pair, ratio in measured.items() if ratio < 4.5} == {}
    assert {label for label, _ in pairs} >= {name.lower() for name in SYMBOLS}


def elsewhere(*, dataset, **changes):
    """A run on the dataset's own corpus, of a system that nobody has published."""
    values = yaml.safe_load((configs_dir() / "dataset" / f"{dataset}.yaml").read_text(encoding="utf-8"))
    corpus = values.get("checksum") or "1"
    return cell(model="own", dataset=dataset, protocol={**cell().protocol, "corpus": corpus}, **changes)


def mteb_scores(folder, model, task):
    (path,) = (name for name in build.build(folder).files if f"/{model}/" in name and name.endswith(f"/{task}.json"))
    return json.loads(build.build(folder).files[path])["scores"]


def test_mteb_reads_ndcg_as_the_main_score_of_ms_marco(tmp_path):
    put(tmp_path, elsewhere(dataset="msmarco/dev-small", split="dev", main_metric="mrr@10"))
    (entry,) = mteb_scores(tmp_path, "own", "MSMARCO")["dev"]
    assert (entry["main_score"], entry["ndcg_at_10"], entry["mrr_at_10"]) == (0.32545, 0.32545, 0.5)


def test_the_main_score_of_mmarco_which_mteb_has_not_is_the_cards(tmp_path):
    put(tmp_path, elsewhere(dataset="mmarco/fr", split="dev", main_metric="mrr@10"))
    (entry,) = mteb_scores(tmp_path, "own", "mMARCO")["dev"]
    assert entry["main_score"] == 0.5


@pytest.mark.parametrize(
    ("task", "family", "tags"),
    [
        (
            "MIRACLRetrieval",
            "miracl",
            (
                "ar ara-Arab, bn ben-Beng, de deu-Latn, en eng-Latn, es spa-Latn, fa fas-Arab, fi fin-Latn, fr fra-Latn"
                ", hi hin-Deva, id ind-Latn, ja jpn-Jpan, ko kor-Kore, ru rus-Cyrl, sw swa-Latn, te tel-Telu"
                ", th tha-Thai, yo yor-Latn, zh zho-Hans"
            ),
        ),
        ("XQuADRetrieval", "xquad", "ar arb-Arab, en eng-Latn, es spa-Latn, ru rus-Cyrl"),
        (
            "mMARCO",
            "mmarco",
            (
                "ar ara-Arab, de deu-Latn, es spa-Latn, fr fra-Latn, hi hin-Deva, id ind-Latn, it ita-Latn"
                ", ja jpn-Jpan, nl nld-Latn, pt por-Latn, ru rus-Cyrl, vi vie-Latn, zh zho-Hans"
            ),
        ),
    ],
)
def test_every_language_has_the_tag_of_mtebs_own_results(tmp_path, task, family, tags):
    wanted = dict(pair.split() for pair in tags.split(", "))
    assert wanted.keys() == {path.stem for path in (configs_dir() / "dataset" / family).glob("*.yaml")}
    for language in wanted:
        put(tmp_path, elsewhere(dataset=f"{family}/{language}", language=language, split="dev"))
    (entries,) = mteb_scores(tmp_path, "own", task).values()
    assert {entry["hf_subset"]: entry["languages"] for entry in entries} == {
        language: [tag] for language, tag in wanted.items()
    }


def test_mteb_has_xquad_under_validation(tmp_path):
    put(tmp_path, elsewhere(dataset="xquad/es", language="es"))
    assert list(mteb_scores(tmp_path, "own", "XQuADRetrieval")) == ["validation"]


def test_a_table_says_which_columns_the_card_quotes(folder):
    text = build.build(folder).files["tables/beir.md"].decode()
    assert "- Quoted by the card from elsewhere: colbertv2:128, bm25.\n" in text


def test_what_latex_draws_as_other_characters_is_named():
    sheet = sheets.Sheet("s", "a<b>c|d", ("x",), (("1",),), ())
    assert r"a\textless{}b\textgreater{}c\textbar{}d" in sheets.latex(sheet)


def test_the_latex_escapes_what_latex_would_read(folder):
    text = build.build(folder).files["tables/beir.tex"].decode()
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert "0.346 $\\rightarrow$ 0.34600 MATCH" in text
    assert "→" not in text


def test_the_dims_table_weighs_quality_against_storage(tmp_path):
    for dim in (128, 96, 64):
        put(tmp_path, late(dim=dim))
    rows = list(csv.DictReader(io.StringIO(build.build(tmp_path).files["tables/dims.csv"].decode())))
    assert [(row["dim"], row["bytes per vector"], row["bytes per passage"]) for row in rows] == [
        ("128", "256", "25600"),
        ("96", "192", "19200"),
        ("64", "128", "12800"),
    ]


def test_the_committed_tables_are_what_the_committed_runs_say():
    results_dir = Path(__file__).parents[2] / "results"
    made = build.build(results_dir)
    assert made.problems == made.unwaived == ()
    assert build.out_of_date(made, results_dir) == (), "type: evalkit report"


def test_a_report_needs_no_tensors(folder):
    code = (
        "import sys\nfrom pathlib import Path\nfrom evalkit.report import build\n"
        f"build.write(build.build(Path({str(folder)!r})), Path({str(folder)!r}))\n"
        "heavy = ('torch', 'transformers', 'ranx', 'scipy', 'matplotlib', 'hydra')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
