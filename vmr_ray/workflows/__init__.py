"""Several stages in one call."""
