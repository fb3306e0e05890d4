"""`vmr keys ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmr_ray.cli.common import print_line

keys_app = typer.Typer(no_args_is_help=True, help="Make API keys for the service.")


@keys_app.command()
def new(
    name: Annotated[str, typer.Argument(help="one word that says whose key it is")],
    file: Annotated[Path, typer.Option("--file", "-f", help="key file; it is made if it does not exist")],
) -> None:
    """Make an API key and print it. The file keeps only its hash, so it cannot be shown again.

    To revoke a key, delete its line and restart the service.
    """
    from vmr_ray.serve.auth import new_key

    print_line(new_key(name, file))
