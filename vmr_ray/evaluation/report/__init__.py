"""The report on an evaluation: a page with what the model can do, where it fails, and what was measured."""
