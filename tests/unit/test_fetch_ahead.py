"""Fetching ahead of time, proving it with the network off, and moving it, on a small copy in the Hub's cache."""

from __future__ import annotations

import io
import json
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
from rich.console import Console
from test_hub_copies import COMMIT, lay, lines, small_copy

from evalkit import fetch
from evalkit.config import configs_dir
from evalkit.errors import ConfigError, DatasetError, EvalkitError, StoreError

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
    assert model.name == "model demo at dim 64"
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
    assert message.startswith("dataset xquad/en test: got checksum ")
    assert message.endswith(" as fetched; delete the changed file and run evalkit fetch again")


def test_a_bundle_moves_a_selection_to_an_empty_machine(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = fetch.selection(words)
    found = fetch.fetch(configs, console=QUIET)
    bundle = tmp_path / "bundle.tar"
    assert fetch.write_bundle(found, bundle) == bundle.stat().st_size
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert "wanted its files in the Hugging Face cache" in refusal(
        lambda: fetch.verify(configs, console=QUIET), DatasetError
    )
    files = fetch.unpack_bundle(bundle)
    assert files == len(small_copy()) + 1  # and the name of the commit
    assert fetch.verify(configs, console=QUIET)[1].checksums == found[1].checksums
    assert fetch.unpack_bundle(bundle) == files


def test_nothing_to_move_is_said() -> None:
    assert "nothing of this selection needs moving" in refusal(lambda: fetch.write_bundle([], Path("x.tar")))


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


def link(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        (tarfile.TarInfo("huggingface/../../outside"), "got member 'huggingface/../../outside', which leads elsewhere"),
        (tarfile.TarInfo("/outside"), "got member '/outside', which leads elsewhere"),
        (tarfile.TarInfo("elsewhere/x"), "which leads elsewhere, wanted names under huggingface or ir_datasets"),
        (link("huggingface/link"), "got member 'huggingface/link', which is a link, wanted plain files only"),
    ],
    ids=["climbing", "absolute", "unknown home", "link"],
)
def test_a_member_that_leads_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: tarfile.TarInfo, complaint: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    path = bundle_of(tmp_path / "bad.tar", [member], [member.name])
    assert complaint in refusal(lambda: fetch.unpack_bundle(path))
    assert [each.name for each in tmp_path.iterdir()] == ["bad.tar"]


def test_a_bundle_that_is_not_whole_is_refused(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.tar"
    fetch.write_bundle(fetch.fetch(fetch.selection(words), console=QUIET), bundle)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    whole = bundle.read_bytes()
    bundle.write_bytes(whole[: len(whole) // 2])
    assert ": got a" in refusal(lambda: fetch.unpack_bundle(bundle))
    bundle.write_bytes(b"no archive at all" * 100)
    assert "got a damaged or half-copied archive" in refusal(lambda: fetch.unpack_bundle(bundle))
    bundle.write_bytes(whole.replace(b"unjudged", b"misjudge"))
    assert "with checksum" in refusal(lambda: fetch.unpack_bundle(bundle))
    bundle.unlink()
    assert "got nothing at this path, wanted a bundle" in refusal(lambda: fetch.unpack_bundle(bundle))
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
    assert complaint in refusal(lambda: fetch.unpack_bundle(bundle_of(tmp_path / "odd.tar", members, listed)))


def test_an_archive_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    path = tmp_path / "other.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(configs_dir() / "config.yaml", arcname="huggingface/config.yaml")
    assert "got no evalkit-bundle.json at its beginning" in refusal(lambda: fetch.unpack_bundle(path))
