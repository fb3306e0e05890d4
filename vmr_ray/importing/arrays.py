"""Arrays that other projects publish: a folder with one file per array, or one HDF5 file.

    .npy           an array
    .npz           the array `key`, else `features`, else the only one
    .pt, .pth      a tensor, or a dict with one; loaded with `weights_only`
    .h5, .hdf5     a dataset per name, or a group with the dataset `key` (else `features`, else the only one)

Nothing is unpickled. An array that cannot be used raises a VmrError of one sentence that names the file,
whatever its damage raises in the libraries that read it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol, TypeVar

import numpy as np

from vmr_ray.errors import VmrError, one_line
from vmr_ray.storage import is_uri

SUFFIXES = (".npy", ".npz", ".pt", ".pth")
HDF5 = (".h5", ".hdf5")
_DEFAULT_KEY = "features"
_MAX_COMPRESSION = 1032  # of zlib

Result = TypeVar("Result")


class Source(Protocol):
    """Arrays by name; messages call the source `label`."""

    label: str
    names: frozenset[str]

    def read(self, name: str) -> np.ndarray:
        """float32 [n, dim], n > 0 and every value finite.

        Raises:
            VmrError: the array cannot be read or used.
        """
        ...

    def uri(self, name: str) -> str:
        """Where the array is."""
        ...

    def fingerprint(self, name: str) -> str:
        """Changes when the array's file does."""
        ...


def open_source(path: str | Path, key: str | None = None) -> Source:
    """The arrays at `path`; `key` names the array inside a file that holds several.

    Raises:
        VmrError: nothing is there, it has no array, or its format is unknown.
    """
    if is_uri(path):
        raise VmrError(f"{path} is not on this machine: copy the features here first")
    place = Path(path).expanduser().absolute()
    if place.is_dir():
        return _Folder(place, key)
    if not place.exists():
        raise VmrError(f"no such file or directory: {path}")
    if place.suffix.lower() not in HDF5:
        raise VmrError(
            f"{path} is not a source of features: give a folder of {', '.join(SUFFIXES)}, "
            f"or one file {' or '.join(HDF5)}"
        )
    return _Hdf5(place, key)


class _Folder:
    """One file per name; a file's name is its path below the folder, without the suffix."""

    def __init__(self, path: Path, key: str | None):
        self.label, self.key = path.name, key
        self.files: dict[str, Path] = {}
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
                name = file.relative_to(path).as_posix().removesuffix(file.suffix)
                if not _is_text(name):
                    raise VmrError(f"the name of {str(file)!a} is not UTF-8: rename the file")
                if other := self.files.get(name):
                    raise VmrError(f"{other} and {file} have the same name: keep one of them")
                self.files[name] = file
        if not self.files:
            raise VmrError(f"no features in {path}: expected files {', '.join(SUFFIXES)}")
        self.names = frozenset(self.files)

    def read(self, name: str) -> np.ndarray:
        file = self.files[name]
        return _guarded(str(file), lambda: checked(_load(file, self.key), str(file)))

    def uri(self, name: str) -> str:
        return str(self.files[name])

    def fingerprint(self, name: str) -> str:
        return _fingerprint(self.files[name])


class _Hdf5:
    """One dataset or group per name, at the top level of one file."""

    def __init__(self, path: Path, key: str | None):
        import h5py

        self.path, self.label, self.key = path, path.name, key

        def names() -> frozenset[str]:
            with h5py.File(path, "r") as file:
                return frozenset(name for name in file if _is_text(name))

        self.names = _guarded(str(path), names)
        if not self.names:
            raise VmrError(f"no features in {path}: it is empty")

    def read(self, name: str) -> np.ndarray:
        import h5py

        where = self.uri(name)

        def load() -> np.ndarray:
            with h5py.File(self.path, "r") as file:
                value = file[name]
                if isinstance(value, h5py.Group):
                    value = value[_chosen(list(value), self.key, where)]
                if not isinstance(value, h5py.Dataset):
                    raise VmrError(f"{where} is a group of groups: name the dataset in it with --key")
                _check_size(value.nbytes, self.path)
                return checked(value[()], where)

        return _guarded(where, load)

    def uri(self, name: str) -> str:
        return f"{self.path}#{name}"

    def fingerprint(self, name: str) -> str:
        return _fingerprint(self.path)


