"""A model of the hub without a network: one sentence, at once. A local model needs no network at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_hf import save_tiny
from vmr_ray.encoders import HUB_MODELS, dual_encoder_of, stored_encoder

ROOT = Path(__file__).parents[3]


def run(code: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, in which nothing listens where the hub should be."""
    env = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    env |= {"HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)} | variables
    env |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("variables", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["unreachable", "offline"])
def test_a_hub_name_without_a_network(tmp_path: Path, variables: dict[str, str]) -> None:
    # The hub's own client waits between its tries. Here each wait is an error.
    code = """
import time
def sleep(seconds): raise AssertionError("it waits to try again")
time.sleep = sleep
from vmr_ray.encoders import frame_spec, stored_encoder
from vmr_ray.errors import VmrError
try:
    frame_spec(stored_encoder("clip"))
except VmrError as error:
    print(error)
"""
    done = run(code, tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"cannot load hf:{HUB_MODELS['clip']} (no such directory, not in the cache,")
    assert "hf:<path>" in line and "everyday, which needs no network" in line


def test_embedding_with_a_hub_name_without_a_network_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"a video")
    code = f"""
import sys
from vmr_ray import cli
sys.argv = ["vmr", "embed", "{tmp_path}/a.mp4", "--encoder", "siglip2", "--out", "{tmp_path}/features"]
cli.main()
"""
    done = run(code, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: cannot load hf:{HUB_MODELS['siglip2']}")
    assert not (tmp_path / "features").exists()


def save_in_cache(home: Path, tokenizer: bool = True) -> str:
    """A tiny model where the hub's client keeps what it has downloaded. Returns its name on the hub."""
    repository, commit = home / "hub" / "models--some--clip", "0" * 40
    folder = save_tiny(repository / "snapshots" / commit, "clip")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    if not tokenizer:
        for file in folder.glob("tokenizer*"):
            file.unlink()
    return "some/clip"


def test_what_the_cache_holds_needs_no_hub(tmp_path: Path) -> None:
    """Every worker loads the model: none may wait for a hub that does not answer."""
    code = f"""
from vmr_ray.encoders import hf, dual_encoder
hf.hub_answers = None  # to call it would be an error
print(dual_encoder("hf:{save_in_cache(tmp_path)}").sentence(["a dog"]).shape)
"""
    done = run(code, tmp_path, VMR_CACHE=str(tmp_path / "exports"))
    assert done.stdout == "(1, 16)\n", done.stderr


def test_a_cache_without_the_tokenizer(tmp_path: Path) -> None:
    """The frames were embedded with a network, the first sentence comes without one."""
    code = f"""
from vmr_ray.encoders import dual_encoder
from vmr_ray.errors import VmrError
try:
    dual_encoder("hf:{save_in_cache(tmp_path, tokenizer=False)}").sentence(["a dog"])
except VmrError as error:
    print(error)
"""
    done = run(code, tmp_path, VMR_CACHE=str(tmp_path / "exports"))
    assert done.stdout.startswith("cannot load hf:some/clip (no such directory, not in the cache,"), (
        done.stderr
    )


def test_a_directory_needs_no_hub(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "clip", "clip")
    code = f"""
from vmr_ray.encoders import hf, dual_encoder
hf.hub_answers = None  # to call it would be an error
print(dual_encoder("hf:{model}").sentence(["a dog"]).shape)
"""
    done = run(code, tmp_path / "home")
    assert done.stdout == "(1, 16)\n", done.stderr


def test_short_names() -> None:
    assert stored_encoder("everyday") == "efficientnet-lite0"
    assert stored_encoder("everyday-multilingual") == "efficientnet-lite0"
    assert stored_encoder("siglip2").startswith("hf:google/siglip2-")
    for name in ("hf:some/model", "hf:clip", "imported:i3d", "unknown"):
        assert stored_encoder(name) == name
    assert dual_encoder_of("efficientnet-lite0") == "everyday"
    assert dual_encoder_of("efficientnet-lite0", "everyday-multilingual") == "everyday-multilingual"
    assert dual_encoder_of("efficientnet-lite0", "efficientnet-lite0") == "everyday"
    assert dual_encoder_of("hf:clip") == dual_encoder_of("hf:clip", "hf:clip") == "hf:clip"
    assert dual_encoder_of("hf:clip", "everyday") is None
    assert dual_encoder_of("imported:i3d") is None


def test_the_documentation_has_every_short_name() -> None:
    page = (ROOT / "docs" / "embedding.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for name, model in HUB_MODELS.items():
        assert f"`{model}`" in rows[name]
