"""What follows from the measured costs: the error of the simulation, large archives, and a plan."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.archive.costs import Session
from benchmarks.archive.simulation import (
    CHUNK_SECONDS,
    Assumed,
    Cluster,
    Costs,
    embedding_seconds,
    simulate,
)
from benchmarks.common.output import Figures, print_line, print_table


def compare(sessions: Sequence[Session]) -> Figures:
    """The simulation against every measured run, and against its baseline: all work divided by all cores."""
    figures: Figures = {}
    rows = []
    for session in sessions:
        # Here the workers share their cores with Ray's own processes; on a cluster the head has its own.
        machine = Cluster(1, session.cores, speed=1 - session.taken / session.cores)
        figures[f"cores{session.cores}_taken_by_ray"] = session.taken
        for run in session.runs:
            simulated = simulate([run.seconds] * run.videos, machine, session.costs, CHUNK_SECONDS)
            divided = run.videos * session.costs.part(run.seconds) / session.cores
            name = f"cores{session.cores}_videos{run.videos}_seconds{run.seconds}"
            figures |= {
                f"{name}_measured_s": run.measured,
                f"{name}_simulated_s": simulated,
                f"{name}_error": simulated / run.measured - 1,
                f"{name}_divided_s": divided,
                f"{name}_divided_off": divided / run.measured - 1,
            }
            cells = [f"{value:.1f}" for value in (run.measured, simulated, divided)]
            cells += [f"{value / run.measured - 1:+.2f}" for value in (simulated, divided)]
            rows.append((session.cores, run.videos, run.seconds, *cells))
    print_table(
        "vmr embed: measured, simulated, and divided (all work by all cores, the baseline)",
        ("cores", "videos", "of s", "measured s", "simulated s", "divided s", "error", "divided's"),
        rows,
    )
    errors = [abs(value) for key, value in figures.items() if key.endswith("_error")]
    divided_errors = [abs(value) for key, value in figures.items() if key.endswith("_divided_off")]
    return {
        "max_relative_error": max(errors),
        "mean_relative_error": float(np.mean(errors)),
        "divided_max_relative_error": max(divided_errors),
        **figures,
    }


def extrapolate(
    sizes: Sequence[float],
    counts: Sequence[int],
    costs: Costs,
    archive: Figures,
    assumed: Assumed,
    max_parts: int,
) -> Figures:
    """Hours and dollars of embedding by size and nodes, and what archives contain; prints the tables.

    Args:
        sizes: hours of video.
        counts: numbers of nodes.
        archive: what an hour of video costs, as `measure_contents` returns it.
        max_parts: that are simulated one by one.
    """
    figures: Figures = {}
    rows = []
    for size in sizes:
        for nodes in counts:
            hours = embedding_seconds(size, nodes, costs, assumed, max_parts) / 3600
            dollars = hours * nodes * assumed.node_price
            name = f"{_named(size)}_nodes{nodes}"
            figures |= {f"{name}_embed_hours": hours, f"{name}_embed_dollars": dollars}
            rows.append((f"{size:,.0f}", nodes, f"{hours:,.1f}", f"{dollars:,.0f}"))
    print_table("embedding, simulated with losses", ("hours of video", "nodes", "hours", "dollars"), rows)
    hours_of = {nodes: figures[f"{_named(max(sizes))}_nodes{nodes}_embed_hours"] for nodes in counts}
    figures |= _speedups(max(sizes), hours_of, costs, assumed)
    return figures | _contents(sizes, archive, assumed)


def _speedups(size: float, hours_of: dict[int, float], costs: Costs, assumed: Assumed) -> Figures:
    figures: Figures = {}
    one, part = min(hours_of), 60 * assumed.part_minutes
    driver = costs.task + costs.chunk * math.ceil(part / CHUNK_SECONDS)  # seconds for a part
    rows = []
    for nodes, hours in hours_of.items():
        gain = hours_of[one] / hours
        busy = min(1.0, driver * size / part / hours)
        figures |= {f"nodes{nodes}_speedup": gain, f"nodes{nodes}_driver_busy": busy}
        rows.append((nodes, f"{gain:.1f}", f"{gain * one / nodes:.2f}", f"{busy:.2f}"))
    print_table(
        f"{size:,.0f} hours of video: speed-up over {one} node",
        ("nodes", "speed-up", "a node's share of it", "driver busy"),
        rows,
    )
    figures["driver_parts_per_second"] = 1 / driver
    figures["driver_full_at_cores"] = costs.part(part) / driver
    return figures


def _contents(sizes: Sequence[float], archive: Figures, assumed: Assumed) -> Figures:
    figures: Figures = {}
    rows = []
    for size in sizes:
        features, index = (size * archive[f"{kind}_bytes_per_hour"] / 1e9 for kind in ("feature", "index"))
        files = size * archive["files_per_hour"]
        values = {
            "feature_gb": features,
            "index_gb": index,
            "storage_dollars_per_month": (features + index) * assumed.storage_price,
            "files": files,
            "listing_hours": files / 1e6 * archive["list_seconds_per_million_files"] / 3600,
            "index_core_hours": size * archive["index_core_seconds_per_hour"] / 3600,
        }
        figures |= {f"{_named(size)}_{key}": value for key, value in values.items()}
        rows.append((f"{size:,.0f}", *(f"{v:,.0f}" if v >= 100 else f"{v:.1f}" for v in values.values())))
    columns = ("hours of video", "features GB", "index GB", "$ a month", "chunk files", "listing h")
    print_table("what an archive of this size has", (*columns, "index core h"), rows)
    return figures


def _named(hours: float) -> str:
    return f"hours{hours:.0e}".replace("+", "")


def plan(
    hours: float,
    queries: float,
    days: float,
    costs: Costs,
    archive: Figures,
    assumed: Assumed,
    max_parts: int,
) -> Figures:
    """The fewest nodes that embed `hours` in `days`, and those that answer `queries` a second."""
    low, high = 1, 1
    while embedding_seconds(hours, high, costs, assumed, max_parts) > days * 86400 and high < 1024:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        if embedding_seconds(hours, middle, costs, assumed, max_parts) > days * 86400:
            low = middle + 1
        else:
            high = middle
    took = embedding_seconds(hours, high, costs, assumed, max_parts) / 3600
    serving = math.ceil(queries * archive["query_core_seconds"] / assumed.utilisation / assumed.cores)
    gigabytes = hours * (archive["feature_bytes_per_hour"] + archive["index_bytes_per_hour"]) / 1e9
    figures = {
        "plan_hours_of_video": hours,
        "plan_embedding_nodes": float(high),
        "plan_embedding_hours": took,
        "plan_embedding_dollars": took * high * assumed.node_price,
        "plan_serving_nodes": float(serving),
        "plan_serving_dollars_per_month": serving * assumed.node_price * 730,
        "plan_storage_gb": gigabytes,
        "plan_storage_dollars_per_month": gigabytes * assumed.storage_price,
    }
    late = "" if took <= 24 * days else f" (more than {days:g} days: one driver does not keep up)"
    monthly = figures["plan_serving_dollars_per_month"] + figures["plan_storage_dollars_per_month"]
    print_line(
        f"{hours:,.0f} hours of video, {queries:g} queries a second: "
        f"{high} nodes for {took:,.1f} hours{late}, "
        f"${took * high * assumed.node_price:,.0f}; then {serving} nodes and {gigabytes:,.0f} GB, "
        f"${monthly:,.0f} a month"
    )
    return figures
