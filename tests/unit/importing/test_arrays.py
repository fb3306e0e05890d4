"""Whatever a damaged file raises in the libraries that read it is one sentence about this file."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from vmr_ray.errors import VmrError
from vmr_ray.importing.arrays import open_source
from vmr_ray.importing.features import import_features

ARRAY = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
MUTANTS = 70  # of each format


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def in_hdf5(stream: io.BytesIO, **dataset: object) -> None:
    with h5py.File(stream, "w") as file:
        file.create_dataset("v", **dataset)


def old_format(stream: io.BytesIO) -> None:
    torch.save({"features": torch.tensor(ARRAY)}, stream, _use_new_zipfile_serialization=False)


VALID = {
    "plain.npy": written(lambda f: np.save(f, ARRAY)),
    "stored.npz": written(lambda f: np.savez(f, features=ARRAY)),
    "deflated.npz": written(lambda f: np.savez_compressed(f, features=ARRAY)),
    "zip.pt": written(lambda f: torch.save(torch.tensor(ARRAY), f)),
    "old.pt": written(old_format),
}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """With bytes changed, left out and put in."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(len(changed))
        kind = rng.randrange(4)
        if kind == 0:
            changed[at] = rng.randrange(256)
        elif kind == 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 2 and at:
            del changed[at : at + rng.randrange(1, 40)]
        else:
            changed[at:at] = rng.randbytes(rng.randrange(1, 8))
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")
def test_a_mutated_file_costs_only_itself(tmp_path: Path):
    rng = random.Random(16)
    source = tmp_path / "source"
    source.mkdir()
    for name, data in VALID.items():
        stem, _, suffix = name.partition(".")
        (source / f"{stem}.{suffix}").write_bytes(data)
        for number in range(MUTANTS):
            (source / f"{stem}-{number:03}.{suffix}").write_bytes(mutated(data, rng))
    done = import_features([source], tmp_path / "out", 1)
    assert done.videos == len(VALID) * (MUTANTS + 1) and done.imported + len(done.quarantined) == done.videos
    assert not {row.video_id for row in done.quarantined} & {name.partition(".")[0] for name in VALID}
    assert len(done.quarantined) > done.videos / 2
    assert all(row.error.count("\n") == 0 and str(source) in row.error for row in done.quarantined)


@pytest.mark.filterwarnings("ignore")
def test_a_mutated_hdf5_file_is_one_sentence(tmp_path: Path):
    rng, path = random.Random(16), tmp_path / "features.h5"
    data = written(lambda f: in_hdf5(f, data=ARRAY))
    refused = 0
    for _ in range(MUTANTS):
        path.write_bytes(mutated(data, rng))
        try:
            source = open_source(path)
            for name in source.names:
                source.read(name)
        except VmrError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert 0 < refused < MUTANTS


def huge(shape: tuple[int, int]) -> dict[str, bytes]:
    """Small files of arrays of this shape, by name."""
    header = written(
        lambda f: np.lib.format.write_array_header_1_0(
            f, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )
    )

    def in_zip(stream: io.BytesIO) -> None:
        with zipfile.ZipFile(stream, "w") as file:
            file.writestr("features.npy", header + bytes(100))

    return {
        "a.npy": header + bytes(100),
        "a.npz": written(in_zip),
        "a.pt": written(lambda f: torch.save(torch.ones(1).expand(shape), f)),
        "a.h5": written(lambda f: in_hdf5(f, shape=shape, dtype="f4", chunks=(1, 1024))),
    }


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pt", "a.h5"])
@pytest.mark.parametrize("shape", [(10**10, 8000), (10**5, 10**5)], ids=["291 TiB", "37 GiB"])
def test_a_header_gets_no_more_memory_than_its_file_can_fill(
    tmp_path: Path, name: str, shape: tuple[int, int]
):
    path = tmp_path / name
    path.write_bytes(huge(shape)[name])
    source = open_source(path if name == "a.h5" else tmp_path)
    with pytest.raises(
        VmrError, match=r"cannot read .*a\.np|a\.(pt|h5) asks for [0-9,]+ bytes, which neither"
    ):
        source.read(min(source.names))


def test_names_and_links_that_lead_nowhere(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    np.save(source / "good.npy", ARRAY)
    (source / "gone.npy").symlink_to(source / "nothing.npy")
    (source / "folder.npy").mkdir()
    done = import_features([source], tmp_path / "out", 1)
    assert done.imported == 1
    assert {row.video_id for row in done.quarantined} == {"gone", "folder"}
    (source / "b\udcff.npy").write_bytes(b"x")
    with pytest.raises(VmrError, match=r"the name of '.*b\\udcff.npy' is not UTF-8: rename the file"):
        import_features([source], tmp_path / "out", 1)
