"""Models: checkpoint resolving, token rules, encoders that give vectors, and BM25 that gives scores."""
