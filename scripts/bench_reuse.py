"""Measure how many documents two collections share in identical shards if one lacks a few of the other's documents.

    python scripts/bench_reuse.py --documents 100000 --removed 5 25 100 --out results/bench/reuse.json

The script surveys the complete demo collection and copies with randomly chosen documents removed. It counts the
documents in shards that both have, for evalkit's content-defined shards and, for comparison, for shards that end when
they are full. It runs no model. The figures are printed, and written to --out if it is given.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from evalkit.datasets.demo import DemoCorpus
from evalkit.datasets.survey import estimated_tokens, survey
from evalkit.types import Document

MAX_DOCUMENT_TOKENS = 300


@dataclass(frozen=True)
class Without:
    """A corpus without some of its documents."""

    corpus: DemoCorpus
    removed: frozenset[int]

    def fingerprint(self) -> str:
        """Return the corpus's fingerprint with the positions of the removed documents."""
        return f"{self.corpus.fingerprint()}-{sorted(self.removed)}"

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """Yield the remaining documents; the survey always reads all of them."""
        assert (start, stop) == (0, None)
        return (document for place, document in enumerate(self.corpus.documents()) if place not in self.removed)

    def where(self, index: int) -> str:
        """Return the document's number among the remaining ones, from 1."""
        return f"document number {index + 1}"


class Shards(NamedTuple):
    """The number of documents of each shard, by a name of its content."""

    by_content: dict[str, int]
    where_full: dict[tuple[str, str, int], int]


def cut(corpus: Without, shard_tokens: int) -> Shards:
    """Split a corpus into shards in both ways; full shards are named by first id, last id and number of documents."""
    with tempfile.TemporaryDirectory() as folder:
        found = survey(
            corpus,
            shard_tokens=shard_tokens,
            max_document_tokens=MAX_DOCUMENT_TOKENS,
            cache_dir=Path(folder),
            name="demo",
        )
    full: dict[tuple[str, str, int], int] = {}
    ids: list[str] = []
    tokens = 0
    for document in corpus.documents():
        estimate = estimated_tokens(document.joined(), max_document_tokens=MAX_DOCUMENT_TOKENS)
        if ids and tokens + estimate > shard_tokens:
            full[ids[0], ids[-1], len(ids)] = len(ids)
            ids, tokens = [], 0
        ids.append(document.id)
        tokens += estimate
    full[ids[0], ids[-1], len(ids)] = len(ids)
    return Shards({shard.checksum: shard.stop - shard.start for shard in found.shards}, full)


def main() -> None:
    """Measure the reuse for every number of removed documents; print the figures and write them to a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--removed", type=int, nargs="+", default=[5, 25, 100])
    parser.add_argument("--shard-tokens", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    corpus = DemoCorpus(chosen.documents, chosen.seed, "evaluation")
    whole = cut(Without(corpus, frozenset()), chosen.shard_tokens)
    reused = {}
    for removed in chosen.removed:
        places = frozenset(random.Random(chosen.seed).sample(range(chosen.documents), removed))
        fewer = cut(Without(corpus, places), chosen.shard_tokens)
        reused[str(removed)] = {
            way: round(sum(size for name, size in theirs.items() if name in known) / (chosen.documents - removed), 4)
            for way, known, theirs in (
                ("by_content", whole.by_content, fewer.by_content),
                ("where_full", whole.where_full, fewer.where_full),
            )
        }
    figures = {
        "command": " ".join(["python", "scripts/bench_reuse.py", *sys.argv[1:]]),
        "documents": chosen.documents,
        "shard_tokens": chosen.shard_tokens,
        "shards": {"by_content": len(whole.by_content), "where_full": len(whole.where_full)},
        "share_of_documents_reused_by_number_removed": reused,
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
