"""What the host does beside a GPU: sort little, measure queries once, go on with less where memory is full."""

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from evalkit.config.compose import compose
from evalkit.errors import DeviceError
from evalkit.kernels import trouble
from evalkit.maxsim import bounds, choice
from evalkit.ragged import ragged
from evalkit.ranking import Hits, concatenated, floors, merge, merge_new, no_hits
from evalkit.run import auto, background, search
from evalkit.run.background import Merger, Writer
from evalkit.run.search import search_shard
from evalkit.storage import shard_files
from evalkit.storage.paths import file_checksum
from evalkit.storage.shard_files import ShardVectors

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def hits(rows):
    query, identifier, score = zip(*rows, strict=True) if rows else ((), (), ())
    width = max((len(name) for name in identifier), default=1)
    return Hits(np.array(query, np.int32), np.array(identifier, f"S{width}"), np.array(score, np.float32))


def columns(found):
    return [column.tolist() for column in found]


rows_of = st.lists(
    st.tuples(
        st.integers(0, 4), st.text("abc", min_size=1, max_size=3).map(str.encode), st.sampled_from([0.5, 1.0, 2.0])
    ),
    max_size=12,
)


@given(first=rows_of, second=rows_of, depth=st.integers(1, 4))
def test_merging_new_hits_alone_gives_what_sorting_all_of_them_gives(first, second, depth):
    best = merge([hits(first)], depth=depth)
    assert columns(merge_new(best, hits(second), depth=depth)) == columns(merge([best, hits(second)], depth=depth))


def test_without_new_hits_nothing_is_merged():
    best = merge([hits([(0, b"a", 1.0)])], depth=2)
    assert merge_new(best, no_hits(), depth=2) is best


def test_blocks_of_queries_are_joined_in_their_order():
    assert columns(concatenated([hits([(0, b"b", 1.0)]), hits([(1, b"aa", 2.0)])])) == [
        [0, 1],
        [b"b", b"aa"],
        [1.0, 2.0],
    ]
    assert columns(concatenated([])) == [[], [], []]


def test_merging_in_a_thread_ends_in_the_same_hits_and_raises_what_failed():
    best = {"run": no_hits()}
    with Merger(best, depth=2, threaded=True) as merger:
        for place in range(5):
            merger.add({"run": hits([(0, f"d{place}".encode(), float(place))])})
    assert columns(best["run"]) == [[0, 0], [b"d4", b"d3"], [4.0, 3.0]]
    with pytest.raises(KeyError, match="unknown"), Merger(best, depth=2, threaded=True) as merger:
        merger.add({"unknown": no_hits()})


def texts(seed, lengths, *, dim=16, dtype=torch.float16):
    generator = torch.Generator().manual_seed(seed)
    lengths_N = torch.tensor(lengths)
    rows_XD = torch.nn.functional.normalize(torch.randn(int(lengths_N.sum()), dim, generator=generator), dim=1)
    return ragged(rows_XD.to(dtype), lengths_N)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_queries_measured_before_have_the_same_bound(dtype):
    queries, documents = texts(1, [4, 9], dtype=torch.float32), texts(2, [3, 5], dtype=torch.float32)
    known = bounds.query_norms(queries.rows_XD, dtype=dtype)
    wanted_Q = bounds.tensor_core_bound(queries, documents, dtype=dtype)
    assert torch.equal(bounds.tensor_core_bound(queries, documents, dtype=dtype, known=known), wanted_Q)


@pytest.fixture
def little_memory(monkeypatch, caplog):
    """A kernel that takes no more than some products of queries and documents at a time."""
    monkeypatch.setattr(search, "_FITTING_BLOCK", {})
    trouble.warn_once.cache_clear()
    real, limit, tried = choice.bind, [0], []

    def bind(name, documents, **options):
        kernel = real(name, documents, **options)

        def scores(queries):
            size = (len(queries.offsets_N) - 1) * (len(documents.offsets_N) - 1)
            tried.append(size)
            if size > limit[0]:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB\nand more")
            return kernel.scores(queries)

        return kernel._replace(scores=scores)

    monkeypatch.setattr(choice, "bind", bind)
    yield limit, tried, caplog
    trouble.warn_once.cache_clear()


