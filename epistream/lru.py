"""Bounded memories of the values used last: one that closes what leaves it, one that threads share."""

import threading
from collections import OrderedDict
from collections.abc import Callable, ValuesView
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Lru(Generic[K, V]):
    """Keeps the values used last, at most `max_items` of them. Not shared between threads.

    Args:
        max_items: 1 or more.
        close: called with each value that leaves.
    """

    def __init__(self, max_items: int, close: Callable[[V], None] | None = None) -> None:
        self._max_items = max_items
        self._close = close
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value of `key`, which counts as used now."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Keep a value, in place of the one used longest ago if there are too many."""
        self._leave(self._values.pop(key, None))
        self.make_room()
        self._values[key] = value

    def make_room(self) -> None:
        """Let values leave until one more can be kept: before it is opened, where so many may be open at most."""
        while len(self._values) >= self._max_items:
            self._leave(self._values.popitem(last=False)[1])

    def values(self) -> ValuesView[V]:
        """What is kept, that used longest ago first."""
        return self._values.values()

    def drop_if(self, leaves: Callable[[V], bool]) -> None:
        """Let the values leave of which it is true."""
        for key in [key for key, value in self._values.items() if leaves(value)]:
            self._leave(self._values.pop(key))

    def clear(self) -> None:
        """Let all values leave."""
        while self._values:
            self._leave(self._values.popitem()[1])

    def _leave(self, value: V | None) -> None:
        if value is not None and self._close is not None:
            self._close(value)


class SharedLru(Generic[K, V]):
    """Keeps the values used last, at most `max_items` of them. Threads may share it."""

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K, build: Callable[[], V]) -> V:
        """The value of `key`, built if it is not remembered; two threads may build the same one at once."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = build()
        with self._lock:
            self._values.setdefault(key, value)
            while len(self._values) > self._max_items:
                self._values.popitem(last=False)
        return value
