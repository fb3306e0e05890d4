"""`make browser`: as root Chromium is installed, others are asked before anything runs with sudo."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


class Machine:
    """A PATH with a few programs, which note that they were called."""

    def __init__(self, path: Path):
        self.bin, self.log = path / "bin", path / "log"
        self.bin.mkdir()
        self.log.touch()
        self.add("apt-get", f'echo "apt-get $@" >> {self.log}')
        self.add("sudo", f'echo "sudo $@" >> {self.log}')

    def add(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def make(self, stdin: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [shutil.which("make") or "make", "--no-print-directory", "browser"],
            cwd=ROOT,
            env={"PATH": str(self.bin), "LC_ALL": "C"},
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=20,
        )

    def answer(self, text: str) -> subprocess.CompletedProcess[str]:
        """Run it at a terminal at which this is typed."""
        terminal, stdin = pty.openpty()
        os.write(terminal, f"{text}\n".encode())
        try:
            return self.make(stdin)
        finally:
            os.close(terminal)
            os.close(stdin)

    def called(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    return Machine(tmp_path)


def test_chromium_that_is_there_is_taken(machine: Machine):
    machine.add("id", "echo 1000")
    machine.add("chromium", "")
    assert machine.make().returncode == 0
    assert machine.called() == []


def test_root_is_not_asked(machine: Machine):
    machine.add("id", "echo 0")
    assert machine.make().returncode == 0
    assert [line.split()[:2] for line in machine.called()] == [["apt-get", "update"], ["apt-get", "install"]]


def test_without_a_terminal_nothing_is_installed(machine: Machine):
    machine.add("id", "echo 1000")
    done = machine.make()
    assert done.returncode != 0 and "need Chromium: install it" in done.stderr
    assert machine.called() == []


@pytest.mark.parametrize("answer", ["", "n"])
def test_no_is_the_default(machine: Machine, answer: str):
    machine.add("id", "echo 1000")
    done = machine.answer(answer)
    assert done.returncode != 0 and "with sudo" in done.stdout
    assert "need Chromium: install it" in done.stderr and machine.called() == []


def test_yes_installs_with_sudo(machine: Machine):
    machine.add("id", "echo 1000")
    assert machine.answer("y").returncode == 0
    assert all(line.startswith("sudo apt-get ") for line in machine.called()) and len(machine.called()) == 2


def test_an_installation_that_fails_says_what_is_missing(machine: Machine):
    machine.add("id", "echo 0")
    machine.add("apt-get", "exit 100")
    done = machine.make()
    assert done.returncode != 0 and "need Chromium: install it" in done.stderr
