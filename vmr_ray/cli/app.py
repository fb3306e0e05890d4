"""The entry point of `vmr`, and of the jobs under jobs/, which are the same verbs."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from vmr_ray import __version__, cluster
from vmr_ray.cli import archive, doctor, features, find, learn, pipeline, up  # noqa: F401  (each adds its verbs)
from vmr_ray.cli.common import app, err, out, plain
from vmr_ray.errors import VmrError, error_message, one_line


def main() -> None:
    """The console script: a VmrError is one sentence on stderr and exit code 2."""
    sys.argv[1:] = words = _verbose_first(sys.argv[1:])
    # Quiet unless asked: these are read when the libraries load.
    if words[:1] != ["--verbose"]:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("LANCE_LOG", "error")
    try:
        app()
    except Exception as error:
        mistake = mistake_of(error)
        if mistake is None:
            raise
        err.print(f"[bold red]error:[/] {plain(mistake)}", highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, VmrError) else 1)


def mistake_of(error: BaseException | None) -> str | None:
    """The sentence for a person, if this is a mistake of theirs: also one that a Ray worker found."""
    while error is not None:
        if isinstance(error, VmrError):
            return error_message(error)
        cause = getattr(error, "cause", None)
        if isinstance(error, OSError):
            return f"{type(cause or error).__name__}: {one_line(error)}"
        error = cause or error.__cause__
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
    if not verbose:
        cluster.quiet()


def _verbose_first(words: list[str]) -> list[str]:
    """-v may stand anywhere before `--`; the option is the application's own."""
    end = words.index("--") if "--" in words else len(words)
    if not {"-v", "--verbose"} & set(words[:end]):
        return words
    return ["--verbose", *(w for w in words[:end] if w not in ("-v", "--verbose")), *words[end:]]
