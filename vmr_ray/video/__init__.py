"""Video files: where they lie, their frames, and clips cut out of them."""
