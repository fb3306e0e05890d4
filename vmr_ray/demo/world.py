"""Render the generated world: H.264 videos of acting objects, and the sentences that describe them.

A video is a sequence of scenes, each with its own background. In a scene one object acts, one event after
another. There may be a second object, which only takes part in swaps. The test queries are about triples
(kind, colour, action) that no training video shows, see `grammar.held_out`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from vmr_ray.demo.grammar import ACTIONS, COLOURS, KINDS, TEXTURES, Event, Thing, held_out, queries
from vmr_ray.demo.video_file import write_video
from vmr_ray.errors import VmrError
from vmr_ray.storage import write_bytes

VIDEO_SECONDS = (20.0, 25.0)
EVENT_SECONDS = (2.5, 4.0)
REST_SECONDS = (0.4, 1.2)
# Rests of random length at both ends, because otherwise the first and last event would be at the same time in
# every video.
MARGIN_SECONDS = (0.0, 3.5)
SPLITS = ("train", "test")


@dataclass(frozen=True)
class World:
    """The paths of a rendered world."""

    root: Path
    train: Path
    test: Path
    videos: Path


@dataclass(frozen=True)
class Scene:
    """The span `[start, end)` seconds between two cuts; `things[0]` acts, `seed` gives the background."""

    start: float
    end: float
    things: tuple[Thing, ...]
    events: tuple[Event, ...]
    from_right: bool
    seed: int


@dataclass(frozen=True)
class Pose:
    """Centre and size in frame heights, angle in degrees."""

    x: float
    y: float
    width: float
    height: float
    angle: float = 0.0


def render_world(
    out: Path,
    train_videos: int = 120,
    test_videos: int = 24,
    seed: int = 0,
    fps: int = 10,
    size: int = 224,
    words: int | None = None,
    jobs: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> World:
    """Write `videos/*.mp4`, `train.jsonl`, `test.jsonl` and, last, `world.json` under `out`.

    A line of the annotation files is one query: `{"video", "duration", "query", "start", "end"}`, times
    in seconds. The same arguments give the same files; a world that is finished is not rendered again.

    Args:
        words: how many kinds, colours and actions there are; default: all that there are words for.
        progress: called after each video, with the number done and of all.

    Raises:
        VmrError: an argument is out of range.
    """
    few = words is not None and words < 4  # some pair would have no held-out triple
    if train_videos < 1 or test_videos < 1 or jobs < 1 or fps < 4 or size < 32 or size % 2 or few:
        raise VmrError(
            "a world needs train_videos, test_videos and jobs >= 1, fps and words >= 4, an even size >= 32; "
            f"got {train_videos=}, {test_videos=}, {jobs=}, {fps=}, {words=}, {size=}"
        )
    world = World(out, out / "train.jsonl", out / "test.jsonl", out / "videos")
    done_file = out / "world.json"
    counts = {"train_videos": train_videos, "test_videos": test_videos, "words": words}
    arguments = json.dumps({**counts, "seed": seed, "fps": fps, "size": size})
    if done_file.is_file() and done_file.read_text() == arguments:
        return world

    for outdated in (done_file, world.train, world.test):
        outdated.unlink(missing_ok=True)
    world.videos.mkdir(parents=True, exist_ok=True)
    plans = {
        split: {f"{split}_{i:04}.mp4": plan_video(split, i, seed, fps, words) for i in range(count)}
        for split, count in zip(SPLITS, (train_videos, test_videos), strict=True)
    }
    every = {name: plan for split in SPLITS for name, plan in plans[split].items()}
    for split in SPLITS:
        for stale in world.videos.glob(f"{split}_[0-9][0-9][0-9][0-9]*.mp4"):
            if stale.name not in every:
                stale.unlink()
    # Threads are enough, because Pillow and libx264 release the interpreter lock while they work.
    pool = ThreadPoolExecutor(jobs)
    try:
        rendered = [
            pool.submit(write_video, world.videos / name, _frames(plan, fps, size), fps, size, size)
            for name, plan in every.items()
        ]
        for done, future in enumerate(as_completed(rendered), start=1):
            future.result()
            if progress:
                progress(done, len(rendered))
    finally:
        # After a failure or an interrupt no further video is started.
        pool.shutdown(cancel_futures=True)
    for split, path in zip(SPLITS, (world.train, world.test), strict=True):
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        rows = (row for name, plan in plans[split].items() for row in _rows(name, plan, split == "test", rng))
        write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    write_bytes(done_file, arguments.encode())
    return world


def plan_video(split: str, index: int, seed: int, fps: int, words: int | None = None) -> list[Scene]:
    """The scenes of one video, 20 to 25 s in all; every time is a whole number of frames.

    No two events of a video share both action and actors, so each has sentences of its own.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    while True:
        scenes: list[Scene] = []
        seconds = _seconds(VIDEO_SECONDS, rng, fps)
        while not scenes or scenes[-1].end < seconds - MARGIN_SECONDS[1]:
            scenes.append(_plan_scene(scenes, split == "test", rng, fps, words))
        if scenes[-1].end <= seconds:
            return [*scenes[:-1], replace(scenes[-1], end=seconds)]


