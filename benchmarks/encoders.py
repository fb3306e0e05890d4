"""What a frame and a sentence cost an encoder on one CPU core.

    OMP_NUM_THREADS=1 python -m benchmarks.encoders         # random weights in the shapes of hub models
    python -m benchmarks.encoders --model hf:NAME           # a model of the hub, or of a local path

Frames: `efficientnet-lite0`, and each short name of `vmr embed --encoder` in torch, as transformers runs it,
and in ONNX Runtime; and what it costs to make a frame. Sentences: the text encoders of `everyday`, which is
MiniLM, and of `everyday-multilingual`.

All times are processor time, the best of several runs in turn, so other work on the machine changes them
little. OMP_NUM_THREADS=1 keeps numpy, with which `everyday-multilingual` computes, on one thread too.
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
from vmr_ray.encoders import EVERYDAY, LITE0, MULTILINGUAL, SENTENCE, frame_encoder, text_encoder
from vmr_ray.encoders.hf import HfDualEncoder
from vmr_ray.errors import VmrError
from vmr_ray.schema import Fit, Scaling
from vmr_ray.video.decode.scaling import scale_frame

# The vision tower of each short name, as the model's configuration on the hub has it: its family, patch,
# hidden size, layers, attention heads, and the dimensions of its features. All take 224 x 224 pixels.
SHAPES = {
    "clip": ("clip", 32, 768, 12, 12, 512),
    "clip-large": ("clip", 14, 1024, 24, 16, 768),
    "siglip": ("siglip", 16, 768, 12, 12, 768),
    "siglip2": ("siglip", 16, 768, 12, 12, 768),
}
SIZE = 224
PICTURE = (1080, 1920, 3)
SENTENCES = (
    "a dog runs along a beach",
    "the person pours ingredients into a mixer",
    "a red motorcycle in a garage",
    "two people shake hands in front of a door",
    "ein Hund rennt am Strand entlang",
    "la femme ouvre une porte",
    "un hombre corta verduras en la cocina",
    "il gatto dorme sul divano",
)


def main(
    model: Annotated[str, typer.Option(help="hf:NAME or hf:PATH; default: random weights")] = "",
    only: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(SHAPES)}; repeatable")] = None,
    frames: Annotated[int, typer.Option(help="frames encoded in one run", min=1)] = 8,
    runs: Annotated[int, typer.Option(help="runs of each, of which the best counts", min=1)] = 5,
    json_: JsonOption = None,
) -> None:
    """Print milliseconds, frames a second, the largest difference between the outputs; then queries."""
    import torch

    torch.set_num_threads(1)
    lite0 = frame_encoder(LITE0, threads=1)
    pixels = random_frames(frames, lite0.size)
    figures: Figures = {f"{LITE0}.onnx_ms": best_ms(lambda: lite0(pixels), runs) / frames}
    for key in (model,) if model else only or SHAPES:
        # One at a time: the weights and the export of a large model are gigabytes.
        with tempfile.TemporaryDirectory() as folder, cache_in(None if model else folder):
            name = model or f"hf:{save_random(Path(folder) / key, *shape_of(key))}"
            row = measure(name, frames, runs)
        figures |= {f"{'model' if model else key}.{figure}": value for figure, value in row.items()}
    show(figures)
    scaling = {f"scale_1080p_{fit}_ms": scaling_ms(fit, runs) for fit in get_args(Fit)}
    queries = {f"query_{name}_ms": query_ms(name, runs) for name in (EVERYDAY, MULTILINGUAL)}
    print_figures(scaling | queries)
    write_figures(json_, figures | scaling | queries)


def show(figures: Figures) -> None:
    """A row for each frame encoder."""
    rows = []
    for key in dict.fromkeys(name.rpartition(".")[0] for name in figures):
        own = [figures.get(f"{key}.{name}") for name in ("torch_ms", "onnx_ms", "max_difference")]
        rows.append(
            [
                key,
                *("" if value is None else f"{value:.3g}" for value in own),
                f"{1000 / figures[f'{key}.onnx_ms']:.1f}",
            ]
        )
    print_table(
        "processor time of one frame, ms", ["", "torch", "onnx", "max |diff|", "frames/s (onnx)"], rows
    )


def shape_of(key: str) -> tuple[str, int, int, int, int, int]:
    """Raises VmrError if there is no such short name."""
    if key not in SHAPES:
        raise VmrError(f"--only {key} is none of {', '.join(SHAPES)}")
    return SHAPES[key]


def random_frames(count: int, size: int) -> np.ndarray:
    """uint8 [count, size, size, 3]."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def scaling_ms(fit: Fit, runs: int) -> float:
    """Milliseconds that a 1080p frame takes to become an encoder's."""
    picture = np.random.default_rng(0).integers(0, 256, PICTURE, np.uint8)
    return best_ms(partial(scale_frame, picture, SIZE, SIZE, Scaling(fit, "bicubic")), runs)


def query_ms(name: str, runs: int) -> float:
    """Milliseconds that the dual encoder `name` takes for one sentence; they come one at a time."""
    encoder = text_encoder(SENTENCE + name, threads=1)

    def ask() -> None:
        for sentence in SENTENCES:
            encoder([sentence])

    return best_ms(ask, runs) / len(SENTENCES)


def measure(name: str, frames: int, runs: int) -> dict[str, float]:
    """Torch and ONNX Runtime on the same frames, in turn."""
    import torch

    encoder = HfDualEncoder(name, threads=1)
    network, mean, std = baseline(name)
    pixels = random_frames(frames, encoder.size)

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


def save_random(folder: Path, kind: str, patch: int, hidden: int, layers: int, heads: int, dim: int) -> Path:
    """A model with random weights, a vision tower of this shape and one small text layer."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # the small vocabulary lacks tokens that the default config names
    vision = {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": patch,
        "image_size": SIZE,
    }
    text = {"num_hidden_layers": 1, "vocab_size": 1000, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "clip":
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=dim)
        CLIPModel(config).save_pretrained(folder)
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
