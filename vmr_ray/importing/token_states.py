"""Published token states of queries -> the directory that the text encoder `imported:<DIR>` reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vmr_ray.annotations import AnnotationSource, RowProblem, read_annotations
from vmr_ray.encoders import IMPORTED
from vmr_ray.encoders.imported import write_states
from vmr_ray.errors import VmrError
from vmr_ray.importing.arrays import Source, halved, normalized, open_source
from vmr_ray.storage import absolute

KEY = "last_hidden_state"
_TOLERANCE = 0.01  # by which two computations of the same states may differ


@dataclass(frozen=True)
class ImportedTexts:
    """What an import of token states did; `encoder` is the value for `train.text_encoder`."""

    queries: int
    texts: int  # distinct queries
    dim: int
    encoder: str
    written: bool  # False: the same states were there already


def import_text(
    source: str | Path,
    annotations: Sequence[AnnotationSource],
    out: str | Path,
    *,
    key: str | None = None,
    normalize: bool = False,
    max_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportedTexts:
    """Import the token states of every query of the annotation files.

    The states of a query are found by its `qid` (as `qid<qid>` or `<qid>`) or, if the rows have none, by the
    number of its row, counted from 0 or 1 as in the source.

    Args:
        key: of the array inside a file; default `last_hidden_state` if the source has it.
        normalize: scale every token's state to length 1.
        max_tokens: longer texts are cut to this number of tokens.
        progress: called with the number of texts done and the number of texts to do.

    Raises:
        VmrError: an input is missing or unusable, a query has no states, or `out` holds other states.
    """
    queries = [pair for path in annotations for pair in _queries(path, only_file=len(annotations) == 1)]
    if not queries:
        raise VmrError("the annotation files hold no query: give the files that the states were made for")
    arrays = _open_states(source, key)
    texts: dict[str, list[str]] = {}
    for text, name in _matched(arrays, queries):
        texts.setdefault(text, []).append(name)
    root = absolute(out)
    first = next(iter(texts.values()))[0]
    dim = arrays.read(first).shape[1]

    def states() -> Iterator[tuple[str, np.ndarray]]:
        for count, (text, names) in enumerate(texts.items(), start=1):
            matrices = [_states(arrays, name, dim, normalize, max_tokens) for name in names]
            for name, other in zip(names[1:], matrices[1:], strict=True):
                if other.shape != matrices[0].shape or not np.allclose(other, matrices[0], atol=_TOLERANCE):
                    raise VmrError(
                        f"{arrays.uri(names[0])} and {arrays.uri(name)} are states of the same text {text!r} "
                        "and differ: check that the annotation file is the one they were made for"
                    )
            yield text, matrices[0]
            if progress:
                progress(count, len(texts))

    written = write_states(root, dim, states())
    return ImportedTexts(len(queries), len(texts), dim, f"{IMPORTED}{root}", written)


@dataclass(frozen=True)
class _RowNumber:
    """Identifies a query by the number of its row, from 0, among all `rows` of its file."""

    row: int
    rows: int


def _queries(source: AnnotationSource, only_file: bool) -> Iterator[tuple[str, str | _RowNumber]]:
    """(text, its qid, or the number of its row if the row has no qid)."""
    read = read_annotations(source)
    for number, row in enumerate(read.rows):
        if isinstance(row, RowProblem) or not isinstance(row.query, str) or not row.query.strip():
            continue
        if row.qid in (None, "") and not only_file:
            raise VmrError(
                f"{read.path}: {row.where} has no qid, so its states would be found by row number: give one "
                "annotation file with all queries, or add qids"
            )
        name = _RowNumber(number, len(read.rows)) if row.qid in (None, "") else str(row.qid)
        yield row.query.strip(), name


def _open_states(source: str | Path, key: str | None) -> Source:
    """The source; without a key, `last_hidden_state` is tried first, then the only array of a file."""
    if key is not None:
        return open_source(source, key)
    states = open_source(source, KEY)
    try:
        states.read(min(states.names))
    except VmrError:
        return open_source(source)
    return states


def _matched(source: Source, queries: Sequence[tuple[str, str | _RowNumber]]) -> Iterator[tuple[str, str]]:
    """(text, the name of its states in the source)."""
    numbers = {int(n) for name in source.names if (n := name.removeprefix("qid")).isdecimal()}
    for text, name in queries:
        if isinstance(name, _RowNumber):
            if not numbers or max(numbers) - (start := min(numbers)) != name.rows - 1 or start > 1:
                raise VmrError(
                    f"{source.label} is not numbered as the annotation file is, whose {name.rows} rows have "
                    "no qid: give the file that the states were made for, or add qids"
                )
            name = str(name.row + start)
        names = [form for form in (f"qid{name}", name) if form in source.names]
        if not names:
            raise VmrError(
                f"{source.label} has no states of the query {text!r} (qid{name} or {name}): add them, or "
                "leave its row out of the annotation file"
            )
        yield text, names[0]


def _states(source: Source, name: str, dim: int, normalize: bool, max_tokens: int | None) -> np.ndarray:
    """The states of one text, float16 [tokens, dim]."""
    matrix = source.read(name)[:max_tokens]
    if matrix.shape[1] != dim:
        raise VmrError(f"{source.uri(name)} has {matrix.shape[1]} dimensions, not {dim}: extract it again")
    return halved(normalized(matrix) if normalize else matrix, source.uri(name))
