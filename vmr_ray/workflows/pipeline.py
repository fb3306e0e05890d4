"""Videos and annotations -> index: embed, train, evaluate, index. The same call resumes where it stopped.

OUT/features-*       the feature store, one for each encoder, sampling and fit
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pyarrow import fs
from pydantic import Field

from vmr_ray.annotations import AnnotationSet, load_annotations
from vmr_ray.annotations.video_ids import by_video
from vmr_ray.config import Config, EmbedConfig, Section, load_as
from vmr_ray.embedding.embed import embed_videos
from vmr_ray.encoders import frame_scaling
from vmr_ray.errors import VmrError, one_line
from vmr_ray.evaluation.evaluate import evaluate
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import load_info
from vmr_ray.schema import Video
from vmr_ray.search.build import build_index
from vmr_ray.storage import absolute, exists, filesystem, is_remote, join, read_json, short_hash, write_json
from vmr_ray.training.train import identity, train
from vmr_ray.video.sources import find_videos
from vmr_ray.workflows.forget import forget_unlisted

Log = Callable[[str], None]


class PipelineConfig(Section):
    """Inputs and outputs."""

    videos: tuple[str, ...] = Field(min_length=1, description="files, directories, globs, manifests, URIs")
    annotations: str = Field(description="to train on: a path or URI")
    val: str | None = Field(None, description="to validate on; default: some videos are held out")
    test: str | None = Field(None, description="to evaluate on; default: no evaluation")
    out: str = Field(
        pattern="^[^?#]+$", description="a directory or URI, without options: those come from the environment"
    )


class Plan(Config):
    """The sections of every config, and the pipeline's own."""

    pipeline: PipelineConfig


@dataclass
class Step:
    """One step of the pipeline. `result` is what the step's own job would have printed."""

    status: Literal["done", "skipped", "failed", "pending"] = "pending"
    seconds: float = 0.0  # of work; a skipped step has those of the call that did it
    result: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass
class Outcome:
    """The steps of one call. `checkpoint` and `index` are empty until they exist."""

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


def run_pipeline(plan: Plan, log: Log = lambda line: None) -> Outcome:
    """Do every step that is not finished with these settings and inputs.

    A failure ends the pipeline and is reported in the outcome, not raised; the same call resumes there.

    Args:
        log: called with one line at the beginning and the end of a step, and with the traceback of a crash.
    """
    section, config = plan.pipeline, Config(**{name: getattr(plan, name) for name in Config.model_fields})
    out = absolute(section.out).rstrip("/")
    names = ("embed", "train", *(["evaluate"] if section.test else []), "index")
    outcome = Outcome(out, {name: Step() for name in names})
    steps = StepRunner(outcome, log)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            files = {
                name: _local(path, f"{scratch}/{name}")
                for name in ("annotations", "val", "test")
                if (path := getattr(section, name))
            }
            # All of them before hours of embedding: a mistake in a line is reported at once.
            sets = {name: load_annotations(path) for name, path in files.items()}
            left_out: list[str] = []
            videos = find_videos(section.videos, config.embed.storage_roots, left_out)
            _run(steps, config, videos, left_out, sets)
        except Exception as error:
            steps.fail(error)
    return outcome


def _run(
    steps: StepRunner,
    config: Config,
    videos: Sequence[Video],
    left_out: list[str],
    sets: dict[str, AnnotationSet],
) -> None:
    """All steps. `left_out` are files that are no videos; `sets` are the annotations, by "annotations", "val"
    and "test"."""
    out, outcome = steps.outcome.out, steps.outcome
    fit = frame_scaling(config.embed.encoder, config.embed.fit).fit
    unusual = [] if fit == "squash" else [fit]  # the names are those that earlier versions gave
    features = f"{out}/features-{_digest(config.embed.encoder, config.embed.decode.sampling, *unusual)}"
    with steps.work("embed") as step:  # never skipped: it finds out itself which videos are finished
        _embed(step, out, features, videos, left_out, config.embed, steps.log)

    store = FeatureStore.open(features)
    chunks = store.files()
    rows = {name: annotations.annotations for name, annotations in sets.items()}
    versions = {video_id: store.version(addresses) for video_id, addresses in chunks.items()}

    def inputs(*names: str) -> list[Any]:
        """These annotations, and the versions of the features of their videos."""
        annotated = {v for name in names if name in rows for v in by_video(rows[name], chunks)}
        return [repr([rows.get(name) for name in names]), sorted((v, versions[v]) for v in annotated)]

    learned = inputs("annotations", "val")
    run = f"{out}/run-{_digest(identity(config), features, *learned)}"

    def train_result() -> dict[str, Any]:
        result = train(features, sets["annotations"], run, config, sets.get("val"))
        return {key: value for key, value in asdict(result).items() if key != "history"}

    steps.once("train", f"{run}/history.json", [_json(config.model), _json(config.train), run], train_result)
    outcome.checkpoint = checkpoint = f"{run}/best"
    version = load_info(checkpoint).version

    if "test" in sets:
        report = f"{run}/report"
        steps.once(
            "evaluate",
            f"{report}/metrics.json",
            [_json(config.evaluate), version, inputs("test")],
            lambda: asdict(evaluate(features, sets["test"], checkpoint, report, config.evaluate, report)),
        )

    index = f"{out}/index-{_digest(version, _json(config.index))}"
    steps.once(
        "index",
        f"{index}/checkpoint/checkpoint.json",
        [index, sorted(versions.items())],
        lambda: asdict(build_index(features, checkpoint, index, config.index)),
    )
    outcome.index = index


