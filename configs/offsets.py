"""Step offsets as a configuration writes them: START:STOP, a list, or one step."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from epistream.loader.order.window import ascending

_MOST_STEPS = 1_000_000


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
            start, stop = int(first), int(last) if colon else int(first) + 1
        except ValueError:
            raise ValueError(f"{value!r}, wanted START:STOP, for example 0:100") from None
        if stop - start > _MOST_STEPS:  # before a list of them is made
            raise ValueError(f"{value!r:.40}, wanted START:STOP of at most {_MOST_STEPS:,} steps, for example 0:100")
        return list(range(start, stop))
    return list(value) if isinstance(value, tuple) else value


def _write_offsets(steps: Iterable[int]) -> str | list[int]:
    """A run as START:STOP, anything else as it is."""
    numbers = list(steps)
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]}:{numbers[-1] + 1}"
    return numbers


Offsets = Annotated[list[int], BeforeValidator(_offsets), AfterValidator(ascending), PlainSerializer(_write_offsets)]
