"""Metrics, published scores with verdicts, and the deviation between re-runs."""
