"""Peer libraries, with tiny fakes in their place: what a job leaves, what is refused, what parity names."""

import gzip
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from peers import environments, job, parity, retrieve, subset
from peers.environments import PeerError
from rich.console import Console
from safetensors.numpy import save_file

from evalkit.analysis import compare
from evalkit.config.compose import compose
from evalkit.config.settings import RunFileConfig
from evalkit.errors import ConfigError, ScoreError
from evalkit.report import build, commands
from evalkit.run import external_run
from evalkit.storage import cell_config, keys, results, trec
from evalkit.texts import unusable_system

FAKE = """
from peers import job
import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"

class Module:
    def named_parameters(self):
        return [("weight", WEIGHT)]

def tokens(model, texts, side):
    found = []
    for text in texts:
        ids = np.array([ord(letter) for letter in text.lower() if letter in LETTERS][:8] or [97])
        found.append(job.Tokens(ids, np.ones(len(ids), bool), np.ones(len(ids), bool)))
    return found

def encode(model, texts, side):
    DIMS = {"query": 4, "document": DOCUMENT_DIM}
    return [np.stack([np.arange(1, DIMS[side] + 1) == 1 + int(i) % 4 for i in one.ids]).astype(np.float32)
            for one in tokens(model, texts, side)]

def scores(model, queries, documents):
    BREAK
    return np.array([[(query @ document.T).max(1).sum() for document in documents] for query in queries])

def load(options):
    global WEIGHT
    WEIGHT = np.full((2, 2), VALUE, dtype=np.float32)
    return None

LIBRARY = job.Library(name="fake", packages=("numpy",), load=load, modules=lambda model: [Module()],
                      settings=lambda model: {"query_tokens": 8}, tokens=tokens, encode=encode, scores=scores)
job.main(LIBRARY)
"""


