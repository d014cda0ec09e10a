"""Any bytes for any reader of outside data (scripts/faults/readers.py): read, or refused in one line."""

import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "faults"))

from readers import readers

READERS = readers()
SLOW = {"words": 2, "settings": 20, "job": 20, "job-resealed": 20, "hub-card": 20}
"""Examples of the readers that take milliseconds each; the others get 60."""


@st.composite
def changed(draw, seeds):
    """A seed with up to three spans replaced: by bytes, by another part of it, or by nothing."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 3))):
        begin = draw(st.integers(0, len(data)))
        end = draw(st.integers(begin, min(len(data), begin + 8)))
        other = draw(
            st.one_of(st.binary(max_size=4), st.sampled_from([b"", data[:16], b"9" * 400, b"\\ud800", b"[" * 200]))
        )
        data = data[:begin] + other + data[end:]
    return data


@pytest.mark.parametrize("name", READERS)
def test_a_reader_reads_or_refuses_in_one_line(name):
    reader = READERS[name]

    @settings(max_examples=SLOW.get(name, 60), deadline=None, derandomize=True)
    @given(data=st.one_of(changed(reader.seeds), st.binary(max_size=64)))
    @example(data=b"")
    def holds(data):
        assert reader.check(data) in ("read", "refused")

    holds()


@pytest.mark.parametrize("name", sorted(set(READERS) - {"bundle", "words"}))
def test_the_first_seed_of_a_reader_is_read(name):
    """Otherwise its fuzzing would see nothing but the first refusal."""
    assert READERS[name].check(READERS[name].seeds[0]) == "read"


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("card-rates", b'"query_vectors": 3', b'"query_vectors": 1e9993'),
        ("card-rates", b'"query_vectors": 3', b'"query_vectors": 0'),
        ("hub-card", b"config_name: queries", b'config_name:"ueries'),
        ("hub-card", b"config_name: corpus", b"config_name:"),
        ("parquet", b"\x05title%", b"\x05tit\xece%"),
        ("pickle", b"K\x03K\x02\x86", b"K\x02\x85NN"),
    ],
)
def test_what_random_bytes_found_is_refused(name, old, new):
    seed = next(each for each in READERS[name].seeds if old in each)
    assert READERS[name].check(seed.replace(old, new)) == "refused"
