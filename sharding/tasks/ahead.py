"""Small waits, for files or answers of a network, of which a few are waited for at the same time."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_AT_ONCE = 16


def ahead(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """What `function` gives for each item, in order, called in other threads for this one and a few more."""
    with ThreadPoolExecutor(_AT_ONCE, "epistream-ahead") as readers:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(readers.submit(function, item))
            if len(waiting) > 4 * _AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
