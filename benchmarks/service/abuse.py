"""A hostile or unlucky hour: dear requests, slow clients, paused viewers, overload, a writer that dies."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import numpy as np

from benchmarks.common.output import Figures, print_line, print_table
from benchmarks.common.processes import core_seconds, descendants, megabytes, named
from benchmarks.common.timing import repeatedly, wait_until
from benchmarks.service.clients import Body, Load, closed_loop, open_loop, service
from benchmarks.service.http import run

TRICKLERS, VIEWERS = 100, 64
LARGE = 300 << 20  # bytes of the file that is watched
INGEST = "ServeReplica:vmr:Ingest"


def abuse(
    index: Path,
    bodies: Sequence[Body],
    port: int,
    folder: Path,
    clients: int,
    seconds: float,
    overload_seconds: float,
) -> Figures:
    """Each part next to a service that is otherwise idle, with one client that searches meanwhile."""
    own = folder / "abused"
    shutil.copytree(index, own)  # because videos are added
    source = _video_file(own, bodies)
    shutil.copy(source, folder / "small.mp4")
    _write_large(source, folder / "large.mp4")
    with (
        service(own, port, roots=[str(folder)]) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        figures = costs(client, bodies)
        _add(client, folder / "large.mp4", "large.mp4")
        with _tricklers(url):
            figures["search_wait_s_with_100_tricklers"] = _longest_wait(client, bodies)
        figures |= _viewed(client, bodies, url)
        figures |= _overloaded(url, bodies, clients, seconds, overload_seconds)
        figures |= _killed_writer(client, folder / "small.mp4")
    for name, figure in figures.items():
        print_line(f"{name}: {figure:.3g}")
    return figures


def costs(client: httpx.Client, bodies: Sequence[Body], times: int = 40) -> Figures:
    """Seconds of a core that the service spends on a search, of the cheapest and of the dearest kinds.

    A batch is divided by its searches, because it is admitted as so many.
    """
    ids = [video["video_id"] for video in client.get("v1/videos").json()["videos"]]
    words = " ".join(body["query"] for body in bodies[:200])[:1000]
    heavy: Body = {"query": words, "top_k": 100, "include": ["saliency", "thumbnail"]}
    full = {"camera": [f"{i:03}" * 300 for i in range(99)]}
    kinds: dict[str, tuple[str, Callable[[int], Any], int]] = {
        "one video": ("v1/search", lambda i: bodies[i % len(bodies)], 1),
        "all videos": ("v1/search", lambda i: {"query": bodies[i % len(bodies)]["query"]}, 1),
        "1,000 characters, 100 results, curves": ("v1/search", lambda i: heavy, 1),
        "1,000 ids": ("v1/search", lambda i: heavy | {"video_ids": (ids * 1000)[:1000]}, 1),
        "100 values in a filter": ("v1/search", lambda i: heavy | {"filter": full}, 1),
        "by video": ("v1/search", lambda i: heavy | {"group_by": "video"}, 1),
        "a batch of 32": ("v1/search:batch", lambda i: {"searches": [heavy] * 32}, 32),
    }
    spent: dict[str, float] = {}
    idle = _core_seconds_during(lambda: time.sleep(3)) / 3
    for name, (path, body, searches) in kinds.items():
        count = max(2, times // searches)

        def send(
            name: str = name, path: str = path, body: Callable[[int], Any] = body, count: int = count
        ) -> None:
            for turn in range(count):
                response = client.post(path, json=body(turn))
                if response.status_code != 200:
                    raise RuntimeError(f"{name}: {response.status_code}, {response.text[:200]}")

        send()  # fills caches
        began = time.monotonic()
        used = _core_seconds_during(send) - idle * (time.monotonic() - began)
        spent[name] = used / count / searches
    print_table(
        "what a search costs the service",
        ("", "ms of a core"),
        [(name, f"{1000 * s:.1f}") for name, s in spent.items()],
    )
    return {"worst_over_cheapest_cost": max(spent.values()) / max(min(spent.values()), 1e-9)}


def _core_seconds_during(call: Callable[[], object]) -> float:
    before = {pid: core_seconds(pid) for pid in descendants(os.getpid())}
    call()
    return sum(core_seconds(pid) - used for pid, used in before.items() if core_seconds(pid))


def _longest_wait(client: httpx.Client, bodies: Sequence[Body], times: int = 20) -> float:
    """Seconds of the slowest of some searches; infinite if one is not answered."""
    longest = 0.0
    for turn in range(times):
        began = time.monotonic()
        answered = client.post("v1/search", json=bodies[turn % len(bodies)]).status_code == 200
        longest = max(longest, time.monotonic() - began if answered else float("inf"))
    return longest


@contextmanager
def _connections(url: str, count: int) -> Iterator[list[socket.socket]]:
    address = urlsplit(url)
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection((address.hostname or "", address.port or 80)))
            for _ in range(count)
        ]


@contextmanager
def _tricklers(url: str) -> Iterator[None]:
    """Clients that send a byte of a search every two seconds."""
    head = "POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with _connections(url, TRICKLERS) as sockets:
        for each in sockets:
            each.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode())

        def trickle() -> None:
            for each in sockets:
                with suppress(OSError):  # the service has ended it
                    each.sendall(b" ")

        with repeatedly(trickle, 2):
            yield


def _viewed(client: httpx.Client, bodies: Sequence[Body], url: str) -> Figures:
    """Viewers of a large file who have paused; half of them asked for the whole file."""

    def memory() -> float:
        return sum(map(megabytes, descendants(os.getpid())))

    before = memory()
    with _connections(url, VIEWERS) as sockets:
        for number, each in enumerate(sockets):
            ranged = "Range: bytes=0-\r\n" * (number % 2)
            path = quote("/v1/videos/large.mp4/stream")
            each.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{ranged}\r\n".encode())
        time.sleep(5)
        started = sum(each.recv(12).endswith((b"200", b"206")) for each in sockets)
        if started < VIEWERS:
            raise RuntimeError(f"{VIEWERS - started} viewers got no video")
        wait = _longest_wait(client, bodies)
        grown = memory() - before
    return {"search_wait_s_with_64_viewers": wait, "viewer_memory_mb": max(0.0, grown)}


def _overloaded(
    url: str, bodies: Sequence[Body], clients: int, seconds: float, overload_seconds: float
) -> Figures:
    run(closed_loop(url, bodies, clients, 5))
    peak = run(closed_loop(url, bodies, clients, seconds))
    loads: list[Load] = []

    def overload() -> None:
        loads.append(run(open_loop(url, bodies, 10 * peak.per_second, overload_seconds)))

    spent = _core_seconds_during(overload)
    (load,) = loads
    refused = max(1, len(load.refused_ms))
    print_line(
        f"peak {peak.per_second:.1f} answers/s, p95 {peak.percentile(95):.0f} ms; at ten times that for "
        f"{overload_seconds:g} s: {load.counts}; {load.per_second:.1f} answers/s, p95 "
        f"{load.percentile(95):.0f} ms; refused p50 {np.median(load.refused_ms or [0]):.0f} ms; the service "
        f"used {spent:.0f} core seconds, {1000 * spent / (refused + len(load.ms)):.2f} ms a request"
    )
    return {
        "peak_answers_per_s": peak.per_second,
        "overload_p95_s": load.percentile(95) / 1000,
        "overload_goodput_share": load.per_second / peak.per_second,
        "overload_unanswered": float(load.non_retryable),
    }


def _killed_writer(client: httpx.Client, file: Path, rounds: int = 3) -> Figures:
    """Add and delete a video while the process that writes the index is killed.

    `lost`: videos whose job is done and that are not found; `ghosts`: those that are found and not listed, or
    can not be deleted.
    """
    lost = ghosts = 0
    for turn in range(rounds):
        name = f"killed-{turn}.mp4"
        job = client.post("v1/videos", json={"uri": str(file), "video_id": name}).json()["job_id"]
        time.sleep(0.5 * turn)
        _kill_writer()
        wait_until(lambda job=job: _ended(client, job), 180, 0.5)  # type: ignore[misc]
        indexed = client.get(f"v1/jobs/{job}").json()["status"] == "done"
        lost += indexed and name not in _found(client, name)
        with suppress(httpx.HTTPError):
            killer = threading.Timer(0.01 * turn, _kill_writer)
            killer.start()
            client.delete(f"v1/videos/{name}")
            killer.join()
        wait_until(lambda name=name: _deleted(client, name), 60, 0.5)  # type: ignore[misc]
        ghosts += name in _found(client, None)
    listed = {video["video_id"] for video in client.get("v1/videos").json()["videos"]}
    ghosts += len(set(_found(client, None)) - listed)
    return {"lost": float(lost), "ghosts": float(ghosts)}


def _kill_writer() -> None:
    for pid in named(os.getpid(), INGEST):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _ended(client: httpx.Client, job: str) -> bool:
    response = client.get(f"v1/jobs/{job}")
    return response.status_code == 200 and response.json()["status"] in ("done", "failed")


def _deleted(client: httpx.Client, name: str) -> bool:
    return client.delete(f"v1/videos/{name}").status_code == 404


def _found(client: httpx.Client, name: str | None) -> list[str]:
    """The videos that a search finds, in one video or in all."""
    where = {"video_ids": [name]} if name else {}
    body = {"query": "something moves", "top_k": 100, "group_by": "video"} | where
    return [moment["video_id"] for moment in client.post("v1/search", json=body).json().get("results", [])]


def _add(client: httpx.Client, file: Path, name: str) -> None:
    response = client.post("v1/videos", json={"uri": str(file), "video_id": name})
    job = response.json()["job_id"]
    wait_until(lambda: _ended(client, job), 180, 0.2)
    status = client.get(f"v1/jobs/{job}").json()
    if status["status"] != "done":
        raise RuntimeError(f"{name} was not added: {status['error']}")


def _video_file(index: Path, bodies: Sequence[Body]) -> Path:
    from vmr_ray.search.searcher import Searcher

    (row,) = Searcher(index).videos(bodies[0]["video_ids"][:1])
    return Path(row["uri"].removeprefix("file://"))


def _write_large(source: Path, target: Path) -> None:
    """A copy of an MP4 file with an empty box behind it."""
    shutil.copy(source, target)
    with target.open("r+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.write(struct.pack(">I4s", LARGE - size, b"free"))
        stream.truncate(LARGE)
