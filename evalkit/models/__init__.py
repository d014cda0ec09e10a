"""Models: locating checkpoints, token rules, encoders, attention, re-rankers."""
