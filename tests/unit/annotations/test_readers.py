from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from vmr_ray.annotations import read_annotations, read_highlights, read_strict
from vmr_ray.errors import VmrError
from vmr_ray.schema import Annotation

FIXTURES = Path(__file__).parents[2] / "fixtures" / "annotations"
UP_TO = "end past the duration by up to 1 s"
OVER = "end past the duration by over 1 s"


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_charades_sta_takes_durations_from_the_file_beside_it() -> None:
    found = read_annotations(FIXTURES / "charades_sta.txt")
    assert (found.format, found.rows) == ("charades-sta", 6)
    assert found.annotations == [
        Annotation("KITE1", "a child unrolls a kite string.", ((0.0, 6.5),), 30.0),
        Annotation("KITE1", "the child runs across a meadow.", ((4.0, 30.0),), 30.0),
        Annotation("LAMP2", "a man screws in a light bulb.", ((9.0, 18.0),), 18.0),
    ]
    counts = found.counts()
    assert counts.kept == 3
    assert counts.clipped == {OVER: 1, UP_TO: 1}
    assert counts.dropped == {"start not before end": 1, "start past the duration": 1, "malformed line": 1}
    assert [p.line for p in found.problems] == [2, 3, 4, 6, 7]


def test_charades_sta_without_durations_is_not_clipped(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "KITE1 4.0 31.2##the child runs.\r\nLAMP2 1 2##he waits.")
    assert read_annotations(path).annotations == [
        Annotation("KITE1", "the child runs.", ((4.0, 31.2),)),
        Annotation("LAMP2", "he waits.", ((1.0, 2.0),)),
    ]
    given = write(tmp_path, "given.json", '{"KITE1": 20}')
    assert [a.duration for a in read_annotations(path, durations=given).annotations] == [20.0, None]


def test_charades_cd() -> None:
    found = read_annotations(FIXTURES / "charades_cd.json")
    assert found.format == "charades-cd"
    assert [a.spans for a in found.annotations] == [((0.0, 6.5),), ((4.0, 30.0),)]
    assert found.problems[0].where == "KITE1, sentence 2"


def test_tacos_frames_become_seconds() -> None:
    found = read_annotations(FIXTURES / "tacos.json")
    assert found.format == "tacos"
    assert found.annotations == [
        Annotation("kitchen-a.avi", "The cook washes a leek.", ((2.0, 6.0),), 40.0),
        Annotation("kitchen-a.avi", "She slices the leek.", ((8.0, 40.0),), 40.0),
    ]
    assert found.counts().dropped == {"malformed entry": 1}
    assert found.problems[-1].where == "kitchen-b.avi"


def test_activitynet_does_not_report_rounding() -> None:
    found = read_annotations(FIXTURES / "activitynet.json")
    assert found.format == "activitynet"
    assert found.annotations == [
        Annotation("v_canoe", "Two people carry a canoe.", ((0.0, 12.5),), 40.55),
        Annotation("v_canoe", "They paddle down a river.", ((12.5, 40.55),), 40.55),
        Annotation("v_canoe", "The river bends.", ((30.0, 40.55),), 40.55),  # says 40.55000000000001
    ]
    assert found.counts().clipped == {UP_TO: 1}
    assert found.counts().dropped == {"start not before end": 1, "empty query": 1}


def test_qvhighlights_has_several_windows_and_saliency() -> None:
    path = FIXTURES / "qvhighlights.jsonl"
    found = read_annotations(path)
    assert (found.format, found.problems) == ("qvhighlights", [])
    assert found.annotations[0].spans == ((2.0, 6.0), (12.0, 14.0))

    first, second = read_highlights(path)
    assert (first.qid, first.video_id, first.query) == (11, "pottery_0.0_20.0", "A potter shapes a bowl")
    assert first.saliency.shape == (10, 3)
    assert first.saliency[[1, 2, 6]].tolist() == [[2, 3, 4], [1, 0, 2], [4, 4, 4]]
    assert first.saliency.sum() == 24
    assert np.flatnonzero(second.saliency.any(1)).tolist() == [9]


def test_saliency_that_does_not_fit_names_the_line(tmp_path: Path) -> None:
    row = json.loads((FIXTURES / "qvhighlights.jsonl").read_text().splitlines()[0])
    path = write(tmp_path, "a.jsonl", json.dumps(row | {"relevant_clip_ids": [1, 2, 10]}))
    with pytest.raises(VmrError, match=r"a\.jsonl: line 1: no usable saliency"):
        read_highlights(path)


def test_own_format_as_jsonl_and_csv() -> None:
    found = read_annotations(FIXTURES / "vmr.jsonl")
    assert found.format == "vmr"
    assert found.annotations == [
        Annotation("garden.mp4", "a hedgehog drinks", ((3.0, 8.5),), 60.0),
        Annotation("garden.mp4", "the gate swings", ((0.0, 2.0), (40.5, 60.0)), 60.0),
        Annotation("street.mp4", "a tram passes", ((12.0, 19.5),)),
    ]
    assert [(p.line, p.action) for p in found.problems] == [(2, "clipped")]
    assert read_strict(FIXTURES / "vmr.jsonl") == found.annotations

    assert read_strict(FIXTURES / "vmr.csv") == [
        Annotation("garden.mp4", "a hedgehog, thirsty, drinks", ((3.0, 8.5),), 60.0),
        Annotation("street.mp4", "a tram passes", ((12.0, 19.5),)),
    ]


