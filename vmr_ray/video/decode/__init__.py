"""Frames out of video files: sampling, and a decoder that survives any bad file."""

from vmr_ray.video.decode.decoder import DecodedChunk, DecodeError, FrameDecoder
from vmr_ray.video.decode.sampling import SamplePlan, Sampling

__all__ = ["DecodeError", "DecodedChunk", "FrameDecoder", "SamplePlan", "Sampling"]