def checked(value: Any, where: str) -> np.ndarray:
    """`value` as float32 [n, dim]; other axes of length 1 are dropped.

    Raises:
        VmrError: it is not a matrix of floats, it is empty, or it holds NaN or infinity.
    """
    array = np.asarray(value)
    if array.dtype.kind != "f":
        raise VmrError(f"{where} holds values of type {array.dtype}: save them as float32 or float16")
    # I3D features are also published as [T, 1, 1, dim].
    if array.ndim < 2 or sum(length != 1 for length in array.shape[:-1]) > 1:
        shape = " x ".join(map(str, array.shape)) or "a single value"
        raise VmrError(f"{where} has the shape {shape}: save it as rows x dimensions")
    if not array.size:
        raise VmrError(f"{where} is empty: fetch it again, or delete it")
    with np.errstate(over="ignore"):
        matrix = array.astype(np.float32).reshape(-1, array.shape[-1])
    if bad := int((~np.isfinite(matrix)).any(1).sum()):
        raise VmrError(f"{where} holds NaN or infinity in {bad} of {len(matrix)} rows: fetch it again")
    return matrix


def normalized(matrix: np.ndarray) -> np.ndarray:
    """The rows, scaled to length 1 (L2); a row of zeros stays zero."""
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-5)


def halved(matrix: np.ndarray, where: str) -> np.ndarray:
    """The matrix as float16, the type that is stored.

    Raises:
        VmrError: a value is too large for float16.
    """
    with np.errstate(over="ignore"):
        half = matrix.astype(np.float16)
    if not np.isfinite(half).all():
        raise VmrError(
            f"{where} holds {float(np.abs(matrix).max()):g}, more than float16 can: import with --normalize"
        )
    return half


def _guarded(where: str, read: Callable[[], Result]) -> Result:
    """What `read` returns; whatever else than a VmrError it raises becomes one."""
    try:
        return read()
    except VmrError:
        raise
    except Exception as error:  # damage can raise anything, also MemoryError
        raise VmrError(f"cannot read {where} ({_reason(error)}): fetch it again") from None


def _check_size(size: int, file: Path) -> None:
    """Raises VmrError if a file cannot hold an array of `size` bytes, or this machine cannot."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > min(_MAX_COMPRESSION * file.stat().st_size, memory):
        raise VmrError(
            f"{file} asks for {size:,} bytes, which neither it nor this machine can hold: fetch it again"
        )


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8; other bytes of it are kept as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _load(file: Path, key: str | None) -> Any:
    suffix = file.suffix.lower()
    if suffix == ".npy":
        # Mapped, so that a header cannot ask for more than the file has.
        return np.load(file, mmap_mode="r", allow_pickle=False)
    if suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            name = _chosen(arrays.files, key, str(file))
            sizes = {info.filename.removesuffix(".npy"): info.file_size for info in arrays.zip.infolist()}
            _check_size(sizes.get(name, 0), file)
            return arrays[name]
    import torch

    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise VmrError(
            f"{file} holds more than tensors, which is not loaded for safety: save only the tensor"
        ) from None
    if isinstance(loaded, dict):
        loaded = loaded[_chosen([k for k, v in loaded.items() if torch.is_tensor(v)], key, str(file))]
    if not torch.is_tensor(loaded):
        raise VmrError(f"{file} holds a {type(loaded).__name__}, not a tensor: save only the tensor")
    _check_size(loaded.numel() * 4, file)
    return loaded.float().numpy() if loaded.is_floating_point() else loaded.numpy()


def _chosen(names: list[str], key: str | None, where: str) -> str:
    """The name of the array to take out of several.

    Raises:
        VmrError: `key` is not among them, or there are several and no key.
    """
    wanted = key or (_DEFAULT_KEY if _DEFAULT_KEY in names else names[0] if len(names) == 1 else None)
    if wanted is None or wanted not in names:
        listed = ", ".join(map(str, names)) or "none"
        missing = f"no array {wanted!r}" if wanted else "several arrays"
        raise VmrError(f"{where} has {missing} (there: {listed}): name the right one with --key")
    return wanted


def _fingerprint(path: Path) -> str:
    try:
        info = path.stat()
    except OSError:  # a link to nowhere; reading it says so
        return "missing"
    return f"{info.st_size}-{info.st_mtime_ns}"


def _reason(error: Exception) -> str:
    # numpy assumes that any unknown format is a pickle, and suggests to load it as one.
    is_object = "pickle" in str(error) or "Python objects" in str(error)
    return "it is not an array" if is_object else one_line(error, 200)
