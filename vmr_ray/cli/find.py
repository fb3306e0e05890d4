"""`vmr search`, `vmr serve`, `vmr keys` and `vmr demo`: answers."""

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
    app,
    out,
    print_json,
    read_config,
    waiting,
)
from vmr_ray.cli.play import cut, play
from vmr_ray.cli.show import moments_table
from vmr_ray.errors import VmrError


class GroupBy(StrEnum):
    moment = "moment"
    video = "video"


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="what happens in the moment, as a plain sentence")],
    index_: Annotated[str, typer.Option("--index", "-i", help="index directory or URI")],
    top_k: Annotated[int, typer.Option("--top", "-k", help="moments to show")] = 5,
    video: Annotated[list[str] | None, typer.Option(help="search this video only; repeatable")] = None,
    filter_: Annotated[
        list[str] | None,
        typer.Option("--filter", help="key=value of the videos' metadata; a key twice: either; repeatable"),
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="leave out what scores lower")] = None,
    group_by: Annotated[
        GroupBy, typer.Option(help="`video`: the best moment of each video only")
    ] = GroupBy.moment,
    rank: Annotated[int, typer.Option(help="which moment --clip and --play take", min=1)] = 1,
    play_: Annotated[bool, typer.Option("--play", help="open the moment in a player")] = False,
    clip: Annotated[Path | None, typer.Option(help="cut the moment into this MP4 file")] = None,
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
            query, max(top_k, rank), video, filter=wanted, min_score=min_score, group_by=group_by.value
        )
    if as_json:
        print_json(asdict(result))
    elif not result.moments:
        out.print("nothing found")
    else:
        out.print(moments_table(result, out.width, out.is_terminal))
    if clip is None and not play_:
        return
    if len(result.moments) < rank:
        raise VmrError(
            f"--rank {rank}: {len(result.moments)} moments were found, so there is none to cut or play"
        )
    moment = result.moments[rank - 1]
    (row,) = searcher.videos([moment.video_id])
    if clip is not None:
        with waiting("cutting"):
            cut(row["video_id"], row["uri"], moment.start, moment.end, clip)
        if not as_json:
            out.print(f"clip -> {clip}", markup=False, highlight=False, soft_wrap=True)
    if play_:
        play(row["video_id"], row["uri"], moment.start, moment.end)


def filters(texts: list[str]) -> dict[str, list[str | int | float | bool]]:
    """`key=value` texts as a filter. A value that is JSON is a number, true or false; `"7"` is a text."""
    found: dict[str, list[str | int | float | bool]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise VmrError(f"--filter {text}: give key=value, for example camera=north")
        try:
            read = json.loads(value)
        except ValueError:
            read = value
        found.setdefault(key, []).append(read if isinstance(read, str | int | float | bool) else value)
    return found


@app.command()
def serve(
    index_: Annotated[str, typer.Option("--index", "-i", help="index directory or URI")],
    host: Annotated[
        str, typer.Option(help="address to listen on; the default is this machine only")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on")] = 8000,
    key_file: Annotated[
        Path | None, typer.Option(help="API keys, see `vmr keys new`; without any only this machine may ask")
    ] = None,
    root: Annotated[
        list[str] | None,
        typer.Option(help="directory or URI prefix that videos may be added from; repeatable"),
    ] = None,
) -> None:
    """Serve an index over HTTP until Ctrl-C: the page at /, the API at /docs.

    On a cluster use `serve deploy serve_configs/cluster.yaml` instead.
    """
    from vmr_ray.serve.local import serve_until_interrupt, start

    with waiting("starting the service"):
        url = start(index_, host, port, key_file, root or ())
    out.print(f"serving {index_} at {url} (API: {url}docs); Ctrl-C stops", highlight=False)
    serve_until_interrupt()


keys_app = typer.Typer(no_args_is_help=True, help="API keys of the service.")
app.add_typer(keys_app, name="keys")


@keys_app.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(help="whose key it is, one word")],
    file: Annotated[Path, typer.Option("--file", "-f", help="key file, made if it is missing")],
) -> None:
    """Make an API key and print it: the file keeps its hash only, so it cannot be shown again.

    To take a key back, delete its line and restart the service.
    """
    from vmr_ray.serve.auth import new_key

    out.print(new_key(name, file), highlight=False, soft_wrap=True)


@app.command()
def demo(
    directory: Annotated[Path, typer.Option("--dir", help="where the demo's files go")] = Path("demo"),
    exit_: Annotated[
        bool, typer.Option("--exit", help="stop after the answers instead of serving on")
    ] = False,
    port: Annotated[int, typer.Option(help="port to serve on")] = 8000,
) -> None:
    """Render a small world, embed, train, evaluate, index, serve and ask: the whole way in minutes."""
    from vmr_ray.demo.run import run

    run(directory, stay=not exit_, port=port)
