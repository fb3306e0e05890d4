"""`vmr serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmr_ray.cli.common import print_line, waiting


def serve(
    index_: Annotated[str, typer.Option("--index", "-i", help="index: a directory or URI")],
    host: Annotated[
        str, typer.Option(help="address to listen on; the default is reachable from this machine only")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on")] = 8000,
    key_file: Annotated[
        Path | None,
        typer.Option(help="API keys, see `vmr keys new`; without keys only this machine is answered"),
    ] = None,
    root: Annotated[
        list[str] | None,
        typer.Option(help="directory or URI prefix from which videos may be added; repeatable"),
    ] = None,
) -> None:
    """Serve an index over HTTP until Ctrl-C.

    The page is at /, the API at /docs. For a cluster use `serve deploy` with a file of serve_configs/,
    which pip installs as share/vmr-ray/serve_configs/ of the environment.
    """
    from vmr_ray.serve.local import serve_until_interrupt, start

    with waiting("starting the service"):
        url = start(index_, host, port, key_file, root or ())
    print_line(f"serving {index_} at {url} (API: {url}docs); Ctrl-C stops")
    serve_until_interrupt()
