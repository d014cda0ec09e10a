"""The architectures: transformers' own classes, and those that transformers lacks."""
