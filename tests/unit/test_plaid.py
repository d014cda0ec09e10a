"""search=plaid beside the exact search: a fake library in another process, its failures, and what tables say."""

import dataclasses
import json
import sys

import plaid as worker
import pytest
from report_material import late, put
from rich.console import Console

from evalkit.analysis import comparability, compare, precision
from evalkit.config.compose import compose
from evalkit.errors import ConfigError, EngineError, StoreError
from evalkit.report import build, card, commands, indexes, table
from evalkit.run import identity, pipeline, plaid
from evalkit.storage import cell_config, results, seal
from evalkit.types import Hit

SAVE = "save_file({'document': document, 'score': score}, out / 'hits.safetensors')"
FAKE = """#!{python}
import json, sys
from pathlib import Path
job = json.loads(Path(sys.argv[3]).read_text())
out, index = Path(job["out"]), Path(job["index"])
with open({log!r}, "a") as log:
    log.write(json.dumps(job) + "\\n")
if job["build"]:
    index.mkdir()
    (index / "residuals.npy").write_bytes(b"r" * 1000 * job["build"]["nbits"])
{failure}
import numpy as np
from safetensors.numpy import load_file, save_file
def rows(path):
    arrays = load_file(path)
    return np.split(arrays["vectors"].astype(np.float32), np.cumsum(arrays["lengths"])[:-1])
documents = [one for path in job["shards"] for one in rows(path)]
scores = np.array([[(query @ one.T).max(axis=1).sum() for one in documents] for query in rows(job["queries"])])
document = np.argsort(-scores, axis=1)[:, :job["depth"]]
score = np.take_along_axis(scores, document, axis=1).astype(np.float32)
document[:, 1] = -1  # what the index has lost
save_file({{"document": document, "score": score}}, out / "hits.safetensors")
answer = {{"fast-plaid": "fake", "torch": "0", "search_s": 0.5}} | ({{"build_s": 2.0}} if job["build"] else {{}})
(out / "answer.json").write_text(json.dumps(answer))
{ending}
"""


def fake(folder, *, failure="", ending=""):
    """Lay an environment whose Python is a library of ours, which loses every query's second document."""
    python = folder / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    log = str(folder / "jobs.log")
    python.write_text(
        FAKE.format(python=sys.executable, log=log, failure=failure, ending=ending),
        encoding="utf-8",
    )
    python.chmod(0o755)
    return folder / "environment"


def jobs(folder):
    return [json.loads(line) for line in (folder / "jobs.log").read_text(encoding="utf-8").splitlines()]


def config(folder, *words):
    size = ["model=demo", "dim=64", "dataset=demo", "dataset.demo.documents=60", "dataset.demo.queries=6"]
    return compose([*size, *words, f"results_dir={folder}/results", f"cache_dir={folder}/cache"])


