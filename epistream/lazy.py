"""A property that is worked out once, without a lock: a process may be forked while another thread works one out."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class lazy(Generic[T]):  # noqa: N801 - a decorator
    """`functools.cached_property` as it is from Python 3.12 on.

    Before, all instances of a class share a lock. A worker that is forked while a thread of another loader holds it
    waits for ever, because in the worker there is no such thread. Threads that ask at the same time may each work the
    value out, so it must not matter whose is kept.
    """

    def __init__(self, work_out: Callable[[Any], T]) -> None:
        self._work_out = work_out
        self.__doc__ = work_out.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> "lazy[T]": ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...

    def __get__(self, instance: object | None, owner: type | None = None) -> "T | lazy[T]":
        if instance is None:
            return self
        # From now on the instance's own attribute is found first.
        value: T = instance.__dict__.setdefault(self._name, self._work_out(instance))
        return value
