"""Failures of kernels: log the reason once, in one line, and recognise a lack of memory."""

from __future__ import annotations

import logging
from functools import cache

import torch

log = logging.getLogger(__name__)

OUT_OF_MEMORY = ("DefaultCPUAllocator: can't allocate", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Parts of torch's messages for a lack of memory that it raises as a plain RuntimeError."""


def first_line(error: Exception) -> str:
    r"""Return the first line of an error's message, or the name of its class if it has no message.

    >>> first_line(ValueError("no compiler\nand more")), first_line(KeyError())
    ('no compiler', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error means that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(text in str(error) for text in OUT_OF_MEMORY)


@cache
def warn_once(problem: str) -> None:
    """Log a problem as a warning; the same text is logged once per process."""
    log.warning("%s", problem)
