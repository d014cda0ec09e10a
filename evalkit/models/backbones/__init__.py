"""The architectures: classes of transformers, and those that transformers lacks."""
