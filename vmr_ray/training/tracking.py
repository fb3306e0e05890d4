"""Logs the metrics of a training to TensorBoard and MLflow; needs the extra `tracking`.

OUT/tensorboard     event files
OUT/mlflow.db       MLflow's database, unless MLFLOW_TRACKING_URI names a server
OUT/tracking.json   the id of the MLflow run, so that a resumed training logs to the same one
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pyarrow import fs

from vmr_ray.config import Config
from vmr_ray.errors import VmrError, one_line
from vmr_ray.storage import filesystem, is_remote, join, read_json, redact_credentials, write_json

Report = Callable[[dict[str, float]], None]
_NEEDS = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Logs the metrics of epochs; `logged` is the last epoch logged, 0 at the beginning."""

    logged: int

    def log(self, epoch: int, metrics: dict[str, float]) -> None: ...

    def close(self, status: str) -> None:
        """`status` is FINISHED, FAILED or KILLED."""


def require(names: Sequence[str]) -> None:
    """Raises VmrError if the packages of a tracker are not installed."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads it when it is imported
    for name in names:
        for package in _NEEDS[name]:
            try:
                import_module(package)
            except ImportError:
                raise VmrError(
                    f"tracking with {name} needs the package {package}: pip install 'vmr-ray[tracking]'"
                ) from None


@contextmanager
def tracked(out: str, config: Config, report: Report | None = None) -> Iterator[Report]:
    """A report that passes every row on to the trackers of `config.train.track`, and to `report`.

    An epoch that a tracker has already, from an earlier call or from before a worker was lost, is not logged
    again. A tracker that fails during the training is dropped with a warning, because the training matters
    more.

    Raises:
        VmrError: a tracker cannot be opened.
    """
    status = "FAILED"
    trackers: list[Tracker] = []

    def pass_on(row: dict[str, float]) -> None:
        epoch = int(row["epoch"])
        for tracker in [t for t in trackers if epoch > t.logged]:
            with _or_leave_out(tracker, trackers):
                tracker.log(epoch, {k: v for k, v in row.items() if k != "epoch"})
                tracker.logged = epoch
        if report:
            report(row)

    with ExitStack() as stack:
        for name in dict.fromkeys(config.train.track):
            try:
                trackers.append(_TRACKERS[name](out, config, stack))
            except VmrError:
                raise
            except Exception as error:
                raise VmrError(
                    f"cannot track with {name} ({one_line(error, 300)}): fix that, or train without it"
                ) from error
        try:
            yield pass_on
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            for tracker in list(trackers):
                with _or_leave_out(tracker, trackers):
                    tracker.close(status)


@contextmanager
def _or_leave_out(tracker: Tracker, trackers: list[Tracker]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        trackers.remove(tracker)
        _log.warning("%s is left out from now on: %s", type(tracker).__name__, error)


class TensorBoard:
    """Event files under OUT/tensorboard; with OUT in object storage, written locally and copied there."""

    def __init__(self, out: str, config: Config, stack: ExitStack):
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
        from torch.utils.tensorboard import SummaryWriter

        self.filesys, path = filesystem(out)
        self.path = f"{path}/tensorboard"
        self.remote = is_remote(out)
        self.local = stack.enter_context(tempfile.TemporaryDirectory()) if self.remote else self.path
        if self.remote and self.filesys.get_file_info(self.path).type == fs.FileType.Directory:
            fs.copy_files(self.path, self.local, source_filesystem=self.filesys)
        Path(self.local).mkdir(parents=True, exist_ok=True)
        events = EventAccumulator(self.local, size_guidance={SCALARS: 0}).Reload()
        self.logged = max(
            (event.step for tag in events.Tags()[SCALARS] for event in events.Scalars(tag)), default=0
        )
        self.writer = SummaryWriter(self.local)
        if not self.logged:
            settings = config.model_dump(mode="json", include={"model", "train"})
            self.writer.add_text("config", f"```\n{json.dumps(settings, indent=1)}\n```", 0)

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()
        self._copy()

    def close(self, status: str) -> None:
        self.writer.close()
        self._copy()

    def _copy(self) -> None:
        if self.remote:
            self.filesys.create_dir(self.path, recursive=True)
            fs.copy_files(self.local, self.path, destination_filesystem=self.filesys)


class MLflow:
    """One MLflow run, on the server of MLFLOW_TRACKING_URI or else in OUT/mlflow.db.

    Its parameters are those of the first call, because MLflow does not let them change.
    """

    def __init__(self, out: str, config: Config, stack: ExitStack):
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri and is_remote(out):
            raise VmrError(
                f"MLflow keeps no database in {out}: set MLFLOW_TRACKING_URI to a server, "
                "or train to a local directory"
            )
        _, path = filesystem(out)
        self.client = MlflowClient(tracking_uri=uri or f"sqlite:///{path}/mlflow.db")
        note = join(out, "tracking.json")
        earlier = self._earlier_run(note, uri)
        if earlier is not None:
            self.client.update_run(earlier, "RUNNING")
        self.run: str = earlier or self._new_run(path, config, None if uri else f"{path}/mlflow")
        write_json(note, {"mlflow": {"uri": redact_credentials(uri), "run": self.run}})
        steps = [metric.step for metric in self.client.get_metric_history(self.run, "loss/total")]
        self.logged = max(steps, default=0)

    def _new_run(self, path: str, config: Config, artifacts: str | None) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "vmr-ray")
        existing = self.client.get_experiment_by_name(name)
        experiment = existing.experiment_id if existing else self.client.create_experiment(name, artifacts)
        run: str = self.client.create_run(experiment, run_name=Path(path).name).info.run_id
        settings = flat(config.model_dump(mode="json", include={"model", "train"}))
        self.client.log_batch(run, params=[Param(key, str(value)) for key, value in settings.items()])
        return run

    def _earlier_run(self, note: str, uri: str) -> str | None:
        """The id of an earlier call's run, if the run still exists."""
        from mlflow.exceptions import MlflowException

        try:
            entry = read_json(note, "delete it; MLflow then starts a new run")["mlflow"]
            same_server = entry["uri"] == redact_credentials(uri)
            return self.client.get_run(entry["run"]).info.run_id if same_server else None
        except (FileNotFoundError, MlflowException, KeyError, TypeError):
            return None

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        self.client.log_batch(self.run, [Metric(name, value, now, epoch) for name, value in metrics.items()])

    def close(self, status: str) -> None:
        self.client.set_terminated(self.run, status)


_TRACKERS: dict[str, Callable[[str, Config, ExitStack], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
}


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} -> {"train.lr": 1}"""
    flattened: dict[str, Any] = {}
    for key, value in settings.items():
        flattened |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flattened
