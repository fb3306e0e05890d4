"""The parts of `benchmarks.scaling`."""