def test_every_broken_row_has_its_line_and_mend() -> None:
    found = read_annotations(FIXTURES / "broken.csv")
    assert (found.rows, len(found.annotations)) == (13, 2)
    assert [(p.line, p.action, p.kind, p.reason) for p in found.problems] == [
        (3, "dropped", "start not before end", "start 9.0 is not before end 4.0: swap them"),
        (4, "dropped", "not finite", "start is nan: give a finite number of seconds"),
        (5, "dropped", "negative start", "start -1.0 is negative: count seconds from the video's beginning"),
        (6, "dropped", "not a number", "start '00:01:05' is not a number: give seconds, for example 12.5"),
        (7, "dropped", "empty query", "query is empty: fill it in, or delete the row"),
        (
            8,
            "dropped",
            "wrong number of values",
            "6 values for 5 columns: put a query that holds a comma in double quotes",
        ),
        (9, "clipped", OVER, "end 75.0 is past the video's duration 60.0: it was set to the duration"),
        (
            10,
            "dropped",
            "start past the duration",
            "start 60.0 is not within the video's duration 60.0: correct one of them",
        ),
        (11, "dropped", "empty video", "video is empty: fill it in, or delete the row"),
        (12, "dropped", "start not before end", "start and end are both 5.0: give the moment a length"),
        (13, "dropped", "missing end", "end is missing: give it in seconds"),
        (
            14,
            "dropped",
            "bad duration",
            "duration 0.0 is not above 0: give the video's length in seconds",
        ),
    ]
    with pytest.raises(VmrError) as error:
        read_strict(FIXTURES / "broken.csv")
    expected = f"{FIXTURES / 'broken.csv'}: line 3: start 9.0 is not before end 4.0: swap them (and 10 more)"
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("not json", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ('{"query": "a", "start": 1, "end": 2}', "empty video"),
        ('{"video": 7, "query": "a", "start": 1, "end": 2}', "video not text"),
        ('{"video": "v", "query": "  ", "start": 1, "end": 2}', "empty query"),
        ('{"video": "v", "query": "a", "end": 2}', "missing start"),
        ('{"video": "v", "query": "a", "start": true, "end": 2}', "not a number"),
        ('{"video": "v", "query": "a", "start": [1], "end": 2}', "not a number"),
        ('{"video": "v", "query": "a", "start": 1, "end": 1' + "0" * 400 + "}", "not a number"),
        ('{"video": "v", "query": "a", "start": 1, "end": Infinity}', "not finite"),
        ('{"video": "v", "query": "a", "spans": []}', "no moment"),
        ('{"video": "v", "query": "a", "spans": [[1, 2], [4, 3]]}', "start not before end"),
        ('{"video": "v", "query": "a", "spans": [[1, 2, 3]]}', "span not a pair"),
        ('{"video": "v", "query": "a", "start": 1, "end": 2, "duration": "long"}', "not a number"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_broken_jsonl_lines(tmp_path: Path, line: str, kind: str) -> None:
    good = '{"video": "v", "query": "a", "start": 1, "end": 2}'
    found = read_annotations(write(tmp_path, "a.jsonl", f"{good}\n\n{line}\n"))
    assert [(p.line, p.kind) for p in found.problems] == [(3, kind)]
    assert found.annotations == [Annotation("v", "a", ((1.0, 2.0),))]
    assert found.rows == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "video,query,start,end\n", "holds no annotations"),
        ("a.csv", "video,start,end\nv,1,2\n", "line 1: the header has no column query"),
        ("a.csv", 'video,query,start,end\nv,"a,1,2\nv,b,1,2\n', "close every double quote"),
        ("a.csv", "video,query,start,end\nv,caf\xe9,1,2\n".encode("latin-1"), "line 2: not UTF-8 text"),
        ("a.parquet", "PAR1", "its annotation format cannot be told"),
        ("a.txt", "KITE1 0 5 a child", "its annotation format cannot be told"),
        ("a.json", '{"v": 1}', "its annotation format cannot be told"),
        ("a.json", '{"v": {"timestamps": [', "not JSON"),
        ("a.json", '[{"timestamps": []}]', "not an object of videos"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(VmrError, match=message) as error:
        read_strict(path)
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
    assert read_strict(write(tmp_path, "a.tsv", text), format="vmr") == [
        Annotation("v.mp4", "a dog", ((1.0, 2.0),))
    ]


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
    assert (found.rows, counts.clipped, counts.dropped) == (rows, clipped, dropped)
    assert counts.kept == rows - counts.dropped.total()
    for annotation in found.annotations:
        assert annotation.duration is not None
        assert all(0 <= start < end <= annotation.duration for start, end in annotation.spans)
