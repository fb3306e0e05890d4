"""A bounded cache in front of reads that are made for several keys at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

V = TypeVar("V")


class LruCache(Generic[V]):
    """Keeps the `limit` most recently used values that `load` returned. Several threads may share it.

    Args:
        load: returns the values of the keys it is called with; it may leave out keys that have none.
    """

    def __init__(self, limit: int, load: Callable[[list[str]], Mapping[str, V]]):
        self._limit, self._load = limit, load
        self._values: OrderedDict[str, V] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, keys: Iterable[str]) -> dict[str, V]:
        """The values by key, in the order of `keys`, without the keys that have none."""
        keys = list(dict.fromkeys(keys))
        with self._lock:
            if missing := [key for key in keys if key not in self._values]:
                self._values.update(self._load(missing))
            found = {key: self._values[key] for key in keys if key in self._values}
            for key in found:
                self._values.move_to_end(key)
            while len(self._values) > self._limit:
                self._values.popitem(last=False)
            return found
