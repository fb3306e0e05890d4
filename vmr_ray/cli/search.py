"""`vmr search`."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vmr_ray.cli.common import (
    ConfigOption,
    JsonOption,
    SetOption,
    out,
    print_json,
    print_line,
    read_config,
    waiting,
)
from vmr_ray.cli.play import cut, play
from vmr_ray.cli.show import print_result
from vmr_ray.errors import VmrError
from vmr_ray.storage import refuse_input

Filter = dict[str, list[str | int | float | bool]]


class GroupBy(StrEnum):
    moment = "moment"
    video = "video"


def search(
    query: Annotated[str, typer.Argument(help="what happens in the moment, as a plain sentence")],
    index_: Annotated[str, typer.Option("--index", "-i", help="index: a directory or URI")],
    top_k: Annotated[int, typer.Option("--top", "-k", help="how many moments to show")] = 5,
    video: Annotated[list[str] | None, typer.Option(help="search only this video; repeatable")] = None,
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="only videos whose metadata has this key=value; repeatable, of one key either value will do",
        ),
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="leave out moments with a lower score")] = None,
    min_probability: Annotated[
        float | None,
        typer.Option(
            help="leave out moments that are less probable, 0 to 1; default: the checkpoint's own limit"
        ),
    ] = None,
    group_by: Annotated[
        GroupBy, typer.Option(help="`video`: only the best moment of each video")
    ] = GroupBy.moment,
    rank: Annotated[int, typer.Option(help="the moment that --clip and --play take", min=1)] = 1,
    play_: Annotated[bool, typer.Option("--play", help="open the moment in a player")] = False,
    clip: Annotated[Path | None, typer.Option(help="cut the moment out into this MP4 file")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the moments that show what a sentence says. Needs no Ray."""
    settings = read_config(config, set_).search
    wanted = filters(filter_ or [])
    with waiting("loading the index"):
        from vmr_ray.search.searcher import Searcher

        searcher = Searcher(index_, settings)
    with waiting("searching"):
        result = searcher.search(
            query,
            max(top_k, rank),
            video,
            filter=wanted,
            min_score=min_score,
            min_probability=min_probability,
            group_by=group_by.value,
        )
    if as_json:
        print_json(asdict(result))
    else:
        print_result(out, result)
    if clip is None and not play_:
        return
    if len(result.moments) < rank:
        raise VmrError(
            f"--rank {rank}: {len(result.moments)} moments were found, so there is none to cut or play"
        )
    moment = result.moments[rank - 1]
    (row,) = searcher.videos([moment.video_id])
    if clip is not None:
        if clip.exists():
            refuse_input(clip, [video["uri"] for video in searcher.videos()], "--clip")
        with waiting("cutting"):
            cut(row["video_id"], row["uri"], moment.start, moment.end, clip)
        if not as_json:
            print_line(f"clip -> {clip}")
    if play_:
        play(row["video_id"], row["uri"], moment.start, moment.end)


def filters(texts: list[str]) -> Filter:
    """`key=value` texts as a filter. A value that is JSON is a number, true or false; `"7"` is a text.

    Raises:
        VmrError: a text is not key=value.
    """
    wanted: Filter = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise VmrError(f"--filter {text}: give key=value, for example camera=north")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        wanted.setdefault(key, []).append(parsed if isinstance(parsed, str | int | float | bool) else value)
    return wanted
