"""`vmr`: every verb of the project at the command line; the jobs under jobs/ are the same verbs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import progress as bars
from rich.console import Console
from rich.table import Table

from vmr_ray import __version__
from vmr_ray.config import Config, load_config
from vmr_ray.errors import VmrError

if TYPE_CHECKING:
    from vmr_ray.schema import Progress, Quarantined

app = typer.Typer(
    name="vmr",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Search inside video with plain sentences.

A folder of videos becomes searchable in three steps, and a model of your own in two more:

1. **vmr embed** VIDEOS --out features — decode and embed the frames
2. **vmr train** features --annotations moments.jsonl --out run — learn from sentences with times
3. **vmr evaluate** features --annotations test.jsonl --checkpoint run/best — measure it
4. **vmr index** features --checkpoint run/best --out index — make every video searchable
5. **vmr search** "a person pours milk" --index index, or **vmr serve** --index index for HTTP

**vmr demo** does all of this on a small world that it renders itself.

Every verb joins the Ray cluster of RAY_ADDRESS, or one that runs on this machine, or starts one.
""",
    epilog="Exit codes: 0 done; 1 the work failed (too many bad videos, a crash); 2 a mistake in the input, "
    "told in one sentence.",
)
out = Console()
err = Console(stderr=True)
LINE_SECONDS = 10.0  # between two progress lines in a log

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file with any of the sections embed, train, ...")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="override one value: section.key=value; repeatable")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print the result as one JSON object")]
CheckpointOption = Annotated[str, typer.Option(help="checkpoint directory, such as run/best")]


def main() -> None:
    """The console script: a VmrError is one sentence on stderr and exit code 2."""
    # Quiet unless asked: these are read when the libraries load.
    if not {"-v", "--verbose"} & set(sys.argv[1:2]):
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("LANCE_LOG", "error")
    try:
        app()
    except Exception as error:
        mistake = _mistake(error)
        if mistake is None:
            raise
        err.print(f"[bold red]error:[/] {_plain(mistake)}", highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, VmrError) else 1)


def _mistake(error: BaseException | None) -> str | None:
    """The sentence for a person, if this is a mistake of theirs: also one that a Ray worker found."""
    while error is not None:
        if isinstance(error, VmrError):
            return str(error)
        if isinstance(error, OSError):
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
        error = getattr(error, "cause", None) or error.__cause__
    return None


def run_job(verb: str) -> None:
    """Run one verb as a Ray job: the flags of `vmr VERB`, the result as JSON on the last line."""
    sys.argv[1:] = [verb, "--json", *sys.argv[1:]]
    main()


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="show Ray's own progress and logs")
    ] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit
    if verbose:
        from vmr_ray.runtime import connect

        connect(verbose=True)


