"""The application `vmr` and its entry points: the console script, and the jobs under jobs/."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from vmr_ray import __version__, cluster
from vmr_ray.cli.annotations import annotations_app
from vmr_ray.cli.common import out, print_labelled
from vmr_ray.cli.demo import demo
from vmr_ray.cli.doctor import doctor
from vmr_ray.cli.embed import embed
from vmr_ray.cli.evaluate import evaluate
from vmr_ray.cli.features import features_app
from vmr_ray.cli.index import index
from vmr_ray.cli.keys import keys_app
from vmr_ray.cli.pipeline import pipeline
from vmr_ray.cli.reproduce import reproduce
from vmr_ray.cli.search import search
from vmr_ray.cli.serve import serve
from vmr_ray.cli.train import train
from vmr_ray.cli.up import up
from vmr_ray.errors import VmrError, causes, error_message, is_full_disk, one_line

app = typer.Typer(
    name="vmr",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Search inside video with plain sentences.

**vmr demo** shows all of it on small videos that it renders itself. **vmr up** VIDEOS searches a folder of
your own. Step by step, with a model that learns from your annotations:

1. **vmr embed** VIDEOS --out features
2. **vmr train** features --annotations train.jsonl --out run
3. **vmr evaluate** features --annotations test.jsonl --checkpoint run/best
4. **vmr index** features --checkpoint run/best --out index
5. **vmr search** "a person pours milk" --index index
6. **vmr serve** --index index

Ray: every verb joins the cluster of RAY_ADDRESS, or the one that runs on this machine, or starts one.
""",
    epilog="Exit codes: 0 done; 1 the work failed (too many bad videos, a crash); 2 a mistake in the input, "
    "explained in one sentence.",
)

# `vmr --help` lists the verbs in this order, which is the order in which a person uses them.
VERBS = {
    "Start here": (up, demo, doctor),
    "Step by step": (embed, train, evaluate, index, search, serve),
    "Many steps at once": (pipeline, reproduce),
}
for _panel, _verbs in VERBS.items():
    for _verb in _verbs:
        app.command(rich_help_panel=_panel)(_verb)
for _group, _name in ((keys_app, "keys"), (annotations_app, "annotations"), (features_app, "features")):
    app.add_typer(_group, name=_name, rich_help_panel="Keys and files")


def main() -> None:
    """The console script. A VmrError is one sentence on stderr and exit code 2."""
    sys.argv[1:] = words = _verbose_first(sys.argv[1:])
    # The libraries read these when they are loaded.
    if words[:1] != ["--verbose"]:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("LANCE_LOG", "error")
    try:
        app()
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        print_labelled("error:", sentence, "bold red")
        sys.exit(2 if isinstance(error, VmrError) and not is_full_disk(error) else 1)


def sentence_of(error: BaseException) -> str | None:
    """The sentence to print if a person can fix the error, also one raised in a Ray worker; else None."""
    for cause in causes(error):
        if isinstance(cause, VmrError):
            return error_message(cause)
        if isinstance(cause, OSError):
            return f"{type(getattr(cause, 'cause', None) or cause).__name__}: {one_line(cause)}"
    return None


def run_job(verb: str) -> None:
    """Run one verb as a Ray job: the flags of `vmr VERB`, the result as JSON on the last line."""
    sys.argv[1:] = [verb, "--json", *sys.argv[1:]]
    main()


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    # Eager, because without a verb nothing else is run.
    version: Annotated[
        bool,
        typer.Option("--version", help="print the version and exit", callback=_print_version, is_eager=True),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="show Ray's own progress and logs")
    ] = False,
) -> None:
    if not verbose:
        cluster.quiet()


def _verbose_first(words: list[str]) -> list[str]:
    """Move -v to the front. It is an option of the application, but may stand anywhere before `--`."""
    end = words.index("--") if "--" in words else len(words)
    if not {"-v", "--verbose"} & set(words[:end]):
        return words
    return ["--verbose", *(w for w in words[:end] if w not in ("-v", "--verbose")), *words[end:]]
