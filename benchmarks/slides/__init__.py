"""The parts of `benchmarks.slideshows`."""
