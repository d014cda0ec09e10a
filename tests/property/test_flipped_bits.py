"""One flipped bit in any file that evalkit writes: the same value is read, or the file is refused or redone by name."""

import gzip
import logging
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from report_material import cell, put
from rich.console import Console

from evalkit.analysis import compare, replay
from evalkit.config.compose import compose
from evalkit.datasets import folder, survey
from evalkit.errors import DatasetError, EvalkitError, ScoreError, StoreError
from evalkit.operations import fetch, inventory
from evalkit.report import build
from evalkit.run import jobs
from evalkit.storage import cell_config, results, seal, shard_files, trec
from evalkit.storage.paths import fetched_file
from evalkit.types import Hit

FACTS = {"start": 0, "stop": 2, "vectors": 3, "encode_s": 0.125, "run_id": "a.test.b.1", "protocol": {"dim": 2}}
RUN = {"q1": [Hit("d1", 2.5), Hit("d2", 0.5)], "q2": [Hit("d1", 1.25)]}
QRELS = {"q1": {"d1": 1, "d2": 0}, "q2": {"d2": 2}}

SCRATCH = TemporaryDirectory()
"""Gone with the process; hypothesis runs many examples within what pytest's tmp_path counts as one test."""


def new_folder() -> Path:
    return Path(mkdtemp(dir=SCRATCH.name))


def flipped(data: bytes, bit: int) -> bytes:
    """Return bytes with one bit changed; a number beyond the last bit starts again at the first."""
    damaged = bytearray(data)
    place = bit % (8 * len(data))
    damaged[place // 8] ^= 1 << place % 8
    return bytes(damaged)


BITS = st.integers(0, 1 << 20)
"""More than the bits of any file here, nearly evenly spread over each."""


def one_line(error: Exception, path: Path) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)


@cache
def shard() -> tuple[Path, bytes, bytes]:
    place = new_folder()
    shard_files.save(place, "s", {"vectors": torch.arange(6.0).view(3, 2), "lengths": torch.tensor([2, 1])}, FACTS)
    return place, (place / "s.json").read_bytes(), (place / "s.safetensors").read_bytes()


@settings(deadline=None, max_examples=300)
@given(bit=BITS)
def test_a_manifest_says_the_same_or_its_shard_is_redone(bit):
    place, manifest, _ = shard()
    path = place / "s.json"
    path.write_bytes(flipped(manifest, bit))
    with StoreWarnings() as lines:
        facts, arrays = shard_files.finished(place, "s"), shard_files.load(place, "s")
    try:
        whole = shard_files.read_manifest(place, "s")
    except StoreError as error:
        one_line(error, path)
        assert facts is arrays is None
        assert len(lines) == 2
        assert all(str(path) in line and "redone" in line and "\n" not in line for line in lines)
    else:
        assert facts == whole.facts == FACTS
        assert arrays is not None
    finally:
        path.write_bytes(manifest)


@settings(deadline=None, max_examples=100)
@given(bit=BITS)
def test_the_arrays_of_a_shard_are_the_same_or_it_is_redone(bit):
    place, _, arrays = shard()
    path = place / "s.safetensors"
    path.write_bytes(flipped(arrays, bit))
    with StoreWarnings() as lines:
        assert shard_files.load(place, "s") is None
    assert "the shard is redone" in lines[0]
    assert str(path) in lines[0]
    path.write_bytes(arrays)


@cache
def finished_run() -> tuple[Path, results.CellScores, dict[str, bytes]]:
    place = new_folder()
    scores = cell(protocol={**cell().protocol, "drop_self": False})
    path = put(place, scores, run=RUN, qrels=QRELS, dropped={"q1": [Hit("q1", 3.0)]})
    (path / "config.yaml").write_text("model: bm25\n", encoding="utf-8")
    results.write(scores, place)
    return place, scores, {each.name: each.read_bytes() for each in path.iterdir()}


@settings(deadline=None, max_examples=300)
@given(bit=BITS)
def test_scores_are_the_same_or_refused(bit):
    place, scores, files = finished_run()
    path = place / "runs" / scores.run_id / results.SCORES
    path.write_bytes(flipped(files[results.SCORES], bit))
    try:
        assert results.read(path) == scores
    except ScoreError as error:
        one_line(error, path)
    finally:
        path.write_bytes(files[results.SCORES])


def values_of(results_dir, scores):
    return compare.values_of(scores, results_dir, "ndcg@10")


@settings(deadline=None, max_examples=150)
@given(bit=BITS, name=st.sampled_from([results.RUN, results.QRELS, results.PER_QUERY, results.DROPPED, results.CONFIG]))
def test_a_file_beside_the_scores_is_named_by_everything_that_reads_it(bit, name):
    place, scores, files = finished_run()
    path = place / "runs" / scores.run_id / name
    path.write_bytes(flipped(files[name], bit))
    try:
        read = {results.CONFIG: cell_config.saved, results.PER_QUERY: values_of}.get(name, replay.load)
        with pytest.raises(ScoreError, match="was damaged or edited: got checksum") as caught:
            read(place, scores)
        one_line(caught.value, path)
        assert list(results.edited(place, scores)) == [name]
    finally:
        path.write_bytes(files[name])


