"""What a GPU was measured to do, for forecasts on it before any run: results/bench/gpu/CARD/card.json, where it exists.

scripts/gpu/summary.py writes the file from figures that were measured on the card; nothing here invents one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from evalkit.errors import StoreError

FORMAT = 1
"""Version of the file; a file of another version is refused."""


class CardRates(NamedTuple):
    """A card's measured rates for one model."""

    gpu: str
    tokens_per_s: float
    """Tokens of passages that the model encodes."""
    search_flop_per_s: float
    """Useful operations of exact search: 2 · query vectors · document vectors · dim."""
    query_vectors: int
    """Vectors of a query in that measurement."""
    source: str
    """The file, for people to look at."""


def card_rates(results_dir: Path, *, gpu: str, model: str) -> CardRates | None:
    """Return the rates that were measured on a card for a model, or None where there are none.

    Raises StoreError for a file that is damaged or of another version.
    """
    for path in sorted((results_dir / "bench" / "gpu").glob("*/card.json")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            if facts["format"] != FORMAT:
                msg = (
                    f"{path}: got format {facts['format']!r}, wanted {FORMAT}; write it again (scripts/gpu/summary.py)"
                )
                raise StoreError(msg)
            if facts["gpu"] != gpu or facts["model"] != model:
                continue
            numbers = float(facts["tokens_per_s"]), float(facts["search_flop_per_s"])
            if not all(0 < number < float("inf") for number in numbers):
                msg = f"{path}: got rates {numbers}, wanted positive numbers; write it again (scripts/gpu/summary.py)"
                raise StoreError(msg)
            return CardRates(gpu, *numbers, int(facts["query_vectors"]), str(path))
        except (ValueError, KeyError, TypeError, OSError) as error:
            msg = (
                f"{path}: not a card's rates ({type(error).__name__}: {error}); write it again (scripts/gpu/summary.py)"
            )
            raise StoreError(msg) from error
    return None
