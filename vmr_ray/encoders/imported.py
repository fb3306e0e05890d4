"""Token states that were computed elsewhere, looked up by the query's text.

DIR/text.json           where each query's states are, and their dimension; written last
DIR/states-<digest>     all states, float16, one query after the other
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from vmr_ray.encoders.names import IMPORTED
from vmr_ray.errors import VmrError
from vmr_ray.storage import absolute, exists, filesystem, is_uri, join, read_json, temporary_name, write_json

FORMAT = 1


class ImportedText:
    """The text encoder `imported:<directory>`; the directory is an absolute path or a URI."""

    def __init__(self, name: str) -> None:
        self.name, self.root = name, name.removeprefix(IMPORTED)
        if not self.root.startswith("/") and not is_uri(self.root):
            raise VmrError(
                f"{name} is not a path from the root, and workers may run in another directory: write "
                f"{IMPORTED}{absolute(self.root)}"
            )
        self._fs, path = filesystem(self.root)
        listing = _read_listing(self.root)
        self.dim: int = listing["dim"]
        self.max_tokens: int = listing["max_tokens"]
        self._rows: dict[str, list[int]] = listing["queries"]  # query -> [first row, number of rows]
        self._states = f"{path}/{listing['states']}"

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        """The states of each text, float32 [tokens, dim].

        Raises:
            VmrError: the states of a text were not imported, or their file is missing or cut short.
        """
        self.check(texts)
        try:
            with self._fs.open_input_file(self._states) as stream:
                return [self._read(stream, *self._rows[text.strip()]) for text in texts]
        except FileNotFoundError:
            raise VmrError(f"{self._states} is missing: import the token states again") from None

    def check(self, texts: Iterable[str]) -> None:
        """Raises VmrError if the states of a text were not imported."""
        unknown = next((text for text in texts if text.strip() not in self._rows), None)
        if unknown is not None:
            raise VmrError(
                f"the token states of the query {unknown!r} are not in {self.root}, and imported states "
                "cannot be made for a new one: import them with `vmr features import-text` and its "
                "annotation file, or train with --set train.text_encoder=minilm"
            )

    def _read(self, stream: Any, first: int, tokens: int) -> np.ndarray:
        row_bytes = 2 * self.dim
        data = stream.read_at(tokens * row_bytes, first * row_bytes)
        if len(data) != tokens * row_bytes:
            raise VmrError(f"{self._states} is cut short: import the token states again")
        return np.frombuffer(data, np.float16).reshape(tokens, self.dim).astype(np.float32)


def write_states(root: str, dim: int, states: Iterable[tuple[str, np.ndarray]]) -> bool:
    """Write (query, float16 [tokens, dim]) pairs into the directory `root`; False if it holds the same.

    Raises:
        VmrError: it holds other states.
    """
    filesys, path = filesystem(root)
    digest, rows = hashlib.sha256(), 0
    queries: dict[str, tuple[int, int]] = {}
    with temporary_name(filesys, f"{path}/states") as temporary:
        with filesys.open_output_stream(temporary) as stream:
            for query, matrix in states:
                data = np.ascontiguousarray(matrix, np.float16).tobytes()
                digest.update(query.encode() + b"\0" + data)
                stream.write(data)
                queries[query] = (rows, len(matrix))
                rows += len(matrix)
        name = f"states-{digest.hexdigest()[:16]}"
        if exists(join(root, "text.json")):
            if _read_listing(root)["states"] != name:
                raise VmrError(f"{root} holds other token states: choose another --out, or delete it")
            filesys.delete_file(temporary)
            return False
        filesys.move(temporary, f"{path}/{name}")
    longest = max(tokens for _, tokens in queries.values())
    listing = {"format": FORMAT, "dim": dim, "max_tokens": longest, "states": name, "queries": queries}
    write_json(join(root, "text.json"), listing)
    return True


def _read_listing(root: str) -> dict[str, Any]:
    """The content of DIR/text.json."""
    try:
        listing: dict[str, Any] = read_json(join(root, "text.json"), "import the token states again")
        if listing["format"] != FORMAT:
            raise VmrError(
                f"{root} has text format {listing['format']}, this version reads {FORMAT}: import it again"
            )
    except FileNotFoundError:
        raise VmrError(
            f"no imported token states at {root}: import them there with `vmr features import-text`"
        ) from None
    except (TypeError, KeyError) as error:
        raise VmrError(f"{root}/text.json is damaged ({error}): import the token states again") from None
    return listing
