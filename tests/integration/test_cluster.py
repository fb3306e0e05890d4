"""Joining a cluster from a program that has a logging of its own, and from one that wants Ray quiet."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, logging, sys
import ray, ray.train, ray.serve
from ray.data import DataContext
from vmr_ray import cluster

NAMES = ["", "ray", "ray.data", "ray.train", "ray.serve", "ray.tune"]
for number, name in enumerate(NAMES, start=11):
    logging.getLogger(name).setLevel(number)

def state():
    context = DataContext.get_current()
    flags = ("enable_progress_bars", "enable_operator_progress_bars", "print_on_execution_start")
    return {
        "levels": [logging.getLogger(name).level for name in NAMES],
        "bars": [getattr(context, flag) for flag in flags],
    }

if sys.argv[1] == "quiet":
    cluster.quiet()
before = state()
cluster.connect(address="local", num_cpus=1, include_dashboard=False)
cluster.connect()
print(json.dumps([before, state()]))
"""


def run(mode: str) -> tuple[dict[str, list[int]], dict[str, list[int]], str]:
    """The state before and after `connect`, and what was printed to stderr."""
    env = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout.splitlines()[-1])
    return before, after, done.stderr


SLOW = """
import ray, psutil
from vmr_ray import cluster
from vmr_ray.errors import VmrError

try:
    cluster.connect(address="local", num_cpus=1, include_dashboard=False)
except VmrError as error:
    print(error)
    print(len(psutil.Process().children(recursive=True)), ray.is_initialized())
"""


@pytest.mark.parametrize(
    ("patience", "message"),
    [
        ("2", "Ray has not started within 2 s (Timed out waiting"),
        ("soon", "VMR_RAY_START_S is 'soon': give a number of seconds"),
    ],
)
def test_a_machine_too_slow_for_ray_is_one_sentence(patience: str, message: str):
    """Ray waits 0 seconds for the port of its own server, which no machine is fast enough for."""
    env = {**os.environ, "VMR_RAY_START_S": patience, "RAY_gcs_server_port_wait_time_s": "0"}
    done = subprocess.run([sys.executable, "-c", SLOW], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    sentence, state = done.stdout.splitlines()
    assert sentence.startswith(message)
    assert state == "0 False", "no process is left"


def test_a_library_caller_keeps_its_logging():
    before, after, _ = run("library")
    assert before["levels"] == [11, 12, 13, 14, 15, 16]
    assert after == before


def test_a_program_may_ask_for_quiet():
    before, after, printed = run("quiet")
    assert before["levels"] == [11, 12, 13, 14, 15, 16]
    assert after == {"levels": [11, 40, 50, 40, 40, 16], "bars": [False, False, False]}
    assert "Started a local Ray instance" not in printed
