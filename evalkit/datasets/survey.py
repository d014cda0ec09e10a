"""One pass over a corpus before anything is encoded: number of documents, checksum, and shard boundaries.

The pass also rejects a corpus that is empty or has a document id twice, and finds judged documents that are missing. It
keeps eight bytes per document in memory. The result is cached in a small file under the corpus's fingerprint, so the
pass runs once.

Shard boundaries are content-defined: a shard may begin at a document whose id has a low enough hash. An added, removed
or edited document therefore changes its own shard and seldom the next one. Two corpora with long stretches of common
documents (FEVER and Climate-FEVER) share most of their shards.

A corpus can change after its survey, so `read_shard` hashes the documents again.
"""

from __future__ import annotations

import json
import logging
import struct
from array import array
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash

from evalkit.datasets.judged import LONGEST_ID
from evalkit.errors import ChangedError, DatasetError
from evalkit.storage import untrusted
from evalkit.storage.paths import survey_file, write_atomic
from evalkit.types import Corpus, Document

log = logging.getLogger(__name__)

SHARD_RULE: Final = "by content, 1"
"""The rule for shard boundaries. It is part of the protocol because a shard's texts can change a vector's last bits."""
_FORMAT: Final = 4
"""Raise it when the checksum, the estimate or the shard rule changes, so that old surveys are not found."""
_PROGRESS_DOCUMENTS: Final = 4096
"""Documents between two calls of `progress`."""
_MARKER_TOKENS: Final = 3
"""Special tokens of every text: start, end and the marker of queries or documents."""
_BYTES_PER_TOKEN: Final = 2
"""Fewest UTF-8 bytes of a token, on average; see `estimated_tokens`."""
_SHORTEST_SHARD_DIVISOR: Final = 4
"""A low hash ends a shard only after 1/4 of the token budget."""
_SPACING_DIVISOR: Final = 4
"""After that, low hashes are 1/4 of the token budget apart on average."""
_HASHES: Final = 1 << 64


@dataclass(frozen=True)
class ShardRange:
    """A slice of the corpus: documents `start` (inclusive) to `stop` (exclusive)."""

    index: int
    start: int
    stop: int
    checksum: str
    """XXH3 of every id and joined text, in order; it names the file with the shard's vectors."""
    content: str
    """XXH3 of every id, title and text, in order. BM25 reads title and text separately, so it needs more than
    `checksum`."""


@dataclass(frozen=True)
class Survey:
    """The content of a corpus: sizes, checksums and shards."""

    documents: int
    checksum: str
    """XXH3 of every id, title and text, in order; identical documents from any source have the same checksum."""
    shards: tuple[ShardRange, ...]
    empty_documents: int
    """Documents without title and text; a model still embeds them."""
    missing: tuple[str, ...]
    """Ids of judged documents missing from the corpus, sorted."""
    title_only: int = 0
    """Documents with a title and a blank text: BM25 with a separate field for texts does not find them."""


def survey(  # noqa: PLR0913 (keyword-only settings of one pass over the corpus)
    corpus: Corpus,
    *,
    shard_tokens: int,
    max_document_tokens: int,
    cache_dir: Path,
    name: str,
    judged_ids: Collection[str] = (),
    progress: Callable[[int], None] | None = None,
) -> Survey:
    """Survey a corpus, or return the cached survey of the same corpus; a damaged cache file is replaced.

    `shard_tokens` is the token budget of a shard and `max_document_tokens` the limit per document, both in estimated
    tokens. The survey's `missing` are those of `judged_ids` that the corpus lacks. `name` is the dataset's name for
    messages. `progress` is called with the number of documents read since its last call.

    Raises:
        DatasetError: The corpus is empty, has a document id twice or one above LONGEST_ID bytes, or contains text that
            is not valid Unicode.
        ChangedError: The corpus changed during the survey; nothing is cached.

    """
    fingerprint = corpus.fingerprint()
    path = survey_file(cache_dir, _key(fingerprint, shard_tokens, max_document_tokens, judged_ids))
    found = _read(path)
    if found is None:
        if path.exists():
            log.warning("%s: damaged; the corpus of %s is surveyed again", path, name)
        found = _pass(
            corpus,
            shard_tokens=shard_tokens,
            max_document_tokens=max_document_tokens,
            name=name,
            judged_ids=judged_ids,
            progress=progress or (lambda _documents: None),
        )
        if corpus.fingerprint() != fingerprint:
            msg = f"dataset {name}: got a corpus that changed during its survey, wanted one that does not change"
            raise ChangedError(f"{msg}; nothing was stored: run the same command again")
        _write(path, found)
    return found