@settings(deadline=None, max_examples=8)
@given(bit=BITS, name=st.sampled_from([results.RUN, results.QRELS, results.PER_QUERY, results.DROPPED, results.CONFIG]))
def test_a_report_names_the_file_and_tables_no_other_number(bit, name):
    place, scores, files = finished_run()
    path = place / "runs" / scores.run_id / name
    path.write_bytes(flipped(files[name], bit))
    try:
        made = build.build(place)
    finally:
        path.write_bytes(files[name])
    assert any(str(path) in line for line in made.problems)
    assert all(one == scores for one in made.cells)


@cache
def job_record():
    place = new_folder()
    config = replace(compose(["model=bm25"]), cache_dir=place / "cache", results_dir=place / "results")
    with pytest.raises(ScoreError), jobs.recorded(config):
        raise ScoreError("got this, wanted that")
    (job,) = jobs.known(config.cache_dir)
    return job, job.path.read_bytes()


@settings(deadline=None, max_examples=200)
@given(bit=BITS)
def test_a_record_of_a_run_is_the_same_or_named_as_damaged(bit):
    job, data = job_record()
    job.path.write_bytes(flipped(data, bit))
    (found,) = jobs.known(job.path.parents[1])
    if found != job:
        assert (found.config, found.path) == (None, job.path)
        assert found.error is not None
        assert "this record of a job cannot be read" in found.error
    job.path.write_bytes(data)


@cache
def fetched_record():
    place = new_folder()
    words = ["model=bm25", "dataset=demo", "dataset.demo.documents=60", "dataset.demo.queries=6", f"cache_dir={place}"]
    found = fetch.fetch(fetch.selection(words), console=Console(quiet=True))[-1]
    return place, found, fetched_file(place, found.name)


@settings(deadline=None, max_examples=200)
@given(bit=BITS)
def test_a_record_of_a_fetch_is_the_same_or_refused(bit):
    place, found, path = fetched_record()
    data = path.read_bytes()
    path.write_bytes(flipped(data, bit))
    try:
        assert fetch._compare_with_record(found, place) == found
    except StoreError as error:
        one_line(error, path)
    finally:
        path.write_bytes(data)


@settings(deadline=None, max_examples=200)
@given(bit=BITS)
def test_a_survey_is_the_same_or_made_anew(bit):
    place, _, _ = fetched_record()
    (path,) = (place / "surveys").glob("*.json")
    data = path.read_bytes()
    wanted = survey._read(path)
    path.write_bytes(flipped(data, bit))
    assert survey._read(path) in (wanted, None)
    path.write_bytes(data)
    assert wanted is not None


@settings(deadline=None, max_examples=200)
@given(bit=BITS)
def test_a_gzipped_run_or_qrels_of_another_system_is_the_same_or_refused(bit):
    place = new_folder()
    run, qrels = place / "r.gz", place / "q.gz"
    run.write_bytes(flipped(gzip.compress(b"q1 Q0 d1 1 2.5 t\nq1 Q0 d2 2 0.5 t\nq2 Q0 d1 1 1.25 t\n", mtime=0), bit))
    qrels.write_bytes(flipped(gzip.compress(b"q1 0 d1 1\nq1 0 d2 0\nq2 0 d2 2\n", mtime=0), bit))
    for path, read, wanted in (
        (run, trec.read_run, RUN),
        (qrels, trec.read_qrels, QRELS),
        (qrels, folder.read_qrels, QRELS),
    ):
        try:
            assert read(path) == wanted
        except EvalkitError as error:
            one_line(error, path)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.sampled_from([".json", ".safetensors"]))
def test_a_cache_is_listed_and_verified_whatever_a_file_in_it_holds(data, suffix):
    place = new_folder()
    stored = place / "stores" / "k"
    shard_files.save(stored, "s", {"a": torch.arange(3)}, FACTS)
    (stored / f"s{suffix}").write_bytes(data)
    (entry,) = inventory.entries(place, ())
    checked = inventory.verify([entry])
    assert (checked.intact, len(checked.damaged)) == (0, 1)
    assert str(stored / f"s{suffix}") in checked.damaged[0]
    assert "\n" not in checked.damaged[0]


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=80))
def test_any_bytes_as_a_text_format_are_read_or_refused_in_one_line(data):
    path = new_folder() / "file"
    path.write_bytes(data)
    for read in (trec.read_run, trec.read_qrels, folder.read_qrels, folder.read_queries):
        try:
            read(path)
        except (ScoreError, DatasetError) as error:
            one_line(error, path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text().filter(lambda name: name != seal.FIELD), JSON, max_size=4))
def test_any_record_comes_back_from_its_seal(values):
    assert seal.unseal(seal.seal(values)) == values


class StoreWarnings(logging.Handler):
    """The store's warnings; pytest's caplog is one for a whole test, and each example needs its own."""

    def __enter__(self):
        self.lines = []
        shard_files.log.addHandler(self)
        return self.lines

    def __exit__(self, *_):
        shard_files.log.removeHandler(self)

    def emit(self, record):
        self.lines.append(record.getMessage())
