"""Without a GPU, tests use one thread, because Triton's interpreter supports no more."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread_for_the_interpreter():
    before = torch.get_num_threads()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
