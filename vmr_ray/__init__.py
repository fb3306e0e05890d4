"""vmr-ray: search inside video with plain sentences, on Ray."""

__version__ = "0.1.0"
