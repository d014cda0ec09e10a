"""How much of a collection is already encoded when another one that lacks a few of its documents has been run.

    python scripts/bench_reuse.py --documents 100000 --removed 5 25 100 --out results/bench/reuse.json

Surveys the demo collection whole and with some documents drawn at random taken out, and counts the documents in shards
that both have: by content, as evalkit cuts, and for comparison in shards that are cut where they are full. No model
runs.
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
    """A corpus of which some documents are missing."""

    corpus: DemoCorpus
    removed: frozenset[int]

    def fingerprint(self) -> str:
        """Return the corpus' own and the places that are missing."""
        return f"{self.corpus.fingerprint()}-{sorted(self.removed)}"

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """Yield what is left; the survey asks for all of it."""
        assert (start, stop) == (0, None)
        return (document for place, document in enumerate(self.corpus.documents()) if place not in self.removed)

    def where(self, index: int) -> str:
        """Return the document's number, from 1, among those that are left."""
        return f"document number {index + 1}"


class Shards(NamedTuple):
    """Each shard's documents, by what names its content."""

    by_content: dict[str, int]
    where_full: dict[tuple[str, str, int], int]


def cut(corpus: Without, shard_tokens: int) -> Shards:
    """Cut a corpus both ways. What is cut where full is named by first and last id and number of documents."""
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
    """Measure every number of removed documents and write the figures with their conditions."""
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
        places = frozenset(random.Random(chosen.seed).sample(range(chosen.documents), removed))  # noqa: S311 (no secret)
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
