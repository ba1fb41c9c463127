"""How values of episodes are compared with those of a selection."""

import fnmatch
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from epistream.hints import in_short

_SIGNS = frozenset("*?[")
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
Test = Callable[[Any], bool]


def _test_of(sign: str, wanted: Any, *, of_paths: bool) -> Test:
    """What says of a value whether it fits, of one that can be compared with what is wanted.

    Args:
        sign: ``==``, ``<``, ``<=``, ``>``, ``>=``, ``in`` (wanted is a tuple, one of which it must equal), or
            ``contains`` (wanted is a text that must be in it).
        wanted: What the selection says.
        of_paths: Whether texts are paths, of which their last parts are enough.
    """
    if sign == "in":
        tests = [_test_of("==", one, of_paths=of_paths) for one in wanted]
        pairs = list(zip(tests, wanted, strict=True))
        return lambda value: any(are_comparable(value, one) and test(value) for test, one in pairs)
    if sign == "contains":
        return lambda value: wanted in value
    if sign in _ORDERS:
        compare = _ORDERS[sign]
        return lambda value: compare(value, wanted)
    if isinstance(wanted, str):
        return _text_test(wanted, of_paths=of_paths)
    return lambda value: bool(value == wanted)


def _text_test(wanted: str, *, of_paths: bool) -> Test:
    if not _SIGNS & set(wanted):
        if of_paths and wanted:
            return lambda value: value == wanted or value.endswith("/" + wanted)
        return lambda value: bool(value == wanted)
    pattern = fnmatch.translate(wanted)
    matches = re.compile(f"(?s:.*/)?{pattern}" if of_paths else pattern).match
    return lambda value: matches(value) is not None


def are_comparable(value: Any, wanted: Any) -> bool:
    """Whether both are texts, or both are numbers or truth values."""
    return isinstance(value, str) == isinstance(wanted, str)


def fitting(values: Sequence[Any], sign: str, wanted: Any, *, of_paths: bool) -> list[bool] | None:
    """Of each value whether it fits; None if there are some, and none can be compared with what is wanted."""
    all_wanted = wanted if sign == "in" else (wanted,)
    comparable = [any(are_comparable(value, one) for one in all_wanted) for value in values]
    if values and not any(comparable):
        return None
    test = _test_of(sign, wanted, of_paths=of_paths)
    return [can and test(value) for can, value in zip(comparable, values, strict=True)]


def kind_of(values: Sequence[Any]) -> str:
    """What values are, in words: "texts, such as 'ann'"."""
    if all(isinstance(value, str) for value in values):
        kind = "texts"
    elif all(isinstance(value, bool) for value in values):
        kind = "truth values"
    else:
        kind = "numbers" if not any(isinstance(value, str) for value in values) else "values"
    return f"{kind}, such as {in_short(values[0])}"
