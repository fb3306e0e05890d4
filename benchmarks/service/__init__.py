"""The parts of `benchmarks.serve`."""
