"""The simulation of benchmarks/scaling.py against what can be worked out by hand."""

from __future__ import annotations

import math

import pytest

from benchmarks.archive import simulation
from benchmarks.archive.costs import Run, Session
from benchmarks.archive.estimate import compare, extrapolate, plan
from benchmarks.common.output import WIDTH

ASSUMED = simulation.Assumed(
    cores=4,
    boot_minutes=1,
    loss_per_hour=0,
    node_price=1,
    storage_price=0,
    utilisation=0.5,
    part_minutes=10,
)
ARCHIVE = {
    "feature_bytes_per_hour": 1e7,
    "index_bytes_per_hour": 1e7,
    "files_per_hour": 30.0,
    "list_seconds_per_million_files": 40.0,
    "index_core_seconds_per_hour": 20.0,
    "query_core_seconds": 0.05,
}


def costs(**given: float) -> simulation.Costs:
    none = dict.fromkeys(("startup", "video", "decode", "encode", "write", "task", "chunk"), 0.0)
    return simulation.Costs(**{**none, **given})


def test_one_core_does_one_after_the_other() -> None:
    of = costs(startup=5, video=1, decode=0.02, encode=0.01, write=0.01)
    took = simulation.simulate([100, 50], simulation.Cluster(1, 1), of, 128)
    assert took == pytest.approx(5 + 2 * 1 + 150 * 0.04)


def test_the_longest_go_first() -> None:
    of = costs(decode=1)
    assert simulation.simulate([1, 2, 1, 4], simulation.Cluster(1, 2), of, 128) == 4
    assert simulation.simulate([4, 4, 4], simulation.Cluster(3, 1), of, 128) == 4
    assert simulation.simulate([4, 4, 4], simulation.Cluster(1, 2), of, 128) == 8


def test_one_driver_bounds_any_number_of_nodes() -> None:
    of = costs(decode=0.01, task=0.1, chunk=0.05)
    parts = [100.0] * 1000
    many = simulation.simulate(parts, simulation.Cluster(1000, 16), of, 50)
    assert many == pytest.approx(1000 * (0.1 + 2 * 0.05), rel=0.02)


def test_what_a_lost_node_did_is_done_again() -> None:
    of, parts = costs(decode=1), [10.0] * 400
    safe = simulation.simulate(parts, simulation.Cluster(4, 2), of, 128)
    assert safe == 500
    lossy = simulation.Cluster(4, 2, boot=20, lifetime=200)
    found = [simulation.simulate(parts, lossy, of, 128, seed) for seed in range(20)]
    # A node is lost every 200 s, and with it half a part a core on average, and the boot of the next.
    assert safe * 1.05 < sum(found) / len(found) < safe * 1.3
    assert simulation.simulate(parts, lossy, of, 128, 3) == found[3], "the same seed, the same answer"


def test_a_large_archive_goes_on_at_the_rate_of_its_part() -> None:
    of = costs(startup=10, decode=0.01)
    whole = simulation.embedding_seconds(1000, 5, of, ASSUMED, max_parts=10_000)
    assert whole == pytest.approx(10 + 60 + 1000 * 3600 * 0.01 / 20, rel=0.01)
    assert simulation.embedding_seconds(1000, 5, of, ASSUMED, max_parts=1000) == pytest.approx(
        whole, rel=0.01
    )
    assert math.isfinite(simulation.embedding_seconds(1e8, 1000, of, ASSUMED, max_parts=20_000))


def test_the_simulation_is_compared_with_a_plain_division() -> None:
    of = costs(startup=10, decode=0.1)
    run = Run(videos=3, seconds=100, measured=30)
    figures = compare([Session(cores=2, costs=of, taken=0, runs=(run,))])
    # One core gets two of the three videos.
    assert figures["cores2_videos3_seconds100_simulated_s"] == pytest.approx(30)
    assert figures["cores2_videos3_seconds100_divided_s"] == pytest.approx(15)
    assert figures["max_relative_error"] == pytest.approx(0)
    assert figures["divided_max_relative_error"] == pytest.approx(0.5)


def test_tables_fit_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    of = costs(startup=10, video=0.1, decode=0.02, encode=0.01, write=0.001, task=0.01, chunk=0.002)
    session = Session(cores=16, costs=of, taken=0.1, runs=(Run(1000, 120, 12345.6), Run(40, 10, 30.0)))
    compare([session])
    extrapolate((1e3, 1e8), (1, 1000), of, ARCHIVE, ASSUMED, 1000)
    printed = capsys.readouterr().out.splitlines()
    assert printed
    assert max(map(len, printed)) <= WIDTH
    hours = [line.split() for line in printed if line.startswith("100,000,000")]
    assert [row[:2] for row in hours[:2]] == [["100,000,000", "1"], ["100,000,000", "1000"]]


def test_the_plan_takes_the_fewest_nodes_that_keep_the_time() -> None:
    of = costs(startup=10, decode=0.01)
    figures = plan(20_000, 10, 1, of, ARCHIVE, ASSUMED, 1000)
    nodes = int(figures["plan_embedding_nodes"])
    day = 86400
    assert simulation.embedding_seconds(20_000, nodes, of, ASSUMED, 1000) <= day
    assert nodes > 1
    assert simulation.embedding_seconds(20_000, nodes - 1, of, ASSUMED, 1000) > day
    assert figures["plan_serving_nodes"] == 1  # 10 queries of 0.05 s fill a quarter of half a node's 4 cores
