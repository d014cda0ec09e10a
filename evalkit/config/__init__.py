"""Settings: the command line through Hydra to frozen, validated dataclasses."""
