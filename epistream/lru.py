"""A small memory of recently built values, bounded by number and by bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

K = TypeVar("K")
V = TypeVar("V", bound=NDArray[Any] | tuple[Any, ...])


class Lru(Generic[K, V]):
    """Keeps the values used last: at most `max_items`, and fewer if their arrays exceed `max_bytes`.

    Threads may share it. The last value is kept whatever its size.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items, self._max_bytes = max_items, max_bytes
        self._values: OrderedDict[K, V] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: K, build: Callable[[], V]) -> V:
        """The value of `key`, built if it is not remembered; two threads may build the same one at once."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = build()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._bytes += _num_bytes(value)
            while len(self._values) > 1 and (len(self._values) > self._max_items or self._bytes > self._max_bytes):
                _, old = self._values.popitem(last=False)
                self._bytes -= _num_bytes(old)
        return value


def _num_bytes(value: NDArray[Any] | tuple[Any, ...]) -> int:
    arrays = value if isinstance(value, tuple) else (value,)
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
