from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from vmr_ray.encoders import check_texts, default_text_encoder, frame_encoder, frame_spec, text_encoder
from vmr_ray.errors import VmrError
from vmr_ray.features import FeatureStore, verify
from vmr_ray.importing.arrays import open_source
from vmr_ray.importing.features import import_features
from vmr_ray.importing.token_states import import_text

RNG = np.random.default_rng(0)


def matrix(rows: int, dim: int = 4, dtype: type = np.float32) -> np.ndarray:
    return RNG.normal(size=(rows, dim)).astype(dtype)


def folder(path: Path, **arrays: np.ndarray) -> Path:
    """A folder of .npy files."""
    path.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    return path


def rows(path: Path, *items: dict) -> Path:
    path.write_text("\n".join(map(json.dumps, items)))
    return path


def stored(root: Path, video: str):
    store = FeatureStore.open(str(root))
    return store.read(store.files()[video])


def annotated(path: Path, **durations: float) -> Path:
    return rows(
        path,
        *(
            {"video": video, "query": "it waits", "start": 0, "end": 1, "duration": seconds}
            for video, seconds in durations.items()
        ),
    )


def test_a_folder_of_npy(tmp_path: Path):
    a, b = matrix(3), matrix(700)
    source, out = folder(tmp_path / "i3d", a=a, b=b), tmp_path / "out"
    done = import_features([source], out, 0.5)
    assert (done.videos, done.imported, done.skipped, done.clips, done.dim) == (2, 2, 0, 703, 4)
    spec = FeatureStore.open(str(out)).spec
    assert (spec.encoder, spec.dim, spec.sampling) == ("imported:i3d", 4, "clip_seconds=0.5")
    video = stored(out, "a")
    assert video.edges.tolist() == [0, 0.5, 1, 1.5] and video.times.tolist() == [0.25, 0.75, 1.25]
    assert video.duration == 1.5 and (video.features == a.astype(np.float16)).all()
    long = stored(out, "b")
    assert long.edges.tolist() == (np.arange(701) / 2).tolist()
    assert (long.features == b.astype(np.float16)).all()
    assert verify(out).videos == 2 and not verify(out).problems


def test_the_other_formats_hold_the_same(tmp_path: Path):
    a = matrix(3)
    expected = a.astype(np.float16)
    for name, write in {
        "npz": lambda f: np.savez(f / "a.npz", features=a, other=a[:1]),
        "only": lambda f: np.savez(f / "a.npz", x=a),
        "double": lambda f: np.save(f / "a.npy", a.astype(np.float64)),
        "axes": lambda f: np.save(f / "a.npy", a[:, None, None]),
        "pt": lambda f: torch.save(torch.from_numpy(a), f / "a.pt"),
        "dict": lambda f: torch.save({"features": torch.from_numpy(a), "fps": 2}, f / "a.pt"),
    }.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name)
        import_features([tmp_path / name], tmp_path / f"{name}-out", 1)
        assert (stored(tmp_path / f"{name}-out", "a").features == expected).all(), name
    for name, key in (("group", "c3d_features"), ("plain", None)):
        with h5py.File(tmp_path / f"{name}.hdf5", "w") as file:
            file[f"a/{key}" if key else "a"] = a
        import_features([tmp_path / f"{name}.hdf5"], tmp_path / f"{name}-out", 1, keys=[key] if key else [])
        assert (stored(tmp_path / f"{name}-out", "a").features == expected).all()


def test_sources_are_joined_normalized_and_cut(tmp_path: Path):
    clip, slow = matrix(5, 2), matrix(7, 3)
    sources = [folder(tmp_path / "clip", v=clip), folder(tmp_path / "slow", v=slow)]
    import_features(sources, tmp_path / "out", 2, normalize=True)
    found = stored(tmp_path / "out", "v").features.astype(np.float32)
    assert found.shape == (5, 5)
    np.testing.assert_allclose(np.linalg.norm(found[:, :2], axis=1), 1, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(found[:, 2:], axis=1), 1, atol=2e-3)
    spec = FeatureStore.open(str(tmp_path / "out")).spec
    assert (spec.encoder, spec.sampling) == ("imported:clip+slow", "clip_seconds=2,normalize")


