"""What pip installs works without the checkout: sdist and wheel, in an environment of their own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
from pathlib import Path
from typing import Any

import httpx
import pytest

from vmr_ray import __version__

ROOT = Path(__file__).parents[2]
EARLIER = ROOT / "tests" / "fixtures" / "earlier"
QUERY = json.loads((EARLIER / "expected.json").read_text())["query"]
SHARED = ("serve_configs/cluster.yaml", "serve_configs/local.yaml", "configs/charades_sta_i3d.yaml")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sdist and of the wheel that is built from it."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "MANIFEST.in", "constraints.txt", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, source)
    for folder in ("vmr_ray", "serve_configs", "configs", "jobs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return dist


class Installed:
    """An environment that has the wheel, and the dependencies of the running one."""

    def __init__(self, home: Path, wheel: Path, cwd: Path):
        self.home, self.cwd = home, cwd
        self.bin = home / "bin"
        venv.create(home, with_pip=False, symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "-q", "--no-index"]
        subprocess.run([*pip, "--no-deps", wheel], check=True, capture_output=True, text=True)
        # Only now, because pip would otherwise find the project among the dependencies.
        (site,) = home.glob("lib/*/site-packages")
        (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "RAY"))}
        # A cluster of its own, which outlives no command.
        self.env |= {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}

    def run(self, *command: str | Path) -> str:
        """The stdout of a program of this environment."""
        program = [self.bin / command[0], *command[1:]]
        done = subprocess.run(
            program, cwd=self.cwd, env=self.env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    (wheel,) = built.glob("*.whl")
    cwd = tmp_path_factory.mktemp("cwd")  # the commands run here: what the fixtures are, and nothing else
    shutil.copytree(EARLIER, cwd, dirs_exist_ok=True)
    return Installed(tmp_path_factory.mktemp("environment"), wheel, cwd)


def test_the_sdist_has_what_the_wheel_is_made_of(built: Path):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*SHARED, "vmr_ray/serve/page/index.html", "jobs/embed.py", "constraints.txt", "LICENSE"} <= names


def test_the_package_is_that_of_the_wheel(installed: Installed):
    assert installed.run("vmr", "--version").strip() == __version__
    where = installed.run("python", "-c", "import vmr_ray.cli.app; print(vmr_ray.__file__)")
    assert Path(where.strip()).is_relative_to(installed.home)
    assert all((installed.home / "share" / "vmr-ray" / name).is_file() for name in SHARED)


def test_search(installed: Installed):
    answer = json.loads(installed.run("vmr", "search", QUERY, "--index", "index", "--json"))
    assert len(answer["moments"]) == 5


def test_the_report(installed: Installed):
    rows = [
        {"video": video["video_id"], "query": QUERY, "start": 1.0, "end": 3.0}
        for video in json.loads((EARLIER / "expected.json").read_text())["videos"][:2]
    ]
    (installed.cwd / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["-a", "test.jsonl", "--checkpoint", "checkpoint", "--report", "report", "--json"]
    metrics = json.loads(installed.run("vmr", "evaluate", "features", *flags))
    assert metrics["queries"] == 2
    assert QUERY in (installed.cwd / "report" / "report.html").read_text()


def test_up(installed: Installed, world):
    """It embeds, indexes and asks; the decoder runs in child processes of this environment."""
    videos = installed.cwd / "videos"
    videos.mkdir()
    shutil.copy(min(world.videos.glob("*.mp4")), videos)
    model = ["--checkpoint", "checkpoint", "--dir", "state"]
    assert "1 embedded, 1 indexed" in installed.run("vmr", "up", "videos", *model, "--ask", QUERY, "--exit")


def test_serve(installed: Installed):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [installed.bin / "vmr", "serve", "--index", "index", "--port", str(port)]
    log = installed.cwd / "serve.log"
    with log.open("w") as output:
        service = subprocess.Popen(
            command, cwd=installed.cwd, env=installed.env, stdout=output, stderr=output
        )
    try:
        wait_until_ready(service, log)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            page = client.get("/")
            assert page.status_code == 200 and "<html" in page.text
            assert client.get("/page/main.js").status_code == 200
            assert client.get("/docs").status_code == 200
            answer: dict[str, Any] = client.post("/v1/search", json={"query": QUERY, "top_k": 3}).json()
            assert len(answer["results"]) == 3
        service.terminate()  # like a supervisor; SIGINT is ignored by what a shell starts in the background
        assert service.wait(60) == 0
    finally:
        service.kill()
        service.wait()


def wait_until_ready(service: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if "Ctrl-C stops" in log.read_text():
            return
        assert service.poll() is None, log.read_text()
        time.sleep(0.2)
    pytest.fail(f"the service is not ready: {log.read_text()}")