def _plan_scene(
    before: list[Scene], test: bool, rng: np.random.Generator, fps: int, words: int | None
) -> Scene:
    """The scene that follows those `before`."""
    taken = [thing for scene in before for thing in scene.things]
    actor = _draw_thing(taken, rng, words)
    known = list(ACTIONS)[:words]
    unseen = [action for action in known if held_out(actor.kind, actor.colour, action)]
    actions = [str(a) for a in rng.permutation([a for a in known if a not in unseen])]
    if test:
        # First actions that training never shows with this actor, then others.
        actions = [*(str(a) for a in rng.permutation(unseen)), *actions]
    actions = actions[: rng.integers(1, 4)]
    actions.sort(key=lambda action: {"enter": -1, "leave": 1}.get(action, 0))
    things = [actor]
    if "swap" in actions or rng.random() < 0.1:
        while len(things) < 2:
            other = _draw_thing([*taken, actor], rng, words)
            if held_out(other.kind, other.colour, "swap") == ("swap" in unseen):
                things.append(other)

    start = before[-1].end if before else 0.0
    clock = start if before else _seconds(MARGIN_SECONDS, rng, fps)
    events = []
    for action in actions:
        clock += _seconds(REST_SECONDS, rng, fps)
        end = clock + _seconds(EVENT_SECONDS, rng, fps)
        events.append(
            Event(action, tuple(things[: 1 + (action == "swap")]), _on_frame(clock, fps), _on_frame(end, fps))
        )
        clock = end
    clock += _seconds(REST_SECONDS, rng, fps)
    return Scene(
        start,
        _on_frame(clock, fps),
        tuple(things),
        tuple(events),
        bool(rng.random() < 0.5),
        int(rng.integers(2**31)),
    )


def _draw_thing(taken: list[Thing], rng: np.random.Generator, words: int | None) -> Thing:
    """A thing whose (kind, colour) is new to the video. Half of them share kind or colour with the last."""
    while True:
        kinds, colours = list(KINDS)[:words], list(COLOURS)[:words]
        kind, colour, texture = (str(rng.choice(names)) for names in (kinds, colours, list(TEXTURES)))
        if taken and rng.random() < 0.5:
            kind, colour = (taken[-1].kind, colour) if rng.random() < 0.5 else (kind, taken[-1].colour)
        # Nobody could see a plain round thing spin.
        unseen_spin = texture == "plain" and kind in ("ball", "ring")
        if not unseen_spin and all((kind, colour) != (t.kind, t.colour) for t in taken):
            return Thing(kind, colour, texture)


def _seconds(bounds: tuple[float, float], rng: np.random.Generator, fps: int) -> float:
    """A random duration, of whole frames."""
    return _on_frame(float(rng.uniform(*bounds)), fps)


def _on_frame(seconds: float, fps: int) -> float:
    """The time of the nearest frame."""
    return round(seconds * fps) / fps


