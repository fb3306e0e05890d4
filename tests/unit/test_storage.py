"""No file is ever half-written, whatever happens; and where a path or URI leads."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import fs

from tests import moto
from vmr_ray.errors import VmrError
from vmr_ray.storage import (
    absolute,
    exists,
    filesystem,
    is_below,
    is_remote,
    is_uri,
    join,
    read_bytes,
    read_json,
    redact_credentials,
    refuse_input,
    replacing,
    short_hash,
    temporary_name,
    write_bytes,
    write_json,
)

OLD, NEW = {"epoch": 1}, {"epoch": 2, "losses": [0.5, 0.25], "name": "é"}
ROOT = Path(__file__).parents[2]

# Runs in a process without threads, which forks a child for every case.
CHILDREN = """
import json, os, random, resource, signal, sys, time
from contextlib import suppress
from pathlib import Path
from vmr_ray import storage

path = Path(sys.argv[1])
old, new = json.loads(sys.argv[2]), json.loads(sys.argv[3])
plain = storage.filesystem

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Stream:
    def __init__(self, inner, count):
        self.inner, self.count = inner, count
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.inner.close()
    def write(self, data):
        self.inner.write(data[: self.count])
        self.inner.flush()
        if self.count <= len(data):
            die()
        self.inner.write(data[self.count :])

class Files:
    '''The process is killed after `count` bytes, or at `moment`.'''
    def __init__(self, inner, count, moment):
        self.inner, self.count, self.moment = inner, count, moment
    def __getattr__(self, name):
        return getattr(self.inner, name)
    def open_output_stream(self, name):
        return Stream(self.inner.open_output_stream(name), self.count)
    def move(self, *names):
        if self.moment == "before":
            die()
        self.inner.move(*names)
        if self.moment == "after":
            die()

def killed_at(count, moment):
    def filesystem(name):
        inner, place = plain(name)
        return Files(inner, count, moment), place
    storage.filesystem = filesystem
    storage.write_json(path, new)

def full_at(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        storage.write_json(path, new)
    except OSError:
        os._exit(28)

def for_ever():
    while True:
        storage.write_json(path, ["a"] * 100_000)
        storage.write_json(path, ["b"] * 100_000)

def child(work, *arguments):
    pid = os.fork()
    if not pid:
        work(*arguments)
        os._exit(0)
    return pid

def outcome(pid):
    '''The number of the signal that ended it, or minus its exit code.'''
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)

def found():
    return json.loads(path.read_bytes()) if path.exists() else None

def parts():
    return list(path.parent.glob("*.part"))
"""


def run(path: Path, script: str) -> list[dict]:
    """What the script printed, a JSON object a line."""
    arguments = [str(path), json.dumps(OLD), json.dumps(NEW)]
    done = subprocess.run(
        [sys.executable, "-c", CHILDREN + script, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("before", [None, OLD])
def test_a_kill_at_any_byte_leaves_the_old_file_or_the_new_one(tmp_path: Path, before: object) -> None:
    size = len(json.dumps(NEW, indent=1).encode())
    cases = [*((count, "") for count in range(size + 1)), (size + 1, "before"), (size + 1, "after")]
    rows = run(
        tmp_path / "run.json",
        f"for case in {cases}:\n"
        "    path.unlink(missing_ok=True)\n"
        f"    if {before is not None}: storage.write_json(path, old)\n"
        "    ended = outcome(child(killed_at, *case))\n"
        "    print(json.dumps({'ended': ended, 'found': found(), 'parts': len(parts())}))\n"
        "    [part.unlink() for part in parts()]\n",
    )
    assert len(rows) == len(cases) and {row["ended"] for row in rows} == {9}
    assert [row["found"] for row in rows] == [before] * (size + 2) + [NEW]
    # The killed writes had begun.
    assert [row["parts"] for row in rows] == [1] * (size + 2) + [0]


def test_a_kill_at_any_time_leaves_a_whole_file(tmp_path: Path) -> None:
    rows = run(
        tmp_path / "run.json",
        "storage.write_json(path, old)\n"
        "for _ in range(40):\n"
        "    pid = child(for_ever)\n"
        "    time.sleep(random.uniform(0.001, 0.03))\n"
        "    os.kill(pid, signal.SIGKILL)\n"
        "    print(json.dumps({'ended': outcome(pid), 'found': len(set(found()))}))\n",
    )
    assert rows == [{"ended": 9, "found": 1}] * 40


def test_a_disk_that_is_full_at_any_byte_leaves_the_old_file_alone(tmp_path: Path) -> None:
    size = len(json.dumps(NEW, indent=1).encode())
    rows = run(
        tmp_path / "run.json",
        "storage.write_json(path, old)\n"
        f"for limit in range({size} + 1):\n"
        "    ended = outcome(child(full_at, limit))\n"
        "    print(json.dumps({'ended': ended, 'found': found(), 'parts': len(parts())}))\n",
    )
    assert rows[:-1] == [{"ended": -28, "found": OLD, "parts": 0}] * size
    assert rows[-1] == {"ended": 0, "found": NEW, "parts": 0}


def test_what_is_durable_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is flushed under its temporary name, and then the folder that has the new name."""
    flushed: list[tuple[bool, list[str]]] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        fsync(descriptor)
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        flushed.append((is_folder, sorted(path.suffix for path in tmp_path.iterdir())))

    monkeypatch.setattr(os, "fsync", spy)
    write_json(tmp_path / "job.json", NEW)
    assert flushed == []
    write_json(tmp_path / "job.json", OLD, durable=True)
    assert flushed == [(False, [".json", ".part"]), (True, [".json"])]
    assert read_json(tmp_path / "job.json", "") == OLD