def write_folder(home: Path, documents: int = 6) -> Path:
    """A collection of a few documents in BEIR's format; q1 and q2 are judged, q3 is not."""
    (home / "qrels").mkdir(parents=True)
    words = ["apple pear", "stone", "river bank", "glass of water", "apple", "bank note"][:documents]
    rows = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(words)]
    (home / "corpus.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (home / "queries.jsonl").write_text(
        '{"_id": "q1", "text": "apple"}\n{"_id": "q2", "text": "river"}\n{"_id": "q3", "text": "no"}\n'
    )
    (home / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td0\t1\nq2\td2\t1\n")
    return home


@pytest.fixture
def checkpoint(tmp_path):
    home = tmp_path / "tiny"
    home.mkdir()
    save_file({"weight": np.full((2, 2), 1.5, dtype=np.float32)}, home / "model.safetensors")
    return home


def run_fake(tmp_path, checkpoint, data, *, value="1.5", document_dim="4", broken="pass"):
    script = tmp_path / "fake.py"
    text = FAKE.replace("VALUE", value).replace("DOCUMENT_DIM", document_dim).replace("BREAK", broken)
    script.write_text(text)
    out = tmp_path / "out"
    words = [str(checkpoint), str(data), str(out), "--system", "fake:tiny", "--depth", "101"]
    return retrieve.retrieve("fake", words, out, python=Path(sys.executable), script=script)


def options(tmp_path, data, *words):
    where = (f"results_dir={tmp_path / 'results'}", f"cache_dir={tmp_path / 'cache'}")
    return compose(["dataset=folder", f"dataset.path={data}", *where, *words])


def import_run(run_file, system, config):
    return external_run.import_run(run_file, system, config, console=Console(quiet=True))


def test_a_job_leaves_a_run_a_sample_and_facts_and_its_run_is_a_system_of_its_own(tmp_path, checkpoint):
    data = write_folder(tmp_path / "data")
    out = run_fake(tmp_path, checkpoint, data)
    facts = json.loads((out / "peer.json").read_text())
    assert {path.name for path in out.iterdir()} == {"run.trec.gz", "sample.npz", "peer.json", "log.txt"}
    assert (facts["system"], facts["search"], facts["dim"]) == ("fake:tiny", "exact", 4)
    assert facts["dataset"] == {"name": "data", "documents": 6, "queries": 2}
    assert {"load", "sample", "encode_documents", "encode_queries", "search"} <= set(facts["seconds"])
    assert facts["peak_mib"] > 0
    assert facts["versions"]["numpy"]
    assert str(tmp_path) not in json.dumps(facts)
    run = trec.read_run(out / "run.trec.gz")
    assert set(run) == {"q1", "q2"}
    assert len(run["q1"]) == 6

    cell = import_run(out / "run.trec.gz", "fake:tiny", options(tmp_path, data))
    assert (cell.model, cell.dim, cell.counts["documents"]) == ("fake:tiny", 4, 6)
    assert cell.run_id.startswith("folder-data.test.fake-tiny-4.")
    assert cell.environment["made_by"]["versions"] == facts["versions"]
    assert results.read_all(tmp_path / "results") == [cell]
    assert cell_config.saved(tmp_path / "results", cell).model == RunFileConfig(kind="run_file", name="fake:tiny")
    said = commands.run_command(cell, None, commands.Packaged({}, {}, {}))
    assert said == "evalkit score run.trec.gz --system fake:tiny dataset=folder/data"
    again = import_run(out / "run.trec.gz", "fake:tiny", options(tmp_path, data))
    assert again.run_id == cell.run_id
    assert compare.choose([cell], ["fake:tiny"]) == compare.choose([cell], ["fake:tiny:4"]) == [cell]

    made = build.build(tmp_path / "results")
    build.write(made, tmp_path / "report")
    assert made.problems == ()
    assert "fake:tiny" in (tmp_path / "report" / "site" / "index.html").read_text()
    assert not [path for path in (tmp_path / "report").rglob("*") if ":" in path.name]


def test_a_library_that_fails_half_way_is_told_by_its_stage_and_leaves_nothing_to_score(tmp_path, checkpoint):
    data = write_folder(tmp_path / "data")
    run_fake(tmp_path, checkpoint, data)
    with pytest.raises(PeerError) as caught:
        run_fake(tmp_path, checkpoint, data, broken='assert len(queries) > 2, "no kernel for this processor"')
    said = str(caught.value)
    assert said.startswith(
        "fake stopped at search (exit 1): AssertionError: no kernel for this processor; nothing of it"
    )
    assert "\n" not in said
    assert not (tmp_path / "out" / "run.trec.gz").exists()
    assert not (tmp_path / "out" / "peer.json").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"value": "0.25"},
            r"1 of 1 weights are not the checkpoint's \(weight and so on\): the library left",
        ),
        ({"document_dim": "5"}, "got vectors of queries of dim 4, documents of dim 5; wanted one dim on both sides"),
        (
            {"broken": "if len(queries) == 2: return np.full((2, 6), np.nan)"},
            r"finite False; wanted \(2, 6\), all finite",
        ),
        ({"broken": "if len(queries) == 2: return np.zeros((2, 5))"}, r"got scores of shape \(2, 5\)"),
    ],
)
def test_what_no_score_can_come_from_is_refused_in_one_line(tmp_path, checkpoint, changed, said):
    data = write_folder(tmp_path / "data")
    with pytest.raises(PeerError, match=f"^fake: .*{said}.*; nothing of it can be scored$"):
        run_fake(tmp_path, checkpoint, data, **changed)
    assert not (tmp_path / "out" / "peer.json").exists()


def test_a_part_of_a_dataset_keeps_what_its_queries_judge(tmp_path):
    data = write_folder(tmp_path / "data")
    said = subset.write_subset(data, tmp_path / "part", queries=1, documents=2)
    assert said.endswith("2 of 6 documents, 1 of 2 queries")
    subset.write_subset(data, tmp_path / "part", queries=2, documents=1)
    kept = [json.loads(line)["_id"] for line in (tmp_path / "part" / "corpus.jsonl").read_text().splitlines()]
    assert kept == ["d0", "d2"]
    (data / "queries.jsonl").write_text('{"_id": "q3", "text": "no"}\n')
    with pytest.raises(PeerError, match=r"got no query that qrels/test.tsv judges"):
        subset.write_subset(data, tmp_path / "part", queries=2, documents=1)


def test_a_library_without_an_environment_says_how_to_make_one(tmp_path):
    with pytest.raises(PeerError, match=r"pylate: got no .*python, wanted its environment; .* install pylate"):
        retrieve.retrieve("pylate", [], tmp_path, python=environments.python("pylate", tmp_path / "none"))


