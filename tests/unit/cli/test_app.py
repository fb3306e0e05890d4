"""The command line as a person meets it: mistakes are one sentence on stderr and exit code 2."""

from __future__ import annotations

import json
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from tests.pictures import COLOURS, write_photos
from vmr_ray import __version__, cli
from vmr_ray.cli import doctor
from vmr_ray.cli.app import app, sentence_of
from vmr_ray.cli.common import JsonOption, print_json
from vmr_ray.errors import VmrError, full_disk
from vmr_ray.features import FeatureStore
from vmr_ray.photos.views import SAMPLING
from vmr_ray.schema import Chunk, StoreSpec, Video


@pytest.fixture
def vmr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `vmr ARGS` here; returns (exit code, stdout, stderr)."""

    def run(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vmr", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "features"
    store = FeatureStore.create(str(path), StoreSpec("efficientnet-lite0", 1280, "fps=1"))
    for name in ("a.mp4", "b.mp4"):
        store.write_chunk(
            Video(name, name, "1"),
            Chunk(0, True, duration=4.0, times=np.arange(4) + 0.5, edges=np.arange(5.0), damage=""),
            np.zeros((4, 1280)),
        )
    return path


def one_sentence(code: int, err: str, *parts: str) -> None:
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (full_disk("/d/a"), "cannot write /d/a (its disk is full): make room, then do the same again"),
        (VmrError("a.parquet is damaged: embed again"), "a.parquet is damaged: embed again"),
        (ValueError("a mistake of the program"), None),
    ],
)
def test_errors_of_workers_are_the_same_sentence(error: Exception, sentence: str | None):
    """As Ray hands them on: from a task, and from a training process."""
    from ray.exceptions import RayError, RayTaskError
    from ray.train import WorkerGroupError
    from ray.train.v2.api.exceptions import ControllerError

    task = RayTaskError("f()", "Traceback\n...", error)
    task = RayError.from_bytes(task.to_bytes()).as_instanceof_cause()
    for raised in (error, task, WorkerGroupError("[Rank 0 ...]", {0: error}), ControllerError(error)):
        said = sentence_of(pickle.loads(pickle.dumps(raised)) if raised is not task else task)
        assert said == sentence


def test_help_names_every_verb(vmr):
    code, out, _ = vmr("--help")
    assert code == 0
    for verb in ("embed", "train", "evaluate", "index", "search", "serve", "demo"):
        assert f"vmr {verb}" in out or f" {verb} " in out
        assert vmr(verb, "--help")[0] == 0


def test_version(vmr):
    assert vmr("--version") == (0, f"{__version__}\n", "")


def test_help_lists_the_verbs_in_the_order_of_their_use(vmr, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules["typer.rich_utils"], "MAX_WIDTH", 80)
    _, out, _ = vmr("--help")
    rows = [line.split()[1] for line in out.splitlines() if re.match(r"│ [a-z]", line)]
    steps = ["embed", "train", "evaluate", "index", "search", "serve"]
    groups = ["keys", "annotations", "features"]
    assert rows == ["up", "demo", "doctor", *steps, "pipeline", "reproduce", *groups]
    assert max(map(len, out.splitlines())) <= 80


def test_each_verb_has_a_module_of_its_name():
    command = typer.main.get_command(app)
    assert {name: verb.callback.__module__ for name, verb in command.commands.items() if verb.callback} == {
        name: f"vmr_ray.cli.{name}" for name, verb in command.commands.items() if verb.callback
    }
    assert all((Path(cli.__file__).parent / f"{name}.py").is_file() for name in command.commands)


def test_help_loses_no_words():
    """Markdown drops what looks like an HTML tag: `hf:<name>` would be printed as `hf:`."""
    options = [p for verb in typer.main.get_command(app).commands.values() for p in verb.params]
    assert len(options) > 50
    assert not [p.name for p in options if re.search(r"<\w", getattr(p, "help", None) or "")]


def test_empty_directory(vmr, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    code, _, err = vmr("embed", tmp_path / "empty", "--out", tmp_path / "out")
    one_sentence(code, err, "no videos in", "empty")


def test_missing_input(vmr, tmp_path: Path):
    code, _, err = vmr("embed", tmp_path / "gone", "--out", tmp_path / "out")
    one_sentence(code, err, "no such file or directory", "gone")


def test_unknown_config_key(vmr, store: Path, tmp_path: Path):
    config = tmp_path / "c.yaml"
    config.write_text("train:\n  learning_rate: 1\n")
    code, _, err = vmr("train", store, "-a", "x.jsonl", "-o", tmp_path / "run", "-c", config)
    one_sentence(code, err, "c.yaml", "unknown key 'train.learning_rate'", "lr")


def test_missing_annotation_file(vmr, store: Path, tmp_path: Path):
    code, _, err = vmr("train", store, "-a", tmp_path / "gone.jsonl", "-o", tmp_path / "run")
    one_sentence(code, err, "gone.jsonl")


def test_reversed_span(vmr, store: Path, tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    good = {"video": "a.mp4", "query": "it waits", "start": 1.0, "end": 2.0}
    path.write_text(f"{json.dumps(good)}\n{json.dumps(good | {'start': 3.0})}\n")
    code, _, err = vmr("train", store, "-a", path, "-o", tmp_path / "run")
    one_sentence(code, err, "mine.jsonl", "line 2", "swap")


def test_annotations_of_other_videos(vmr, store: Path, tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"video": "z.mp4", "query": "it waits", "start": 1.0, "end": 2.0}))
    code, _, err = vmr("train", store, "-a", path, "-o", tmp_path / "run")
    one_sentence(code, err, "no annotated video of", "2 videos there")


def test_run_directory_of_another_configuration(vmr, store: Path, tmp_path: Path):
    path, run = tmp_path / "mine.jsonl", tmp_path / "run"
    row = {"query": "it waits", "start": 1.0, "end": 2.0}
    path.write_text("\n".join(json.dumps(row | {"video": name}) for name in ("a.mp4", "b.mp4")))
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"inputs": {}, "model": {}, "train": {}}))
    code, _, err = vmr("train", store, "-a", path, "-o", run)
    one_sentence(code, err, "other inputs, model, train", "choose another --out")


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_damaged_run_file(vmr, store: Path, tmp_path: Path, content: str):
    """A run.json that an earlier version left empty, because it was killed while writing."""
    path, run = tmp_path / "mine.jsonl", tmp_path / "run"
    row = {"query": "it waits", "start": 1.0, "end": 2.0}
    path.write_text("\n".join(json.dumps(row | {"video": name}) for name in ("a.mp4", "b.mp4")))
    run.mkdir()
    (run / "run.json").write_text(content)
    code, _, err = vmr("train", store, "-a", path, "-o", run)
    one_sentence(code, err, f"{run}/run.json", "choose another --out, or delete it to start again")


def test_photos_without_captions(vmr, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    code, _, err = vmr("train", "--photos", tmp_path / "photos", "-o", tmp_path / "run")
    one_sentence(code, err, "photos has no captions.jsonl or captions.csv", "--captions")
    assert not (tmp_path / "run").exists()


def test_captions_of_a_photo_that_is_missing(vmr, tmp_path: Path):
    photos = write_photos(tmp_path / "photos")
    (photos / "03.jpg").unlink()
    code, _, err = vmr("train", "--photos", photos, "-o", tmp_path / "run")
    one_sentence(code, err, "captions.jsonl, line 7: there is no image", "03.jpg")
    assert not (tmp_path / "run").exists()


def test_too_few_photos(vmr, tmp_path: Path):
    photos = write_photos(tmp_path / "photos")
    code, _, err = vmr("train", "--photos", photos, "-o", tmp_path / "run")
    one_sentence(code, err, "photos has 12 captioned photos", "at least 16 are needed")
    assert not (tmp_path / "run").exists()


def test_photos_have_no_key_frames(vmr, tmp_path: Path):
    photos, sampling = write_photos(tmp_path / "photos"), "embed.decode.sampling=keyframes"
    code, _, err = vmr("train", "--photos", photos, "-o", tmp_path / "run", "--set", sampling)
    one_sentence(code, err, sampling, "fps=X")


def test_photos_with_an_unknown_encoder(vmr, tmp_path: Path):
    photos = write_photos(tmp_path / "photos", COLOURS * 2)
    code, _, err = vmr("train", "--photos", photos, "-o", tmp_path / "run", "--encoder", "resnet")
    one_sentence(code, err, "unknown frame encoder 'resnet'")
    assert not (tmp_path / "run").exists()


def test_photos_that_were_embedded_with_another_encoder(vmr, tmp_path: Path):
    photos, run = write_photos(tmp_path / "photos", COLOURS * 2), tmp_path / "run"
    FeatureStore.create(str(run / "photos"), StoreSpec("hf:a/b", 512, SAMPLING))
    code, _, err = vmr("train", "--photos", photos, "-o", run, "--encoder", "everyday")
    one_sentence(code, err, "hf:a/b")
    assert not (run / "run.json").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "nothing to train on: name a feature store and --annotations, or --photos"),
        (("features",), "features needs --annotations FILE"),
        (("features", "--photos", "photos"), "--photos goes without a feature store"),
        (("--photos", "photos", "--val", "val.jsonl"), "held out to validate on"),
        (("features", "-a", "a.jsonl", "--captions", "c.csv"), "--captions goes with --photos"),
        (("features", "-a", "a.jsonl", "--unlabelled"), "--unlabelled needs a feature store only"),
        (("--unlabelled",), "there is nothing to train on"),
        (
            ("features", "-a", "a.jsonl", "--encoder", "everyday"),
            "--encoder goes with --photos or --unlabelled",
        ),
    ],
)
def test_one_kind_of_training_at_a_time(vmr, tmp_path: Path, words: tuple[str, ...], sentence: str):
    code, _, err = vmr("train", *words, "-o", tmp_path / "run")
    one_sentence(code, err, sentence)


def test_no_feature_store(vmr, tmp_path: Path):
    code, _, err = vmr("train", tmp_path / "none", "-a", "x.jsonl", "-o", tmp_path / "run")
    one_sentence(code, err, "no feature store at", "vmr embed")


def test_no_checkpoint(vmr, store: Path, tmp_path: Path):
    code, _, err = vmr("evaluate", store, "-a", "x.jsonl", "--checkpoint", tmp_path / "none")
    one_sentence(code, err, "no checkpoint at")


def test_no_index(vmr, tmp_path: Path):
    code, _, err = vmr("search", "a dog runs", "--index", tmp_path / "none")
    one_sentence(code, err, "no index at", "vmr index")


def test_unknown_encoder(vmr, store: Path, tmp_path: Path):
    (tmp_path / "v.mp4").write_bytes(b"x")
    code, _, err = vmr("embed", tmp_path / "v.mp4", "--out", tmp_path / "out", "--encoder", "resnet")
    one_sentence(code, err, "unknown frame encoder 'resnet'")


def test_a_store_of_another_encoder(vmr, tmp_path: Path):
    FeatureStore.create(str(tmp_path / "features"), StoreSpec("hf:a/b", 512, "fps=1"))
    (tmp_path / "v.mp4").write_bytes(b"x")
    code, _, err = vmr("embed", tmp_path / "v.mp4", "--out", tmp_path / "features")
    one_sentence(code, err, "features holds features of hf:a/b", "choose another --out")
    code, _, err = vmr("index", tmp_path / "features", "--encoder", "everyday", "--out", tmp_path / "index")
    one_sentence(code, err, "hf:a/b, which the encoder everyday does not read", "leave --encoder out")
    assert not (tmp_path / "index").exists()


def test_up_with_an_encoder_that_knows_no_sentences_names_the_ways(vmr, tmp_path: Path):
    (tmp_path / "videos").mkdir()
    code, _, err = vmr("up", tmp_path / "videos", "--encoder", "imported:i3d", "--exit")
    one_sentence(
        code, err, "imported:i3d", "untrained", "checkpoint", "everyday", "clip", "hf:<name or path>"
    )


def test_up_of_a_folder_without_videos(vmr, tmp_path: Path):
    (tmp_path / "videos").mkdir()
    code, _, err = vmr("up", tmp_path / "videos", "--exit", "--dir", tmp_path / "state")
    one_sentence(code, err, f"no videos in {tmp_path / 'videos'}", ".mp4")
    assert not (tmp_path / "state").exists()


def test_up_without_a_folder(vmr, tmp_path: Path):
    code, _, err = vmr("up", tmp_path / "gone", "--exit")
    one_sentence(code, err, "there is no folder", "gone")


@pytest.mark.parametrize(("mode", "ok"), [(0o600, True), (0o400, True), (0o644, False), (0o620, False)])
def test_doctor_finds_a_token_that_others_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, ok: bool
):
    token = tmp_path / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert doctor.check_token().ok
    token.write_text("secret")
    token.chmod(mode)
    found = doctor.check_token()
    assert found.ok == ok and "secret" not in found.says
    assert ok or f"chmod 600 {token}" in found.fix


def test_doctor_finds_that_an_index_is_missing(vmr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "check_ray", doctor.check_python)  # no Ray in unit tests
    code, out, _ = vmr("doctor", "--json", "--index", tmp_path / "none")
    findings = {row["name"]: row for row in json.loads(out)}
    assert code == 1
    assert not findings["index"]["ok"] and findings["index"]["fix"]
    assert findings["decoder"]["ok"] and findings["text encoder"]["ok"] and findings["frame encoder"]["ok"]


def test_json_has_stdout_for_itself(capsys: pytest.CaptureFixture[str]):
    other = typer.Typer()

    @other.command()
    def verb(as_json: JsonOption = False) -> None:
        print("a library prints something")
        print_json({"found": 1})

    other(["--json"], standalone_mode=False)
    print("and after it")
    printed = capsys.readouterr()
    assert printed.out == '{"found": 1}\nand after it\n'
    assert printed.err == "a library prints something\n"


def test_the_summary_of_embed_never_replaces_a_video(vmr, tmp_path: Path):
    video = tmp_path / "videos" / "a.mp4"
    video.parent.mkdir()
    video.write_bytes(b"a video")
    code, _, err = vmr("embed", video.parent, "--out", tmp_path / "features", "--report", video)
    one_sentence(code, err, "--report", "a.mp4", "is an input")
    assert video.read_bytes() == b"a video"


def test_one_video_is_too_few_to_train_on_unlabelled(vmr, tmp_path: Path):
    store = FeatureStore.create(str(tmp_path / "f"), StoreSpec("efficientnet-lite0", 1280, "fps=1"))
    chunk = Chunk(0, True, duration=4.0, times=np.arange(4) + 0.5, edges=np.arange(5.0), damage="")
    store.write_chunk(Video("a.mp4", "a.mp4", "1"), chunk, np.ones((4, 1280)))
    code, _, err = vmr("train", tmp_path / "f", "--unlabelled", "-o", tmp_path / "run")
    one_sentence(code, err, "holds 1 videos: at least 2 are needed")
    assert not (tmp_path / "run").exists()


def test_features_without_words_cannot_be_trained_on_unlabelled(vmr, tmp_path: Path):
    FeatureStore.create(str(tmp_path / "f"), StoreSpec("imported:i3d", 1024, "fps=1"))
    code, _, err = vmr("train", tmp_path / "f", "--unlabelled", "-o", tmp_path / "run")
    one_sentence(code, err, "which knows no sentences")
