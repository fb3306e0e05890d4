"""What a frame costs an `hf:` encoder on one CPU core: torch, ONNX Runtime, and making the frame.

    python -m benchmarks.encoders                           # random weights in the shape of published models
    python -m benchmarks.encoders --model hf:NAME           # a model of the hub, or of a local path

The baseline is the same model in torch, as transformers runs it. All times are processor time of one thread,
the best of several runs in turn, so other work on the machine changes them little.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer

from benchmarks.common.output import (
    Figures,
    JsonOption,
    print_figures,
    print_table,
    run_command,
    write_figures,
)
from vmr_ray.encoders.hf import HfDualEncoder
from vmr_ray.schema import Fit, Scaling
from vmr_ray.video.decode.scaling import scale_frame

BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SHAPES = {"clip_b32": ("clip", 32), "clip_b16": ("clip", 16), "siglip_b16": ("siglip", 16)}
PICTURE = (1080, 1920, 3)


def main(
    model: Annotated[str, typer.Option(help="hf:NAME or hf:PATH; default: random weights")] = "",
    frames: Annotated[int, typer.Option(help="frames encoded in one run", min=1)] = 8,
    runs: Annotated[int, typer.Option(help="runs of each, of which the best counts", min=1)] = 5,
    json_: JsonOption = None,
) -> None:
    """Print milliseconds a frame, and the largest difference between the outputs."""
    import torch

    torch.set_num_threads(1)
    figures: Figures = {}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for key in (model,) if model else SHAPES:
            name = model or f"hf:{save_random(Path(folder) / key, *SHAPES[key])}"
            with cache_in(folder if not model else None):
                row = measure(name, frames, runs)
            figures |= {f"{'model' if model else key}.{figure}": value for figure, value in row.items()}
            rows.append([key, *(f"{value:.3g}" for value in row.values())])
    print_table("processor time of one frame, ms", ["", "torch", "onnx", "ratio", "max |diff|"], rows)
    picture = np.random.default_rng(0).integers(0, 256, PICTURE, np.uint8)
    for fit in get_args(Fit):
        scale = partial(scale_frame, picture, 224, 224, Scaling(fit, "bicubic"))
        figures[f"scale_1080p_{fit}_ms"] = best_ms(scale, runs)
    print_figures(figures)
    write_figures(json_, figures)


def measure(name: str, frames: int, runs: int) -> dict[str, float]:
    """Torch and ONNX Runtime on the same frames, in turn."""
    import torch

    encoder = HfDualEncoder(name, threads=1)
    network, mean, std = baseline(name)
    pixels = np.random.default_rng(0).integers(0, 256, (frames, encoder.size, encoder.size, 3), np.uint8)

    def with_torch() -> np.ndarray:
        with torch.inference_mode():
            inputs = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
            features = network.get_image_features(pixel_values=inputs)
        result: np.ndarray = getattr(features, "pooler_output", features).numpy()
        return result

    difference = float(np.abs(with_torch() - encoder(pixels)).max())
    torch_ms, onnx_ms = (best_ms(call, runs) / frames for call in (with_torch, lambda: encoder(pixels)))
    return {
        "torch_ms": torch_ms,
        "onnx_ms": onnx_ms,
        "ratio": torch_ms / onnx_ms,
        "max_difference": difference,
    }


def baseline(name: str) -> tuple[Any, Any, Any]:
    """The model as transformers loads it, and the mean and deviation of its processor."""
    import torch
    from transformers import AutoImageProcessor, AutoModel

    path = name.removeprefix("hf:")
    processor = AutoImageProcessor.from_pretrained(path)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (processor.image_mean, processor.image_std))
    return AutoModel.from_pretrained(path).float().eval(), mean, std


def best_ms(call: Callable[[], object], runs: int) -> float:
    """Milliseconds of processor time of the fastest of `runs` calls, after one that does not count."""
    call()
    taken = []
    for _ in range(runs):
        began = time.process_time()
        call()
        taken.append(1000 * (time.process_time() - began))
    return min(taken)


def save_random(folder: Path, kind: str, patch: int) -> Path:
    """A model of the size "base" for 224 x 224 pixels with random weights and one small text layer."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # the small vocabulary lacks tokens that the default config names
    vision = {**BASE, "patch_size": patch, "image_size": 224}
    text = {"num_hidden_layers": 1, "vocab_size": 1000, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "clip":
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
        processor = {"image_processor_type": "CLIPImageProcessor"}
    else:
        SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
        processor = {"image_processor_type": "SiglipImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@contextmanager
def cache_in(folder: str | None) -> Iterator[None]:
    """Exports go to `folder`: those of random weights must not stay in the user's cache."""
    before = os.environ.get("VMR_CACHE")
    if folder:
        os.environ["VMR_CACHE"] = f"{folder}/cache"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("VMR_CACHE", None)
        else:
            os.environ["VMR_CACHE"] = before


if __name__ == "__main__":
    run_command(main)