def forget(
    corpus: Corpus, *, shard_tokens: int, max_document_tokens: int, cache_dir: Path, judged_ids: Collection[str] = ()
) -> None:
    """Delete the cached survey of a corpus, if there is one, so that the next job reads the corpus again."""
    key = _key(corpus.fingerprint(), shard_tokens, max_document_tokens, judged_ids)
    survey_file(cache_dir, key).unlink(missing_ok=True)


def read_shard(corpus: Corpus, shard: ShardRange, *, name: str) -> Iterator[Document]:
    """Yield a shard's documents, hash them, and compare the hash with the survey after the last one.

    Store nothing computed from a shard before this iterator is exhausted.

    Raises:
        ChangedError: The documents are not the ones that were surveyed.

    """
    content, count = ContentHash(), 0
    for document in corpus.documents(shard.start, shard.stop):
        count += 1
        content.add(document)
        yield document
    if content.hexdigest() != shard.content:
        got = "other content" if count == shard.stop - shard.start else f"{count:,} documents"
        msg = (
            f"dataset {name}: got {got} for documents {shard.start + 1:,} to {shard.stop:,} (shard {shard.index + 1}), "
            "wanted what the survey read: the corpus changed during the job or its survey is out of date"
        )
        raise ChangedError(f"{msg}; nothing of this shard was stored: leave the corpus alone and run the command again")


class ContentHash:
    """Accumulates the XXH3 checksum of a corpus or shard over ids, titles and texts, in order.

    >>> one, other = ContentHash(), ContentHash()
    >>> one.add(Document("d", "a", "b")), other.add(Document("d", "", "ab"))
    (None, None)
    >>> one.hexdigest() == other.hexdigest()
    False
    """

    def __init__(self) -> None:
        """Start the checksum of no documents."""
        self._digest = xxhash.xxh3_128()

    def add(self, document: Document) -> None:
        """Add a document."""
        self.add_parts([part.encode(errors="surrogatepass") for part in document])

    def add_parts(self, parts: list[bytes]) -> None:
        """Add a document's encoded id, title and text."""
        # With the lengths first, different documents or lists of documents never give the same bytes.
        self._digest.update(struct.pack("<3Q", *map(len, parts)) + b"".join(parts))

    def hexdigest(self) -> str:
        """Return the checksum of the documents added so far."""
        return self._digest.hexdigest()


