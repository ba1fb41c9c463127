"""Kinds of values that a configuration file may hold: sizes, ranges of steps, numbers with bounds."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, StrictBool, StrictInt, StrictStr

from epistream.errors import OptionError
from epistream.sharding.format.codecs import CODECS, codec_names
from epistream.units import parse_size


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_size(value)
    except OptionError:
        raise ValueError(f"{value!r}, wanted a size such as 128MiB or a number of bytes") from None


def _write_size(size: int) -> int | str:
    """The shortest exact text: 8589934592 is 8GiB."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return size


def _offsets(value: Any) -> Any:
    if isinstance(value, range):
        return list(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return [value]
    if isinstance(value, str):
        first, colon, last = value.partition(":")
        try:
            return list(range(int(first), int(last))) if colon else [int(first)]
        except ValueError:
            raise ValueError(f"{value!r}, wanted START:STOP, for example 0:100") from None
    return list(value) if isinstance(value, tuple) else value


def _ascending(steps: list[int]) -> list[int]:
    if not steps:
        raise ValueError("no step offsets, wanted at least one, for example 0:1")
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"{steps[:8]} does not ascend, wanted each step offset once, oldest first")
    return steps


def _write_offsets(steps: Iterable[int]) -> str | list[int]:
    """A run as START:STOP, anything else as it is."""
    numbers = list(steps)
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]}:{numbers[-1] + 1}"
    return numbers


def _codec(name: str) -> str:
    if name not in CODECS:
        raise ValueError(f"{name!r}, wanted {codec_names()}")
    return name


def _names(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Size = Annotated[StrictInt, BeforeValidator(_size), Field(ge=0), PlainSerializer(_write_size)]
Offsets = Annotated[
    list[StrictInt], BeforeValidator(_offsets), AfterValidator(_ascending), PlainSerializer(_write_offsets)
]
Names = Annotated[list[StrictStr], BeforeValidator(_names)]
Codec = Annotated[StrictStr, AfterValidator(_codec)]
Count = Annotated[StrictInt, Field(ge=1)]
Seconds = Annotated[float, Field(strict=True, gt=0, le=7 * 86_400)]
# Of waits that may be switched off: 0 does not wait.
Patience = Annotated[float, Field(strict=True, ge=0, le=7 * 86_400)]
Share = Annotated[float, Field(strict=True, gt=0, le=1)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = StrictBool
Text = StrictStr
