"""Annotations and features -> checkpoint, with Ray Train. Tensor shapes: see `vmr_ray/model/__init__.py`."""
