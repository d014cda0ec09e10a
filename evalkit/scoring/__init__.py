"""Metrics, published scores and how far re-runs lie apart."""
