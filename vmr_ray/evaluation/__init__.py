"""How good a model is: metrics, controls and the report."""
