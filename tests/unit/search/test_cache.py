from __future__ import annotations

from vmr_ray.search.cache import LruCache


def test_it_loads_what_is_missing_and_forgets_the_least_recently_used():
    loaded: list[list[str]] = []

    def load(keys: list[str]) -> dict[str, str]:
        loaded.append(keys)
        return {key: key.upper() for key in keys if key != "none"}

    cache = LruCache(2, load)
    assert cache.get(["a", "b", "a"]) == {"a": "A", "b": "B"}
    assert list(cache.get(["b", "none", "a"])) == ["b", "a"]  # so b is the least recently used
    assert cache.get(["c"]) == {"c": "C"}
    assert loaded == [["a", "b"], ["none"], ["c"]] and len(cache) == 2
    assert cache.get(["a"]) == {"a": "A"} and len(loaded) == 3
    assert cache.get(["b"]) == {"b": "B"} and loaded[-1] == ["b"]


def test_more_than_the_limit_is_returned_but_not_kept():
    cache = LruCache(2, lambda keys: dict.fromkeys(keys, 1))
    assert len(cache.get(map(str, range(5)))) == 5
    assert len(cache) == 2
