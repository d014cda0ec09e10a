"""Two collections that share most documents: what both hold is encoded once, and the scores do not notice."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evalkit.config.compose import compose
from evalkit.config.settings import DemoSize
from evalkit.datasets.demo import load_demo
from evalkit.run import pipeline, shard_step
from evalkit.run.encode import Encoding
from evalkit.storage.results import RUN, CellScores
from evalkit.types import Dataset, Document

REMOVED = {50, 301, 302, 555}


@pytest.fixture(scope="module")
def demo() -> Dataset:
    return load_demo(DemoSize(documents=600, queries=20, seed=0))


def write(folder: Path, dataset: Dataset, documents: Sequence[Document]) -> Path:
    """Write a BEIR-format folder; what is judged of documents that are not in it is left out."""
    there = {document.id for document in documents}
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", documents), ("queries", dataset.queries)):
        lines = ({"_id" if key == "id" else key: value for key, value in row._asdict().items()} for row in rows)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    judged = [(q, d, grade) for q, grades in dataset.qrels.items() for d, grade in grades.items() if d in there]
    (folder / "qrels" / "test.tsv").write_text("".join(f"{q}\t{d}\t{grade}\n" for q, d, grade in judged))
    return folder


@pytest.fixture(scope="module")
def folders(demo: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """All documents; and the same but four, as FEVER and Climate-FEVER differ."""
    root = tmp_path_factory.mktemp("folders")
    documents = list(demo.corpus.documents())
    fewer = [document for place, document in enumerate(documents) if place not in REMOVED]
    return write(root / "whole", demo, documents), write(root / "fewer", demo, fewer)


def words(folder: Path, place: Path, cache: Path, *more: str) -> list[str]:
    places = [f"results_dir={place}", f"cache_dir={cache}"]
    return [
        "model=demo",
        "dim=64",
        "dataset=folder",
        f"dataset.path={folder}",
        "store.shard_tokens=12000",
        *places,
        *more,
    ]


class Ran:
    """A run that was watched: its scores, the bytes of its run file, the shards that were encoded, what it said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: Path, asked: Sequence[str]) -> None:
        self.encoded: list[tuple[str, ...]] = []
        real = shard_step.encode

        def encode(ids: Sequence[str], texts: Any, encoder: Any, encoding: Encoding) -> Any:
            if encoding.documents:
                self.encoded.append(tuple(ids))
            return real(ids, texts, encoder, encoding)

        said = io.StringIO()
        with monkeypatch.context() as patch:
            patch.setattr(shard_step, "encode", encode)
            self.scores: CellScores
            (self.scores,) = pipeline.run(compose(asked), console=Console(file=said, width=200))
        self.said = said.getvalue()
        self.run = (place / "runs" / self.scores.run_id / RUN).read_bytes()


def test_documents_that_another_dataset_holds_too_are_not_encoded_again(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of 600 documents less change three shards of 19; 514 of the 596 documents (86 %) are not encoded again.

    From an empty cache the same run has the same bytes.
    """
    whole, fewer = folders
    first = Ran(monkeypatch, tmp_path / "first", words(whole, tmp_path / "first", tmp_path / "cache"))
    assert "reused_shards" not in first.scores.counts
    assert len(first.encoded) == first.scores.counts["shards"]
    assert "encoded before" not in first.said

    second = Ran(monkeypatch, tmp_path / "second", words(fewer, tmp_path / "second", tmp_path / "cache"))
    fresh = Ran(monkeypatch, tmp_path / "fresh", words(fewer, tmp_path / "fresh", tmp_path / "empty"))
    changed = [ids for ids in fresh.encoded if ids not in first.encoded]
    assert second.encoded == changed
    shards = second.scores.counts["shards"]
    assert second.scores.counts["reused_shards"] == shards - len(changed)
    assert f"{shards - len(changed)} of {shards} shards had been encoded before" in second.said
    assert (len(changed), shards, sum(map(len, changed))) == (3, 19, 82)

    assert (second.scores.run_id, second.run) == (fresh.scores.run_id, fresh.run)
    assert second.scores.metrics == fresh.scores.metrics
    assert second.scores.run_id != first.scores.run_id


def test_other_query_rules_move_no_document_so_nothing_is_encoded_again(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ColBERTv2's queries are longer on Climate-FEVER than on FEVER."""
    one, other = tmp_path / "one", tmp_path / "other"
    first = Ran(monkeypatch, one, words(folders[0], one, tmp_path / "cache"))
    second = Ran(monkeypatch, other, words(folders[0], other, tmp_path / "cache", "model.query.max_tokens=24"))
    assert second.encoded == []
    assert second.scores.counts["reused_shards"] == second.scores.counts["shards"] == len(first.encoded)
    assert second.scores.run_id != first.scores.run_id


def test_a_run_that_goes_on_where_it_stopped_has_reused_nothing(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shards are its own; only another run's count."""
    asked = words(folders[1], tmp_path / "results", tmp_path / "cache")
    first = Ran(monkeypatch, tmp_path / "results", asked)
    for path in [*(tmp_path / "cache" / "topk").glob("*/*"), *(tmp_path / "results").glob("runs/*/*")]:
        path.unlink()
    again = Ran(monkeypatch, tmp_path / "results", asked)
    assert again.encoded == []
    assert "reused_shards" not in again.scores.counts
    assert again.run == first.run


def test_without_embeddings_on_disk_every_run_encodes_for_itself(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`store.keep=topk` keeps what the search found, which is true of one corpus only."""
    runs = [
        Ran(
            monkeypatch,
            tmp_path / folder.name,
            words(folder, tmp_path / folder.name, tmp_path / "c", "store.keep=topk"),
        )
        for folder in folders
    ]
    assert [len(run.encoded) for run in runs] == [run.scores.counts["shards"] for run in runs]
    assert not (tmp_path / "c" / "stores").exists()