def run(folder, *words):
    return pipeline.run(config(folder, *words), console=Console(quiet=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The exact run and one by the fake index, with the environment variable that names it set throughout."""
    folder = tmp_path_factory.mktemp("plaid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVALKIT_PLAID", str(fake(folder)))
        exact, indexed = run(folder, "search=plaid")
        yield folder, exact, indexed


def test_an_exact_run_has_the_id_that_it_always_had(tmp_path):
    plain, exact = config(tmp_path), config(tmp_path, "search=exact")
    assert plain.search == exact.search
    assert plain.search.name == "exact"

    class Dataset:
        queries, drop_self = (), False

    facts = identity.search_facts(Dataset, plain)
    assert set(facts) == {"queries", "depth", "drop_self", "search_rules"}
    indexed = identity.search_facts(Dataset, config(tmp_path, "search=plaid", "search.nbits=2"))
    assert indexed["index"]["nbits"] == 2
    assert identity.exact_protocol(indexed) == facts
    assert identity.store_key_in({"dim": 64, **indexed}) == identity.store_key_in({"dim": 64, **facts})


def test_the_script_pins_the_library_that_run_ids_name():
    assert worker.PINNED[0] == f"fast-plaid=={identity.FAST_PLAID}"
    assert plaid.script().name == "plaid.py"


def test_a_run_by_an_index_stands_beside_the_exact_run_with_what_it_loses(finished):
    folder, exact, indexed = finished
    assert (exact.search, indexed.search) == ("exact", "plaid")
    assert exact.run_id.rpartition(".")[0] == indexed.run_id.rpartition(".")[0]
    found = indexed.environment["index"]
    assert found["exact_run"] == exact.run_id
    assert (found["build_s"], found["queries_per_s"], found["bytes"]) == (2.0, 12.0, 4000)
    assert found["library"] == f"fast-plaid {identity.FAST_PLAID}"
    assert found["recall of exact 10"] == pytest.approx(0.9)  # the second document of every query is lost
    assert found["overlap@10"] == pytest.approx(0.9)
    assert indexed.environment["checkpoint"] == exact.environment["checkpoint"]
    assert indexed.counts["document_vectors"] == exact.counts["document_vectors"]
    loss = comparability.index_losses([exact, indexed])
    assert loss == {indexed.run_id: exact.metrics["ndcg@10"] - indexed.metrics["ndcg@10"]}
    assert comparability.index_losses([indexed]) == {}
    regraded = dataclasses.replace(exact, environment={**exact.environment, results.QRELS_CHECKSUM: "other"})
    assert comparability.index_losses([regraded, indexed]) == {}
    assert results.read(folder / "results" / "runs" / indexed.run_id / "scores.json") == indexed


def test_the_tables_have_a_column_for_the_loss_only_where_there_is_one(finished):
    _, exact, indexed = finished
    loss = f"{exact.metrics['ndcg@10'] - indexed.metrics['ndcg@10']:+.4f}"
    lines = list(table.terminal(table.rows([indexed, exact])).lines())
    assert "index loss" in lines[0]
    assert lines[1].split()[-1] == "–"
    assert lines[2].split()[-1] == loss
    assert lines[3].strip() == "search=plaid, index.nbits=4"
    assert "index loss" not in "".join(table.terminal(table.rows([exact])).lines())
    assert "| index loss |" in table.markdown(table.rows([exact, indexed]))
    assert "index loss" not in table.markdown(table.rows([exact]))
    headline = ("system", "ndcg@10")
    rows = table.rows([exact, indexed])
    assert table.markdown(rows, columns=headline) == table.markdown(table.rows([exact]), columns=headline)


def test_the_table_of_indexes_says_what_each_cost_and_lost(finished):
    _, exact, indexed = finished
    header, row = indexes.index_table([exact, indexed], wide=True).lines()
    loss = f"{exact.metrics['ndcg@10'] - indexed.metrics['ndcg@10']:+.4f}"
    value = f"{indexed.metrics['ndcg@10']:.5f}"
    assert row.split()[:10] == ["demo", "64", "demo", "4", "2.0", "0.00", "12.0", value, loss, "0.900"]
    assert row.split()[11:15] == ["8", "4096", "4", "42"]
    assert [name in header for name in ("overlap @10", "recall of exact 10", "n_ivf_probe", "library")] == [True] * 4
    narrow = list(indexes.index_table([indexed]).lines(80))
    assert max(map(len, narrow)) <= 80
    assert any("–" in line.split() for line in narrow)  # the exact run is not there to compare with
    assert indexes.index_table([exact]) is None


def test_the_page_has_the_loss_of_a_run_by_an_index_and_does_not_rank_it(finished):
    folder, exact, indexed = finished
    report = build.build(folder / "results")
    page = report.files["site/index.html"].decode()
    assert ">index loss" in page
    assert f">{exact.metrics['ndcg@10'] - indexed.metrics['ndcg@10']:+.4f}</td>" in page
    assert "search=plaid, index.nbits=4" in page
    assert report.problems == ()  # it does not compete with the exact run for the cell
    board = build.leaderboard(folder / "results")
    (measured,) = (
        one.measured for (system, name), one in board.standings.items() if system.name == "demo" and one.measured
    )
    assert measured == exact.metrics["ndcg@10"]


def test_the_run_id_and_the_command_name_the_index(finished):
    folder, _, indexed = finished
    saved = cell_config.plain(config(folder, "search=plaid", "search.nbits=2", "search.depth=200"))
    words = commands.run_command(indexed, saved, commands.packaged())
    assert " search=plaid search.nbits=2 " in f"{words} "
    assert "search.depth=200" in words


def test_an_index_is_built_once_and_searched_again_with_other_probes(finished):
    folder, _, indexed = finished
    before = len(jobs(folder))
    _, other = run(folder, "search=plaid", "search.n_ivf_probe=16")
    assert other.run_id != indexed.run_id
    assert jobs(folder)[before]["build"] is None
    assert jobs(folder)[before]["search"] == {"n_ivf_probe": 16, "n_full_scores": 4096}
    assert other.environment["index"]["build_s"] == 2.0
    _, again = run(folder, "search=plaid")
    assert again == indexed
    assert len(jobs(folder)) == before + 1
    run(folder, "search=plaid", "search.nbits=2")
    assert jobs(folder)[-1]["build"] == {"nbits": 2, "kmeans_iterations": 4, "seed": 42}


def test_a_run_by_an_index_is_no_run_of_the_card(tmp_path):
    exact = late()
    index = {"bytes": 10_000, "exact_run": exact.run_id}
    indexed = late(
        protocol={**exact.protocol, "search": "plaid", "index": {"nbits": 4}},
        environment={**exact.environment, "index": index},
    )
    assert comparability.representative([exact, indexed]) == (exact,)
    assert comparability.representative([indexed]) == ()
    (row,) = (one for one in table.rows([indexed]) if one.published.source == "card")
    assert row.verdict.label == "PROTOCOL-DIFFERS"
    assert "search is plaid, not exact" in row.verdict.differs
    judged = [
        one for one in card.judge([indexed]) if one.score.system == "jina-colbert-v2" and one.measured is not None
    ]
    assert judged == []
    assert compare.storage(indexed) == (10, 1000.0, 10_000)
    put(tmp_path, exact)
    put(tmp_path, indexed)
    assert compare.choose([indexed, exact], ["jina-colbert-v2-128"]) == [exact]
    assert compare.choose([indexed, exact], ["jina-colbert-v2:128@plaid"]) == [indexed]
    assert compare.choose([indexed, exact], []) == [exact, indexed]


def test_compression_is_measured_of_exact_runs_only(finished):
    folder, _, indexed = finished
    settings = config(folder, "search=plaid")
    with pytest.raises(ConfigError, match=r"searched with search=plaid; wanted a cell with search=exact"):
        precision.measure(settings, indexed, folder / "results", console=Console(quiet=True))


def test_an_environment_that_is_missing_is_told_with_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.delenv("EVALKIT_PLAID", raising=False)
    where = tmp_path / "cache" / "environments" / "plaid"
    said = (
        f"search=plaid: got no environment in {where}, wanted one with fast-plaid .*; make it: python .*plaid.py make"
    )
    with pytest.raises(ConfigError, match=said):
        run(tmp_path, "search=plaid")
    assert not (tmp_path / "results").exists()  # nothing was encoded first


def test_a_finished_run_by_an_index_is_read_without_the_library(finished, monkeypatch):
    folder, exact, indexed = finished
    monkeypatch.setenv("EVALKIT_PLAID", str(folder / "gone"))
    assert run(folder, "search=plaid") == [exact, indexed]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("search.nbits=2",), "search.nbits=2 is a setting of search=plaid, got search=exact; add search=plaid"),
        (("search=plaid", "search.nbits=3"), "search.nbits=3: wanted 1, 2, 4 or 8"),
        (("search=plaid", "search.n_ivf_probe=0"), "search.n_ivf_probe=0: wanted a whole number from 1 on"),
        (("search=plaid", "search.seed=null"), "search.seed=None: wanted a whole number from 0 on"),
        (
            ("search=plaid", "search.n_full_scores=50"),
            "search.n_full_scores=50: wanted at least the 100 documents",
        ),
        (("search=plait",), r"search 'plait' unknown; did you mean plaid\? \(evalkit ls searches\)"),
    ],
)
def test_a_setting_of_an_index_that_cannot_be_is_one_clear_line(tmp_path, words, said):
    with pytest.raises(ConfigError, match=said):
        config(tmp_path, *words)


def test_what_has_no_token_vectors_or_keeps_none_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("EVALKIT_PLAID", str(fake(tmp_path)))
    with pytest.raises(ConfigError, match=r"got store.keep=topk, wanted store.keep=embeddings: the index is built"):
        run(tmp_path, "search=plaid", "store.keep=topk")
    lexical = compose(["model=bm25", "dataset=demo", "search=plaid", f"cache_dir={tmp_path}/cache"])
    with pytest.raises(
        ConfigError, match=r"search=plaid: bm25 has no token vectors to index; wanted a late-interaction"
    ):
        plaid.check(lexical)
    odd = dataclasses.replace(config(tmp_path, "search=plaid", "search.nbits=1"), dims=(20,))
    with pytest.raises(ConfigError, match=r"search.nbits=1: got dim 20, whose residuals fill no whole bytes"):
        plaid.check(odd)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            {"failure": "print('step 1', file=sys.stderr); raise RuntimeError('kmeans ran out of memory')"},
            r"failed while building and searching \(exit 1: RuntimeError: kmeans ran out of memory\); nothing of",
        ),
        ({"failure": "sys.exit(3)"}, r"\(exit 3: it printed nothing\)"),
        ({"failure": "sys.exit(0)"}, "gave no usable answer while building and searching"),
        (
            {"ending": f"document[0, 0] = 999; {SAVE}"},
            r"gave no usable answer .* \(a document beyond the 60 of the corpus",
        ),
        (
            {"ending": f"document, score = document[:2], score[:2]; {SAVE}"},
            "wanted a row for each of 6 queries",
        ),
    ],
)
def test_a_library_that_fails_half_way_leaves_no_index_and_one_clear_line(finished, monkeypatch, tmp_path, how, said):
    folder, exact, _ = finished
    monkeypatch.setenv("EVALKIT_PLAID", str(fake(tmp_path, **how)))
    before = sorted((folder / "cache" / "indexes").iterdir())
    with pytest.raises(EngineError, match=said):
        run(folder, "search=plaid", "search.seed=7")
    assert sorted((folder / "cache" / "indexes").iterdir()) == before
    assert results.finished(folder / "results", exact.run_id) == exact


def changed(record, **facts):
    values = seal.unseal(json.loads(record.read_text(encoding="utf-8")))
    record.write_text(json.dumps(seal.seal({**values, **facts})), encoding="utf-8")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"embeddings": "0" * 32}, "got an index of embeddings with checksum 0{32}, wanted [0-9a-f]{32}; delete "),
        (
            {"dim": 128},
            "got an index of dim 128, wanted 64; delete .* and run the same command again: it is built again",
        ),
        ({"nbits": 8}, "got an index of nbits 8, wanted 4; delete "),
        ({"bytes": 17}, "got 4,000 bytes, wanted the 17 of its record; delete "),
    ],
)
def test_an_index_of_other_embeddings_is_refused(finished, facts, said):
    folder, _, _ = finished
    (path,) = (
        path
        for path in (folder / "cache" / "indexes").glob("*/index.json")
        if json.loads(path.read_text(encoding="utf-8"))["nbits"] == 4
    )
    kept = path.read_bytes()
    try:
        changed(path, **facts)
        with pytest.raises(StoreError, match=said):
            run(folder, "search=plaid", "search.n_ivf_probe=4")
    finally:
        path.write_bytes(kept)


def test_a_record_that_is_damaged_or_gone_is_not_believed(finished):
    folder, _, _ = finished
    path = next((folder / "cache" / "indexes").glob("*/index.json"))
    nbits, kept = json.loads(path.read_text(encoding="utf-8"))["nbits"], path.read_bytes()
    words = ["search=plaid", f"search.nbits={nbits}", "search.n_ivf_probe=5"]
    try:
        path.write_bytes(kept.replace(b'"bytes": ', b'"bytes": 1'))
        with pytest.raises(StoreError, match=r"index\.json: not the record of an index \(its content has checksum"):
            run(folder, *words)
        path.unlink()
        with pytest.raises(
            StoreError, match=r"got an index without its record index\.json, wanted a whole one; delete"
        ):
            run(folder, *words)
    finally:
        path.write_bytes(kept)


def test_embeddings_that_are_gone_are_not_searched(finished):
    folder, _, _ = finished
    (store,) = (folder / "cache" / "stores").iterdir()
    away = store.with_name("away")
    store.rename(away)
    try:
        with pytest.raises(
            StoreError, match=r"the embeddings of this shard are not stored, and search=plaid needs them"
        ):
            run(folder, "search=plaid", "search.n_ivf_probe=6")
    finally:
        away.rename(store)


def test_what_both_runs_share_is_counted_over_the_exact_first_ten():
    exact = {"q": [Hit(f"d{place}", 20.0 - place) for place in range(12)], "none": []}
    moved = {"q": [Hit("x", 9.0), *exact["q"][:9], *exact["q"][10:], exact["q"][9]]}
    assert plaid.overlap(moved, exact) == {"overlap@10": 0.9, "recall of exact 10": 1.0}
    assert plaid.overlap({}, exact) == {"overlap@10": 0.0, "recall of exact 10": 0.0}
