"""The page at /docs: the routes of the OpenAPI document as plain HTML, without scripts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color-scheme:light dark}code,pre{font:14px/1.4 ui-monospace,monospace}pre{overflow:auto;padding:.5rem;"
    "border:1px solid #8884}td,th{text-align:left;vertical-align:top;padding:.2rem 1rem .2rem 0}"
    "h2{margin-top:2.5rem}"
)


def docs_page(schema: Mapping[str, Any]) -> str:
    """The page about an OpenAPI document."""
    info = schema["info"]
    parts = [
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>",
        "<p>Generated clients read <a href='openapi.json'>/openapi.json</a>. An error is a JSON object whose "
        "<code>error</code> says what is wrong and how to fix it.</p>",
    ]
    if "securitySchemes" in schema["components"]:
        parts.append(
            "<p>Send a key as <code>Authorization: Bearer KEY</code> or <code>X-API-Key: KEY</code>.</p>"
        )
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parts += _operation(method.upper(), path, operation, schema["components"]["schemas"])
    head = f"<meta charset='utf-8'><title>{escape(info['title'])}: API</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>"


def _operation(
    method: str, path: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]
) -> Iterator[str]:
    yield f"<h2 id='{escape(operation['operationId'])}'><code>{method} {escape(path)}</code></h2>"
    yield f"<p>{escape(operation.get('description', ''))}</p>"
    rows = [
        (parameter["name"], parameter["in"], parameter.get("schema", {}), parameter)
        for parameter in operation.get("parameters", ())
    ]
    for content_type, media in operation.get("requestBody", {}).get("content", {}).items():
        body = schemas.get(media["schema"].get("$ref", "").rpartition("/")[2], {})
        rows += [(name, "body", field, field) for name, field in body.get("properties", {}).items()]
        if example := body.get("example"):
            yield f"<pre>{escape(content_type)}: {escape(json.dumps(example, ensure_ascii=False))}</pre>"
        elif not body:
            yield f"<p><code>{escape(content_type)}</code>: the file itself</p>"
    if rows:
        cells = (
            f"<tr><td><code>{escape(name)}</code></td><td>{place}</td><td>{escape(_type(field))}</td>"
            f"<td>{escape(described.get('description', ''))}</td></tr>"
            for name, place, field, described in rows
        )
        yield f"<table>{''.join(cells)}</table>"


def _type(field: Mapping[str, Any]) -> str:
    """The type of a field in words, as far as one line can say it."""
    if options := field.get("anyOf"):
        return " or ".join(dict.fromkeys(_type(option) for option in options if option != {"type": "null"}))
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    return str(field.get("type") or field.get("$ref", "").rpartition("/")[2] or "object")
