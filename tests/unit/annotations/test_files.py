from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from vmr_ray.annotations import load_annotations, read_annotations
from vmr_ray.errors import VmrError
from vmr_ray.schema import Annotation

FIXTURES = Path(__file__).parents[2] / "fixtures" / "annotations"
UP_TO = "end past the duration by up to 1 s"
OVER = "end past the duration by over 1 s"


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "video,query,start,end\n", "holds no annotations"),
        ("a.csv", "video,start,end\nv,1,2\n", "line 1: the header has no column query"),
        ("a.csv", 'video,query,start,end\nv,"a,1,2\nv,b,1,2\n', "close every double quote"),
        ("a.csv", "video,query,start,end\nv,caf\xe9,1,2\n".encode("latin-1"), "line 2: not UTF-8 text"),
        ("a.parquet", "PAR1", "its annotation format is not clear"),
        ("a.txt", "KITE1 0 5 a child", "its annotation format is not clear"),
        ("a.json", '{"v": 1}', "its annotation format is not clear"),
        ("a.json", '{"v": {"timestamps": [', "not JSON"),
        ("a.json", '[{"timestamps": []}]', "not an object of videos"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(VmrError, match=message) as error:
        load_annotations(path)
    assert str(path) in str(error.value)


def test_missing_files_and_unknown_formats(tmp_path: Path) -> None:
    with pytest.raises(VmrError, match=r"nowhere\.csv: No such file"):
        read_annotations(tmp_path / "nowhere.csv")
    with pytest.raises(VmrError, match="Is a directory"):
        read_annotations(tmp_path)
    with pytest.raises(VmrError, match="unknown annotation format 'vmrr'; known here: auto, charades-sta"):
        read_annotations(FIXTURES / "vmr.csv", format="vmrr")
    with pytest.raises(VmrError, match=r"bad\.json: no durations"):
        read_annotations(FIXTURES / "vmr.csv", durations=write(tmp_path, "bad.json", '{"v": {"length": 3}}'))


def test_byte_order_mark_spaces_and_named_format(tmp_path: Path) -> None:
    text = "\ufeffvideo, query, start, end\r\nv.mp4, a dog, 1, 2\r\n"
    found = read_annotations(write(tmp_path, "a.tsv", text), format="vmr")
    assert found.annotations == [Annotation("v.mp4", "a dog", ((1.0, 2.0),))] and not found.problems


def test_a_file_that_was_read_is_not_read_again(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"video": "v", "query": "a", "start": 1, "end": 2}')
    found = load_annotations(path)
    path.unlink()
    assert load_annotations(found) is found and read_annotations(found) is found


def test_a_file_of_ones_own_is_read_once(tmp_path: Path) -> None:
    """The file is a pipe, which is gone as soon as it has been opened."""
    pipe = tmp_path / "a.jsonl"
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("w") as stream:
            pipe.unlink()
            stream.write('{"video": "v", "query": "a", "start": 1, "end": 2}')

    threading.Thread(target=write, daemon=True).start()
    assert load_annotations(pipe).annotations == [Annotation("v", "a", ((1.0, 2.0),))]


def test_what_was_read_leniently_is_still_checked(tmp_path: Path) -> None:
    found = read_annotations(FIXTURES / "broken.csv")
    with pytest.raises(VmrError, match="line 3: start 9.0 is not before end 4.0"):
        load_annotations(found)


@pytest.mark.skipif(
    "VMR_BENCHMARK_DATA" not in os.environ, reason="set VMR_BENCHMARK_DATA to run on the real files"
)
@pytest.mark.parametrize(
    ("file", "rows", "clipped", "dropped"),
    [
        ("charades_sta/charades_sta_train.txt", 12408, {UP_TO: 1068, OVER: 734}, {}),
        (
            "charades_sta/charades_sta_train_unrepaired.txt",
            12408,
            {UP_TO: 1068, OVER: 734},
            {"start not before end": 4},
        ),
        ("charades_sta/charades_sta_test.txt", 3720, {UP_TO: 334, OVER: 228}, {}),
        ("charades_cd/charades_train.json", 11071, {UP_TO: 1222, OVER: 430}, {}),
        ("charades_cd/charades_val.json", 859, {UP_TO: 100, OVER: 35}, {}),
        ("charades_cd/charades_test_iid.json", 823, {UP_TO: 119, OVER: 32}, {}),
        (
            "charades_cd/charades_test_ood.json",
            3375,
            {UP_TO: 233, OVER: 112},
            {"start past the duration": 3},
        ),
        ("tacos/train.json", 9790, {UP_TO: 43}, {}),
        ("tacos/val.json", 4436, {}, {}),
        ("tacos/test.json", 4001, {UP_TO: 5}, {}),
        ("activitynet_captions/train.json", 37421, {UP_TO: 29}, {"start not before end": 4}),
        ("activitynet_captions/val_1.json", 17505, {UP_TO: 5}, {}),
        ("activitynet_captions/val_2.json", 17031, {UP_TO: 1}, {}),
        ("qvhighlights/highlight_train_release.jsonl", 7218, {}, {}),
        ("qvhighlights/highlight_val_release.jsonl", 1550, {}, {}),
        ("qvhighlights/highlight_test_with_gt.jsonl", 1542, {}, {}),
    ],
)
def test_counts_of_the_real_files(
    file: str, rows: int, clipped: dict[str, int], dropped: dict[str, int]
) -> None:
    found = read_annotations(Path(os.environ["VMR_BENCHMARK_DATA"]) / "annotations" / file)
    counts = found.counts()
    assert (len(found.rows), counts.clipped, counts.dropped) == (rows, clipped, dropped)
    assert counts.kept == rows - counts.dropped.total()
    for annotation in found.annotations:
        assert annotation.duration is not None
        assert all(0 <= start < end <= annotation.duration for start, end in annotation.spans)