def test_videos_that_do_not_fit_are_named(tmp_path: Path):
    first = folder(tmp_path / "a", good=matrix(5), long=matrix(5), alone=matrix(5))
    second = folder(tmp_path / "b", good=matrix(5), long=matrix(8))
    done = import_features([first, second], tmp_path / "out", 1)
    errors = {row.video_id: row.error for row in done.quarantined}
    assert set(errors) == {"long", "alone"} and done.imported == 1
    assert "b has no features of alone" in errors["alone"]
    assert "a 5, b 8" in errors["long"] and "--tolerance" in errors["long"]
    store = FeatureStore.open(str(tmp_path / "out"))
    assert [row.video_id for row in store.quarantine.rows()] == ["alone", "long"]
    assert import_features([first, second], tmp_path / "out", 1, tolerance=3).imported == 1
    assert [row.video_id for row in store.quarantine.rows()] == ["alone"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.full((3, 4), np.nan, np.float32), "NaN or infinity in 3 of 3 rows"),
        (np.full((3, 4), 1e6, np.float32), "more than float16 can: import with --normalize"),
        (np.full((3, 4), 1e300), "NaN or infinity"),
        (np.zeros((3, 5), np.float32), "has 5 dimensions, other videos of src 4"),
        (np.zeros((3, 2, 4), np.float32), "has the shape 3 x 2 x 4"),
        (np.zeros(4, np.float32), "has the shape 4"),
        (np.zeros((0, 4), np.float32), "is empty"),
        (np.zeros((3, 4), np.int64), "type int64"),
        (np.array([{"a": 1}], dtype=object), "(it is not an array): fetch it again"),
        (b"no array", "(it is not an array): fetch it again"),
        (b"", "cannot read"),
    ],
)
def test_bad_files_are_quarantined(tmp_path: Path, bad: np.ndarray | bytes, message: str):
    source = folder(tmp_path / "src", **{name: matrix(3) for name in "bcd"})
    if isinstance(bad, bytes):
        (source / "a.npy").write_bytes(bad)
    else:
        np.save(source / "a.npy", bad)
    done = import_features([source], tmp_path / "out", 1)
    assert [row.video_id for row in done.quarantined] == ["a"] and done.imported == 3
    error = done.quarantined[0].error
    assert message in error and str(source / "a.npy") in error and "\n" not in error
    assert FeatureStore.open(str(tmp_path / "out")).video_ids() == ["b", "c", "d"]


def test_only_what_is_new_or_changed_is_read(tmp_path: Path):
    source, out = folder(tmp_path / "src", a=matrix(3), b=matrix(3)), tmp_path / "out"
    import_features([source], out, 1)
    folder(source, c=matrix(2))
    again = import_features([source], out, 1)
    assert (again.imported, again.skipped) == (1, 2)
    folder(source, a=matrix(6))
    os.utime(source / "a.npy", ns=(1, 1))
    assert import_features([source], out, 1).imported == 1
    assert len(stored(out, "a").features) == 6
    assert verify(out).videos == 3


def test_an_interrupted_import_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, out = folder(tmp_path / "src", a=matrix(3), b=matrix(700), c=matrix(3)), tmp_path / "out"
    write, count = FeatureStore.write_chunk, iter(range(9))

    def stop_in_b(*args, **kwargs):
        if next(count) == 2:
            raise KeyboardInterrupt
        write(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FeatureStore, "write_chunk", stop_in_b)
        import_features([source], out, 1)
    assert FeatureStore.open(str(out)).video_ids() == ["a"] and verify(out).unfinished == 1
    again = import_features([source], out, 1)
    assert (again.imported, again.skipped) == (2, 1)
    assert len(stored(out, "b").features) == 700 and verify(out).unfinished == 0


def test_durations_of_annotations(tmp_path: Path):
    source = folder(tmp_path / "src", a=matrix(4), b=matrix(4), c=matrix(40), d=matrix(4))
    durations = annotated(tmp_path / "t.jsonl", a=7.5, **{"b.mp4": 6.0, "c": 8.0})
    done = import_features([source], tmp_path / "fixed", 2, annotations=[durations])
    assert stored(tmp_path / "fixed", "a").edges.tolist() == [0, 2, 4, 6, 7.5]
    assert stored(tmp_path / "fixed", "b").edges.tolist() == [0, 2, 4, 6]
    assert stored(tmp_path / "fixed", "d").duration == 8
    assert "40 clips of 2 s do not fit the duration 8 s" in done.quarantined[0].error

    done = import_features([source], tmp_path / "even", "duration", annotations=[durations], max_clips=16)
    assert (done.videos, done.without_duration) == (3, 1)
    assert stored(tmp_path / "even", "a").edges.tolist() == [0, 1.875, 3.75, 5.625, 7.5]
    pooled = stored(tmp_path / "even", "c")
    assert len(pooled.features) == 16 and pooled.edges[[0, -1]].tolist() == [0, 8]
    assert (np.diff(pooled.edges) > 0).all()
    first = np.load(source / "c.npy")[: round(pooled.edges[1] / 0.2)].mean(0)
    np.testing.assert_allclose(pooled.features[0], first, atol=2e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: import_features([p / "gone"], p / "o", 1), "no such file or directory"),
        (lambda p: import_features([p / "empty"], p / "o", 1), "no features in"),
        (lambda p: import_features([p / "x.txt"], p / "o", 1), "is not a source of features"),
        (lambda p: import_features([p / "x.h5"], p / "o", 1), "cannot read"),
        (lambda p: import_features(["s3://b/x"], p / "o", 1), "copy the features here"),
        (lambda p: import_features([p / "src"], p / "o", 0), "above 0, or duration"),
        (lambda p: import_features([p / "src"], p / "o", "duration"), "no duration of these videos"),
        (lambda p: import_features([p / "src"], p / "o", 1, keys=["a", "b"]), "2 keys for 1 sources"),
        (lambda p: import_features([p / "src"], p / "made", 2), "imported:src at clip_seconds=1, not of"),
        (lambda p: import_features([p / "bad"], p / "o", 1), "cannot read"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, call, message: str):
    (tmp_path / "empty").mkdir()
    for name in ("x.txt", "x.h5"):
        (tmp_path / name).write_text("x")
    folder(tmp_path / "bad")
    (tmp_path / "bad" / "a.npy").write_text("x")
    import_features([folder(tmp_path / "src", a=matrix(2))], tmp_path / "made", 1)
    with pytest.raises(VmrError, match=message) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_array_must_be_chosen_where_there_are_several(tmp_path: Path):
    (tmp_path / "src").mkdir()
    np.savez(tmp_path / "src" / "a.npz", x=matrix(2), y=matrix(3))
    with pytest.raises(VmrError, match="several arrays .there: x, y.: name the right one with --key"):
        open_source(tmp_path / "src").read("a")
    with pytest.raises(VmrError, match="no array 'z'"):
        open_source(tmp_path / "src", "z").read("a")
    assert len(open_source(tmp_path / "src", "y").read("a")) == 3
    torch.save({"a": Path("x")}, tmp_path / "src" / "b.pt")
    with pytest.raises(VmrError, match="holds more than tensors"):
        open_source(tmp_path / "src").read("b")


