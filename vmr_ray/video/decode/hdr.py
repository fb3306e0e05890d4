"""HDR pictures (PQ and HLG, as phones and cameras record them) as SDR screens show them.

Undone, they look washed out: grey and with pale colours. Reference white (203 cd/m2, ITU-R BT.2408) becomes
nearly white, what is darker keeps its brightness, and highlights of up to 1,000 cd/m2 are compressed. Other
pictures are left as they are, bit for bit.
"""

from __future__ import annotations

import itertools
import tempfile
from functools import lru_cache

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc
from numpy.typing import NDArray

_HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
_WHITE, _PEAK = 203.0, 1000.0  # cd/m2: reference white, and the brightest that is told apart
_KNEE = 0.6  # of reference white; what is brighter is compressed
_NODES = 33  # of the table for each colour
_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593])
_FROM_2020 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])


def is_hdr(transfer: int) -> bool:
    """Whether a stream's or frame's `color_trc` is PQ or HLG."""
    return transfer in _HDR


def as_sdr(picture: av.VideoFrame) -> av.VideoFrame:
    """An HDR picture as an SDR one, in rgb24, with the same timestamp; any other picture itself."""
    if not is_hdr(picture.color_trc):
        return picture
    graph = _graph(
        picture.width,
        picture.height,
        picture.format.name,
        int(picture.color_trc),
        picture.color_primaries == ColorPrimaries.BT2020,
    )
    graph.push(picture)
    result = graph.pull()
    assert isinstance(result, av.VideoFrame)
    result.pts, result.time_base = picture.pts, picture.time_base
    return result


@lru_cache(maxsize=2)
def _graph(width: int, height: int, layout: str, transfer: int, wide: bool) -> av.filter.Graph:
    graph = av.filter.Graph()
    with tempfile.NamedTemporaryFile("w", suffix=".cube") as file:
        file.write(f"LUT_3D_SIZE {_NODES}\n")
        np.savetxt(file, _table(transfer, wide), "%.6f")
        file.flush()
        nodes = [
            graph.add_buffer(width=width, height=height, format=layout, time_base=1),
            graph.add("format", "gbrp16le"),
            graph.add("lut3d", file.name),
            graph.add("setparams", "color_primaries=bt709:color_trc=bt709"),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ]
        for node, following in itertools.pairwise(nodes):
            node.link_to(following)
        graph.configure()
    return graph


def _table(transfer: int, wide: bool) -> NDArray[np.float64]:
    """[33^3, 3] SDR signals of all combinations of 33 HDR signals; red changes fastest."""
    grid = np.linspace(0, 1, _NODES)
    signal = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), -1).reshape(-1, 3)[:, ::-1]
    light = (_pq if transfer == ColorTrc.SMPTE2084 else _hlg)(signal) / _WHITE
    if wide:
        light = light @ _FROM_2020.T
    light = np.clip(light, 0, None)
    # All three by the same factor, so that the hue stays.
    brightest = light.max(axis=1, keepdims=True).clip(1e-9)
    light *= _compressed(np.minimum(brightest, _PEAK / _WHITE)) / brightest
    return np.clip(light, 0, 1) ** (1 / 2.4)  # ITU-R BT.1886, the inverse of an SDR screen


def _compressed(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reinhard's curve above the knee, so that the peak becomes 1."""
    over = (light - _KNEE) / (1 - _KNEE)
    peak = (_PEAK / _WHITE - _KNEE) / (1 - _KNEE)
    return np.where(light < _KNEE, light, _KNEE + (1 - _KNEE) * over * (1 + over / peak**2) / (1 + over))


def _pq(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """cd/m2 of a PQ signal (SMPTE ST 2084)."""
    power = signal ** (1 / 78.84375)
    return 1e4 * (np.clip(power - 0.8359375, 0, None) / (18.8515625 - 18.6875 * power)) ** (
        1 / 0.1593017578125
    )


def _hlg(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """cd/m2 of an HLG signal on a screen of 1,000 cd/m2 (ITU-R BT.2100)."""
    scene = np.where(
        signal < 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
    )
    return 1000 * scene * (scene @ _LUMA_2020)[:, None].clip(1e-9) ** 0.2
