"""`vmr up`: from a folder of videos to answers, with one command; the next call does only what is new."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from vmr_ray.cli.common import (
    has_display,
    out,
    plain,
    progress_bar,
    show_irregular,
    show_left_out,
    show_quarantined,
    waiting,
)
from vmr_ray.cli.show import print_result


def up(
    videos: Annotated[Path, typer.Argument(help="folder of videos, subfolders included")],
    checkpoint: Annotated[str | None, typer.Option(help="your own model, such as run/best")] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="without training: everyday (default; needs no network), everyday-multilingual, clip, "
            "clip-large, siglip, siglip2, or hf:NAME or hf:PATH of a CLIP/SigLIP-style model"
        ),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="where features and index are kept; default: ~/.local/share/vmr"),
    ] = None,
    port: Annotated[int, typer.Option(help="port to serve on")] = 8000,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="do not open the page")] = False,
    ask: Annotated[str | None, typer.Option(help="print the answer to this sentence first")] = None,
    exit_: Annotated[
        bool, typer.Option("--exit", help="stop after one answer (to --ask) instead of serving")
    ] = False,
) -> None:
    """Embed, index and serve a folder of videos, and open the page.

    Call it again for what has changed.
    """
    from vmr_ray.workflows.up import checked_folder
    from vmr_ray.workflows.up import up as make_searchable

    folder = checked_folder(videos)
    if not exit_:
        from vmr_ray.serve.local import check_port

        check_port("127.0.0.1", port)  # before the work, not after it
    if encoder is None and checkpoint is None:
        out.print(
            "model: everyday, which knows plain words for common things; for better answers give "
            "--encoder clip (a download) or hf:NAME, or train and give --checkpoint RUN/best",
            highlight=False,
            soft_wrap=True,
        )
    with progress_bar("videos", None) as bar:
        done = make_searchable(
            folder,
            checkpoint,
            encoder,
            directory,
            lambda now: bar(now.done + now.failed, f"embedded, {now.failed} failed", now.videos),
            lambda indexed, todo: bar(indexed, "indexed", todo),
        )
    show_quarantined(done.quarantined)
    show_irregular(done.partial, done.spliced)
    show_left_out(done.left_out)
    out.print(
        f"{done.videos} videos searchable: {done.embedded} embedded, {done.indexed} indexed, "
        f"{done.forgotten} gone -> {Path(done.index).parent}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if done.deleted:
        out.print(f"{done.deleted} left out: deleted through the service", highlight=False)
    if ask or exit_:
        from vmr_ray.search.searcher import Searcher

        with waiting("searching"):
            result = Searcher(done.index).search(ask or "something moves", 5)
        print_result(out, result)
    if exit_:
        return
    from vmr_ray.serve.local import serve_until_interrupt, start

    with waiting("starting the service"):
        url = start(done.index, port=port, roots=[str(folder)])
    out.print(f"Open {plain(url)} and ask. Ctrl-C stops.", highlight=False)
    if not no_browser and has_display():
        webbrowser.open(url)
    serve_until_interrupt()
