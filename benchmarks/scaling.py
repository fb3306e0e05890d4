"""What an archive of any size takes: nodes, hours, bytes and dollars, and what breaks first.

    python -m benchmarks.scaling --json scaling.json                # about 13 minutes; --quick: about 4
    python -m benchmarks.scaling --hours 1e6 --queries 50 --node-price 0.25

Measured here, on one core and on all: what a worker needs for a video and for each second of it, with its
decoding, encoding and writing apart; what the driver needs for a task and for a chunk that comes back; what
Ray's own processes use of the cores; what a query and an indexed window cost. These feed a discrete-event
simulation of the embedding: workers that start late, take the longest part first through one driver, are
lost and replaced.

The simulation is first checked against runs of `vmr embed` that are measured here too: other numbers of
videos, other lengths, one core and all. `max_relative_error` is the largest difference; the baseline next to
it divides all work by all cores. Then 1 to 1,000 nodes are simulated. Everything else (losses, boot time,
prices) is an assumption: an option whose value is printed.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.archive.contents import measure_contents
from benchmarks.archive.costs import LONG, SHORT, measure_session
from benchmarks.archive.estimate import compare, extrapolate, plan
from benchmarks.archive.simulation import PARTS, Assumed
from benchmarks.common.media import render, repeat
from benchmarks.common.output import JsonOption, print_figures, print_line, run_command, write_figures
from vmr_ray.cluster import quiet


def main(
    hours: Annotated[float, typer.Option(help="hours of video, for the plan")] = 1e4,
    queries: Annotated[float, typer.Option(help="queries a second, for the plan")] = 10,
    days: Annotated[float, typer.Option(help="in which all is to be embedded, for the plan")] = 1,
    node_cores: Annotated[int, typer.Option(help="cores of a node")] = 16,
    node_price: Annotated[float, typer.Option(help="dollars an hour; put in yours")] = 0.30,
    storage_price: Annotated[float, typer.Option(help="dollars a GB and month; put in yours")] = 0.023,
    boot_minutes: Annotated[float, typer.Option(help="until a new node works")] = 4,
    loss_per_hour: Annotated[
        float, typer.Option(help="share of the spot nodes that is taken each hour")
    ] = 0.05,
    utilisation: Annotated[float, typer.Option(help="of the cores that answer queries")] = 0.5,
    part_minutes: Annotated[float, typer.Option(help="of video that one worker takes at a time")] = 10,
    quick: Annotated[bool, typer.Option("--quick", help="few and short runs")] = False,
    work: Annotated[Path, typer.Option(help="where made files go, and stay")] = Path("bench-media"),
    json_: JsonOption = None,
) -> None:
    """Measure, compare, extrapolate."""
    quiet()
    work.mkdir(parents=True, exist_ok=True)
    shapes = [(6, SHORT), (2, LONG)] if quick else [(40, SHORT), (10, LONG), (6, 120)]
    files = make_files(work, {SHORT, LONG, *(seconds for _, seconds in shapes)})
    cores = len(os.sched_getaffinity(0))
    sessions = []
    for count in sorted({1, cores}):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            sessions.append(process.submit(measure_session, count, files, shapes).result())
    costs = sessions[-1].costs
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        archive = process.submit(measure_contents, 1 if quick else 20, 20 if quick else 200).result()
    figures = {f"cost_{key}_s": value for key, value in asdict(costs).items()} | archive
    print_figures(figures)
    assumed = Assumed(
        node_cores, boot_minutes, loss_per_hour, node_price, storage_price, utilisation, part_minutes
    )
    print_figures({f"assumed_{key}": value for key, value in asdict(assumed).items()})
    max_parts = PARTS // 20 if quick else PARTS
    compared = compare(sessions)
    figures = compared | figures | {f"assumed_{key}": value for key, value in asdict(assumed).items()}
    figures |= extrapolate((1e3, 1e6, 1e8), (1, 10, 100, 1000), costs, archive, assumed, max_parts)
    figures |= plan(hours, queries, days, costs, archive, assumed, max_parts)
    for key in ("max_relative_error", "divided_max_relative_error"):
        print_line(f"{key}: {figures[key]:.3f}")
    write_figures(json_, figures)


def make_files(work: Path, lengths: set[int]) -> dict[int, str]:
    """H.264 of 720p with a key frame every 2 seconds, one file for each length in seconds."""
    files = {seconds: work / f"scaling-{seconds}s.mp4" for seconds in sorted({SHORT, *lengths})}
    for seconds, path in files.items():
        if not path.exists() and seconds == SHORT:
            render(path, (1280, 720), SHORT, 2)
        elif not path.exists():
            repeat(files[SHORT], path, seconds // SHORT)
    return {seconds: str(path) for seconds, path in files.items()}


if __name__ == "__main__":
    run_command(main)
