"""Fetching ahead of time, proving it with the network off, and moving it, on a small copy in the Hub's cache."""

from __future__ import annotations

import gzip
import io
import json
import logging
import socket
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import xxhash
from rich.console import Console
from test_hub_copies import COMMIT, CORPUS, lay, lines, small_copy

from evalkit import datasets
from evalkit.config.settings import DatasetConfig, configs_dir
from evalkit.datasets import irds
from evalkit.datasets.folder import load_folder
from evalkit.errors import ConfigError, DatasetError, EvalkitError, StoreError
from evalkit.operations import fetch
from evalkit.storage import paths, seal
from evalkit.storage.paths import fetched_file
from evalkit.types import Dataset

QUIET = Console(quiet=True)


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A selection whose dataset is a copy in the Hub's cache, and whose model comes with the package."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    lay(tmp_path / "hub", small_copy())
    return [
        "model=demo",
        "dim=64",
        "dataset=xquad/en",
        "dataset.name=small",
        "dataset.hub.repo=owner/small",
        f"dataset.hub.revision={COMMIT}",
        "dataset.hub.corpus=corpus",
        "dataset.hub.queries=queries",
        "dataset.hub.qrels=default",
        "dataset.hub.split=test",
        "dataset.counts.documents=10",
        "dataset.counts.queries=1",
        "dataset.counts.judgements=2",
        "dataset.checksum=null",
        f"cache_dir={tmp_path / 'cache'}",
    ]


def refusal(action: Callable[[], object], kind: type[EvalkitError] = StoreError) -> str:
    with pytest.raises(kind) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_selection_is_every_combination_of_the_values() -> None:
    configs = fetch.selection(["model=demo,bm25", "dim=128,64", "dataset=demo,beir/fiqa"])
    assert [(config.model.name, config.dims, config.dataset.name) for config in configs] == [
        ("demo", (128, 64), "demo"),
        ("demo", (128, 64), "beir/fiqa"),
        ("bm25", (None,), "demo"),
        ("bm25", (None,), "beir/fiqa"),
    ]


def test_a_wrong_word_of_a_selection_is_named() -> None:
    assert "dataset 'beir/fqia' unknown; did you mean beir/fiqa" in refusal(
        lambda: fetch.selection(["dataset=demo,beir/fqia"]), ConfigError
    )
    assert "got an empty selection" in refusal(lambda: fetch.fetch([], console=QUIET), ConfigError)


def test_what_was_fetched_is_proved_with_the_network_off(words: list[str]) -> None:
    configs = fetch.selection(words)
    model, dataset = fetch.fetch(configs, console=QUIET)
    assert model.name == "model demo:64"
    assert {name.rpartition("/")[2] for name in model.checksums} == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    }
    assert dataset.source == f"hub owner/small@{COMMIT}"
    proved = fetch.verify(configs, console=QUIET)
    assert [(each.name, each.checksums) for each in proved] == [
        (each.name, each.checksums) for each in (model, dataset)
    ]
    assert "documents                         10" in proved[1].notes


def test_where_no_fetch_is_recorded_the_proof_says_that_nothing_was_compared(words: list[str], tmp_path: Path) -> None:
    """As on a machine to which a bundle was moved."""
    configs = fetch.selection(words)
    said = f"not compared with a fetch         none is recorded in {tmp_path / 'cache'}"
    assert [each.notes[-1] for each in fetch.verify(configs, console=QUIET)] == [said, said]
    fetch.fetch(configs, console=QUIET)
    assert not any(said in each.notes for each in fetch.verify(configs, console=QUIET))


def test_the_network_is_off_and_comes_back() -> None:
    before = socket.socket.connect, socket.getaddrinfo
    with fetch.network_off():
        with pytest.raises(OSError, match="the network is off"):
            socket.create_connection(("127.0.0.1", 9))
        with socket.socket() as one, pytest.raises(OSError, match="the network is off"):
            one.connect(("127.0.0.1", 9))
    assert (socket.socket.connect, socket.getaddrinfo) == before


def test_what_is_not_on_disk_fails_the_proof(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "hub" / "datasets--owner--small" / "snapshots" / COMMIT / "queries.jsonl").unlink()
    assert "got 0 of the files queries.jsonl, wanted 1 or more" in refusal(
        lambda: fetch.verify(fetch.selection(words), console=QUIET), DatasetError
    )


