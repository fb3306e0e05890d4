"""Annotations and features -> checkpoint, with Ray Train."""
