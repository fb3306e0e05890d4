"""`vmr up`: from a folder of videos to answers, with one command; the next call does only what is new."""

from __future__ import annotations

import os
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from vmr_ray.cli.common import err, has_display, out, plain, progress_bar, show_quarantined, waiting
from vmr_ray.cli.show import moments_table
from vmr_ray.errors import VmrError
from vmr_ray.storage import short_hash

DEMO = Path("demo", "run", "best")


def up(
    videos: Annotated[Path, typer.Argument(help="folder of videos, subfolders included")],
    checkpoint: Annotated[str | None, typer.Option(help="your own model, such as run/best")] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="hf:NAME or hf:PATH of a CLIP/SigLIP-style model: similarity alone, untrained"),
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
    """Embed, index and serve a folder of videos, and open the page. Call it again for what has changed."""
    from vmr_ray.config import DecodeConfig, EmbedConfig
    from vmr_ray.embedding.embed import embed
    from vmr_ray.model.checkpoint import load_info
    from vmr_ray.search.build import build_index
    from vmr_ray.video.sources import find_videos

    if checkpoint and encoder:
        raise VmrError("--checkpoint names its own encoder: give either --checkpoint or --encoder")
    if encoder and not encoder.startswith("hf:"):
        raise VmrError(f"--encoder {encoder}: only an hf:<name or path> model can search untrained")
    if not videos.expanduser().is_dir():
        raise VmrError(f"there is no folder {videos}: name the one that holds your videos")
    if not exit_:
        from vmr_ray.serve.local import check_port

        check_port("127.0.0.1", port)  # before the work, not after it
    folder = videos.expanduser().resolve()
    model: Any = checkpoint
    if encoder is None and checkpoint is None:
        if not DEMO.is_dir():
            raise VmrError(
                "there is no model to search with: give your own with --checkpoint RUN/best, or a "
                "CLIP/SigLIP-style one with --encoder hf:NAME, or the small one that `vmr demo` makes here"
            )
        model = str(DEMO)
        err.print(
            "[yellow]note:[/] this is the demo's model: it knows the demo's drawn shapes only, expect little "
            "of it on other videos; train on your own annotations, or give --encoder hf:NAME",
            soft_wrap=True,
            highlight=False,
        )
    if encoder is not None:
        settings, kind = EmbedConfig(encoder=encoder), encoder
    else:
        info = load_info(model)
        settings = EmbedConfig(encoder=info.frame_encoder, decode=DecodeConfig(sampling=info.sampling))
        kind = info.version
    present = {video.video_id for video in find_videos([folder])}
    state = directory.expanduser().absolute() if directory else state_of(folder)
    features = state / f"features-{short_hash(settings.encoder + settings.decode.sampling, 8)}"
    index = state / f"index-{short_hash(kind, 8)}"
    with progress_bar("embedding", None) as bar:
        summary = embed(
            [folder],
            features,
            settings,
            lambda now: bar(now.done + now.failed, f"{now.failed} failed", now.videos),
        )
    show_quarantined(summary.quarantined)
    gone = forget(folder, present, features, index)
    with progress_bar("indexing", None) as bar:
        # By name: a file that was gone and has come back is searchable again.
        indexed = build_index(
            features, model, index, progress=lambda done, todo: bar(done, "videos", todo), only=present
        )
    out.print(
        f"{indexed.videos} videos searchable: {summary.embedded} embedded, {indexed.added} indexed, "
        f"{gone} gone -> {state}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if ask or exit_:
        from vmr_ray.search.searcher import Searcher

        with waiting("searching"):
            result = Searcher(index).search(ask or "something moves", 5)
        out.print(moments_table(result, out.width, out.is_terminal))
    if exit_:
        return
    from vmr_ray.serve.local import serve_until_interrupt, start

    with waiting("starting the service"):
        url = start(index, port=port, roots=[str(folder)])
    out.print(f"Open {plain(url)} and ask. Ctrl-C stops.", highlight=False)
    if not no_browser and has_display():
        webbrowser.open(url)
    serve_until_interrupt()


def state_of(folder: Path) -> Path:
    """Where the features and the index of a folder are kept: never among the videos themselves."""
    base = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    return base / "vmr" / f"{folder.name}-{short_hash(str(folder), 8)}"


def forget(folder: Path, present: set[str], features: Path, index: Path) -> int:
    """Take videos whose file has left `folder` out of features and index; uploads to the service stay.

    Returns how many there were.
    """
    from vmr_ray.features import FeatureStore
    from vmr_ray.search.build import delete_videos, open_tables

    store = FeatureStore.open(str(features))
    for video in set(store.video_ids()) - present:
        store.delete(video)
    if not index.is_dir():
        return 0
    rows = open_tables(str(index))["videos"].search().select(["video_id", "uri"]).limit(None).to_arrow()
    gone = {
        row["video_id"]
        for row in rows.to_pylist()
        if row["video_id"] not in present and Path(row["uri"]).is_relative_to(folder)
    }
    if gone:
        delete_videos(str(index), gone)
    return len(gone)
