"""Shard cutting and checksums over generated corpora."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.datasets.survey import Survey, estimated_tokens, survey
from evalkit.types import Document

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
DOCUMENTS = st.lists(
    st.builds(Document, TEXTS.filter(bool), TEXTS, TEXTS),
    min_size=1,
    max_size=30,
    unique_by=lambda document: document.id,
)
SHARD_TOKENS = st.integers(1, 200)
MAX_DOCUMENT_TOKENS = st.integers(1, 50)


@dataclass(frozen=True)
class ListCorpus:
    """Documents in a list."""

    listed: Sequence[Document]

    def fingerprint(self) -> str:
        return "a list"

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        yield from self.listed[start:stop]


def surveyed(documents: Sequence[Document], *, shard_tokens: int = 100, max_document_tokens: int = 50) -> Survey:
    with tempfile.TemporaryDirectory() as folder:
        return survey(
            ListCorpus(documents),
            shard_tokens=shard_tokens,
            max_document_tokens=max_document_tokens,
            cache_dir=Path(folder),
            name="generated",
        )


@settings(deadline=None)
@given(DOCUMENTS, SHARD_TOKENS, MAX_DOCUMENT_TOKENS)
def test_shards_partition_the_corpus_in_order(
    documents: list[Document], shard_tokens: int, max_document_tokens: int
) -> None:
    """Every document is in exactly one shard; shards are numbered, adjoining and never empty."""
    shards = surveyed(documents, shard_tokens=shard_tokens, max_document_tokens=max_document_tokens).shards
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert [shard.start for shard in shards] == [0, *(shard.stop for shard in shards[:-1])]
    assert shards[-1].stop == len(documents)
    assert all(shard.start < shard.stop for shard in shards)


@settings(deadline=None)
@given(DOCUMENTS, SHARD_TOKENS, MAX_DOCUMENT_TOKENS)
def test_a_shard_is_within_its_bound_and_no_needlessly_small_one(
    documents: list[Document], shard_tokens: int, max_document_tokens: int
) -> None:
    """Only a single document may exceed the bound; below a quarter of it a shard ends only for want of room."""
    estimates = [estimated_tokens(each.joined(), max_document_tokens=max_document_tokens) for each in documents]
    for shard in surveyed(documents, shard_tokens=shard_tokens, max_document_tokens=max_document_tokens).shards:
        tokens = sum(estimates[shard.start : shard.stop])
        assert tokens <= shard_tokens or shard.stop - shard.start == 1
        last = shard.stop == len(documents)
        assert last or 4 * tokens >= shard_tokens or tokens + estimates[shard.stop] > shard_tokens


@settings(deadline=None)
@given(DOCUMENTS, st.data())
def test_cuts_forget_what_lies_before_the_shard(documents: list[Document], data: st.DataObject) -> None:
    """A corpus that begins where a shard begins has the same shards from there on, by content."""
    shards = surveyed(documents).shards
    first = data.draw(st.sampled_from(shards))
    again = surveyed(documents[first.start :]).shards
    assert [shard.checksum for shard in again] == [shard.checksum for shard in shards[first.index :]]


@settings(deadline=None)
@given(DOCUMENTS, SHARD_TOKENS, MAX_DOCUMENT_TOKENS)
def test_the_checksum_does_not_depend_on_the_shards(
    documents: list[Document], shard_tokens: int, max_document_tokens: int
) -> None:
    """Content alone decides it, so a store can be found under another shard size."""
    other = surveyed(documents, shard_tokens=shard_tokens, max_document_tokens=max_document_tokens)
    assert other.checksum == surveyed(documents).checksum


@settings(deadline=None)
@given(DOCUMENTS, st.data())
def test_the_checksum_changes_with_any_text_or_id(documents: list[Document], data: st.DataObject) -> None:
    """One field of one document, replaced by anything else."""
    place = data.draw(st.integers(0, len(documents) - 1))
    column = data.draw(st.sampled_from(Document._fields))
    taken = {document.id for document in documents} | {"", getattr(documents[place], column)}
    replacement = data.draw(TEXTS.filter(lambda text: text not in taken))
    changed = list(documents)
    changed[place] = changed[place]._replace(**{column: replacement})
    assert surveyed(changed).checksum != surveyed(documents).checksum


@settings(deadline=None)
@given(DOCUMENTS.filter(lambda documents: len(documents) > 1), st.data())
def test_the_checksum_changes_with_order_and_with_a_missing_document(
    documents: list[Document], data: st.DataObject
) -> None:
    """Two documents swapped, or one left out."""
    first, second = sorted(data.draw(st.lists(st.integers(0, len(documents) - 1), min_size=2, max_size=2, unique=True)))
    swapped = list(documents)
    swapped[first], swapped[second] = swapped[second], swapped[first]
    shorter = documents[:first] + documents[first + 1 :]
    assert len({surveyed(each).checksum for each in (documents, swapped, shorter)}) == 3


@settings(deadline=None)
@given(TEXTS.filter(bool), TEXTS, TEXTS)
def test_the_checksum_tells_where_a_field_ends(identifier: str, title: str, text: str) -> None:
    """Moving the last character of the title to the text makes another corpus, though all bytes are the same."""
    one = surveyed([Document(identifier, f"{title}x", text)])
    other = surveyed([Document(identifier, title, f"x{text}")])
    assert one.checksum != other.checksum