def folder_beside_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qrels: str) -> None:
    """Let ir-datasets' place in the order of sources be taken by a folder that holds what the copy holds."""
    folder = tmp_path / "folder"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_bytes(lines([{**row, "title": row["title"] or ""} for row in CORPUS]))
    (folder / "queries.jsonl").write_bytes(lines([{"_id": "q0", "text": "unjudged"}, {"_id": "q1", "text": "judged"}]))
    (folder / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")

    def load_beside(config: DatasetConfig) -> Dataset:
        return load_folder(replace(config, path=str(folder)))

    monkeypatch.setitem(datasets.SOURCES, "ir_datasets", load_beside)
    monkeypatch.setattr(irds, "stored", lambda _identifier: True)


def test_sources_that_agree_are_said_to(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_beside_the_copy(tmp_path, monkeypatch, "q1\td7\t2\nq1\td0\t0\n")
    both = [*words, "dataset.sources=[hub,ir_datasets]", "dataset.ir_datasets_id=any/id"]
    notes = fetch.verify(fetch.selection(both), console=QUIET)[1].notes
    assert "the same as from                  folder folder" in notes


def test_sources_of_another_order_hold_the_same_documents(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_beside_the_copy(tmp_path, monkeypatch, "q1\td7\t2\nq1\td0\t0\n")
    corpus = tmp_path / "folder" / "corpus.jsonl"
    corpus.write_bytes(b"".join(reversed(corpus.read_bytes().splitlines(keepends=True))))
    both = [*words, "dataset.sources=[hub,ir_datasets]", "dataset.ir_datasets_id=any/id"]
    notes = fetch.verify(fetch.selection(both), console=QUIET)[1].notes
    assert "same documents, another order     folder folder" in notes


@pytest.mark.parametrize(
    ("qrels", "complaint"),
    [
        ("q1\td7\t2\n", "query 'q1', document 'd0': relevance 0 and None"),
        ("q1\td7\t2\nq1\td0\t0\nq0\td3\t1\n", "query 'q0' with text 'unjudged' in one of them only"),
    ],
    ids=["a judgement less", "a query more"],
)
def test_sources_whose_counts_differ_disagree(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qrels: str, complaint: str
) -> None:
    """That one of them deviates from the published counts is no reason to pass it over."""
    folder_beside_the_copy(tmp_path, monkeypatch, qrels)
    both = [*words, "dataset.sources=[hub,ir_datasets]", "dataset.ir_datasets_id=any/id"]
    message = refusal(lambda: fetch.verify(fetch.selection(both), console=QUIET), DatasetError)
    assert f"hub owner/small@{COMMIT} and folder folder disagree; got {complaint}, wanted the same from both" in message


def test_a_further_source_that_cannot_be_read_is_said_not_to_be_compared(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_beside_the_copy(tmp_path, monkeypatch, "q1\td7\n")
    both = [*words, "dataset.sources=[hub,ir_datasets]", "dataset.ir_datasets_id=any/id"]
    notes = fetch.verify(fetch.selection(both), console=QUIET)[1].notes
    assert notes[-2].startswith("not compared                      ")
    assert notes[-2].endswith(
        "got 2 columns, wanted 3 (query-id corpus-id score); ids must not contain white space; repair the line"
    )


def test_accepted_deviations_are_part_of_the_proof(words: list[str]) -> None:
    accepted = [*words, "dataset.counts.documents=11", "dataset.verify=false"]
    notes = fetch.verify(fetch.selection(accepted), console=QUIET)[1].notes
    assert notes[0] == f"dataset small: got 10 documents from hub owner/small@{COMMIT}, wanted 11 as published"


def test_a_source_whose_documents_are_damaged_gives_way_to_the_next(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The survey finds it, which is the first to read them to their end; what was used is recorded."""
    folder_beside_the_copy(tmp_path, monkeypatch, "q1\td7\t2\nq1\td0\t0\n")
    corpus = tmp_path / "folder" / "corpus.jsonl"
    (tmp_path / "folder" / "corpus.jsonl.gz").write_bytes(gzip.compress(corpus.read_bytes())[:-9])
    corpus.unlink()
    both = [*words, "dataset.sources=[ir_datasets,hub]", "dataset.ir_datasets_id=any/id"]
    with caplog.at_level(logging.WARNING):
        (_, dataset) = fetch.fetch(fetch.selection(both), console=QUIET)
    assert dataset.source == f"hub owner/small@{COMMIT}"
    (record,) = caplog.records
    assert "source ir_datasets failed, the next one is tried: " in record.getMessage()
    assert "got the end of a truncated gzip file after this line, wanted a whole file" in record.getMessage()
    message = refusal(
        lambda: fetch.fetch(fetch.selection([*both[:-2], "dataset.sources=[ir_datasets]", both[-1]]), console=QUIET),
        DatasetError,
    )
    assert "got the end of a truncated gzip file" in message


def test_a_checksum_that_changed_since_the_fetch_fails_the_proof(words: list[str], tmp_path: Path) -> None:
    configs = fetch.selection(words)
    fetch.fetch(configs, console=QUIET)
    snapshot = tmp_path / "hub" / "datasets--owner--small" / "snapshots" / COMMIT
    readme = snapshot / "README.md"
    text = readme.read_text(encoding="utf-8").replace("corpus/corpus-*.parquet", "other.jsonl")
    readme.unlink()
    readme.write_text(text, encoding="utf-8")
    rows = [{"_id": f"d{n}", "text": "changed"} for n in range(10)]
    (snapshot / "other.jsonl").write_bytes(lines(rows))
    message = refusal(lambda: fetch.verify(configs, console=QUIET))
    assert message.startswith("dataset small test: got checksum ")
    assert message.endswith(" as fetched; delete the changed file and run evalkit fetch again")


def test_a_bundle_moves_a_selection_to_an_empty_machine(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = fetch.selection(words)
    found = fetch.fetch(configs, console=QUIET)
    bundle = tmp_path / "bundle.tar"
    assert fetch.write_bundle(found, bundle, cache_dir=configs[0].cache_dir) == bundle.stat().st_size
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert "wanted its files in the Hugging Face cache" in refusal(
        lambda: fetch.verify(configs, console=QUIET), DatasetError
    )
    (learned,) = (tmp_path / "cache" / "corpora").iterdir()
    first_read = learned.read_bytes()
    learned.unlink()
    files = fetch.unpack_bundle(bundle, cache_dir=tmp_path / "cache")
    assert files == len(small_copy()) + 2  # and the name of the commit, and the checksum of the first read
    assert learned.read_bytes() == first_read
    assert fetch.verify(configs, console=QUIET)[1].checksums == found[1].checksums
    assert fetch.unpack_bundle(bundle, cache_dir=tmp_path / "cache") == files


def test_a_bundle_of_another_corpus_than_was_read_here_first_is_refused(words: list[str], tmp_path: Path) -> None:
    found, cache = fetch.fetch(fetch.selection(words), console=QUIET), tmp_path / "cache"
    fetch.write_bundle(found, tmp_path / "bundle.tar", cache_dir=cache)
    (learned,) = (cache / "corpora").iterdir()
    facts = seal.read(learned.read_bytes())
    learned.write_text(json.dumps(seal.seal({**facts, "checksum": "another"})), encoding="utf-8")
    message = refusal(lambda: fetch.unpack_bundle(tmp_path / "bundle.tar", cache_dir=cache))
    assert (
        f"whose checksum of a corpus differs from that in {learned}, of its first read here, wanted the same" in message
    )


def test_nothing_to_move_is_said() -> None:
    assert "nothing of this selection needs moving" in refusal(
        lambda: fetch.write_bundle([], Path("x.tar"), cache_dir=Path("c"))
    )


def bundle_of(path: Path, members: list[tarfile.TarInfo], listed: list[str]) -> Path:
    manifest = {
        "format": 1,
        "files": {name: {"bytes": 0, "xxh3": "99aa06d3014798d86001c324468d497f"} for name in listed},
    }
    content = json.dumps(manifest).encode()
    with tarfile.open(path, "w") as archive:
        first = tarfile.TarInfo("evalkit-bundle.json")
        first.size = len(content)
        archive.addfile(first, io.BytesIO(content))
        for member in members:
            archive.addfile(member)
    return path


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        (tarfile.TarInfo("huggingface/../../outside"), "got member 'huggingface/../../outside', which leads elsewhere"),
        (tarfile.TarInfo("/outside"), "got member '/outside', which leads elsewhere"),
        (
            tarfile.TarInfo("elsewhere/x"),
            "which leads elsewhere, wanted names under huggingface or ir_datasets or evalkit",
        ),
        *(
            (special("huggingface/x", kind), f"got member 'huggingface/x', which is {what}, wanted plain files only")
            for kind, what in (
                (tarfile.SYMTYPE, "a link"),
                (tarfile.LNKTYPE, "a link"),
                (tarfile.CHRTYPE, "no plain file"),
                (tarfile.FIFOTYPE, "no plain file"),
            )
        ),
    ],
    ids=["climbing", "absolute", "unknown home", "link", "hard link", "device", "pipe"],
)
def test_a_member_that_leads_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: tarfile.TarInfo, complaint: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    path = bundle_of(tmp_path / "bad.tar", [member], [member.name])
    assert complaint in refusal(lambda: fetch.unpack_bundle(path, cache_dir=tmp_path / "cache"))
    assert [each.name for each in tmp_path.iterdir()] == ["bad.tar"]


def test_a_bundle_that_is_not_whole_is_refused(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.tar"
    found = fetch.fetch(fetch.selection(words), console=QUIET)
    fetch.write_bundle(found, bundle, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    whole = bundle.read_bytes()
    bundle.write_bytes(whole[: len(whole) // 2])
    assert ": got a" in refusal(lambda: fetch.unpack_bundle(bundle, cache_dir=tmp_path / "cache"))
    bundle.write_bytes(b"no archive at all" * 100)
    assert "got a damaged or half-copied archive" in refusal(
        lambda: fetch.unpack_bundle(bundle, cache_dir=tmp_path / "cache")
    )
    bundle.write_bytes(whole.replace(b"unjudged", b"misjudge"))
    assert "with checksum" in refusal(lambda: fetch.unpack_bundle(bundle, cache_dir=tmp_path / "cache"))
    bundle.unlink()
    assert "got nothing at this path, wanted a bundle" in refusal(
        lambda: fetch.unpack_bundle(bundle, cache_dir=tmp_path / "cache")
    )
    assert not list(tmp_path.glob("elsewhere/**/.*.tmp"))


@pytest.mark.parametrize(
    ("members", "listed", "complaint"),
    [
        ([], ["huggingface/x"], "got an archive without 1 of its files, first 'huggingface/x', wanted all of them"),
        (
            [tarfile.TarInfo("huggingface/x")],
            [],
            "got member 'huggingface/x', wanted only files that its manifest lists",
        ),
    ],
    ids=["a file is missing", "a file too many"],
)
def test_a_bundle_holds_what_its_manifest_lists(
    tmp_path: Path, members: list[tarfile.TarInfo], listed: list[str], complaint: str
) -> None:
    assert complaint in refusal(
        lambda: fetch.unpack_bundle(bundle_of(tmp_path / "odd.tar", members, listed), cache_dir=tmp_path / "cache")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"\xff", "'utf-8' codec can't decode"),
        (b"[]", "got a list, wanted a JSON object"),
        (b'{"checksums": {}}', "got no xxh3_128, wanted the checksum of its content"),
        (json.dumps(seal.seal({"name": "model other", "checksums": {}})).encode(), "it is of model other"),
    ],
)
def test_a_record_of_a_fetch_that_cannot_be_believed_is_refused(
    words: list[str], tmp_path: Path, data: bytes, reason: str
) -> None:
    configs = fetch.selection(words)
    (_, dataset) = fetch.fetch(configs, console=QUIET)
    path = paths.fetched_file(tmp_path / "cache", dataset.name)
    path.write_bytes(data)
    message = refusal(lambda: fetch.verify(configs, console=QUIET))
    assert message.startswith(f"{path}: got an unusable record ({reason}")
    assert message.endswith("; run evalkit fetch again")
    fetch.fetch(configs, console=QUIET)
    assert fetch.verify(configs, console=QUIET)[1].checksums == dataset.checksums


def test_a_folder_in_place_of_a_bundle_is_one_line(tmp_path: Path) -> None:
    message = refusal(lambda: fetch.unpack_bundle(tmp_path, cache_dir=tmp_path / "cache"))
    assert "Is a directory" in message
    assert message.startswith(f"{tmp_path}: got ")


def test_an_archive_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    path = tmp_path / "other.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(configs_dir() / "config.yaml", arcname="huggingface/config.yaml")
    assert "got no evalkit-bundle.json at its beginning" in refusal(
        lambda: fetch.unpack_bundle(path, cache_dir=tmp_path / "cache")
    )


def bundle_bytes(path: Path, data: bytes, *, facts: dict[str, object] | None = None, **header: object) -> Path:
    """Write a bundle of one file `huggingface/x`, whose manifest and header may say anything."""
    said = {"bytes": len(data), "xxh3": xxhash.xxh3_128_hexdigest(data)} | (facts or {})
    content = json.dumps({"format": 1, "files": {str(header.get("name", "huggingface/x")): said}}).encode()
    with tarfile.open(path, "w") as archive:
        first = tarfile.TarInfo("evalkit-bundle.json")
        first.size = len(content)
        archive.addfile(first, io.BytesIO(content))
        member = tarfile.TarInfo("huggingface/x")
        member.size = len(data)
        for name, value in header.items():
            setattr(member, name, value)
        archive.addfile(member, io.BytesIO(data))
    return path


def sparse_headers() -> dict[str, str]:
    """Return what makes a member sparse in the PAX format: 3 bytes in the archive, 500 MB on the disk."""
    return {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "huggingface/x"} | {
        "GNU.sparse.realsize": "500000000"
    }


@pytest.mark.parametrize(
    ("bundle", "complaint"),
    [
        ({"pax_headers": sparse_headers()}, "a damaged or half-copied archive (a sparse member)"),
        ({"type": tarfile.GNUTYPE_SPARSE}, "a damaged or half-copied archive (a sparse member)"),
        ({"facts": {"bytes": 2}}, "member 'huggingface/x' of 3 bytes, wanted 2 as its manifest says"),
        ({"facts": {"bytes": -1}}, "in its manifest, wanted its bytes and its checksum"),
        ({"facts": {"bytes": True}}, "in its manifest, wanted its bytes and its checksum"),
        ({"facts": {"xxh3": None}}, "in its manifest, wanted its bytes and its checksum"),
        ({"facts": {"bytes": 1 << 61}}, "bytes for "),
        ({"mtime": 2**70}, "of time 1.1805916207174113e+21, wanted seconds since 1970"),
        ({"mtime": -5}, "of time -5.0, wanted seconds since 1970"),
        ({"name": f"huggingface/{'x' * 5000}"}, "wanted printable names of 200 bytes per part at most"),
        ({"name": "huggingface/\x1b[2J"}, "wanted printable names of 200 bytes per part at most"),
        ({"pax_headers": {"comment": "x" * 100_000}}, "a damaged or half-copied archive (a header of "),
    ],
)
def test_a_bundle_that_would_fill_the_disk_or_confuse_the_reader_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: dict[str, Any], complaint: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    path = bundle_bytes(tmp_path / "bad.tar", b"abc", **bundle)
    assert complaint in refusal(lambda: fetch.unpack_bundle(path, cache_dir=tmp_path / "cache"))
    assert [each.name for each in tmp_path.iterdir()] == ["bad.tar"]


def test_a_negative_size_in_a_header_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    path = bundle_bytes(tmp_path / "bad.tar", b"abc")
    data = bytearray(path.read_bytes())
    begin = data.index(b"huggingface/x\0")
    data[begin + 124 : begin + 136] = (-512).to_bytes(12, "big", signed=True)  # the size, in base 256
    data[begin + 148 : begin + 156] = b" " * 8
    data[begin + 148 : begin + 156] = b"%06o\0 " % sum(data[begin : begin + 512])
    path.write_bytes(data)
    assert "a damaged or half-copied archive (a member of -512 bytes)" in refusal(
        lambda: fetch.unpack_bundle(path, cache_dir=tmp_path / "cache")
    )


def test_a_folder_where_a_file_belongs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub" / "x" / "y").mkdir(parents=True)
    path = bundle_bytes(tmp_path / "bundle.tar", b"abc")
    assert "could not be written (Is a directory); free this path" in refusal(
        lambda: fetch.unpack_bundle(path, cache_dir=tmp_path / "cache")
    )
    assert "Is a directory, wanted a bundle that can be read" in refusal(
        lambda: fetch.unpack_bundle(tmp_path, cache_dir=tmp_path / "cache")
    )
    assert not list(tmp_path.rglob(".*.tmp"))


def test_chained_headers_are_refused_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "chain.tar"
    header = tarfile.TarInfo("x")
    header.type = tarfile.XHDTYPE
    path.write_bytes(header.tobuf() * 20_000)
    assert "got a damaged or half-copied archive" in refusal(
        lambda: fetch.unpack_bundle(path, cache_dir=tmp_path / "cache")
    )


@pytest.mark.parametrize("record", ["[]", "{}", '{"checksums": 5}', "[" * 100_000, "\xff", '{"checksums": {"a": NaN}}'])
def test_a_record_of_a_fetch_that_cannot_be_read_is_one_line(tmp_path: Path, record: str) -> None:
    found = fetch.Fetched("model x", "", {"a": "b"}, ())
    path = fetched_file(tmp_path, "model x")
    path.parent.mkdir()
    path.write_bytes(record.encode("latin-1"))
    assert "got an unusable record (" in refusal(lambda: fetch._compare_with_record(found, tmp_path))
