"""MaxSim kernels: pure tensor functions that know no datasets and do no I/O."""