@pytest.mark.parametrize("fits", [40 * 30, 64 * 12, 32 * 4, 32])
def test_a_search_that_does_not_fit_memory_has_the_same_hits_and_says_so_once(little_memory, fits):
    limit, tried, caplog = little_memory
    queries = ShardVectors(tuple(f"q{place}" for place in range(70)), texts(1, [3] * 70))
    shard = ShardVectors(tuple(f"d{place:02d}" for place in range(12)), texts(2, [1, 5, 9, 2, 7, 4] * 2))
    options = {"depth": 4, "floor_Q": floors(no_hits(), queries=70, depth=4), "device": CPU}
    limit[0] = 10**6
    wanted = search_shard(queries, shard, **options)
    limit[0], tried[:] = fits, []
    assert columns(search_shard(queries, shard, **options)) == columns(wanted)
    reduced = fits < 70 * 12
    assert (len([size for size in tried if size > fits]) > 0) == reduced
    said = [message for message in caplog.messages if "did not fit memory" in message]
    assert len(said) == int(reduced)
    if reduced:
        reason = "CUDA out of memory. Tried to allocate 3 GiB"
        assert said[0] == (f"a search did not fit memory ({reason}): fewer queries, or documents, are taken at a time")


def test_a_document_that_does_not_fit_memory_alone_is_named(little_memory):
    assert little_memory[0] == [0]
    queries, shard = ShardVectors(("q",), texts(1, [3])), ShardVectors(("long",), texts(2, [5]))
    with pytest.raises(DeviceError, match=r"document 'long' does not fit memory with 32 queries \(CUDA out of memory"):
        search_shard(queries, shard, depth=4, floor_Q=floors(no_hits(), queries=1, depth=4), device=CPU)


def test_shards_go_by_the_device_where_nothing_is_said_but_bm25s_never_do():
    encoder, bm25 = compose(["model=demo"]), compose(["model=bm25"])
    assert auto.shard_tokens(encoder, CPU) == 125_000
    assert auto.shard_tokens(encoder, CUDA) == 8_000_000
    assert auto.shard_tokens(bm25, CUDA) == 125_000
    said = compose(["model=demo", "store.shard_tokens=4000"])
    assert auto.shard_tokens(said, CUDA) == 4000
    assert auto.resolved(encoder, CUDA).store.shard_tokens == 8_000_000


ARRAYS = {
    "embeddings": {
        "ids": shard_files.pack_text(["a", "文"]),
        "lengths": torch.tensor([1, 2], dtype=torch.int32),
        "vectors": torch.arange(15.0).view(3, 5).half(),
    },
    "hits": {
        "query": torch.tensor([0, 7], dtype=torch.int32),
        "id": torch.ones(2, 3, dtype=torch.uint8),
        "score": torch.tensor([0.5, 2.0]),
    },
    "none": {"query": torch.zeros(0, dtype=torch.int32), "id": torch.zeros(0, 1, dtype=torch.uint8)},
    "another type": {"counts": torch.tensor([1, 2])},
}


@pytest.mark.parametrize("arrays", ARRAYS.values(), ids=ARRAYS)
def test_arrays_are_written_byte_for_byte_as_safetensors_does_with_the_checksum_on_the_way(
    arrays, tmp_path, monkeypatch
):
    monkeypatch.setattr(shard_files, "_WRITE_BYTES", 7)
    save_file(arrays, tmp_path / "theirs")
    checksum = shard_files._write(tmp_path / "ours", arrays)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert checksum == file_checksum(tmp_path / "theirs")


def test_some_checkpoints_may_be_behind_and_a_slow_disk_is_named_once(tmp_path, monkeypatch, caplog):
    go = threading.Event()
    with Writer() as writer:
        for place in range(3):
            writer.submit(tmp_path / str(place), go.wait)
        writer.wait_for_all_but(3)  # returns at once
        threading.Timer(0.05, go.set).start()
        writer.wait_for_all_but(1)
        assert len(writer._pending) <= 1
        assert caplog.messages == []
        seconds = iter([0.0, 100.0, 200.0, 200.0, 300.0, 400.0])
        writer._began = 0.0
        monkeypatch.setattr(background.time, "monotonic", lambda: next(seconds))
        for _ in range(2):
            writer.wait_for_all_but(9)
        monkeypatch.setattr(background.time, "monotonic", time.perf_counter)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("the disk is the limit: 100 s of 200 s were spent waiting for embeddings")
