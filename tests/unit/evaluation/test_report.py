"""The report on synthetic answers: its numbers are those of the metrics, its page is whole and safe."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vmr_ray.evaluation.controls import constant_metrics, fit_constants
from vmr_ray.evaluation.metrics import moment_metrics
from vmr_ray.evaluation.qvhighlights import qvhighlights_metrics
from vmr_ray.evaluation.report.cases import choose_cases
from vmr_ray.evaluation.report.measurements import Answers, boundary_errors, measure
from vmr_ray.evaluation.report.write import verdict, write_report
from vmr_ray.evaluation.result import CorpusMetrics, Evaluation, PresenceMetrics, QVHighlightsMetrics

NASTY = '<script>alert(1)</script> a "dog" & $x^$'
VOID = {"meta", "img", "source", "link", "br", "input"}


class Page(HTMLParser):
    """The elements of a page; it must close what it opens."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        self.text += data

    def found(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def made(queries: int = 60, several: bool = False) -> Answers:
    rng = np.random.default_rng(0)
    starts, lengths = rng.uniform(0, 60, queries), rng.uniform(0.5, 30, queries)
    durations = np.full(queries, 100.0)
    truths = [[(float(s), float(s + n))] for s, n in zip(starts, lengths, strict=True)]
    if several:
        truths = [[*t, (95.0, 99.0)] for t in truths]
    noise = rng.normal(0, 4, (queries, 2))
    first = [sorted(np.clip(np.add(t[0], n), 0, 100)) for t, n in zip(truths, noise, strict=True)]
    ranked = [[(float(a), float(b), float(i)), (90.0, 95.0, -1.0)] for i, (a, b) in enumerate(first)]
    return Answers(
        [f"v{i // 3}" for i in range(queries)],
        durations.tolist(),
        [NASTY, *(f"query {i}" for i in range(1, queries))],
        truths,
        ranked,
        [[(0.0, 5.0, 0.0)]] * queries,
    )


def constants_of(answers: Answers) -> dict:
    return fit_constants([t[0] for t in answers.truths], answers.durations)


def evaluation(answers: Answers, **optional: Any) -> Evaluation:
    return Evaluation(
        model=moment_metrics(answers.spans(), answers.truths),
        constant=constant_metrics(constants_of(answers), answers.truths, answers.durations),
        shuffled=moment_metrics(answers.spans("shuffled"), answers.truths),
        queries=len(answers.queries),
        videos=len(set(answers.video_ids)),
        without_features=2,
        checkpoint="run/best",
        version="abc",
        **optional,
    )


def write(tmp_path: Path, answers: Answers, history=None, **optional: Any) -> tuple[Page, dict]:
    cases = [
        case.with_membership(np.linspace(0, 100, 11), np.linspace(0, 1, 10)) for case in choose_cases(answers)
    ]
    measured = {"annotations": "test.jsonl", "date": "today", "epoch": 2, "queries_left_out": {"gone": 2}}
    write_report(
        tmp_path.as_uri(),
        evaluation(answers, **optional),
        answers,
        cases,
        constants_of(answers),
        measured,
        history,
    )
    return Page((tmp_path / "report.html").read_text()), json.loads((tmp_path / "report.json").read_text())


def test_the_curve_passes_through_the_table():
    answers = made()
    found = measure(answers, constants_of(answers))["recall_curve"]
    table = evaluation(answers)
    for level in (0.3, 0.5, 0.7):
        at = found["iou"].index(level)
        assert found["model"][at] == pytest.approx(table.model[f"r1_at_{level}"])
        assert found["shuffled"][at] == pytest.approx(table.shuffled[f"r1_at_{level}"])
        assert found["constant"][at] >= table.constant[f"r1_at_{level}"] - 1e-9
    for name in ("model", "constant", "shuffled"):
        assert found[name][0] == 100 and (np.diff(found[name]) <= 0).all()


@pytest.mark.parametrize("name", ["by_length", "by_position"])
def test_bins_add_up_to_the_whole(name: str):
    answers = made()
    rows = measure(answers, constants_of(answers))[name]
    total = evaluation(answers)
    counts = [row["queries"] for row in rows]
    assert sum(counts) == len(answers.queries) and len(rows) > 3
    for key in ("r1_at_0.5", "r1_at_0.7", "miou"):
        for who in ("model", "constant"):
            mean = np.average([row[who][key] for row in rows], weights=counts)
            assert mean == pytest.approx(getattr(total, who)[key])


def test_boundary_errors_are_signed_and_of_the_nearest_span():
    answers = Answers(
        ["v"] * 3,
        [100.0] * 3,
        ["early", "elsewhere", "none"],
        [[(10.0, 20.0), (50.0, 60.0)], [(10.0, 20.0), (50.0, 60.0)], [(1.0, 2.0)]],
        [[(49.0, 62.0, 1.0)], [(70.0, 80.0, 1.0)], []],
        [[], [], []],
    )
    errors, overlap = boundary_errors(answers)
    assert errors.tolist() == [[-1.0, 2.0], [20.0, 20.0]] and overlap.tolist() == [True, False]
    found = measure(answers, {})["boundaries"]
    assert (found["all"]["queries"], found["overlap"]["queries"]) == (2, 1)
    assert found["overlap"]["start"]["q50"] == -1.0 and found["overlap"]["end"]["mean_absolute"] == 2.0


def test_cases_are_the_extremes_and_always_the_same():
    answers = made()
    cases, found = choose_cases(answers), answers.best_iou()
    assert [c.kind for c in cases] == ["best"] * 8 + ["worst"] * 12
    assert cases[0].iou == found.max() and cases[8].iou == found.min()
    assert cases == choose_cases(answers)
    assert len({(c.kind, c.video_id, str(c.truth)) for c in cases}) == 20
    few = choose_cases(made(5))
    assert [c.kind for c in few] == ["best"] * 2 + ["worst"] * 3


def test_several_moments_have_a_mean_average_precision():
    assert measure(made(), {})["several_moments"] is None
    found = measure(made(several=True), {})["several_moments"]
    assert found["queries"] == 60 and found["answers"] == 2 and 0 < found["model"] <= 100


def test_the_page_and_its_numbers(tmp_path: Path):
    answers = made()
    corpus = CorpusMetrics({"corpus_r1_at_0.5": 12.5, "corpus_r100_at_0.7": 62.5}, 75.0, 8.0, 8, 40, 3, 20)
    page, numbers = write(tmp_path, answers, corpus=corpus)
    assert numbers["metrics"]["model"] == moment_metrics(answers.spans(), answers.truths)
    assert numbers["corpus"]["candidate_recall"] == 75 and len(numbers["cases"]) == 20
    for key, value in numbers["metrics"]["model"].items():
        assert f"{value:.1f}" in page.text, key
    for text in ("R@100 IoU=0.7", "62.5", "drawn from 40", "3 more were left out", "40.0", "gone: 2"):
        assert text in page.text
    images = page.found("img")
    assert len(images) == len(page.found("source")) == 4 + 20
    assert all(len(image["alt"] or "") > 20 for image in images)
    everything = "".join(str(attrs) for _, attrs in page.elements)
    assert "http" not in everything, "nothing is fetched"
    for name in ("recall", "length", "position", "boundaries", "case-01-best", "case-20-worst"):
        for suffix in ("", "-dark"):
            with Image.open(tmp_path / f"{name}{suffix}.png") as image:
                assert image.width > 500


def test_what_people_wrote_is_text(tmp_path: Path):
    page, numbers = write(tmp_path, made(6))
    assert not page.found("script")
    assert NASTY in page.text and any(case["query"] == NASTY for case in numbers["cases"])


def test_history_is_drawn_or_missed_in_one_line(tmp_path: Path):
    rows = [
        {"epoch": e, "loss/total": 3.0 / e, "r1_at_0.5": 9.0 * e, "r1_at_0.7": 5.0 * e, "miou": 8.0 * e}
        for e in (1, 2, 3)
    ]
    page, numbers = write(tmp_path / "with", made(6), history=rows)
    assert numbers["history"] == rows and (tmp_path / "with" / "losses.png").exists()
    assert "no history.json" not in page.text
    page, numbers = write(tmp_path / "without", made(6))
    assert numbers["history"] is None and "no history.json" in page.text
    assert "give --index" in page.text


def test_the_verdict_names_what_is_not_above_a_control():
    above = {"model": {"miou": 50.0}, "constant": {"miou": 20.0}, "shuffled": {"miou": 10.0}}
    assert "above both" in verdict(above)
    sentence = verdict(above | {"constant": {"miou": 60.0}})
    assert "best constant span" in sentence and "mIoU" in sentence and "shuffled" not in sentence


def test_the_page_has_the_metrics_of_qvhighlights(tmp_path: Path):
    answers = made(8, several=True)
    own = QVHighlightsMetrics(
        qvhighlights_metrics(answers.spans(), answers.truths) | {"hl_map_very_good": 31.7},
        {"map": 12.3},
        qvhighlights_metrics(answers.spans("shuffled"), answers.truths) | {"hl_map_very_good": 21.9},
        8,
    )
    page, numbers = write(tmp_path / "own", answers, qvhighlights=own)
    assert numbers["qvhighlights"]["model"] == own.model
    for text in ("mAP IoU=0.75", "highlight mAP, very good", "31.7", "21.9", "12.3", "the mean of 8 queries"):
        assert text in page.text, text
    assert f"{own.model['map']:.1f}" in page.text and "mAP, top" not in page.text

    unrated = QVHighlightsMetrics({"map": 50.0}, {}, {"map": 40.0}, 0)
    page, _ = write(tmp_path / "unrated", answers, qvhighlights=unrated)
    assert "There are no highlight metrics" in page.text

    page, numbers = write(tmp_path / "other", answers)
    assert numbers["qvhighlights"] is None and "QVHighlights" not in page.text and "mAP, top 2" in page.text


def test_what_is_not_there_has_a_table_and_a_diagram(tmp_path: Path):
    rows = [
        {"queries": 4, "probability": 0.25, "shown": 0.5},
        {"queries": 6, "probability": 0.9, "shown": 1.0},
    ]
    measured = {"auroc": 91.5, "rejection_at_95": 62.5}
    presence = PresenceMetrics(measured | {"ece": 3.5}, measured | {"ece": 4.5}, 1.5, rows)
    page, numbers = write(tmp_path, made(), presence=presence)
    assert numbers["presence"]["other_videos"]["ece"] == 3.5
    for text in ("AUROC", "91.5", "62.5", "3.5", "4.5", "R@1 IoU=0.5 lost by that", "1.5"):
        assert text in page.text
    pictures = [attributes.get("alt") or "" for tag, attributes in page.elements if tag == "img"]
    assert any("0.25: 0.50, 0.90: 1.00" in alt for alt in pictures)

    uncalibrated = PresenceMetrics(measured, {}, None, [])
    page, _ = write(tmp_path, made(), presence=uncalibrated)
    assert "has no calibration" in page.text and "lost by that" not in page.text
    assert "every video has the same queries" in write(tmp_path, made())[0].text
