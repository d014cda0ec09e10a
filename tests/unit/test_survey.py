"""The survey of a corpus: what it counts, where it cuts, what it refuses, and when its cached result is trusted."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import xxhash

from evalkit.datasets import survey as survey_module
from evalkit.datasets.survey import Survey, estimated_tokens, survey
from evalkit.errors import DatasetError
from evalkit.types import Document


@dataclass
class ListCorpus:
    """Documents in a list, which counts how often it is read."""

    listed: Sequence[Document]
    passes: int = field(default=0)

    def fingerprint(self) -> str:
        return xxhash.xxh3_64_hexdigest(repr(self.listed).encode())

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        self.passes += 1
        yield from self.listed[start:stop]

    def where(self, index: int) -> str:
        return f"list line {index + 1}"


@dataclass(frozen=True)
class GeneratedCorpus:
    """As many documents as asked for, none of them kept."""

    count: int

    def fingerprint(self) -> str:
        return str(self.count)

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        for number in range(start, self.count if stop is None else min(stop, self.count)):
            yield Document(f"d{number}", "", "some words of text " * 10)

    def where(self, index: int) -> str:
        return f"d{index}"


def surveyed(
    corpus: ListCorpus | GeneratedCorpus, cache_dir: Path, *, shard_tokens: int = 1000, judged_ids: Collection[str] = ()
) -> Survey:
    return survey(
        corpus,
        shard_tokens=shard_tokens,
        max_document_tokens=300,
        cache_dir=cache_dir,
        name="small",
        judged_ids=judged_ids,
    )


def ten_token_documents(count: int) -> list[Document]:
    """Return documents of 14 bytes, which are estimated at 3 + 14 // 2 = 10 tokens."""
    return [Document(f"d{number}", "", "x" * 14) for number in range(count)]


def test_documents_are_counted_and_so_are_those_without_any_text(tmp_path: Path) -> None:
    """A document of nothing but white space is empty to a model; one with only a title is not."""
    corpus = ListCorpus(
        [Document("a", "T", ""), Document("b", "", " \n"), Document("c", "", ""), Document("d", "", "x")]
    )
    found = surveyed(corpus, tmp_path)
    assert (found.documents, found.empty_documents, found.missing) == (4, 2, ())


def ids_hashing(low: bool, count: int, *, part: float) -> list[str]:
    """Return ids whose hash lies in the lowest part of all hashes, or above it."""
    ids = (f"d{number}" for number in range(100 * count))
    return [each for each in ids if (xxhash.xxh3_64_intdigest(each.encode()) < part * 2**64) == low][:count]


def bounds(found: Survey) -> list[tuple[int, int]]:
    return [(shard.start, shard.stop) for shard in found.shards]


def test_a_shard_is_cut_where_the_next_document_would_not_fit(tmp_path: Path) -> None:
    """90 documents of 10 tokens in shards of 400, none of a low hash (a tenth are, of this length): 40 + 40 + 10."""
    documents = [Document(each, "", "x" * 14) for each in ids_hashing(low=False, count=90, part=0.1)]
    assert bounds(surveyed(ListCorpus(documents), tmp_path, shard_tokens=400)) == [(0, 40), (40, 80), (80, 90)]


def test_a_shard_is_cut_before_a_low_hash_once_it_holds_a_quarter_of_its_tokens(tmp_path: Path) -> None:
    """Low hashes at 9 and 10: 90 tokens of 400 are less than a quarter, 100 are not. The next shard is full at 50."""
    ids = ids_hashing(low=False, count=60, part=0.1)
    ids[9:11] = ids_hashing(low=True, count=2, part=0.1)
    documents = [Document(each, "", "x" * 14) for each in ids]
    assert bounds(surveyed(ListCorpus(documents), tmp_path, shard_tokens=400)) == [(0, 10), (10, 50), (50, 60)]


def test_a_document_twice_as_long_is_twice_as_likely_to_begin_a_shard(tmp_path: Path) -> None:
    """A hash between a tenth and a fifth is low for 20 tokens and not for 10, so that cuts are tokens apart."""
    between = "d15"
    assert 0.1 < xxhash.xxh3_64_intdigest(between.encode()) / 2**64 < 0.2
    before = [Document(each, "", "x" * 14) for each in ids_hashing(low=False, count=20, part=0.2)]
    for text, shards in (("x" * 14, 1), ("x" * 34, 2)):
        corpus = ListCorpus([*before, Document(between, "", text)])
        assert len(surveyed(corpus, tmp_path, shard_tokens=400).shards) == shards


