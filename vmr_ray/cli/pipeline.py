"""`vmr pipeline`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from vmr_ray.cli.common import (
    ConfigOption,
    JsonOption,
    SetOption,
    as_overrides,
    err,
    plain,
    print_json,
    print_labelled,
    print_line,
    show_left_out,
)


def pipeline(
    videos: Annotated[
        list[str] | None, typer.Argument(help="files, directories, globs, manifests, URIs; as `vmr embed`")
    ] = None,
    annotations: Annotated[
        str | None, typer.Option("--annotations", "-a", help="annotations to train on: a path or URI")
    ] = None,
    val: Annotated[
        str | None, typer.Option(help="validation annotations; default: some videos are held out")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="annotations to evaluate on; default: no evaluation")
    ] = None,
    to: Annotated[str | None, typer.Option("--out", "-o", help="directory or URI of all results")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embed, train, evaluate and index.

    Run the same command again to resume at the step that failed. The arguments may also stand in the
    section `pipeline` of the config file.
    """
    from vmr_ray.workflows.pipeline import load_plan, run_pipeline

    flags = {"videos": videos or None, "annotations": annotations, "val": val, "test": test, "out": to}
    plan = load_plan(config, [*(set_ or []), *as_overrides({f"pipeline.{k}": v for k, v in flags.items()})])
    outcome = run_pipeline(plan, lambda text: err.print(plain(text), highlight=False, soft_wrap=True))
    for name, step in outcome.steps.items():
        if not as_json:
            print_line(f"{name}: {step.status}, {step.seconds:.0f} s")
            show_left_out(step.result.get("left_out", []))
        if step.error:
            print_labelled("error:", f"{name}: {step.error}", "bold red")
    if as_json:
        print_json(asdict(outcome))
    elif outcome.index:
        print_line(f'search: vmr search "a sentence" --index {outcome.index}')
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
