"""`vmr reproduce`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vmr_ray.cli.common import (
    EpochsOption,
    GpuOption,
    JsonOption,
    SetOption,
    WorkersOption,
    as_overrides,
    out,
    print_json,
    print_labelled,
    progress_bar,
    show_quarantined,
)


def reproduce(
    recipe: Annotated[Path, typer.Argument(help="recipe, such as configs/charades_sta_i3d.yaml")],
    features: Annotated[
        list[Path],
        typer.Option(
            "--features", "-f", help="folder that holds the recipe's sources, or each source; repeatable"
        ),
    ],
    annotations: Annotated[
        Path, typer.Option("--annotations", "-a", help="folder of the benchmark's annotation files")
    ],
    to: Annotated[str, typer.Option("--out", "-o", help="directory; give the same one to resume")],
    workers: WorkersOption = None,
    epochs: EpochsOption = None,
    gpu: GpuOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import published features, then train and evaluate.

    Run the same command again to resume. The recipes are in configs/, which pip installs as
    share/vmr-ray/configs/ of the environment.
    """
    from vmr_ray.evaluation.tables import metrics_table
    from vmr_ray.workflows.reproduce import load_recipe
    from vmr_ray.workflows.reproduce import reproduce as run

    flags = as_overrides({"train.workers": workers, "train.epochs": epochs, "train.use_gpu": gpu})
    settings = load_recipe(recipe, [*(set_ or []), *flags])
    with progress_bar("reproducing") as bar:
        result = run(
            settings,
            features,
            annotations,
            to,
            lambda done, total: bar(done, "videos imported", total),
            lambda row: bar(row["epoch"], f"epochs, loss {row['loss/total']:.3f}", row["epochs"]),
        )
    if as_json:
        print_json(asdict(result.evaluation) | {"imported": asdict(result.imported)})
        return
    show_quarantined(result.imported.quarantined)
    out.print(metrics_table(result.evaluation))
    if result.evaluation.without_features:
        print_labelled("note:", f"{result.evaluation.without_features} annotations have no features")
