"""Fit the calibration of an untrained dual encoder to an evaluation, and print it.

    vmr evaluate FEATURES --annotations FILE --checkpoint INDEX/checkpoint --out OUT
    python -m tools.presence OUT/predictions.parquet

That of `everyday` in `vmr_ray/model/similarity.py` was made so, of the slideshows of docs/accuracy.md; that
of `everyday-multilingual` is the same fit to videos composed of the same photos, and not rendered. A training
calibrates its checkpoints itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer

from vmr_ray.errors import VmrError
from vmr_ray.model.presence import fit_presence


def main(predictions: Annotated[Path, typer.Argument(help="what `vmr evaluate --out` has written")]) -> None:
    """Print the calibration as JSON."""
    table = pq.read_table(predictions, columns=["predicted", "shuffled"])
    shown, absent = (
        [ranked[0][2] for ranked in table[name].to_pylist()] for name in ("predicted", "shuffled")
    )
    presence = fit_presence(shown, absent)
    if presence is None:
        raise VmrError(f"{predictions}: the scores do not tell a query's own video from another one")
    print(presence.model_dump_json(indent=1))


if __name__ == "__main__":
    typer.run(main)
