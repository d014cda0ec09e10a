"""Ranges of work side by side: what is cut, what is called, what is raised, what is left behind."""

import threading
from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from evalkit.kernels.cpu import cores


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=40), count=st.integers(1, 9))
def test_ranges_cover_all_items_once_and_none_is_larger_than_its_share_and_an_item(sizes, count):
    edges = cores.equal_ranges(torch.tensor(sizes).cumsum(0), cores=count)
    assert edges[0] == 0
    assert edges[-1] == len(sizes)
    assert edges == sorted(set(edges))
    assert len(edges) <= count + 1
    within = [sum(sizes[begin:end]) for begin, end in pairwise(edges)]
    assert max(within) <= sum(sizes) / count + max(sizes)


def test_every_range_is_worked_on_with_one_thread_and_the_number_of_threads_comes_back():
    before = torch.get_num_threads()
    seen = []
    cores.map_ranges(lambda begin, end: seen.append((begin, end, torch.get_num_threads())), [0, 3, 4, 9])
    assert sorted(seen) == [(0, 3, 1), (3, 4, 1), (4, 9, 1)]
    assert torch.get_num_threads() == before


def test_what_a_range_raises_is_raised_and_the_number_of_threads_comes_back():
    before = torch.get_num_threads()

    def fail(begin, end):
        if begin == 3:
            raise ValueError(f"rows {begin} to {end}")

    with pytest.raises(ValueError, match="rows 3 to 5"):
        cores.map_ranges(fail, [0, 3, 5])
    assert torch.get_num_threads() == before


def test_an_interruption_waits_only_for_what_has_begun():
    begun, may_end = threading.Event(), threading.Event()
    done = []

    def work(place):
        begun.set()
        assert may_end.wait(600)
        done.append(place)

    def interrupted():
        with cores.thread_per_core(1) as submit:
            waiting.extend(submit(work, place) for place in range(5))
            assert begun.wait(600)
            waiting[-1].add_done_callback(lambda _: may_end.set())  # called when the last one is cancelled
            raise KeyboardInterrupt

    waiting = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == [0]
    assert [future.cancelled() for future in waiting] == [False, True, True, True, True]
