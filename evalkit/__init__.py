"""evalkit re-measures a retrieval model card, cell by cell, and says of every cell whether it holds."""

__version__ = "0.2.0"
