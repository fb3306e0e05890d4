"""How the pipeline reports bad input, and the state it keeps, without any work."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import yaml

from vmr_ray.errors import VmrError
from vmr_ray.workflows.pipeline import Outcome, Step, StepRunner, load_plan, run_pipeline

ANNOTATIONS = Path(__file__).parents[2] / "fixtures" / "annotations"


def plan(tmp_path: Path, **given: str):
    fields = {
        "videos": [str(tmp_path)],
        "annotations": str(ANNOTATIONS / "vmr.jsonl"),
        "out": str(tmp_path / "o"),
    }
    return load_plan(
        None,
        [
            f"pipeline.{key}={json.dumps(value, ensure_ascii=False)}"
            for key, value in {**fields, **given}.items()
        ],
    )


def test_a_config_file_holds_everything(tmp_path: Path):
    path = tmp_path / "plan.yaml"
    section = {"videos": ["s3://archive/videos"], "annotations": "train.jsonl", "out": "s3://archive/vmr"}
    path.write_text(yaml.safe_dump({"pipeline": section, "train": {"epochs": 3}}))
    read = load_plan(path, ["pipeline.test=test.jsonl"])
    assert (read.train.epochs, read.pipeline.videos, read.pipeline.test) == (
        3,
        ("s3://archive/videos",),
        "test.jsonl",
    )
    with pytest.raises(VmrError, match=r"unknown key 'pipeline\.tset'; known here: videos, annotations"):
        load_plan(path, ["pipeline.tset=x"])
    with pytest.raises(VmrError, match=r"pipeline\.annotations: Field required"):
        load_plan(None, ["pipeline.videos=[x]", "pipeline.out=x"])


def test_places_are_what_they_are_called(tmp_path: Path):
    assert plan(tmp_path, out="2024", annotations="1e3").pipeline.out == "2024"
    assert plan(tmp_path, out="vidéos 🎬").pipeline.out == "vidéos 🎬"
    with pytest.raises(VmrError, match=r"pipeline\.out"):
        plan(tmp_path, out="s3://archive/out?region=us-west-2")
    slash = run_pipeline(plan(tmp_path, out=f"{tmp_path}/o/", videos=["gone/"]))
    assert slash.out == f"{tmp_path}/o" and slash.exit_code == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"annotations": "gone.jsonl"}, "gone.jsonl"),
        ({"test": str(ANNOTATIONS / "broken.csv")}, r"broken\.csv: line"),
        ({"videos": ["gone/"]}, "no such file or directory: gone"),
        ({"annotations": "s4://archive/train.jsonl"}, "s4://archive/train.jsonl"),
    ],
)
def test_mistakes_in_the_input_are_reported_before_any_work(tmp_path: Path, given, message: str):
    outcome = run_pipeline(plan(tmp_path, **given))
    assert outcome.exit_code == 2
    assert outcome.steps["embed"].status == "failed"
    assert {step.status for name, step in outcome.steps.items() if name != "embed"} == {"pending"}
    assert re.search(message, outcome.steps["embed"].error or "")
    assert not (tmp_path / "o").exists()


def test_a_step_is_done_once_for_the_same_input(tmp_path: Path):
    done = []

    def call(*inputs: object, crash: bool = False) -> Outcome:
        outcome = Outcome(str(tmp_path / "o"), {"one": Step(), "two": Step()})
        steps = StepRunner(outcome, lambda line: None)

        def work(name: str) -> dict[str, object]:
            if crash and name == "two":
                raise RuntimeError("the machine caught fire")
            (tmp_path / f"{name}.json").write_text("{}")
            done.append(name)
            return {"inputs": list(inputs)}

        try:
            for name in outcome.steps:
                steps.once(name, f"{tmp_path}/{name}.json", inputs, partial(work, name))
        except Exception as error:
            steps.fail(error)
        return outcome

    failed = call("a", crash=True)
    assert (failed.exit_code, failed.steps["two"].status) == (1, "failed")
    assert failed.steps["two"].error == "the machine caught fire"
    assert call("a").steps["one"].status == "skipped" and done == ["one", "two"]
    again = call("a")
    assert {step.status for step in again.steps.values()} == {"skipped"} and again.exit_code == 0
    assert again.steps["two"].result == {"inputs": ["a"]}
    call("b")
    assert done == ["one", "two", "one", "two"]
    (tmp_path / "one.json").unlink()  # what it made has gone
    assert [step.status for step in call("b").steps.values()] == ["done", "skipped"]
    (tmp_path / "o" / "pipeline.json").write_text("{")
    damaged = call("b")
    assert damaged.exit_code == 2 and "delete it" in damaged.steps["one"].error
    shutil.rmtree(tmp_path / "o")
    assert [step.status for step in call("b").steps.values()] == ["done", "done"]
