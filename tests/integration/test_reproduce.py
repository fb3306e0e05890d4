"""Each recipe under configs/ from small files of exactly the published formats to its table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from vmr_ray import cli
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import load_info

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = ["model.dim=32", "model.fusion_dim=32", "model.heads=2", "train.cpus_per_worker=0.5"]
RNG = np.random.default_rng(0)
WORDS = ("opens the door", "takes off a coat", "sits down", "reads a book")


def signal(clips: int, dim: int) -> np.ndarray:
    return RNG.normal(size=(clips, dim)).astype(np.float32)


def charades(data: Path) -> None:
    """<video>.npy [T, 1024]; `VIDEO start end##query` lines; charades.json."""
    (data / "features" / "i3d_finetuned").mkdir(parents=True)
    videos = [f"V{i:04d}" for i in range(8)]
    for video in videos:
        np.save(data / "features" / "i3d_finetuned" / f"{video}.npy", signal(62, 1024))
    lines = [f"{v} {2.5 * i:.1f} {2.5 * i + 6:.1f}##person {WORDS[i]}.\n" for v in videos for i in range(3)]
    write(data / "charades_sta_train.txt", "".join(lines[:15]))
    write(data / "charades_sta_test.txt", "".join(lines[15:]))
    write(data / "charades.json", json.dumps({video: {"duration": 30.5} for video in videos}))


def activitynet(data: Path) -> None:
    """<video>/c3d_features [T, 500] in one HDF5 file; JSON by video."""
    videos = [f"v_{i:011d}" for i in range(8)]
    (data / "features").mkdir(parents=True)
    with h5py.File(data / "features" / "sub_activitynet_v1-3.c3d.hdf5", "w") as file:
        for video in [*videos, "v_not_captioned"]:
            file[f"{video}/c3d_features"] = signal(300, 500)
    for name, part in (("train", videos[:4]), ("val_1", videos[4:6]), ("val_2", videos[6:])):
        entries = {
            video: {
                "duration": 90.2,
                "timestamps": [[5.0, 40.1], [38.0, 90.2]],
                "sentences": [f"A man {WORDS[0]}.", f" He {WORDS[1]}."],
            }
            for video in part
        }
        write(data / f"{name}.json", json.dumps(entries))


def qvhighlights(data: Path) -> None:
    """clip_features, slowfast_features: <vid>.npz; clip_text_features: qid<qid>.npz; JSONL."""
    videos = [f"abcdefghij{i}_60.0_210.0" for i in range(8)]
    folders = [data / "features" / name for name in ("clip_features", "slowfast_features")]
    text = data / "features" / "clip_text_features"
    for folder in (*folders, text):
        folder.mkdir(parents=True)
    lines = []
    for qid, video in enumerate(videos, start=100):
        np.savez(folders[0] / f"{video}.npz", features=signal(75, 512))
        np.savez(folders[1] / f"{video}.npz", features=signal(76, 2304))
        states = signal(9, 512).astype(np.float16)
        np.savez(text / f"qid{qid}.npz", last_hidden_state=states, pooler_output=states[0])
        line = {
            "qid": qid,
            "query": f"Woman number {qid} {WORDS[qid % 4]}.",
            "duration": 150,
            "vid": video,
            "relevant_windows": [[10, 40], [60, 66]],
            "relevant_clip_ids": [*range(5, 20), 30, 31, 32],
            "saliency_scores": [[3, 4, 2]] * 18,
        }
        lines.append(json.dumps(line) + "\n")
    write(data / "highlight_train_release.jsonl", "".join(lines[:5]))
    write(data / "highlight_val_release.jsonl", "".join(lines[5:]))


def write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.fixture
def vmr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*args: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["vmr", *map(str, args)])
        try:
            cli.main()
        except SystemExit as stop:
            assert not stop.code, capsys.readouterr().err
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("name", "make", "dim", "queries"),
    [
        ("charades_sta_i3d", charades, 1024, 9),
        ("activitynet_captions_c3d", activitynet, 500, 4),
        ("qvhighlights_clip_slowfast", qvhighlights, 2816, 3),
    ],
)
def test_a_recipe_from_files_to_its_table(
    cluster, vmr, tmp_path: Path, name: str, make, dim: int, queries: int
):
    make(tmp_path)
    out = tmp_path / "out"
    command = ["reproduce", CONFIGS / f"{name}.yaml", "--features", tmp_path / "features"]
    command += ["--annotations", tmp_path, "--out", out, "--epochs", "1"]
    for setting in SMALL:
        command += ["--set", setting]

    result = json.loads(vmr(*command, "--json").splitlines()[-1])
    assert (result["imported"]["imported"], result["imported"]["dim"]) == (8, dim)
    assert (result["queries"], result["without_features"]) == (queries, 0)
    assert set(result["model"]) >= {"r1_at_0.5", "r5_at_0.7", "miou"}
    store = FeatureStore.open(str(out / "features"))
    video = store.read(next(iter(store.files().values())))
    expected = {
        "charades_sta_i3d": (62, 30.5),
        "activitynet_captions_c3d": (256, 90.2),
        "qvhighlights_clip_slowfast": (75, 150.0),
    }
    assert (len(video.features), video.edges[-1]) == expected[name]
    info = load_info(out / "run" / "best")
    text = f"imported:{out / 'text'}" if name.startswith("qv") else "minilm"
    assert (info.frame_encoder, info.text_encoder) == (store.spec.encoder, text)

    if name.startswith("qv"):  # again: everything is there already
        table = vmr(*command)
        assert "mIoU" in table and "best constant span" in table and "3 queries on 3 videos" in table
        assert json.loads((out / "report" / "metrics.json").read_text())["model"] == result["model"]