def test_nothing_new_can_be_embedded_with_imported_features():
    for make in (frame_encoder, frame_spec):
        with pytest.raises(VmrError, match="imported:i3d were computed elsewhere"):
            make("imported:i3d")
    assert default_text_encoder("imported:i3d") == "minilm"


# -- token states ------------------------------------------------------------------------------------


def states(path: Path, **arrays: np.ndarray) -> Path:
    path.mkdir()
    for name, array in arrays.items():
        np.savez(path / f"{name}.npz", last_hidden_state=array, pooler_output=array[0])
    return path


def test_states_are_found_by_qid(tmp_path: Path):
    first, second = matrix(3), matrix(40)
    source = states(tmp_path / "text", qid7=first, qid9=second, qid10=first)
    train = rows(tmp_path / "train.jsonl", {"qid": 7, "query": " A dog runs ", "vid": "v"})
    val = rows(
        tmp_path / "val.jsonl",
        {"qid": 9, "query": "It rains"},
        {"qid": 10, "query": "A dog runs", "vid": "v"},
    )
    done = import_text(source, [train, val], tmp_path / "out", max_tokens=32)
    assert (done.queries, done.texts, done.dim, done.written) == (3, 2, 4, True)
    encoder = text_encoder(done.encoder)
    assert (encoder.dim, encoder.max_tokens) == (4, 32)
    rain, dog = encoder(["It rains", "A dog runs"])
    assert rain.dtype == np.float32 and rain.shape == (32, 4)
    np.testing.assert_allclose(dog, first, atol=2e-3)
    with pytest.raises(VmrError, match="the query 'A cat' are not in .* import them with"):
        encoder(["A dog runs", "A cat"])
    with pytest.raises(VmrError, match="'A cat'"):
        check_texts(done.encoder, ["A dog runs", "A cat"])
    check_texts("minilm", ["A cat"])
    assert not import_text(source, [train, val], tmp_path / "out", max_tokens=32).written
    with pytest.raises(VmrError, match="holds other token states"):
        import_text(source, [train], tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize("start", [0, 1])
def test_states_are_found_by_row_number(tmp_path: Path, start: int):
    queries = ["one", "two", "three"]
    path = rows(tmp_path / "a.jsonl", *({"video": "v", "query": q, "start": 0, "end": 1} for q in queries))
    arrays = [matrix(n + 1) for n in range(3)]
    source = folder(tmp_path / "text", **{str(i + start): a for i, a in enumerate(arrays)})
    encoder = text_encoder(import_text(source, [path], tmp_path / "out").encoder)
    assert [len(found) for found in encoder(queries)] == [1, 2, 3]
    np.save(source / "3.npy" if not start else source / "4.npy", arrays[0])
    with pytest.raises(VmrError, match="is not numbered as the annotation file is, whose 3 rows"):
        import_text(source, [path], tmp_path / "other")


def test_mistakes_of_token_states_are_named(tmp_path: Path):
    source = states(tmp_path / "text", qid1=matrix(2), qid2=matrix(2), qid3=matrix(2, 5))
    one = {"qid": 1, "query": "a"}
    for message, items in (
        ("no states of the query 'b' .qid4 or 4.", [one, {"qid": 4, "query": "b"}]),
        ("states of the same text 'a' and differ", [one, {"qid": 2, "query": "a"}]),
        ("has 5 dimensions, not 4", [one, {"qid": 3, "query": "c"}]),
        ("hold no query", [{"qid": 1}]),
    ):
        with pytest.raises(VmrError, match=message):
            import_text(source, [rows(tmp_path / "a.jsonl", *items)], tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())
    with pytest.raises(VmrError, match="no imported token states at"):
        text_encoder(f"imported:{tmp_path / 'out'}")
    with pytest.raises(VmrError, match="not a path from the root"):
        text_encoder("imported:text")