def test_a_shard_is_named_by_its_ids_and_joined_texts_wherever_it_lies(tmp_path: Path) -> None:
    """The same documents behind others, or with the title written into the text, are the same shard to a model."""
    behind = [Document(each, "", "x" * 14) for each in ids_hashing(low=False, count=40, part=0.1)]
    low = ids_hashing(low=True, count=1, part=0.1)
    shard = [Document(each, "Title", "text of it") for each in (*low, "e1", "e2")]
    alone = surveyed(ListCorpus(shard), tmp_path, shard_tokens=400).shards
    (_, last) = surveyed(ListCorpus([*behind, *shard]), tmp_path, shard_tokens=400).shards
    assert (last.start, last.checksum) == (40, alone[0].checksum)
    joined = [document._replace(title="", text=document.joined()) for document in shard]
    (same,) = surveyed(ListCorpus(joined), tmp_path, shard_tokens=400).shards
    assert same.checksum == alone[0].checksum
    assert same.content != alone[0].content  # which tells title from text
    for other in (
        shard[::-1],
        shard[:2],
        [*shard[:2], shard[2]._replace(id="e9")],
        [*shard[:2], shard[2]._replace(text="")],
    ):
        assert surveyed(ListCorpus(other), tmp_path, shard_tokens=400).shards[0].checksum != alone[0].checksum


def test_where_the_id_ends_and_the_text_begins_is_part_of_a_shards_name(tmp_path: Path) -> None:
    """The same bytes, divided otherwise."""
    names = {
        surveyed(ListCorpus([Document(each, "", text)]), tmp_path).shards[0].checksum
        for each, text in (("ab", "c"), ("a", "bc"))
    }
    assert len(names) == 2


def test_documents_taken_out_change_only_the_shards_around_them(tmp_path: Path) -> None:
    """Ten of 20,000 documents, far apart. Cut where shards are full, nearly every one behind the first would change."""
    whole = [Document(f"d{number}", "", f"{number} " * (5 + number % 7)) for number in range(20_000)]
    fewer = [document for place, document in enumerate(whole) if place % 2000 != 999]
    one, other = (surveyed(ListCorpus(each), tmp_path, shard_tokens=2000).shards for each in (whole, fewer))
    known = {shard.checksum for shard in one}
    changed = [shard for shard in other if shard.checksum not in known]
    assert 10 <= len(changed) <= 3 * 10
    assert len(other) > 400


def test_a_document_larger_than_a_shard_is_a_shard_by_itself(tmp_path: Path) -> None:
    """It can be cut no further, and it neither disappears nor takes its neighbours with it."""
    documents = ten_token_documents(3)
    documents[1] = Document("long", "", "x" * 500)
    found = surveyed(ListCorpus(documents), tmp_path, shard_tokens=20)
    assert [(shard.start, shard.stop) for shard in found.shards] == [(0, 1), (1, 2), (2, 3)]


def test_a_long_document_counts_for_no_more_than_its_truncated_length() -> None:
    """Ten thousand bytes are 300 tokens to a model that reads 300; bytes are UTF-8 bytes, not characters."""
    assert estimated_tokens("x" * 10_000, max_document_tokens=300) == 300
    assert estimated_tokens("жжжж", max_document_tokens=300) == 3 + 8 // 2


def test_judged_documents_that_the_corpus_has_not_are_returned_sorted(tmp_path: Path) -> None:
    """The caller decides what that means; the survey only looks."""
    found = surveyed(ListCorpus(ten_token_documents(3)), tmp_path, judged_ids={"z", "d1", "a"})
    assert found.missing == ("a", "z")


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    """There is nothing to search, so nothing may be scored."""
    with pytest.raises(DatasetError) as caught:
        surveyed(ListCorpus([]), tmp_path)
    assert str(caught.value) == (
        "dataset small: got an empty corpus, wanted at least one document; check where the corpus is read from"
    )


def test_an_id_that_occurs_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    """Two documents of one id would both be retrieved, and one of them judged."""
    documents = [*ten_token_documents(5), Document("d1", "", "other")]
    with pytest.raises(DatasetError) as caught:
        surveyed(ListCorpus(documents), tmp_path)
    assert str(caught.value) == (
        "list line 6: got document id 'd1' again (first: list line 2), wanted every id of dataset small once; "
        "remove or rename one of the two"
    )


def test_two_ids_of_one_hash_are_not_taken_for_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal hashes cost a second pass, which finds that the ids differ."""

    class OneHash:
        """xxhash, whose 64-bit hash knows a single value."""

        xxh3_128 = xxhash.xxh3_128
        xxh3_128_hexdigest = staticmethod(xxhash.xxh3_128_hexdigest)

        @staticmethod
        def xxh3_64_intdigest(_data: bytes) -> int:
            return 7

    monkeypatch.setattr(survey_module, "xxhash", OneHash)
    corpus = ListCorpus(ten_token_documents(3))
    assert surveyed(corpus, tmp_path).documents == 3
    assert corpus.passes == 2


def test_half_a_surrogate_pair_is_refused_with_its_document(tmp_path: Path) -> None:
    """Such text cannot be hashed, tokenized or written, whichever source it came from."""
    with pytest.raises(DatasetError) as caught:
        surveyed(ListCorpus([*ten_token_documents(1), Document("bad", "", "a\ud83d")]), tmp_path)
    assert str(caught.value) == (
        "dataset small: got document 'bad' (number 2) with half a surrogate pair ('\\ud83d'), wanted text that UTF-8 "
        "can hold; repair the corpus"
    )


def test_a_second_survey_reads_no_document(tmp_path: Path) -> None:
    """The result is found by the corpus's fingerprint and the parameters."""
    corpus = ListCorpus(ten_token_documents(7))
    first = surveyed(corpus, tmp_path, shard_tokens=30, judged_ids=["z"])
    assert surveyed(corpus, tmp_path, shard_tokens=30, judged_ids=["z"]) == first
    assert corpus.passes == 1


