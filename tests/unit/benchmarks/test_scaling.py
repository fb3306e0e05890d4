"""The simulation of benchmarks/scaling.py against what can be worked out by hand."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    sys.path.insert(0, str(FOLDER))  # for its neighbours
    try:
        spec = importlib.util.spec_from_file_location("scaling", FOLDER / "scaling.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["scaling"] = module  # its dataclasses look themselves up there
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(FOLDER))


def costs(scaling: ModuleType, **given: float):
    none = dict.fromkeys(("startup", "video", "decode", "encode", "write", "task", "chunk"), 0.0)
    return scaling.Costs(**{**none, **given})


def test_one_core_does_one_after_the_other(scaling: ModuleType) -> None:
    of = costs(scaling, startup=5, video=1, decode=0.02, encode=0.01, write=0.01)
    took = scaling.simulate([100, 50], scaling.Cluster(1, 1), of, 128)
    assert took == pytest.approx(5 + 2 * 1 + 150 * 0.04)


def test_the_longest_go_first(scaling: ModuleType) -> None:
    of = costs(scaling, decode=1)
    assert scaling.simulate([1, 2, 1, 4], scaling.Cluster(1, 2), of, 128) == 4
    assert scaling.simulate([4, 4, 4], scaling.Cluster(3, 1), of, 128) == 4
    assert scaling.simulate([4, 4, 4], scaling.Cluster(1, 2), of, 128) == 8


def test_one_driver_bounds_any_number_of_nodes(scaling: ModuleType) -> None:
    of = costs(scaling, decode=0.01, task=0.1, chunk=0.05)
    parts = [100.0] * 1000
    many = scaling.simulate(parts, scaling.Cluster(1000, 16), of, 50)
    assert many == pytest.approx(1000 * (0.1 + 2 * 0.05), rel=0.02)


def test_what_a_lost_node_did_is_done_again(scaling: ModuleType) -> None:
    of, parts = costs(scaling, decode=1), [10.0] * 400
    safe = scaling.simulate(parts, scaling.Cluster(4, 2), of, 128)
    assert safe == 500
    lossy = scaling.Cluster(4, 2, boot=20, lifetime=200)
    found = [scaling.simulate(parts, lossy, of, 128, seed) for seed in range(20)]
    # A node is lost every 200 s, and with it half a part a core on average, and the boot of the next.
    assert safe * 1.05 < sum(found) / len(found) < safe * 1.3
    assert scaling.simulate(parts, lossy, of, 128, 3) == found[3], "the same seed, the same answer"


def test_a_large_archive_goes_on_at_the_rate_of_its_part(scaling: ModuleType) -> None:
    of = costs(scaling, startup=10, decode=0.01)
    assumed = scaling.Assumed(
        cores=4,
        boot_minutes=1,
        loss_per_hour=0,
        node_price=1,
        storage_price=0,
        utilisation=0.5,
        part_minutes=10,
    )
    whole = scaling.embedding_seconds(1000, 5, of, assumed, most=10_000)
    assert whole == pytest.approx(10 + 60 + 1000 * 3600 * 0.01 / 20, rel=0.01)
    assert scaling.embedding_seconds(1000, 5, of, assumed, most=1000) == pytest.approx(whole, rel=0.01)
    assert math.isfinite(scaling.embedding_seconds(1e8, 1000, of, assumed, most=20_000))
