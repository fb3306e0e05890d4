"""Videos and annotations -> index: embed, train, evaluate, index. The same call goes on where it stopped.

OUT/features-*       the feature store, one for each encoder and sampling
OUT/run-*            the run of `train`, one for each set of settings and annotations; report/ in it
OUT/index-*          the index, one for each checkpoint
OUT/pipeline.json    the steps that are finished, each with a digest of its settings and inputs
"""

from __future__ import annotations

import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pyarrow import fs
from pydantic import Field

from vmr_ray.annotations import AnnotationSet, load_annotations
from vmr_ray.annotations.video_ids import by_video
from vmr_ray.config import Config, Section, load_as
from vmr_ray.embedding.embed import embed
from vmr_ray.errors import VmrError, one_line
from vmr_ray.evaluation.evaluate import evaluate
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import load_info
from vmr_ray.search.build import build_index, forget_videos
from vmr_ray.storage import absolute, exists, filesystem, is_remote, read_json, short_hash, write_json
from vmr_ray.training.train import identity, train
from vmr_ray.video.sources import find_videos

Say = Callable[[str], None]


class PipelineConfig(Section):
    """What goes in and out."""

    videos: tuple[str, ...] = Field(min_length=1, description="files, directories, globs, manifests, URIs")
    annotations: str = Field(description="to train on: a path or URI")
    val: str | None = Field(None, description="to validate on; default: some videos are held out")
    test: str | None = Field(None, description="to evaluate on; default: no evaluation")
    out: str = Field(
        pattern="^[^?#]+$", description="a directory or URI, without options: those come from the environment"
    )


class Plan(Config):
    """The sections of every config, and what the pipeline is to do."""

    pipeline: PipelineConfig


@dataclass
class Step:
    """One step of the pipeline: what became of it, and what its own job would have printed."""

    status: Literal["done", "skipped", "failed", "pending"] = "pending"
    seconds: float = 0.0  # of work, also if that was in an earlier call
    result: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass
class Outcome:
    """Every step of a call, and what serves: empty until it is there."""

    out: str
    steps: dict[str, Step]
    checkpoint: str = ""
    index: str = ""
    exit_code: int = 0  # 1: the work failed; 2: a mistake in the input