def estimated_tokens(text: str, *, max_document_tokens: int) -> int:
    """Estimate the number of tokens of a text without a tokenizer, at most `max_document_tokens`.

    A token of a multilingual subword vocabulary covers two or more UTF-8 bytes: the shortest, a word of one letter,
    includes the space before it, and a non-ASCII character alone has two bytes. Unusual text, such as a long run of
    different punctuation, can have more tokens. The estimate is therefore used only to size shards.

    >>> estimated_tokens("a cat", max_document_tokens=300)
    5
    >>> estimated_tokens("ab" * 1000, max_document_tokens=300)
    300
    """
    return min(max_document_tokens, _MARKER_TOKENS + len(text.encode()) // _BYTES_PER_TOKEN)


def _pass(
    corpus: Corpus,
    *,
    shard_tokens: int,
    max_document_tokens: int,
    name: str,
    judged_ids: Collection[str],
    progress: Callable[[int], None],
) -> Survey:
    content, shard_content, shard_joined = ContentHash(), ContentHash(), xxhash.xxh3_128()
    id_hashes = array("Q")
    missing = set(judged_ids)
    shards: list[ShardRange] = []
    empty_documents = title_only = start = tokens = reported = count = 0
    for position, document in enumerate(corpus.documents()):
        count = position + 1
        try:
            parts = [part.encode() for part in document]
        except UnicodeEncodeError as error:
            msg = (
                f"dataset {name}: got document {document.id!r} (number {count}) with half a surrogate pair "
                f"({error.object[error.start]!r}), wanted text that UTF-8 can hold; repair the corpus"
            )
            raise DatasetError(msg) from None
        if len(parts[0]) > LONGEST_ID:
            msg = (
                f"{corpus.where(position)}: got a document id of {len(parts[0]):,} bytes, wanted {LONGEST_ID:,} at most"
            )
            raise DatasetError(f"{msg}; give the documents of dataset {name} shorter ids")
        content.add_parts(parts)
        id_hash = xxhash.xxh3_64_intdigest(parts[0])
        id_hashes.append(id_hash)
        missing.discard(document.id)
        text = document.joined()
        empty_documents += not text
        title_only += bool(document.title.strip() and not document.text.strip())
        estimate = estimated_tokens(text, max_document_tokens=max_document_tokens)
        if position > start and _begins_shard(id_hash, estimate, tokens, shard_tokens):
            shards.append(ShardRange(len(shards), start, position, shard_joined.hexdigest(), shard_content.hexdigest()))
            start, tokens, shard_content, shard_joined = position, 0, ContentHash(), xxhash.xxh3_128()
        tokens += estimate
        joined = text.encode()
        shard_content.add_parts(parts)
        shard_joined.update(struct.pack("<2Q", len(parts[0]), len(joined)) + parts[0] + joined)
        if count - reported == _PROGRESS_DOCUMENTS:
            progress(count - reported)
            reported = count
    if not count:
        msg = f"dataset {name}: got an empty corpus, wanted at least one document; check where the corpus is read from"
        raise DatasetError(msg)
    shards.append(ShardRange(len(shards), start, count, shard_joined.hexdigest(), shard_content.hexdigest()))
    progress(count - reported)
    _refuse_duplicates(corpus, id_hashes, name=name)
    return Survey(count, content.hexdigest(), tuple(shards), empty_documents, tuple(sorted(missing)), title_only)


def _begins_shard(id_hash: int, estimate: int, tokens: int, shard_tokens: int) -> bool:
    """Return whether a document begins a new shard: the current one is full, or large enough and the hash is low.

    `tokens` is the size of the current shard and `estimate` that of the document. A longer document begins a shard with
    a higher probability, so that the expected shard size in tokens is the same for long and short documents.
    """
    if tokens + estimate > shard_tokens:
        return True
    low = id_hash * shard_tokens < _HASHES * estimate * _SPACING_DIVISOR
    return low and tokens * _SHORTEST_SHARD_DIVISOR >= shard_tokens


def _refuse_duplicates(corpus: Corpus, id_hashes: array[int], *, name: str) -> None:
    """Raise DatasetError if an id occurs twice; ids with equal hashes are compared in a second pass."""
    hashes = np.frombuffer(id_hashes, dtype=np.uint64)
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not suspects:
        return
    places: dict[str, int] = {}
    for place, document in enumerate(corpus.documents()):
        if xxhash.xxh3_64_intdigest(document.id.encode()) not in suspects:
            continue
        first = places.setdefault(document.id, place)
        if first != place:
            msg = f"{corpus.where(place)}: got document id {document.id!r} again (first: {corpus.where(first)})"
            raise DatasetError(f"{msg}, wanted every id of dataset {name} once; remove or rename one of the two")


def _key(fingerprint: str, shard_tokens: int, max_document_tokens: int, judged_ids: Collection[str]) -> str:
    facts = [_FORMAT, fingerprint, shard_tokens, max_document_tokens, sorted(judged_ids)]
    return xxhash.xxh3_128_hexdigest(json.dumps(facts).encode())


def _write(path: Path, found: Survey) -> None:
    facts = {
        "documents": found.documents,
        "checksum": found.checksum,
        "shards": [[shard.start, shard.stop, shard.checksum, shard.content] for shard in found.shards],
        "empty_documents": found.empty_documents,
        "missing": list(found.missing),
        "title_only": found.title_only,
    }
    write_atomic(path, json.dumps({"survey": facts, "xxh3": _own_checksum(facts)}).encode())


def _read(path: Path) -> Survey | None:
    """Return a cached survey; None for a missing or damaged file, because another pass replaces it."""
    try:
        stored = untrusted.read_json_object(path)
        facts = stored["survey"]
        if stored["xxh3"] != _own_checksum(facts):
            return None
        return Survey(
            facts["documents"],
            facts["checksum"],
            tuple(ShardRange(index, *shard) for index, shard in enumerate(facts["shards"])),
            facts["empty_documents"],
            tuple(facts["missing"]),
            facts["title_only"],
        )
    except (untrusted.UnreadableError, KeyError, TypeError):
        return None


def _own_checksum(facts: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())
