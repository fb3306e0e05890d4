"""Our own format, as JSONL or CSV: `video`, `query`, `start`, `end`; optionally `duration`, `qid`.

JSONL may give several moments of a query as `"spans": [[start, end], ...]`. Other columns are ignored.
A CSV may be separated by commas, semicolons or tabs, as spreadsheets do, and its header may have capitals.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator

from vmr_ray.annotations.rows import Row, RowProblem

COLUMNS = ("video", "query", "start", "end")
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}


def read(text: str) -> Iterator[Row | RowProblem]:
    """Rows of a JSONL or CSV text; JSON is recognised by its first character."""
    return _read_jsonl(text) if text.lstrip()[:1] in ("{", "[") else _read_csv(text)


def jsonl_objects(text: str) -> Iterator[tuple[int, dict[str, object] | RowProblem]]:
    """Line number and object, or problem, of every line that is not blank."""
    # Not splitlines(): it also splits at characters that may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"not JSON ({error}): write one JSON object a line"
            yield number, RowProblem(number, where, "dropped", reason, "not JSON")
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            reason = f"a JSON {type(value).__name__}, not an object: write one JSON object a line"
            yield number, RowProblem(number, where, "dropped", reason, "not a JSON object")


def _read_jsonl(text: str) -> Iterator[Row | RowProblem]:
    for number, item in jsonl_objects(text):
        if isinstance(item, RowProblem):
            yield item
        else:
            spans = item["spans"] if "spans" in item else [[item.get("start"), item.get("end")]]
            where, get = f"line {number}", item.get
            yield Row(number, where, get("video"), get("query"), spans, get("duration"), get("qid"))


def _read_csv(text: str) -> Iterator[Row | RowProblem]:
    text, skipped, separator = _separator(text)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
    )
    header: list[str] = []
    try:
        for values in reader:
            number = reader.line_num + skipped
            where = f"line {number}"
            if not any(value.strip() for value in values):
                continue
            if not header:
                header = [value.strip().lower() for value in values]
                if missing := [name for name in COLUMNS if name not in header]:
                    reason = (
                        f"the header has no column {', '.join(missing)} (found: {', '.join(header)}): "
                        f"name the columns {','.join(COLUMNS)}"
                    )
                    yield RowProblem(number, where, "dropped", reason, "missing column")
                    return
            elif len(values) != len(header):
                reason = (
                    f"{len(values)} values for {len(header)} columns: "
                    f"put a query that holds a {_SEPARATORS[separator]} in double quotes"
                )
                yield RowProblem(number, where, "dropped", reason, "wrong number of values")
            else:
                row = dict(zip(header, (value.strip() for value in values), strict=True))
                spans = [[_seconds(row["start"], separator), _seconds(row["end"], separator)]]
                duration, qid = _seconds(row.get("duration"), separator), row.get("qid")
                yield Row(number, where, row["video"], row["query"], spans, duration, qid)
    except csv.Error as error:
        number = reader.line_num + skipped
        where = f"line {number}"
        reason = f"not CSV ({error}), and nothing after it was read: close every double quote"
        yield RowProblem(number, where, "dropped", reason, "not CSV")


def _separator(text: str) -> tuple[str, int, str]:
    """The text without a line `sep=;` that Excel reads, how many lines that are, and the separator.

    Without that line it is what the header has the most of.
    """
    first, _, rest = text.partition("\n")
    if match := re.fullmatch(r'"?sep=([,;\t])"?\s*', first, re.IGNORECASE):
        return rest, 1, match[1]
    header = next((line for line in text.split("\n") if line.strip()), "")
    return text, 0, max(_SEPARATORS, key=header.count)


def _seconds(value: str | None, separator: str) -> str | None:
    """A number as Python reads it: where semicolons separate values, commas are decimal points."""
    return value if value is None or separator == "," else value.replace(",", ".")
