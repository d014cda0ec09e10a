"""The stages of `scripts/bench.py` and the code that they share."""
