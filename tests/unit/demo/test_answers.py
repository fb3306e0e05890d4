"""Answers next to the truth."""

from __future__ import annotations

import io

from rich.console import Console

from vmr_ray.demo.answers import Place, answers_table, compare

TRUTH = Place("cake.mp4", 2.0, 6.0)


def test_the_rank_is_that_of_the_first_answer_that_overlaps_by_half():
    wrong = [Place("other.mp4", 2.0, 6.0), Place("cake.mp4", 5.0, 9.0)]
    answer = compare("a cake", TRUTH, [*wrong, Place("cake.mp4", 2.0, 5.0), TRUTH])
    assert (answer.best, answer.iou, answer.rank) == (wrong[0], 0.0, 3)
    assert compare("a cake", TRUTH, [Place("cake.mp4", 2.0, 5.0)]).iou == 0.75
    assert compare("a cake", TRUTH, wrong).rank is None


def test_the_table_fits_80_columns_and_shows_every_place_whole():
    last = Place("train_0094.mp4", 118.25, 121.75)
    sentence = "the moment when the striped yellow hoop exchanges positions with the white box"
    text = io.StringIO()
    Console(file=text, width=80).print(answers_table("POST x", [compare(sentence, last, [last, TRUTH])]))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert text.getvalue().count(str(last)) == 2 and "1.00" in text.getvalue()


def test_nothing_found_is_an_answer():
    answer = compare("a cake", TRUTH, [])
    assert (answer.best, answer.iou, answer.rank) == (None, 0.0, None)
    text = io.StringIO()
    Console(file=text, width=80).print(answers_table("POST x", [answer]))
    assert "nothing found" in text.getvalue()
