"""The generated world: real videos, correct annotations, and test queries that training never saw."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vmr_ray.demo.grammar import ACTIONS, COLOURS, KINDS, held_out
from vmr_ray.demo.world import SPLITS, World, plan_video, pose_at, render_world
from vmr_ray.errors import VmrError

TINY: dict[str, Any] = {"train_videos": 2, "test_videos": 1, "seed": 3, "size": 64}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return render_world(tmp_path_factory.mktemp("world"), **TINY)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def triples(query: str) -> set[tuple[str, str, str]]:
    """The (kind, colour, action) triples that a sentence names, read from its words alone."""
    words = query.split()
    (action,) = {a for a, forms in ACTIONS.items() if any(f in query for pair in forms for f in pair)}
    kinds = [kind for word in words for kind, names in KINDS.items() if word in names]
    colours = [word for word in words if word in COLOURS]
    assert len(kinds) == len(colours) == (2 if action == "swap" else 1)
    # "the box that is red" and "the red box" keep both words of one thing together.
    return {(kind, colour, action) for kind, colour in zip(kinds, colours, strict=True)}


def test_videos_decode_with_the_duration_that_the_annotations_name(world: World) -> None:
    annotated = {row["video"]: row["duration"] for row in rows(world.train) + rows(world.test)}
    assert annotated.keys() == {"train_0000.mp4", "train_0001.mp4", "test_0000.mp4"}
    for name, duration in annotated.items():
        with av.open(str(world.videos / name)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
            frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
            assert container.duration / av.time_base == pytest.approx(duration, abs=0.01)
        assert len(frames) == round(duration * 10)
        assert frames[0].shape == (64, 64)
        assert 15 <= duration <= 25


def test_spans_lie_in_their_video(world: World) -> None:
    for row in rows(world.train) + rows(world.test):
        assert 0 < row["start"] < row["end"] < row["duration"]


def test_things_move_within_the_events_and_rest_between_them() -> None:
    fps, moved_in_events = 10, []
    for index in range(10):
        for scene in plan_video("train", index, seed=0, fps=fps):
            for frame in range(round(scene.start * fps), round(scene.end * fps) - 1):
                poses = [
                    [pose_at(scene, i, f / fps) for i in range(len(scene.things))] for f in (frame, frame + 1)
                ]
                moved = poses[0] != poses[1]
                if any(round(e.start * fps) <= frame < round(e.end * fps) for e in scene.events):
                    moved_in_events.append(moved)
                else:
                    assert not moved
    assert np.mean(moved_in_events) > 0.95


@pytest.mark.parametrize("split", SPLITS)
def test_a_query_has_exactly_one_right_span(split: str) -> None:
    for index in range(60):
        scenes = plan_video(split, index, seed=0, fps=10)
        events = [event for scene in scenes for event in scene.events]
        fits = Counter((e.action, frozenset((a.kind, a.colour) for a in e.actors)) for e in events)
        assert max(fits.values()) == 1
        assert all(a.end < b.start for a, b in pairwise(events))


def test_sentences_of_one_video_differ_between_events(world: World) -> None:
    spans: dict[tuple[str, str], set[tuple[float, float]]] = {}
    for row in rows(world.train) + rows(world.test):
        spans.setdefault((row["video"], row["query"]), set()).add((row["start"], row["end"]))
    assert len(spans) > 20
    assert all(len(of_query) == 1 for of_query in spans.values())


def test_no_test_triple_is_shown_or_named_in_training(world: World) -> None:
    named = set().union(*(triples(row["query"]) for row in rows(world.train)))
    asked = set().union(*(triples(row["query"]) for row in rows(world.test)))
    shown = {
        (actor.kind, actor.colour, event.action)
        for index in range(120)
        for scene in plan_video("train", index, seed=3, fps=10)
        for event in scene.events
        for actor in event.actors
    }
    assert named <= shown
    assert asked and not asked & shown
    # ... yet every pair of words has been shown together.
    for i, j, first, second in ((0, 1, KINDS, COLOURS), (0, 2, KINDS, ACTIONS), (1, 2, COLOURS, ACTIONS)):
        assert {(t[i], t[j]) for t in shown} == set(product(first, second))
    share = np.mean([held_out(*triple) for triple in product(KINDS, COLOURS, ACTIONS)])
    assert share == pytest.approx(0.25, abs=0.02)


def test_same_arguments_same_files(world: World, tmp_path: Path) -> None:
    again = render_world(tmp_path, **TINY, jobs=1)
    assert digests(again.root) == digests(world.root)


def test_a_second_run_skips_and_a_changed_one_renders_again(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def run(test_videos: int) -> World:
        return render_world(
            tmp_path, 1, test_videos, size=32, fps=4, progress=lambda done, total: calls.append((done, total))
        )

    world = run(test_videos=2)
    assert calls == [(1, 3), (2, 3), (3, 3)]
    run(test_videos=2)
    assert len(calls) == 3
    run(test_videos=1)
    assert calls[3:] == [(1, 2), (2, 2)]
    assert sorted(path.name for path in world.videos.iterdir()) == ["test_0000.mp4", "train_0000.mp4"]


def test_an_argument_out_of_range_is_named(tmp_path: Path) -> None:
    with pytest.raises(VmrError, match=r"even size >= 32.*size=63"):
        render_world(tmp_path, size=63)


def test_fewer_words_still_hold_out_a_quarter():
    def shown(split: str) -> set[tuple[str, str, str]]:
        return {
            (actor.kind, actor.colour, event.action)
            for index in range(60)
            for scene in plan_video(split, index, seed=0, fps=10, words=4)
            for event in scene.events
            for actor in event.actors
        }

    every = set(product(list(KINDS)[:4], list(COLOURS)[:4], list(ACTIONS)[:4]))
    trained, tested = shown("train"), shown("test")
    assert trained == {triple for triple in every if not held_out(*triple)}
    assert len(every - trained) == len(every) / 4 and every - trained <= tested <= every