@app.command()
def embed(
    videos: Annotated[
        list[str],
        typer.Argument(help="files, directories, globs, manifests (JSONL/CSV with video_id, uri), URIs"),
    ],
    to: Annotated[str, typer.Option("--out", "-o", help="feature store: a directory or URI")],
    encoder: Annotated[
        str | None, typer.Option(help="efficientnet-lite0, or hf:<name or path> of a CLIP/SigLIP-style model")
    ] = None,
    sampling: Annotated[str | None, typer.Option(help="fps=<x>, every=<n> frames, or keyframes")] = None,
    num_gpus: Annotated[float | None, typer.Option(help="GPUs of one encoder; fractions are allowed")] = None,
    max_failed: Annotated[
        float | None, typer.Option(help="share of failed videos above which the exit code is 1")
    ] = None,
    report: Annotated[
        str | None, typer.Option(help="write the summary there as JSON too: a path or URI")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decode and embed videos into a feature store. Finished videos are skipped, bad ones quarantined."""
    from vmr_ray.embed import embed as run

    settings = _config(
        config,
        set_,
        {
            "embed.encoder": encoder,
            "embed.decode.sampling": sampling,
            "embed.num_gpus": num_gpus,
            "embed.max_failed": max_failed,
        },
    ).embed
    with _bar("embedding", None) as bar:
        summary = run(
            videos,
            to,
            settings,
            lambda now: bar(now.done + now.failed, _embed_text(now), now.videos),
        )
    failed = len(summary.quarantined)
    result = asdict(summary) | {"out": to}
    if report is not None:
        _write_json(report, result)
    if as_json:
        _json(result)
    else:
        out.print(
            f"{summary.videos} videos: {summary.embedded} embedded, {summary.skipped} already there, "
            f"{failed} quarantined; {summary.hours:.2f} hours of video at {summary.hours_per_hour:.1f} hours "
            f"an hour, {summary.frames} frames -> {to}",
            highlight=False,
            soft_wrap=True,
        )
        for row in summary.partial:
            err.print(
                f"[yellow]partial[/] {_plain(row.video_id)}: {_plain(row.damage)}; its readable frames are "
                "embedded",
                highlight=False,
                soft_wrap=True,
            )
        for bad in summary.quarantined:
            err.print(
                f"[yellow]quarantined[/] {_plain(bad.video_id)} ({bad.stage}): {_plain(bad.error)}",
                highlight=False,
                soft_wrap=True,
            )
    _fail_above(settings.max_failed, failed, summary.videos, "embedded")


@app.command()
def train(
    features: Annotated[str, typer.Argument(help="feature store")],
    annotations: Annotated[
        Path,
        typer.Option(
            "--annotations", "-a", help="JSONL/CSV with video, query, start, end, or a benchmark's file"
        ),
    ],
    to: Annotated[str, typer.Option("--out", "-o", help="run directory or URI; the same one resumes")],
    val: Annotated[
        Path | None, typer.Option(help="validation annotations; default: hold out some videos")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="data-parallel training processes")] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over the annotated videos")] = None,
    gpu: Annotated[bool | None, typer.Option("--gpu/--cpu", help="one GPU a worker")] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(help="tensorboard or mlflow: log the metrics of every epoch there too; repeatable"),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the cross-interaction network. Run it again to resume after an interruption."""
    from vmr_ray.train import train as run

    flags = {"train.workers": workers, "train.epochs": epochs, "train.use_gpu": gpu, "train.track": track}
    settings = _config(config, set_, flags)
    with _bar("training", settings.train.epochs) as bar:

        def report(row: dict[str, float]) -> None:
            text = f"loss {row['loss/total']:.3f}"
            if "miou" in row:
                text += f", R@1 IoU=0.5 {row['r1_at_0.5']:.1f}, mIoU {row['miou']:.1f}"
            bar(row["epoch"], text, row["epochs"])

        result = run(features, annotations, to, settings, val, report)
    if as_json:
        _json({k: v for k, v in asdict(result).items() if k != "history"})
        return
    if result.without_features:
        err.print(f"[yellow]note:[/] {result.without_features} annotations have no video in {features}")
    if result.outside:
        err.print(f"[yellow]note:[/] {result.outside} annotations lie outside their video and were left out")
    out.print(
        f"{result.train_queries} queries trained on, {result.val_queries} validated on; best epoch "
        f"{result.metrics['epoch']:.0f}: R@1 IoU=0.5 {result.metrics['r1_at_0.5']:.1f}, "
        f"mIoU {result.metrics['miou']:.1f} -> {result.best}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def evaluate(
    features: Annotated[str, typer.Argument(help="feature store")],
    annotations: Annotated[Path, typer.Option("--annotations", "-a", help="annotations to test on")],
    checkpoint: CheckpointOption,
    to: Annotated[
        str | None, typer.Option("--out", "-o", help="directory for metrics.json and predictions.parquet")
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(help="directory or URI for report.html: curves, errors, best and worst"),
    ] = None,
    index_: Annotated[
        str | None, typer.Option("--index", "-i", help="index to ask the queries of, all its videos at once")
    ] = None,
    max_queries: Annotated[int | None, typer.Option(help="queries asked of the index at most")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a checkpoint: R@1 and R@5 at IoU 0.3/0.5/0.7 and mIoU, beside what needs no model."""
    from vmr_ray.evaluate import evaluate as run

    settings = _config(config, set_, {"evaluate.corpus_queries": max_queries})
    result = run(checkpoint, features, annotations, to, settings.evaluate, report, index_, settings.search)
    if as_json:
        _json(asdict(result))
        return
    out.print(metrics_table(result))
    if result.corpus:
        out.print(corpus_table(result.corpus))
    if report is not None:
        out.print(f"report -> {report}/report.html", highlight=False, soft_wrap=True, markup=False)
    if result.without_features:
        err.print(f"[yellow]note:[/] {result.without_features} annotations have no video in {features}")


@app.command()
def reproduce(
    recipe: Annotated[Path, typer.Argument(help="recipe, such as configs/charades_sta_i3d.yaml")],
    features: Annotated[
        list[Path],
        typer.Option(
            "--features", "-f", help="folder that holds the recipe's sources, or each of them; repeatable"
        ),
    ],
    annotations: Annotated[
        Path, typer.Option("--annotations", "-a", help="folder of the benchmark's annotation files")
    ],
    to: Annotated[str, typer.Option("--out", "-o", help="directory; the same one resumes")],
    workers: Annotated[int | None, typer.Option(help="data-parallel training processes")] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over the annotated videos")] = None,
    gpu: Annotated[bool | None, typer.Option("--gpu/--cpu", help="one GPU a worker")] = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a benchmark from published features: import, train, evaluate. Run it again to resume."""
    from vmr_ray.reproduce import load_recipe
    from vmr_ray.reproduce import reproduce as run

    flags = _flags({"train.workers": workers, "train.epochs": epochs, "train.use_gpu": gpu})
    settings = load_recipe(recipe, [*(set_ or []), *flags])
    with _bar("reproducing", None) as bar:
        result = run(
            settings,
            features,
            annotations,
            to,
            lambda done, todo: bar(done, "videos imported", todo),
            lambda row: bar(row["epoch"], f"epochs, loss {row['loss/total']:.3f}", row["epochs"]),
        )
    if as_json:
        _json(asdict(result.evaluation) | {"imported": asdict(result.imported)})
        return
    _quarantined(result.imported.quarantined)
    out.print(metrics_table(result.evaluation))
    if result.evaluation.without_features:
        err.print(f"[yellow]note:[/] {result.evaluation.without_features} annotations have no features")


def metrics_table(result: Any) -> Table:
    """An Evaluation as a table: the model and its two controls."""
    from vmr_ray.metrics import metric_label

    table = Table(title=f"{result.queries} queries on {result.videos} videos, percent")
    table.add_column("")
    columns = {
        "model": result.model,
        "best constant span": result.constant,
        "videos shuffled": result.shuffled,
    }
    for name in columns:
        table.add_column(name, justify="right")
    for key in result.model:
        row = (f"{found[key]:.1f}" if key in found else "-" for found in columns.values())
        table.add_row(metric_label(key), *row)
    return table


def corpus_table(corpus: Any) -> Table:
    """A Corpus as a table: the whole search, and its first stage."""
    from vmr_ray.metrics import metric_label

    table = Table(title=f"{corpus.queries} queries on all {corpus.videos} videos of the index, percent")
    table.add_column("")
    table.add_column("model", justify="right")
    for key, value in corpus.metrics.items():
        table.add_row(metric_label(key), f"{value:.1f}")
    table.add_row("stage 1 finds the video", f"{corpus.candidate_recall:.1f}")
    return table


@app.command()
def index(
    features: Annotated[str, typer.Argument(help="feature store")],
    checkpoint: CheckpointOption,
    to: Annotated[str, typer.Option("--out", "-o", help="index: a directory or an object-storage URI")],
    metadata: Annotated[
        str | None,
        typer.Option(help="JSONL or CSV with video_id and fields of your own, which searches can filter by"),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make embedded videos searchable. Run it again after embedding more: only the new ones are added."""
    from vmr_ray.index import build_index, read_metadata

    with _bar("indexing", None) as bar:
        summary = build_index(
            features,
            checkpoint,
            to,
            _config(config, set_).index,
            lambda done, todo: bar(done, "videos", todo),
            metadata=read_metadata(metadata) if metadata else None,
        )
    if as_json:
        _json(asdict(summary) | {"out": to})
        return
    out.print(
        f"{summary.added} videos added; the index holds {summary.videos} videos, "
        f"{summary.segments} segments -> {to}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="what happens in the moment, as a plain sentence")],
    index_: Annotated[str, typer.Option("--index", "-i", help="index directory or URI")],
    top_k: Annotated[int, typer.Option("--top", "-k", help="moments to show")] = 5,
    video: Annotated[list[str] | None, typer.Option(help="search this video only; repeatable")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the moments that show what a sentence says. Needs no Ray."""
    from vmr_ray.search import Searcher

    result = Searcher(index_, _config(config, set_).search).search(query, top_k, video)
    if as_json:
        _json(asdict(result))
        return
    out.print(moments_table(result.moments))


def moments_table(moments: Any) -> Table:
    table = Table()
    for name, justify in (
        ("", "right"),
        ("video", "left"),
        ("start", "right"),
        ("end", "right"),
        ("score", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for rank, m in enumerate(moments, start=1):
        table.add_row(str(rank), _plain(m.video_id), timecode(m.start), timecode(m.end), f"{m.score:.2f}")
    return table


def timecode(seconds: float) -> str:
    """83.46 -> 1:23.5"""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


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


features_app = typer.Typer(no_args_is_help=True, help="Check, pack or import features.")
app.add_typer(features_app, name="features")


@features_app.command()
def verify(
    features: Annotated[str, typer.Argument(help="feature store")],
    repair: Annotated[
        bool, typer.Option("--repair", help="delete damaged videos, so that `vmr embed` embeds them anew")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every chunk and check it. The exit code is 1 if anything is damaged, repaired or not."""
    from vmr_ray.features import verify as run

    with _bar("verifying", None) as bar:
        result = run(features, repair, lambda done, total: bar(done, "chunks", total))
    if as_json:
        _json(asdict(result))
    else:
        out.print(
            f"{result.videos} videos are whole: {result.frames} frames in {result.chunks} chunks; "
            f"problems: {len(result.problems)}",
            highlight=False,
            soft_wrap=True,
        )
        if result.unfinished:
            err.print(f"[yellow]note:[/] {result.unfinished} videos are unfinished: run `vmr embed` again")
        if result.leftovers:
            err.print(
                f"[yellow]note:[/] {len(result.leftovers)} files of interrupted work do no harm: "
                f"`vmr features compact {_plain(features)}` deletes them",
                highlight=False,
                soft_wrap=True,
            )
        for problem in result.problems:
            err.print(
                f"[bold red]damaged[/] {_plain(f'{problem.where} ({problem.what}): {problem.mend}')}",
                highlight=False,
                soft_wrap=True,
            )
    if result.problems:
        raise typer.Exit(1)


@features_app.command()
def compact(
    features: Annotated[str, typer.Argument(help="feature store")],
    target_mb: Annotated[float, typer.Option(help="size of a pack, in MB", min=1)] = 256,
    as_json: JsonOption = False,
) -> None:
    """Pack the files of finished videos into few big ones. Not while features are read; embed may run."""
    from vmr_ray.features import compact as run

    with _bar("packing", None) as bar:
        result = run(features, target_mb, lambda done, total: bar(done, "chunks", total))
    if as_json:
        _json(asdict(result))
        return
    out.print(
        f"{result.videos} videos packed, {result.bytes / 2**20:.1f} MB; {result.files_before} files are now "
        f"{result.files_after} -> {features}",
        highlight=False,
        soft_wrap=True,
    )


@features_app.command("import")
def import_(
    sources: Annotated[
        list[Path],
        typer.Argument(help="folders of .npy, .npz or .pt, one file a video, or HDF5 files; they are joined"),
    ],
    to: Annotated[str, typer.Option("--out", "-o", help="feature store: a directory or URI")],
    clip_seconds: Annotated[
        str | None,
        typer.Option(help="seconds of one clip, or `duration`: the video's duration in equal shares"),
    ] = None,
    fps: Annotated[float | None, typer.Option(help="clips a second, instead of --clip-seconds")] = None,
    name: Annotated[
        str | None, typer.Option(help="what to call the features; default: the sources' names")
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="array inside a file; once, or once for each source")
    ] = None,
    annotations: Annotated[
        list[Path] | None,
        typer.Option("--annotations", "-a", help="file that tells the videos' durations; repeatable"),
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="each source's rows to length 1")] = False,
    max_clips: Annotated[
        int | None, typer.Option(help="average longer videos down to this many clips", min=1)
    ] = None,
    tolerance: Annotated[
        int, typer.Option(help="clips by which sources or durations may differ; the excess is cut", min=0)
    ] = 2,
    max_failed: Annotated[
        float, typer.Option(help="share of failed videos above which the exit code is 1", min=0, max=1)
    ] = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Take precomputed features into a feature store. Finished videos are skipped, bad ones quarantined."""
    from vmr_ray.features.imports import import_features

    with _bar("importing", None) as bar:
        result = import_features(
            sources,
            to,
            _clip_seconds(clip_seconds, fps),
            name=name,
            keys=key or [],
            annotations=annotations or [],
            tolerance=tolerance,
            normalize=normalize,
            max_clips=max_clips,
            progress=lambda done, todo: bar(done, "videos", todo),
        )
    failed = len(result.quarantined)
    if as_json:
        _json(asdict(result) | {"out": to})
    else:
        out.print(
            f"{result.videos} videos: {result.imported} imported, {result.skipped} already there, {failed} "
            f"quarantined; {result.clips} clips of {result.dim} dimensions as {result.encoder} -> {to}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        if result.without_duration:
            err.print(f"[yellow]note:[/] {result.without_duration} videos without a known duration left out")
        _quarantined(result.quarantined)
    _fail_above(max_failed, failed, result.videos, "imported")


@features_app.command("import-text")
def import_text(
    source: Annotated[
        Path, typer.Argument(help="folder of .npz, .npy or .pt, one file a query, or one HDF5 file")
    ],
    annotations: Annotated[
        list[Path], typer.Option("--annotations", "-a", help="file with the queries; repeatable")
    ],
    to: Annotated[str, typer.Option("--out", "-o", help="directory or URI for the token states")],
    key: Annotated[
        str | None, typer.Option(help="array inside a file; default: last_hidden_state, or the only one")
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="every token to length 1")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="cut longer queries", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Take precomputed token states of queries, found by qid or row number, for `train.text_encoder`."""
    from vmr_ray.features.texts import import_text as run

    with _bar("importing", None) as bar:
        result = run(
            source,
            annotations,
            to,
            key=key,
            normalize=normalize,
            max_tokens=max_tokens,
            progress=lambda done, todo: bar(done, "queries", todo),
        )
    if as_json:
        _json(asdict(result) | {"out": to})
        return
    out.print(
        f"{result.queries} queries, {result.texts} different texts, states of {result.dim} dimensions; train "
        f"with --set train.text_encoder={_plain(result.encoder)}",
        highlight=False,
        soft_wrap=True,
    )


annotations_app = typer.Typer(no_args_is_help=True, help="Check annotation files.")
app.add_typer(annotations_app, name="annotations")


@annotations_app.callback()
def _annotations() -> None:
    """Check annotation files."""


@annotations_app.command()
def check(
    file: Annotated[Path, typer.Argument(help="JSONL/CSV of your own, or a benchmark's file")],
    features: Annotated[
        str | None, typer.Option(help="feature store: tell which videos of the file are in it")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say which rows are usable and how to mend the others. The exit code is 1 if any was dropped."""
    from vmr_ray.annotations.report import report as run

    result = run(file, features)
    if as_json:
        _json(asdict(result))
    else:
        out.print(
            f"{file} ({result.format}): {result.rows} rows, {result.kept} usable, of which "
            f"{sum(result.clipped.values())} were clipped; {sum(result.dropped.values())} dropped; "
            f"{result.videos} videos",
            highlight=False,
            soft_wrap=True,
        )
        for action, colour in (("dropped", "bold red"), ("clipped", "yellow")):
            rows = [f"{p.where}: {p.reason}" for p in result.problems if p.action == action]
            _listed(f"[{colour}]{action}[/]", rows)
        if result.with_features is not None and result.without_features is not None:
            out.print(f"{len(result.with_features)} of {result.videos} videos are in {features}")
            _listed("[yellow]without features[/]", result.without_features)
    if not result.usable:
        raise typer.Exit(1)


def _listed(label: str, lines: list[str], most: int = 20) -> None:
    """The first lines on stderr, and how many more there are."""
    for line in lines[:most]:
        err.print(f"{label} {_plain(line)}", highlight=False, soft_wrap=True)
    if len(lines) > most:
        err.print(f"{label} and {len(lines) - most} more")


def _fail_above(share: float, failed: int, videos: int, others: str) -> None:
    """End with exit code 1 if more than this share of the videos failed."""
    if failed > share * videos:
        err.print(
            f"[bold red]failed:[/] {failed} of {videos} videos are quarantined, more than the share "
            f"{share:g} that --max-failed allows; the others are {others}",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _quarantined(rows: list[Quarantined]) -> None:
    _listed("[yellow]quarantined[/]", [f"{row.video_id}: {row.error}" for row in rows])


def _clip_seconds(text: str | None, fps: float | None) -> float | Literal["duration"]:
    if (text is None) == (fps is None):
        raise VmrError("the length of a clip is not clear: give either --clip-seconds or --fps")
    if fps is not None:
        if fps <= 0:
            raise VmrError(f"--fps {fps:g}: give a number above 0")
        return 1 / fps
    if text == "duration":
        return "duration"
    try:
        return float(str(text))
    except ValueError:
        raise VmrError(f"--clip-seconds {text}: give seconds, for example 0.5, or duration") from None


def _config(path: Path | None, overrides: list[str] | None, flags: dict[str, Any] | None = None) -> Config:
    """The config file, then --set, then the flags of the verb itself."""
    return load_config(path, [*(overrides or []), *_flags(flags or {})])


def _flags(flags: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]


def _json(value: Any) -> None:
    print(json.dumps(value), flush=True)


def _write_json(path: str, value: Any) -> None:
    from vmr_ray.sources import filesystem

    target, inner = filesystem(path)
    with target.open_output_stream(inner) as stream:
        stream.write(json.dumps(value, indent=1).encode())


def _embed_text(now: Progress) -> str:
    left = "" if now.seconds_left is None else f", {duration(now.seconds_left)} left"
    return f"{now.failed} failed, {now.hours_per_hour:.1f} hours of video an hour{left}"


def duration(seconds: float) -> str:
    """8040 -> 2 h 14 min"""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _plain(text: str) -> str:
    """Text for rich, its square brackets kept."""
    from rich.markup import escape

    return escape(text)


@contextmanager
def _bar(name: str, total: float | None) -> Iterator[Any]:
    """Progress on stderr: a bar at a terminal, else a line now and then; yields update(done, text, total)."""
    columns = (
        bars.TextColumn(f"[bold]{name}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[text]}"),
        bars.TimeElapsedColumn(),
    )
    said = time.monotonic()
    with bars.Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(name, total=total, text="starting")

        def update(done: float, text: str, total: float | None = None) -> None:
            nonlocal said
            if total is not None:
                progress.update(task, total=total)
            progress.update(task, completed=done, text=text)
            if not err.is_terminal and time.monotonic() - said > LINE_SECONDS:
                said = time.monotonic()
                err.print(f"{name}: {done:g} of {progress.tasks[0].total:g}, {_plain(text)}", highlight=False)

        yield update


if __name__ == "__main__":
    main()