def test_other_parameters_or_documents_are_surveyed_anew(tmp_path: Path) -> None:
    """Shard size, judged ids and the corpus's fingerprint each make another survey."""
    corpus = ListCorpus(ten_token_documents(7))
    surveyed(corpus, tmp_path)
    assert len(surveyed(corpus, tmp_path, shard_tokens=30).shards) == 7
    assert surveyed(corpus, tmp_path, judged_ids=["z"]).missing == ("z",)
    assert corpus.passes == 3
    assert surveyed(ListCorpus(ten_token_documents(8)), tmp_path).documents == 8


@pytest.mark.parametrize("damage", ["cut", "changed", "foreign", "empty"])
def test_a_damaged_survey_is_made_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """A file that exists is not thereby true: a cut one, one with a flipped digit, one that is something else."""
    corpus = ListCorpus(ten_token_documents(7))
    first = surveyed(corpus, tmp_path)
    (path,) = (tmp_path / "surveys").iterdir()
    whole = path.read_text(encoding="utf-8")
    text = {"cut": whole[:-9], "changed": whole.replace("7", "8", 1), "foreign": "[1]", "empty": ""}[damage]
    path.write_text(text, encoding="utf-8")
    assert not caplog.messages
    assert surveyed(corpus, tmp_path) == first
    assert caplog.messages == [f"{path}: damaged; the corpus of small is surveyed again"]
    assert corpus.passes == 2
    assert path.read_text(encoding="utf-8") == whole


def test_nothing_is_cached_when_the_corpus_is_refused(tmp_path: Path) -> None:
    """Otherwise the next run would accept what this one refused."""
    with pytest.raises(DatasetError):
        surveyed(ListCorpus([Document("a", "", "x"), Document("a", "", "y")]), tmp_path)
    assert not (tmp_path / "surveys").exists()


def test_a_survey_is_one_readable_file(tmp_path: Path) -> None:
    """JSON, with no temporary file left beside it."""
    found = surveyed(ListCorpus(ten_token_documents(2)), tmp_path)
    (path,) = (tmp_path / "surveys").iterdir()
    assert json.loads(path.read_text(encoding="utf-8"))["survey"] == {
        "documents": 2,
        "checksum": found.checksum,
        "shards": [[0, 2, found.shards[0].checksum, found.shards[0].content]],
        "empty_documents": 0,
        "missing": [],
        "title_only": 0,
    }


def test_progress_reports_every_document_once(tmp_path: Path) -> None:
    """Steps add up to the documents read, the last incomplete one included."""
    steps: list[int] = []
    corpus = GeneratedCorpus(10_000)
    survey(corpus, shard_tokens=1000, max_document_tokens=300, cache_dir=tmp_path, name="small", progress=steps.append)
    assert steps == [4096, 4096, 10_000 - 2 * 4096]


def test_the_checksum_does_not_depend_on_the_source(tmp_path: Path) -> None:
    """The same documents from a list and from a generator are the same corpus to the store."""
    generated = GeneratedCorpus(20)
    listed = ListCorpus(list(generated.documents()))
    assert surveyed(generated, tmp_path).checksum == surveyed(listed, tmp_path).checksum


def test_memory_grows_by_little_more_than_eight_bytes_a_document(tmp_path: Path) -> None:
    """Fifty thousand documents more may cost 8 bytes each, doubled by the array's growth, and a sort's slack."""
    peaks = []
    for count in (5_000, 55_000):
        tracemalloc.start()
        surveyed(GeneratedCorpus(count), tmp_path, shard_tokens=1_000_000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 32 * 50_000


def test_an_id_of_a_megabyte_is_refused_with_its_place(tmp_path: Path) -> None:
    corpus = ListCorpus([Document("a", "", "x"), Document("ü" * 2048, "", "x"), Document("x" * 1_000_000, "", "x")])
    with pytest.raises(DatasetError, match=r"^list line 3: got a document id of 1,000,000 bytes, wanted 4,096 at"):
        surveyed(corpus, tmp_path)
    assert surveyed(ListCorpus(corpus.listed[:2]), tmp_path).documents == 2
