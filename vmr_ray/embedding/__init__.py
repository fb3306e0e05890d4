"""Videos -> feature store, with Ray Data."""
