"""Compute kernels. `reference.py` is the plain version of each, and the oracle of tests and benchmarks."""
