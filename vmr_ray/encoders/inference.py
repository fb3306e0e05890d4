"""Runs a frozen torch module: ONNX Runtime on the CPU, torch in half precision on a GPU.

The module is exported to a cache once; a process that finds the export there never imports torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from vmr_ray.errors import VmrError, one_line

if TYPE_CHECKING:
    from torch import nn

Runner = Callable[[np.ndarray], np.ndarray]

_log = logging.getLogger(__name__)
_MAX_BYTES = 2**31 - 2**26  # of weights; a file in ONNX's format must be smaller than 2 GiB
_TOLERANCE = 1e-3  # of an export's outputs, as a share of the largest one


def cache_dir() -> Path:
    """$VMR_CACHE, else vmr-ray in the user's cache directory."""
    if home := os.environ.get("VMR_CACHE"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmr-ray"


def runner(
    name: str,
    build: Callable[[], nn.Module],
    made_of: Sequence[Path],
    example: np.ndarray,
    dynamic: dict[int, str],
    device: str,
    threads: int | None,
) -> Runner:
    """A function of one array that runs `build()`, a module that maps one tensor to one float tensor.

    The export is traced with `example`, whose `dynamic` axes may have any length later. Its file name
    contains a digest of the files it is `made_of` (weights and code): if one changes, it is exported again.

    Raises:
        VmrError: the cache cannot be written.
    """
    if device != "cpu":
        return torch_runner(build(), device)
    path = cache_dir() / f"{name}-{_digest([*made_of, Path(__file__)])}.onnx"
    if not path.exists():
        try:
            with _one_at_a_time(path.parent):
                if not path.exists():
                    _export(build(), example, dynamic, path)
        except OSError as error:
            raise VmrError(
                f"cannot write the model cache {path.parent} ({error.strerror or error}); "
                "set VMR_CACHE to a directory that can be written"
            ) from None
    return _onnx_runner(path, threads)


def exported_runner(
    name: str,
    build: Callable[[], nn.Module],
    examples: Sequence[np.ndarray],
    dynamic: dict[int, str],
    threads: int | None,
) -> Runner | None:
    """Like `runner` on the CPU, for a module of unknown make; None if torch has to run it.

    Args:
        name: of the export's file; it must change when the module does.
        examples: two; the export is traced with the first, and must agree with torch on the second.

    Raises:
        VmrError: `build` raised it.
    """
    path = cache_dir() / f"{name}.onnx"
    try:
        if not path.exists():
            with _one_at_a_time(path.parent):
                if not path.exists():
                    module = build()
                    if sum(weight.nbytes for weight in module.parameters()) > _MAX_BYTES:
                        return None
                    _export(module, examples[0], dynamic, path, examples[1])
        return _onnx_runner(path, threads)
    except VmrError:
        raise
    except Exception as error:  # the exporter and the runtime have no base class of their own
        _log.warning("%s runs with torch, because its export failed: %s", name, one_line(error))
        return None


def torch_runner(module: nn.Module, device: str) -> Runner:
    """Runs `module` with torch, in half precision for the operations that torch considers safe."""
    import torch

    module = to_device(module.eval(), device)
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast(torch.device(device).type, dtype=torch.float16):
            return module(torch.tensor(x, device=device)).float().cpu().numpy()

    return run


def to_device(module: Any, device: str) -> Any:
    """`module`, moved to `device`.

    Raises:
        VmrError: torch has no such device on this machine.
    """
    try:
        return module.to(device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise VmrError(
            f"torch cannot use the device {device!r} on {socket.gethostname()} ({reason}); "
            "install a build of torch for it, or choose another device (embed.device, embed.num_gpus=0)"
        ) from None


def equal_lengths(items: Sequence[Sequence[Any]], size: int) -> Iterator[list[int]]:
    """Positions of `items` in batches of at most `size`; the items of a batch have equal lengths."""
    order = sorted(range(len(items)), key=lambda i: len(items[i]))
    for _, group in groupby(order, key=lambda i: len(items[i])):
        same = list(group)
        yield from (same[i : i + size] for i in range(0, len(same), size))


def _onnx_runner(path: Path, threads: int | None) -> Runner:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # Idle threads must sleep, because several workers share the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """Only one process at a time exports into `directory`: the others then find its export."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        # Some network filesystems cannot lock a directory: then several export the same.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _export(
    module: nn.Module,
    example: np.ndarray,
    dynamic: dict[int, str],
    path: Path,
    check: np.ndarray | None = None,
) -> None:
    """Write to a unique name, then rename: a file under `path` is whole.

    Raises:
        ValueError: the export's output for `check` is not that of torch.
    """
    import torch

    temporary = path.with_name(f"{path.stem}-{uuid4().hex}.tmp")
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            # The TorchScript exporter warns that it is deprecated; its successor needs another package.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                (torch.tensor(example),),
                str(temporary),
                dynamo=False,
                opset_version=17,
                input_names=["x"],
                output_names=["y"],
                dynamic_axes={"x": dynamic, "y": dynamic},
            )
        if check is not None:
            with torch.inference_mode():
                expected = module(torch.tensor(check)).numpy()
            difference = np.abs(_onnx_runner(temporary, None)(check) - expected).max()
            if not difference <= _TOLERANCE * np.abs(expected).max():
                raise ValueError(f"its outputs differ from torch's by {difference:g}")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
