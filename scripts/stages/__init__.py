"""The stages of `scripts/bench.py`, and what they share."""
