"""From the command line through Hydra to frozen, validated settings."""
