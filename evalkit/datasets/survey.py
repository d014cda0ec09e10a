"""One pass over a corpus before anything is encoded: how many documents, which content, where the shards are cut.

The pass also refuses a corpus that is empty or names a document twice, and looks for the judged documents. It keeps
eight bytes per document. Its result is a small file, found again by the corpus's fingerprint, so that it is paid once.

Cuts depend on the documents beside them and on nothing far away: a shard may begin at a document whose id hashes low
enough. A document more or less, or other texts, so change the shard that they are in and seldom the one behind it, and
two corpora that share long runs of documents (FEVER and Climate-FEVER) share most of their shards by content.

A corpus can change after its survey, so whoever reads a shard hashes the documents again (`read_shard`).
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash

from evalkit.errors import ChangedError, DatasetError
from evalkit.storage import outside
from evalkit.storage.paths import survey_file, write_whole
from evalkit.types import Corpus, Document

CUT: Final = "by content, 1"
"""The cutting rule; a run's protocol names it, because the texts of a shard can move a vector's last bits."""
_FORMAT: Final = 3
"""Raise it when the checksum, the estimate or the cutting rule changes, so that old surveys are not found."""
LONGEST_ID: Final = 4096
"""Bytes of a document's id: more than any collection has. Every hit is a line with its id in the run file."""
_PROGRESS_DOCUMENTS: Final = 4096
"""Documents between two calls of `progress`."""
_MARKER_TOKENS: Final = 3
"""What every text gets besides its own tokens: start, end and the marker of queries or documents."""
_BYTES_PER_TOKEN: Final = 2
_LEAST_PARTS: Final = 4
"""A shard that a low hash ends holds at least this part (a quarter) of the token budget."""
_PARTS_BETWEEN_BEGINNINGS: Final = 4
"""From there on a low hash comes after another quarter of the budget, on average."""
_HASHES: Final = 1 << 64


@dataclass(frozen=True)
class ShardRange:
    """A slice of the corpus: documents `start` (inclusive) to `stop` (exclusive)."""

    index: int
    start: int
    stop: int
    checksum: str
    """XXH3 of every id and joined text, in order: what its vectors, and so their file, are named by."""
    content: str
    """XXH3 of every id, title and text, in order. BM25 reads title and text apart, so `checksum` is not enough."""


@dataclass(frozen=True)
class Survey:
    """What a corpus is, by its content."""

    documents: int
    checksum: str
    """XXH3 of every id, title and text, in order; the same for the same documents from any source."""
    shards: tuple[ShardRange, ...]
    empty_documents: int
    """Documents without title and text; a model embeds them all the same."""
    missing: tuple[str, ...]
    """Judged documents that the corpus has not, sorted."""


def survey(  # noqa: PLR0913 (keyword-only, and one caller)
    corpus: Corpus,
    *,
    shard_tokens: int,
    max_document_tokens: int,
    cache_dir: Path,
    name: str,
    judged_ids: Collection[str] = (),
    progress: Callable[[int], None] | None = None,
) -> Survey:
    """Survey a corpus, or return what an earlier survey of the same corpus wrote.

    `name` is the dataset's, for messages; `progress` is called with the documents read since its last call. A cached
    survey that is damaged is made anew.

    Raises:
        DatasetError: The corpus is empty, names a document twice, or holds text that is not Unicode.
        ChangedError: The corpus changed during the survey; nothing is cached.

    """
    fingerprint = corpus.fingerprint()
    path = survey_file(cache_dir, _key(fingerprint, shard_tokens, max_document_tokens, judged_ids))
    found = _read(path)
    if found is None:
        found = _pass(
            corpus,
            shard_tokens=shard_tokens,
            max_document_tokens=max_document_tokens,
            name=name,
            judged_ids=judged_ids,
            progress=progress or (lambda _documents: None),
        )
        if corpus.fingerprint() != fingerprint:
            msg = f"dataset {name}: got a corpus that changed during its survey, wanted one that stays as it is"
            raise ChangedError(f"{msg}; nothing was stored: run the same command again")
        _write(path, found)
    return found