def _embed(
    step: Step,
    out: str,
    features: str,
    videos: Sequence[Video],
    left_out: list[str],
    config: EmbedConfig,
    log: Log,
) -> None:
    """Embed the videos, and forget those of earlier calls that are no longer listed."""
    summary = replace(embed_videos(videos, features, config), left_out=left_out)
    step.result = asdict(summary)
    failed = len(summary.quarantined)
    if failed > config.max_failed * summary.videos:
        raise _WorkError(
            f"{failed} of {summary.videos} videos are quarantined, more than the share "
            f"embed.max_failed={config.max_failed:g}; the first, "
            f"{summary.quarantined[0].video_id}: {summary.quarantined[0].error}"
        )
    # Only videos that have features here: those that were added to an index by its service stay.
    forgotten = forget_unlisted(FeatureStore.open(features), out, {video.video_id for video in videos})
    if forgotten:
        log(f"embed: {forgotten} videos are no longer listed, and taken out")
    if not summary.embedded and not failed and not forgotten:
        step.status = "skipped"


class _WorkError(Exception):
    """The input was right; the work was not."""


class StepRunner:
    """Runs the steps of an outcome, and keeps in OUT/pipeline.json which are finished."""

    def __init__(self, outcome: Outcome, log: Log):
        self.outcome, self.log = outcome, log
        self._current = ""  # name of the step at work
        self._began = 0.0

    def once(self, name: str, made: str, inputs: Sequence[Any], work: Callable[[], dict[str, Any]]) -> None:
        """Do the step `name`, unless it was done with the same `inputs` and the file it `made` exists.

        Args:
            inputs: JSON values.
            work: returns the step's result.
        """
        step, digest = self.outcome.steps[name], _digest(*inputs)
        before = self._read().get(name, {})
        if before.get("digest") == digest and exists(made):
            step.status, step.seconds, step.result = "skipped", before["seconds"], before["result"]
            self.log(f"{name}: done before")
            return
        with self.work(name, digest) as step:
            step.result = work()

    @contextmanager
    def work(self, name: str, digest: str = "") -> Iterator[Step]:
        """Times the step in the block; when the block ends, the step is done with the inputs of `digest`."""
        step, state = self.outcome.steps[name], self._read()
        self.log(f"{name}: begins")
        self._current, self._began = name, time.monotonic()
        yield step
        step.seconds = time.monotonic() - self._began
        state[name] = {"digest": digest, "seconds": step.seconds, "result": step.result}
        write_json(join(self.outcome.out, "pipeline.json"), state)
        if step.status == "pending":
            step.status = "done"
        self._current = ""
        self.log(f"{name}: {step.status} in {step.seconds:.0f} s")

    def fail(self, error: Exception) -> None:
        """Record a failure of the step at work; between two steps, of the next one."""
        mistake = isinstance(error, VmrError)
        pending = [name for name, step in self.outcome.steps.items() if step.status == "pending"]
        step = self.outcome.steps[self._current or pending[0]]
        step.status, step.error = "failed", one_line(error)
        if self._current:
            step.seconds = time.monotonic() - self._began
        self.outcome.exit_code = 2 if mistake else 1
        if not mistake and not isinstance(error, _WorkError):
            self.log("".join(traceback.format_exception(error)).rstrip())

    def _read(self) -> dict[str, Any]:
        path = f"{self.outcome.out}/pipeline.json"
        fix = "delete it; the steps then find out themselves what is finished"
        try:
            state = read_json(path, fix)
        except FileNotFoundError:
            return {}
        if not isinstance(state, dict):
            raise VmrError(f"{path} is damaged: {fix}")
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


def _json(section: Section) -> Any:
    return section.model_dump(mode="json")


def _digest(*given: Any) -> str:
    return short_hash(json.dumps(given, sort_keys=True))
