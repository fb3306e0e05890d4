from __future__ import annotations

from rich.console import Console
from rich.table import Table

from vmr_ray.evaluation.result import CorpusMetrics, Evaluation, QVHighlightsMetrics
from vmr_ray.evaluation.tables import corpus_table, metrics_table

MEASURED = Evaluation(
    model={"r1_at_0.5": 50.04, "miou": 40.0},
    constant={"r1_at_0.5": 30.0},
    shuffled={"r1_at_0.5": 20.0, "miou": 10.0},
    queries=7,
    videos=3,
    without_features=0,
    checkpoint="run/best",
    version="abc",
)


def cells(table: Table) -> list[list[str]]:
    """The words of every line that has numbers, without the frame."""
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    lines = [line.split("│")[1:-1] for line in capture.get().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line] for line in lines]


def test_the_model_stands_with_its_controls() -> None:
    table = metrics_table(MEASURED)
    assert table.title == "7 queries on 3 videos, percent"
    assert cells(table) == [["R@1 IoU=0.5", "50.0", "30.0", "20.0"], ["mIoU", "40.0", "-", "10.0"]]
    assert [column.header for column in table.columns] == [
        "",
        "model",
        "best constant span",
        "videos shuffled",
    ]


def test_qvhighlights_adds_its_own_metrics() -> None:
    own = QVHighlightsMetrics(
        model={"r1_at_0.5": 50.04, "map": 33.3, "map_at_0.55": 1.0, "hl_hit1_very_good": 61.0},
        constant={"map": 12.0},
        shuffled={"map": 9.0, "hl_hit1_very_good": 30.0},
        highlight_queries=7,
    )
    table = metrics_table(Evaluation(**{**vars(MEASURED), "qvhighlights": own}))
    assert cells(table) == [
        *cells(metrics_table(MEASURED)),
        ["mAP", "33.3", "12.0", "9.0"],
        ["highlight HIT@1, very good", "61.0", "-", "30.0"],
    ]


def test_the_search_of_an_index_has_the_recall_of_its_first_stage() -> None:
    table = corpus_table(CorpusMetrics({"corpus_r1_at_0.5": 12.5}, 75.0, 8.0, 8, 40, 3, 20))
    assert table.title == "8 queries on all 20 videos of the index, percent"
    assert cells(table) == [["R@1 IoU=0.5", "12.5"], ["stage 1 finds the video", "75.0"]]
