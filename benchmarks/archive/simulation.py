"""A simulation of the embedding of an archive: nodes start late, have one driver, and are lost."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from vmr_ray.config import EmbedConfig

PARTS = 200_000  # parts of videos that are simulated one by one; more go on at the same rate
CHUNK_SECONDS = float(EmbedConfig().decode.chunk_frames)  # of video in a chunk, at one frame a second


@dataclass(frozen=True)
class Costs:
    """Seconds of one core; `startup` is in seconds of the clock."""

    startup: float  # until the first result, without that video's own cost
    video: float  # for a video, whatever its length
    decode: float  # for a second of video
    encode: float  # for a second of video
    write: float  # for a second of video
    task: float  # of the driver, for a video or a part
    chunk: float  # of the driver, for each chunk that comes back

    def part(self, seconds: float) -> float:
        return self.video + seconds * (self.decode + self.encode + self.write)


@dataclass(frozen=True)
class Cluster:
    nodes: int
    cores: int  # of a node
    speed: float = 1.0  # of a core, next to what else runs on it
    boot: float = 0.0  # seconds until a new node works
    lifetime: float = math.inf  # mean seconds until a node is lost


def simulate(parts: Sequence[float], cluster: Cluster, costs: Costs, chunk: float, seed: int = 0) -> float:
    """Seconds until all parts are embedded.

    One driver hands out the parts, the longest first, and takes back their chunks. Each core works on one
    part at a time. A lost node's parts are handed out again, and the node that replaces it begins `boot`
    seconds later.

    Args:
        parts: seconds of video of each part.
        chunk: seconds of video of one chunk.
    """
    draw, waiting, unfinished = Random(seed), sorted(parts), len(parts)
    events: list[tuple[float, int, int, float | None]] = []  # time, order, node, part done (None: node lost)
    lost_at: list[float] = []  # of every node so far
    order, driver, end = 0, 0.0, 0.0

    def schedule(at: float, node: int, part: float | None) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (at, order, node, part))

    def start(at: float) -> None:
        node = len(lost_at)
        lost_at.append(
            at + draw.expovariate(1 / cluster.lifetime) if cluster.lifetime < math.inf else math.inf
        )
        for _ in range(cluster.cores):
            schedule(at, node, 0.0)
        if lost_at[node] < math.inf:
            schedule(lost_at[node], node, None)

    for _ in range(cluster.nodes):
        start(costs.startup + cluster.boot)
    idle: list[int] = []
    while unfinished:
        now, _, node, part = heapq.heappop(events)
        if part is None:
            start(now + cluster.boot + costs.startup)
        elif now >= lost_at[node]:
            waiting.append(part)  # the node was lost during this one
        else:
            if part:
                driver = max(driver, now) + costs.chunk * math.ceil(part / chunk)
                end, unfinished = max(end, driver), unfinished - 1
            idle.append(node)
        while waiting and idle:
            node = idle.pop()
            if now >= lost_at[node]:
                continue
            driver = max(driver, now) + costs.task
            part = waiting.pop()
            schedule(min(driver + costs.part(part) / cluster.speed, lost_at[node]), node, part)
    return end


@dataclass(frozen=True)
class Assumed:
    """What is not measured here."""

    cores: int
    boot_minutes: float
    loss_per_hour: float  # of nodes: the rate at which spot machines are taken
    node_price: float  # dollars an hour
    storage_price: float  # dollars a GB and month
    utilisation: float  # of the cores that answer queries
    part_minutes: float

    def cluster(self, nodes: int) -> Cluster:
        lifetime = 3600 / self.loss_per_hour if self.loss_per_hour else math.inf
        return Cluster(nodes, self.cores, boot=60 * self.boot_minutes, lifetime=lifetime)


def embedding_seconds(
    hours: float, nodes: int, costs: Costs, assumed: Assumed, max_parts: int = PARTS
) -> float:
    """Simulated. Of more than `max_parts` parts the rest goes on at the rate of the second half of those."""
    part = 60 * assumed.part_minutes
    count = max(1, round(3600 * hours / part))
    cluster = assumed.cluster(nodes)
    if count <= max_parts:
        return simulate([part] * count, cluster, costs, CHUNK_SECONDS)
    half, whole = (simulate([part] * n, cluster, costs, CHUNK_SECONDS) for n in (max_parts // 2, max_parts))
    return whole + (count - max_parts) * (whole - half) / (max_parts - max_parts // 2)
