"""Frames out of video files: sampling, and a decoder that a bad file cannot take down."""

from vmr_ray.video.decode.decoder import Chunk, DecodeError, FrameDecoder
from vmr_ray.video.decode.sampling import Plan, Sampling

__all__ = ["Chunk", "DecodeError", "FrameDecoder", "Plan", "Sampling"]