def load_plan(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Plan:
    """Read a config with a section `pipeline` and apply `section.key=value` overrides.

    Raises:
        VmrError: the file is missing or not YAML, a key is unknown or missing, or a value is refused.
    """
    return load_as(Plan, path, overrides)


def run_pipeline(plan: Plan, say: Say = lambda text: None) -> Outcome:
    """Do every step that is not finished with these settings and inputs.

    A failure ends the pipeline and is told in the outcome, not raised; the same call goes on there.

    Args:
        say: called with one line at the beginning and the end of a step, and with the trace of a crash.
    """
    given, config = plan.pipeline, Config(**{name: getattr(plan, name) for name in Config.model_fields})
    out = absolute(given.out).rstrip("/")
    names = ("embed", "train", *(["evaluate"] if given.test else []), "index")
    outcome = Outcome(out, {name: Step() for name in names})
    with tempfile.TemporaryDirectory() as scratch:
        run = _Run(out, outcome, say)
        try:
            files = {
                name: _local(path, f"{scratch}/{name}")
                for name in ("annotations", "val", "test")
                if (path := getattr(given, name))
            }
            # All of them before hours of embedding: a mistake in a line is told at once.
            read = {name: load_annotations(path) for name, path in files.items()}
            _steps(run, config, given.videos, read)
        except Exception as error:
            run.fail(error)
    return outcome


def _steps(
    run: _Run,
    config: Config,
    inputs: Sequence[str],
    read: dict[str, AnnotationSet],
) -> None:
    embedding = config.embed
    features = f"{run.out}/features-{_digest(embedding.encoder, embedding.decode.sampling)}"
    videos = find_videos(inputs, embedding.storage_roots)

    with run.step("embed") as step:  # always: it knows itself which videos are finished
        assert step
        summary = embed(inputs, features, embedding)
        step.result = asdict(summary)
        failed = len(summary.quarantined)
        if failed > embedding.max_failed * summary.videos:
            raise _WorkError(
                f"{failed} of {summary.videos} videos are quarantined, more than the share "
                f"embed.max_failed={embedding.max_failed:g}; the first, "
                f"{summary.quarantined[0].video_id}: {summary.quarantined[0].error}"
            )
        store = FeatureStore.open(features)
        gone = _forget(run.out, store, {video.video_id for video in videos})
        if gone:
            run.say(f"embed: {gone} videos are no longer listed, and taken out")
        if not summary.embedded and not failed and not gone:
            step.status = "skipped"

    chunks = store.files()
    rows = {name: annotations.annotations for name, annotations in read.items()}
    versions = {video: store.version(held) for video, held in chunks.items()}

    def used(*names: str) -> list[Any]:
        """The annotations of these files, and the features that they find."""
        there = [by_video(rows[name], chunks) if name in rows else {} for name in names]
        return [
            repr(list(map(rows.get, names))),
            sorted({(v, versions[v]) for group in there for v in group}),
        ]

    learned = used("annotations", "val")
    trained = f"{run.out}/run-{_digest(identity(config), features, *learned)}"
    made = f"{trained}/history.json"
    with run.step("train", made, _json(config.model), _json(config.train), trained) as step:
        if step:
            result = train(features, read["annotations"], trained, config, read.get("val"))
            step.result = {key: value for key, value in asdict(result).items() if key != "history"}
    version = load_info(f"{trained}/best").version
    run.outcome.checkpoint = f"{trained}/best"

    if "test" in read:
        report = f"{trained}/report"
        made = f"{report}/metrics.json"
        with run.step("evaluate", made, _json(config.evaluate), version, used("test")) as step:
            if step:
                measured = evaluate(
                    features, read["test"], run.outcome.checkpoint, report, config.evaluate, report
                )
                step.result = asdict(measured)

    index = f"{run.out}/index-{_digest(version, _json(config.index))}"
    with run.step("index", f"{index}/checkpoint/checkpoint.json", index, sorted(versions.items())) as step:
        if step:
            step.result = asdict(build_index(features, run.outcome.checkpoint, index, config.index))
    run.outcome.index = index


class _WorkError(Exception):
    """The input was right; the work was not."""


class _Run:
    """The state of a pipeline: OUT/pipeline.json, and the outcome of this call."""

    def __init__(self, out: str, outcome: Outcome, say: Say):
        self.out, self.outcome, self.say = out, outcome, say
        self.at = ""  # the step at work
        self._began = 0.0

    @contextmanager
    def step(self, name: str, made: str | None = None, *given: Any) -> Iterator[Step | None]:
        """Yields the step to do, or None: it was done with what is `given`, and what it `made` is there."""
        step, digest, state = self.outcome.steps[name], _digest(*given), self._read()
        before = state.get(name, {})
        if made and before.get("digest") == digest and exists(made):
            step.status, step.seconds, step.result = "skipped", before["seconds"], before["result"]
            self.say(f"{name}: done before")
            yield None
            return
        self.say(f"{name}: begins")
        self.at, self._began = name, time.monotonic()
        yield step
        step.seconds = time.monotonic() - self._began
        state[name] = {"digest": digest, "seconds": step.seconds, "result": step.result}
        write_json(f"{self.out}/pipeline.json", state)
        if step.status == "pending":
            step.status = "done"
        self.at = ""
        self.say(f"{name}: {step.status} in {step.seconds:.0f} s")

    def fail(self, error: Exception) -> None:
        """Note a failure of the step at work, or else of the first one to come."""
        mistake = isinstance(error, VmrError)
        waiting = [name for name, step in self.outcome.steps.items() if step.status == "pending"]
        step = self.outcome.steps[self.at or waiting[0]]
        step.status, step.error = "failed", one_line(error)
        if self.at:
            step.seconds = time.monotonic() - self._began
        self.outcome.exit_code = 2 if mistake else 1
        if not mistake and not isinstance(error, _WorkError):
            self.say("".join(traceback.format_exception(error)).rstrip())

    def _read(self) -> dict[str, Any]:
        fix = "delete it; the steps then find out themselves what is finished"
        try:
            state = read_json(f"{self.out}/pipeline.json", fix)
        except FileNotFoundError:
            return {}
        if not isinstance(state, dict):
            raise VmrError(f"{self.out}/pipeline.json is damaged: {fix}")
        return state


def _local(path: str, folder: str) -> Path:
    """`path`, or its copy in `folder` if it is on object storage.

    Raises:
        VmrError: it cannot be read.
    """
    source, inner = filesystem(path)
    if not is_remote(path):
        return Path(inner)
    copy = Path(folder) / PurePosixPath(inner).name
    copy.parent.mkdir()
    try:
        fs.copy_files(inner, str(copy), source_filesystem=source)
    except OSError as error:
        raise VmrError(f"cannot read {path}: {one_line(error)}") from None
    return copy


def _forget(out: str, store: FeatureStore, listed: set[str]) -> int:
    """Take videos that are no longer listed out of all indexes, then of the features; returns how many."""
    gone = set(store.video_ids()) - listed
    if gone:
        filesys, path = filesystem(out)
        for info in filesys.get_file_info(fs.FileSelector(path)):
            index = f"{out}/{info.base_name}"
            if info.base_name.startswith("index-") and exists(f"{index}/checkpoint/checkpoint.json"):
                forget_videos(index, gone)
    for video in gone:
        store.delete(video)
    return len(gone)


def _json(section: Section) -> Any:
    return section.model_dump(mode="json")


def _digest(*given: Any) -> str:
    return short_hash(json.dumps(given, sort_keys=True))
