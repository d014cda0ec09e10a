"""Progress where there is no terminal: a line every 30 seconds and at every tenth shard, and none in between."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from evalkit.run import progress


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.s))
    return now


def test_a_line_comes_every_thirty_seconds_with_rate_and_time_left(clock):
    out = Console(file=io.StringIO(), width=200)
    with progress.documents_bar(out, "demo on [demo]", total=400) as advance:
        for seconds in (10, 20, 30, 40, 59, 60):
            clock.s = float(seconds)
            advance(10, 100)
    assert out.file.getvalue().splitlines() == [
        "demo on [demo]: 30 of 400 documents, 1 documents/s 10 tokens/s, 370 s left",
        "demo on [demo]: 60 of 400 documents, 1 documents/s 10 tokens/s, 340 s left",
    ]


def test_a_line_comes_at_every_tenth_shard(clock):
    out = Console(file=io.StringIO(), width=200)
    with progress.documents_bar(out, "bm25", total=None) as advance:
        for _ in range(25):
            clock.s += 1
            advance(2, 0)
            advance.shard_done()
    assert out.file.getvalue().splitlines() == [
        "bm25: 20 documents, 2 documents/s",
        "bm25: 40 documents, 2 documents/s",
    ]
