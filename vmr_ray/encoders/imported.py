"""Token states that were computed elsewhere, looked up by the query's text.

DIR/text.json           where each query's states lie, and their dimension; written last
DIR/states-<digest>     all states, float16, one query after the other
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from typing import Any

import numpy as np

from vmr_ray.encoders import IMPORTED
from vmr_ray.errors import VmrError
from vmr_ray.storage import absolute, exists, filesystem, is_uri, read_json, write_json

FORMAT = 1


class ImportedText:
    """The text encoder `imported:<directory>`: a path from the root, or a URI."""

    def __init__(self, name: str) -> None:
        self.name, self.root = name, name.removeprefix(IMPORTED)
        if not self.root.startswith("/") and not is_uri(self.root):
            raise VmrError(
                f"{name} is not a path from the root, and workers may run in another directory: write "
                f"{IMPORTED}{absolute(self.root)}"
            )
        self.fs, self.path = filesystem(self.root)
        held = _read(self.root)
        self.dim: int = held["dim"]
        self.max_tokens: int = held["max_tokens"]
        self._places: dict[str, list[int]] = held["queries"]
        self._states = f"{self.path}/{held['states']}"

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        """Raises VmrError for a text whose states were not imported."""
        self.check(texts)
        try:
            with self.fs.open_input_file(self._states) as stream:
                return [self._one(stream, *self._places[text.strip()]) for text in texts]
        except FileNotFoundError:
            raise VmrError(f"{self._states} is missing: import the token states again") from None

    def check(self, texts: Iterable[str]) -> None:
        """Raises VmrError if the states of a text were not imported."""
        unknown = next((text for text in texts if text.strip() not in self._places), None)
        if unknown is not None:
            raise VmrError(
                f"the token states of the query {unknown!r} are not in {self.root}, and imported states "
                "cannot be made for a new one: import them with `vmr features import-text` and its "
                "annotation file, or train with --set train.text_encoder=minilm"
            )

    def _one(self, stream: Any, first: int, tokens: int) -> np.ndarray:
        row = 2 * self.dim  # bytes
        data = stream.read_at(tokens * row, first * row)
        if len(data) != tokens * row:
            raise VmrError(f"{self._states} is cut short: import the token states again")
        return np.frombuffer(data, np.float16).reshape(tokens, self.dim).astype(np.float32)


def write_states(root: str, dim: int, states: Iterable[tuple[str, np.ndarray]]) -> bool:
    """Write (query, float16 [tokens, dim]) pairs into the directory `root`; False if just these are there.

    Raises:
        VmrError: other states are there.
    """
    filesys, path = filesystem(root)
    filesys.create_dir(path, recursive=True)
    digest, rows = hashlib.sha256(), 0
    places: dict[str, tuple[int, int]] = {}
    temporary = f"{path}/states.{uuid.uuid4().hex}.part"
    try:
        with filesys.open_output_stream(temporary) as stream:
            for query, matrix in states:
                data = np.ascontiguousarray(matrix, np.float16).tobytes()
                digest.update(query.encode() + b"\0" + data)
                stream.write(data)
                places[query] = (rows, len(matrix))
                rows += len(matrix)
    except BaseException:
        filesys.delete_file(temporary)
        raise
    name = f"states-{digest.hexdigest()[:16]}"
    if exists(f"{root}/text.json"):
        filesys.delete_file(temporary)
        if _read(root)["states"] == name:
            return False
        raise VmrError(f"{root} holds other token states: choose another --out, or delete it")
    filesys.move(temporary, f"{path}/{name}")
    longest = max(tokens for _, tokens in places.values())
    held = {"format": FORMAT, "dim": dim, "max_tokens": longest, "states": name, "queries": places}
    write_json(f"{root}/text.json", held)
    return True


def _read(root: str) -> dict[str, Any]:
    try:
        held: dict[str, Any] = read_json(f"{root}/text.json", "import the token states again")
        if held["format"] != FORMAT:
            raise VmrError(
                f"{root} has text format {held['format']}, this version reads {FORMAT}: import it anew"
            )
    except FileNotFoundError:
        raise VmrError(
            f"no imported token states at {root}: import them there with `vmr features import-text`"
        ) from None
    except (TypeError, KeyError) as error:
        raise VmrError(f"{root}/text.json is damaged ({error}): import the token states again") from None
    return held