def _rows(
    name: str, scenes: list[Scene], test: bool, rng: np.random.Generator
) -> Iterator[dict[str, object]]:
    """The annotations of one video: those of events that belong to its split."""
    for event in (event for scene in scenes for event in scene.events):
        if held_out(event.actors[0].kind, event.actors[0].colour, event.action) != test:
            continue
        for query in queries(event, rng):
            yield {
                "video": name,
                "duration": scenes[-1].end,
                "query": query,
                "start": event.start,
                "end": event.end,
            }


def _frames(scenes: list[Scene], fps: int, size: int) -> Iterator[Image.Image]:
    """The pictures of a video in order."""
    for scene in scenes:
        rng = np.random.default_rng(scene.seed)
        background = _background(size, rng)
        margin = (background.width - size) / 2
        sprites = [_sprite(thing, size) for thing in scene.things]
        phase, slow = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 0.7)
        for frame in range(round(scene.start * fps), round(scene.end * fps)):
            seconds = frame / fps
            # The camera drifts along an ellipse, and the things shift with the background.
            turn = phase + slow * (seconds - scene.start)
            dx, dy = margin * math.cos(turn), 0.5 * margin * math.sin(turn)
            left, top = round(margin + dx), round(margin + dy)
            image = background.crop((left, top, left + size, top + size))
            for index in reversed(range(len(sprites))):
                pose = pose_at(scene, index, seconds)
                if pose is None:
                    continue
                sprite = sprites[index].resize(
                    (round(pose.width * size), round(pose.height * size)), Image.Resampling.BILINEAR
                )
                if pose.angle:
                    sprite = sprite.rotate(pose.angle, Image.Resampling.BILINEAR, expand=True)
                corner = (
                    round(pose.x * size - dx - sprite.width / 2),
                    round(pose.y * size - dy - sprite.height / 2),
                )
                image.paste(sprite, corner, sprite)
            yield image


def pose_at(scene: Scene, index: int, seconds: float) -> Pose | None:
    """The place and size of `scene.things[index]`, or None while it is not in the scene."""
    alone = len(scene.things) == 1
    small, large = (0.28, 0.64) if alone else (0.28, 0.48)
    actions = [event.action for event in scene.events]
    x = 0.5 if alone else (0.74, 0.26)[index == int(scene.from_right)]
    size = small if index == 0 and _grows_first(actions) else large if index == 0 else 0.38
    y, lift, squash, angle = 0.55, 0.0, 1.0, 0.0
    for event in scene.events:
        if index and event.action != "swap":
            continue
        part = min(1.0, max(0.0, (seconds - event.start) / (event.end - event.start)))
        edge = -size / 2 if (x < 0.5 or (alone and not scene.from_right)) else 1 + size / 2
        match event.action:
            case "enter":
                if part == 0:
                    return None
                x += (edge - x) * (1 - part)
            case "leave":
                if part == 1:
                    return None
                x += (edge - x) * part
            case "swap":
                x += (1 - 2 * x) * part
                lift += (-0.2 if index else 0.2) * math.sin(math.pi * part)
            case "spin":
                angle = -360 * part * max(1, round((event.end - event.start) / 2.6))
            case "grow":
                size += (large - size) * part
            case "shrink":
                size += (small - size) * part
            case "bounce":
                height = abs(math.sin(math.pi * part * round((event.end - event.start) / 1.2)))
                lift += 0.25 * height
                squash = 1 if part in (0, 1) else 0.7 + 0.4 * height
    return Pose(x, y - lift + size * (1 - squash) / 2, size / squash, size * squash, angle)


def _grows_first(actions: list[str]) -> bool:
    return next((a for a in actions if a in ("grow", "shrink")), None) == "grow"