def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "run.json"
    write_json(path, OLD)
    with pytest.raises(KeyboardInterrupt), replacing(*filesystem(path)) as stream:
        stream.write(b"half of it")
        raise KeyboardInterrupt
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path, "") == OLD
    assert list(path.parent.iterdir()) == [path]


def test_a_temporary_name_is_free_for_a_name_that_is_known_later(tmp_path: Path) -> None:
    filesys, path = filesystem(tmp_path / "states")
    with temporary_name(filesys, path) as one, temporary_name(filesys, path) as other:
        Path(one).write_bytes(b"x")
        filesys.move(one, f"{path}-1")
        assert one != other
    with pytest.raises(ValueError, match="no"), temporary_name(filesys, path) as name:
        Path(name).write_bytes(b"x")
        raise ValueError("no")
    assert [file.name for file in tmp_path.iterdir()] == ["states-1"]


def test_an_interrupted_write_leaves_the_old_object(tmp_path: Path) -> None:
    """Closing a stream to an object store completes the upload, also after an error."""
    with moto.bucket("runs"):
        write_json("s3://runs/a/run.json", OLD)
        target, path = filesystem("s3://runs/a/run.json")
        with pytest.raises(RuntimeError, match="the network"), replacing(target, path) as stream:
            stream.write(b"half of it")
            raise RuntimeError("the network is down")
        assert read_json("s3://runs/a/run.json", "") == OLD
        write_json("s3://runs/a/run.json", NEW)
        assert read_json("s3://runs/a/run.json", "") == NEW
        infos = target.get_file_info(fs.FileSelector("runs", recursive=True))
        assert [info.path for info in infos if info.type == fs.FileType.File] == ["runs/a/run.json"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    for path in (tmp_path / "a b#1.json", (tmp_path / "b.json").as_uri()):
        assert not exists(path)
        write_json(path, NEW)
        assert exists(path) and read_json(path, "") == NEW
        write_bytes(path, b"\0\1")
        assert read_bytes(path) == b"\0\1"
    assert not exists(tmp_path), "a folder is no file"


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": 1}}', b"\xff\xfe\x00", b"[" * 100_000, b"NaN,"])
def test_damaged_json_is_one_sentence_with_the_file_and_the_fix(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(text)
    with pytest.raises(VmrError) as caught:
        read_json(path, "delete it")
    assert str(caught.value).startswith(f"{path} is damaged (")
    assert str(caught.value).endswith("): delete it") and "\n" not in str(caught.value)


def test_missing_json_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "run.json", "delete it")
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "run.json")


def test_a_path_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute("a/b") == absolute(Path("a/b")) == f"{tmp_path}/a/b"
    assert absolute("~/a") == "/home/someone/a"
    assert absolute("/a") == "/a"
    assert absolute("s3://bucket/a?scheme=http") == "s3://bucket/a?scheme=http"


@pytest.mark.parametrize(
    ("path", "uri", "remote"),
    [
        ("videos/a.mp4", False, False),
        ("/videos/a:b//c.mp4", False, False),
        ("file:///videos/a.mp4", True, False),
        ("s3://bucket/a.mp4", True, True),
        ("gs://bucket/a.mp4", True, True),
    ],
)
def test_what_is_on_another_machine(path: str, uri: bool, remote: bool) -> None:
    assert (is_uri(path), is_remote(path)) == (uri, remote)


@pytest.mark.parametrize(
    ("path", "joined"),
    [
        ("/a/b", "/a/b/c/d.json"),
        ("/a/b/", "/a/b/c/d.json"),
        ("odd?name", "odd?name/c/d.json"),
        ("s3://bucket/a", "s3://bucket/a/c/d.json"),
        (
            "s3://bucket/a?endpoint_override=x&scheme=http",
            "s3://bucket/a/c/d.json?endpoint_override=x&scheme=http",
        ),
    ],
)
def test_a_name_goes_before_the_options_of_a_uri(path: str, joined: str) -> None:
    assert join(path, "c", "d.json") == joined


def test_an_unknown_scheme_is_one_sentence() -> None:
    with pytest.raises(VmrError, match="cannot use nosuch://bucket/x: ") as caught:
        filesystem("nosuch://bucket/x")
    assert "\n" not in str(caught.value)


def test_credentials_are_removed_wherever_they_stand() -> None:
    text = "s3://key:s%2Fcret@a/x?scheme=http and gs://user@b/y, not mail@host or s3://c/z@1"
    assert redact_credentials(text) == "s3://a/x?scheme=http and gs://b/y, not mail@host or s3://c/z@1"


ALLOWED = "s3://key:secret@archive/few?endpoint_override=127.0.0.1:9000&scheme=http"
OPTIONS = "?endpoint_override=127.0.0.1:9000&scheme=http"


@pytest.mark.parametrize("path", ["few", "few/", "few/a.mp4", "few/a/b..c.mp4", "few/..a/b%20c.mp4"])
def test_uris_below_a_root(path: str) -> None:
    assert is_below(f"s3://key:secret@archive/{path}{OPTIONS}", ["/local", "gs://x", ALLOWED])


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://key:secret@archive/few/../secret.mp4{OPTIONS}",
        f"s3://key:secret@archive/few/%2e%2e/secret.mp4{OPTIONS}",
        f"s3://key:secret@archive/few/%252e%252e/secret.mp4{OPTIONS}",
        f"s3://key:secret@archive/few/%2e%2e%2fsecret.mp4{OPTIONS}",
        f"s3://key:secret@archive/few/%252E.%252fsecret.mp4{OPTIONS}",
        f"s3://key:secret@archive/fewer/a.mp4{OPTIONS}",
        f"s3://key:secret@archive/a.mp4{OPTIONS}",
        f"s3://key:secret@archive2/few/a.mp4{OPTIONS}",
        f"s3://archive/few/a.mp4{OPTIONS}",
        f"s3://other:secret@archive/few/a.mp4{OPTIONS}",
        f"gs://key:secret@archive/few/a.mp4{OPTIONS}",
        f"s3://key:secret@archive/few/a.mp4{OPTIONS}#x",
        "s3://key:secret@archive/few/a.mp4",
        "s3://key:secret@archive/few/a.mp4?endpoint_override=evil.example&scheme=http",
        f"s3://key:secret@archive/few/a.mp4{OPTIONS}&endpoint_override=evil.example",
        "/few/a.mp4",
    ],
)
def test_uris_that_are_not_below_a_root(uri: str) -> None:
    assert not is_below(uri, ["/", "/few", ALLOWED])


def test_short_hashes_are_what_file_names_of_stores_contain() -> None:
    assert short_hash("abc") == "ba7816bf8f01" and short_hash("abc", 16) == "ba7816bf8f01cfea"


def test_an_output_is_never_an_input(tmp_path: Path):
    source = tmp_path / "a.mp4"
    source.write_bytes(b"x")
    (tmp_path / "link.mp4").symlink_to(source)
    for output in (source, tmp_path / "link.mp4", source.as_uri(), f"{tmp_path}/./a.mp4"):
        with pytest.raises(VmrError, match="^--clip .* is an input"):
            refuse_input(output, [tmp_path / "gone.mp4", source], "--clip")
    with pytest.raises(VmrError, match="is an input"):
        refuse_input("s3://bucket/a.mp4", ["s3://bucket/a.mp4"])
    refuse_input(tmp_path / "b.mp4", [source, "s3://bucket/a.mp4"])
