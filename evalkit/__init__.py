"""evalkit re-measures a retrieval model card, cell by cell, and says of every cell whether it holds."""

import os

# MKL and oneDNN keep buffers and compiled kernels for every shape that they have met, so that a long run's memory
# creeps up. Both read their variable when they are first used, hence before torch is imported anywhere.
os.environ.setdefault("MKL_DISABLE_FAST_MM", "1")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")

__version__ = "0.1.0"