def test_every_library_has_its_pinned_packages_and_its_script():
    for library in environments.LIBRARIES:
        lines = environments.requirements(library).read_text().splitlines()
        packages = [line for line in lines if line and not line.startswith("#")]
        assert packages, library
        assert all("==" in line for line in packages), library
        assert (environments.FOLDER / f"retrieve_{environments.module_name(library)}.py").is_file()


def write_run(path, hits):
    lines = [f"{query} Q0 {document} 1 {score} x\n" for query, document, score in hits]
    path.write_bytes(gzip.compress("".join(lines).encode()))
    return path


@pytest.mark.parametrize(
    ("hits", "said"),
    [
        ([("x1", "d0", 1.0)], "got no query that folder/data .test. judges, but 'x1'"),
        ([("q1", "e7", 1.0), ("q2", "e8", 1.0)], "no document id of the run is judged"),
        (
            [("q1", "d0", 1.0), ("q1", "MED-1", 0.5)],
            r"got 1 documents that are not in folder/data \('MED-1' and so on\)",
        ),
    ],
)
def test_a_run_file_of_another_dataset_is_refused_in_one_line(tmp_path, hits, said):
    data = write_folder(tmp_path / "data")
    path = write_run(tmp_path / "run.trec.gz", hits)
    with pytest.raises(ScoreError, match=said) as caught:
        import_run(path, "fake:tiny", options(tmp_path, data))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_facts_of_another_run_or_another_corpus_are_refused(tmp_path, checkpoint):
    data = write_folder(tmp_path / "data")
    out = run_fake(tmp_path, checkpoint, data)
    smaller = write_folder(tmp_path / "smaller", documents=5)
    with pytest.raises(ScoreError, match="got a run of 6 documents, wanted the 5 of folder/smaller"):
        import_run(out / "run.trec.gz", "fake:tiny", options(tmp_path, smaller))
    write_run(out / "run.trec.gz", [("q1", "d0", 1.0)])
    with pytest.raises(ScoreError, match=r"peer.json: got the facts of another run file than run.trec.gz"):
        import_run(out / "run.trec.gz", "fake:tiny", options(tmp_path, data))
    (out / "peer.json").write_text("{")
    with pytest.raises(ScoreError, match=r"peer.json: .*run the peer again"):
        import_run(out / "run.trec.gz", "fake:tiny", options(tmp_path, data))


@pytest.mark.parametrize("name", ["a:b:c", ":b", "a:", "../x", "a b"])
def test_a_name_that_no_path_can_hold_is_no_system(name):
    assert unusable_system(name)
    with pytest.raises(ConfigError, match="system"):
        RunFileConfig(kind="run_file", name=name)


def test_a_name_with_a_colon_is_a_system_and_its_folder_has_none():
    assert unusable_system("pylate:jina-colbert-v2") is None
    assert keys.run_id("demo", "test", "pylate:x", 64, {}).startswith("demo.test.pylate-x-64.")


def test_a_system_is_not_named_like_a_dim_of_another():
    """`demo:64` is the system demo at dim 64, in tables and on the command line."""
    with pytest.raises(ConfigError, match=r"system 'demo:64': wanted LIBRARY:SYSTEM, and a number after the colon"):
        RunFileConfig(kind="run_file", name="demo:64")
    assert unusable_system("pylate:64d") is None


def test_a_run_file_is_nothing_that_can_be_run(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "theirs.yaml").write_text("kind: run_file\nname: theirs\n")
    monkeypatch.setenv("EVALKIT_CONFIGS", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"got a system that only has a run file, .*; evalkit score RUN_FILE --system"
    ):
        compose(["model=theirs"])


def text(ids, *, attended=None, dropped=(), dim=2, shift=0.0):
    ids = np.array(ids)
    kept = ~np.isin(ids, dropped)
    vectors = np.stack([np.full(dim, float(token) + shift) for token in ids[kept]])
    return parity.Text(ids, np.arange(len(ids)) < (len(ids) if attended is None else attended), kept, vectors)


NAMES = {1: "[CLS]", 2: "[SEP]", 5: ".", 6: "▁", 8: "[Q]", 9: "[MASK]"}