def forget(
    corpus: Corpus, *, shard_tokens: int, max_document_tokens: int, cache_dir: Path, judged_ids: Collection[str] = ()
) -> None:
    """Delete the cached survey of a corpus, if any, so that the next run reads the corpus anew."""
    key = _key(corpus.fingerprint(), shard_tokens, max_document_tokens, judged_ids)
    survey_file(cache_dir, key).unlink(missing_ok=True)


def read_shard(corpus: Corpus, shard: ShardRange, *, name: str) -> Iterator[Document]:
    """Yield a shard's documents, and hash them on the way to compare them with the survey.

    The comparison follows the last document. Use nothing of a shard before this iterator has ended.

    Raises:
        ChangedError: These are not the documents that were surveyed.

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
            "wanted what the survey read: the corpus changed during the run or its survey is out of date"
        )
        raise ChangedError(f"{msg}; nothing of this shard was stored: leave the corpus alone and run the command again")


class ContentHash:
    """XXH3 of ids, titles and texts in order: the checksum of a corpus or of a shard.

    >>> one, other = ContentHash(), ContentHash()
    >>> one.add(Document("d", "a", "b")), other.add(Document("d", "", "ab"))
    (None, None)
    >>> one.hexdigest() == other.hexdigest()
    False
    """

    def __init__(self) -> None:
        """Start without documents."""
        self._digest = xxhash.xxh3_128()

    def add(self, document: Document) -> None:
        """Add a document."""
        self.add_parts([part.encode(errors="surrogatepass") for part in document])

    def add_parts(self, parts: list[bytes]) -> None:
        """Add a document's id, title and text, encoded."""
        # Lengths before the parts: no two different documents, or lists of documents, give the same bytes.
        self._digest.update(struct.pack("<3Q", *map(len, parts)) + b"".join(parts))

    def hexdigest(self) -> str:
        """Return the checksum of what was added so far."""
        return self._digest.hexdigest()


def estimated_tokens(text: str, *, max_document_tokens: int) -> int:
    """Return how many tokens a text has at most, without a tokenizer.

    A token of a multilingual subword vocabulary covers two UTF-8 bytes or more: the shortest, a word of one letter,
    covers the space before it too, and a character outside ASCII is two bytes by itself. Text made to defeat that (a
    long run of unlike signs, say) can exceed the estimate, so it sizes shards and decides nothing else.

    >>> estimated_tokens("a cat", max_document_tokens=300)
    5
    >>> estimated_tokens("ab" * 1000, max_document_tokens=300)
    300
    """
    return min(max_document_tokens, _MARKER_TOKENS + len(text.encode()) // _BYTES_PER_TOKEN)


def _pass(  # noqa: PLR0913
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
    empty_documents = start = tokens = reported = count = 0
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
    return Survey(count, content.hexdigest(), tuple(shards), empty_documents, tuple(sorted(missing)))


def _begins_shard(id_hash: int, estimate: int, tokens: int, shard_tokens: int) -> bool:
    """Return whether a shard of `tokens` so far ends before a document: it is full, or full enough and the hash is low.

    The longer a document the likelier it begins a shard, so that the distance is one of tokens, whatever the language.
    """
    if tokens + estimate > shard_tokens:
        return True
    low = id_hash * shard_tokens < _HASHES * estimate * _PARTS_BETWEEN_BEGINNINGS
    return low and tokens * _LEAST_PARTS >= shard_tokens


def _refuse_duplicates(corpus: Corpus, id_hashes: array[int], *, name: str) -> None:
    """Raise DatasetError when an id occurs twice; equal hashes are only a suspicion, which a second pass settles."""
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
    }
    write_whole(path, json.dumps({"survey": facts, "xxh3": _own_checksum(facts)}).encode())


def _read(path: Path) -> Survey | None:
    """Return a cached survey, or None when there is none that is whole: it costs a pass to make anew, no more."""
    try:
        stored = outside.read_json_object(path)
        facts = stored["survey"]
        if stored["xxh3"] != _own_checksum(facts):
            return None
        return Survey(
            facts["documents"],
            facts["checksum"],
            tuple(ShardRange(index, *shard) for index, shard in enumerate(facts["shards"])),
            facts["empty_documents"],
            tuple(facts["missing"]),
        )
    except (outside.UnreadableError, KeyError, TypeError):
        return None


def _own_checksum(facts: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())
