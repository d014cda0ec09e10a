"""MaxSim as pure tensor functions: no datasets and no I/O."""