@pytest.mark.parametrize(
    ("ours", "theirs", "name", "account", "words"),
    [
        ([1, 8, 3, 2], [1, 7, 3, 2], "marker", "the second id is 7, evalkit's [Q]", ()),
        ([1, 8, 3, 2], [1, 8, 3, 3, 2], "length", "5 token ids at most, evalkit 4", ("model.query.max_tokens=5",)),
        ([1, 8, 3, 2], [1, 8, 4, 2], "token ids", "1 of 1 texts (two words), the first at place 2: 4, evalkit 3", ()),
    ],
)
def test_a_difference_of_token_ids_has_its_name(ours, theirs, name, account, words):
    (found,) = parity.differences("query", [text(ours)], [text(theirs)], NAMES)
    assert found == parity.Difference(name, "query", account, words)


def test_expansion_that_is_not_attended_to_has_its_name():
    ours, theirs = text([1, 8, 3, 2, 9, 9]), text([1, 8, 3, 2, 9, 9], attended=4)
    (found,) = parity.differences("query", [ours], [theirs], NAMES)
    assert (found.name, found.words) == ("attention", ("model.query.attend_to_expansion=false",))
    assert found.account == "expansion is not attended to in 1 of 1 texts, evalkit does"


def test_a_length_is_the_librarys_limit_where_the_sample_has_no_text_of_it():
    ours, theirs = [text([7, 8, 4])], [text([7, 8, 4, 5])]
    (longest,) = parity.differences("document", ours, theirs, NAMES)
    assert longest.words == ("model.document.max_tokens=4",)
    (limited,) = parity.differences("document", ours, theirs, NAMES, limit=8190)
    assert limited.words == ("model.document.max_tokens=8190",)
    assert limited.account == "8190 token ids at most, evalkit 3"


def test_a_stray_dot_is_a_difference_of_the_skiplist_and_vectors_are_compared_where_both_have_one():
    ours, theirs = text([1, 3, 6, 5, 2], dropped=[6]), text([1, 3, 6, 5, 2], dropped=[5], shift=0.5)
    (found,) = parity.differences("document", [ours], [theirs], NAMES)
    assert found.account == "the library alone drops '.'; evalkit alone drops '▁'"
    assert (found.name, found.words) == ("skiplist", ("model.skiplist=pylate",))
    assert list(parity.distances([ours], [theirs])) == [0.5]
    assert list(parity.distances([text([1, 2])], [text([1, 3])])) == []


def test_a_score_that_padding_raises_is_named():
    negative = parity.Text(np.array([1]), np.array([True]), np.array([True]), np.array([[-1.0, 0.0]]))
    positive = parity.Text(np.array([1]), np.array([True]), np.array([True]), np.array([[1.0, 0.0]]))
    sample = {"query": [positive], "document": [negative, positive]}
    assert list(parity.scoring(sample, np.array([[-1.0, 1.0]]))) == []
    (found,) = parity.scoring(sample, np.array([[0.0, 1.0]]))
    assert found.account == "1 of 2 scores are higher, by up to 1.000, than MaxSim of the library's own vectors"


def demo_sample(path, dim):
    arrays = {}
    for side in ("query", "document"):
        for place in range(len(job.TEXTS) + 2):
            one = text([1, 3], dim=dim)
            for part in ("ids", "attended", "kept", "vectors"):
                arrays[f"{side}_{part}_{place}"] = getattr(one, part)
    np.savez(path, **arrays)


def test_a_sample_with_vectors_of_another_dim_is_refused_in_one_line(tmp_path):
    import evalkit.models

    data = write_folder(tmp_path / "data")
    shutil.copytree(Path(evalkit.models.__file__).parent / "demo" / "demo-colbert-64", tmp_path / "demo")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "peer.json").write_text('{"system": "fake:demo", "library": "fake"}')
    demo_sample(tmp_path / "out" / "sample.npz", dim=7)
    with pytest.raises(PeerError, match=r"sample.npz: got vectors of dim 7, wanted 64 as demo has; give"):
        parity.compare(tmp_path / "out", tmp_path / "demo", data)
    (tmp_path / "out" / "sample.npz").write_bytes(b"no")
    with pytest.raises(PeerError, match="not a sample"):
        parity.compare(tmp_path / "out", tmp_path / "demo", data)
    (tmp_path / "out" / "peer.json").unlink()
    with pytest.raises(PeerError, match=r"got no whole peer.json"):
        parity.compare(tmp_path / "out", tmp_path / "demo", data)
