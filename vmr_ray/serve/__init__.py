"""Moment search over HTTP: a FastAPI application on Ray Serve."""