def _background(size: int, rng: np.random.Generator) -> Image.Image:
    """A muted RGB picture, 1/6 wider than the frame: plain, gradient, clouds, bars or tiles."""
    side = round(size * 7 / 6)
    light = rng.uniform(70, 200)
    base = light + rng.uniform(-8, 8, 3)
    other = base + rng.choice([-1, 1]) * rng.uniform(25, 45)
    down, across = np.mgrid[0:side, 0:side] / side
    match rng.choice(["plain", "gradient", "clouds", "bars", "tiles"]):
        case "plain":
            blend = np.zeros((side, side))
        case "gradient":
            turn = rng.uniform(0, 2 * np.pi)
            blend = 0.5 + 0.7 * ((across - 0.5) * np.cos(turn) + (down - 0.5) * np.sin(turn))
        case "clouds":
            noise = Image.fromarray(rng.uniform(0, 1, (9, 9)).astype(np.float32))
            blend = np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC))
        case "bars":
            blend = (np.sin(across * 2 * np.pi * rng.integers(5, 10)) > 0.6).astype(float)
        case _:
            count = rng.integers(4, 8)
            blend = np.maximum((across * count) % 1 < 0.08, (down * count) % 1 < 0.08).astype(float)
    pixels = base + (other - base) * blend[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _sprite(thing: Thing, size: int) -> Image.Image:
    """The thing as an RGBA picture, upright; it fills the whole square."""
    side = 2 * round(size * 0.6)
    mask, shade = _shape(thing.kind, side)
    colour, pattern = np.array(COLOURS[thing.colour], dtype=float)
    down, across = np.mgrid[0:side, 0:side] / side * 6
    match thing.texture:
        case "stripes":
            blend = (across + down) % 1.5 < 0.55
        case "dots":
            blend = (across % 1.2 - 0.6) ** 2 + (down % 1.2 - 0.6) ** 2 < 0.3**2
        case "checks":
            blend = (across // 0.75 + down // 0.75) % 2 == 0
        case _:
            blend = np.zeros((side, side), dtype=bool)
    pixels = np.where(blend[..., None], pattern, colour) * (np.asarray(shade, dtype=float) / 200)[..., None]
    rim = ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(2 * (side // 64) + 1)))
    pixels[np.asarray(rim) > 0] = colour * 0.25
    sprite = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    sprite.putalpha(mask)
    return sprite.reduce(2)


def _shape(kind: str, side: int) -> tuple[Image.Image, Image.Image]:
    """The outline (255 inside) and the shading (200 keeps a colour as it is), both in mode L."""
    mask, shade = Image.new("L", (side, side), 0), Image.new("L", (side, side), 200)
    draw, light = ImageDraw.Draw(mask), ImageDraw.Draw(shade)
    half = side / 2

    def at(radius: float, degrees: float) -> tuple[float, float]:
        turn = math.radians(degrees)
        return half + half * radius * math.sin(turn), half - half * radius * math.cos(turn)

    def disc(draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, fill: int) -> None:
        draw.circle(centre, half * radius, fill=fill)

    match kind:
        case "ball":
            disc(draw, (half, half), 0.98, 255)
            for step in range(40):
                disc(light, at(0.4 * step / 40, -40), 1.4 * (1 - step / 40), 120 + 3 * step)
        case "box":
            corners = [at(0.98, 60 * i) for i in range(6)]
            draw.polygon(corners, fill=255)
            light.polygon([*corners[1:4], (half, half)], fill=120)
            light.polygon([*corners[3:6], (half, half)], fill=165)
            for corner in corners[1::2]:
                light.line([corner, (half, half)], fill=40, width=side // 50)
        case "star":
            draw.polygon([at(0.45 if i % 2 else 0.98, 36 * i) for i in range(10)], fill=255)
        case "ring":
            disc(draw, (half, half), 0.98, 255)
            disc(draw, (half, half), 0.52, 0)
        case "flower":
            for petal in range(6):
                disc(draw, at(0.62, 60 * petal), 0.36, 255)
                disc(light, at(0.35, 60 * petal), 0.3, 150)
            disc(draw, (half, half), 0.5, 255)
            disc(light, (half, half), 0.26, 30)
        case _:
            tip = [at(0.98, 0), at(0.98, 90), at(0.28, 90), at(0.98, 162), at(0.98, -162), at(0.28, -90)]
            draw.polygon([*tip, at(0.98, -90)], fill=255)
    return mask, shade
