"""Sizes and numbers of things as text: one parser and one printer."""

import re
from collections.abc import Callable, Iterable, Sequence

from epistream.errors import OptionError

# kB, MB, GB and TB are powers of 1000 as the SI says; KiB, MiB and so on, and letters alone, are powers of 1024 as in
# dd, Docker and Slurm.
_BINARY = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_UNITS = {
    "b": 1,
    **{letter: 1 << 10 * power for letter, power in _BINARY.items()},
    **{f"{letter}ib": 1 << 10 * power for letter, power in _BINARY.items() if letter},
    **{f"{letter}b": 1000**power for letter, power in _BINARY.items() if letter},
}


def parse_size(value: int | str, name: str = "size", whole: int | None = None) -> int:
    """A size in bytes, also from text.

    >>> parse_size("500MB"), parse_size("500MiB"), parse_size("1G"), parse_size("4096")
    (500000000, 524288000, 1073741824, 4096)
    >>> parse_size("10%", whole=2000)
    200

    Args:
        value: Bytes, or a number with a unit in any case: kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB or
            K, M, G, T (powers of 1024).
        name: What the size is of, for the message.
        whole: What a share such as ``10%`` is taken of; None where a share means nothing.

    Raises:
        OptionError: If it is no size.
    """
    match = re.fullmatch(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([a-zA-Z]*|%)\s*", str(value))
    unit = match[2].lower() if match else ""
    if match and not isinstance(value, bool):
        if unit == "%" and whole is not None and float(match[1]) > 0:
            return int(float(match[1]) * whole / 100)
        if unit in _UNITS:  # integers exactly: a float holds only 53 bits
            return int(match[1]) * _UNITS[unit] if match[1].isdigit() else int(float(match[1]) * _UNITS[unit])
    share = "" if whole is None else ", or a share such as 10%"
    raise OptionError(
        f"{name}: {value!r}, wanted a size such as 128MiB, 1GB or 512M (K, M, G and T are powers of 1024){share}."
    )


def size_text(num_bytes: float) -> str:
    """Bytes for messages and tables: MiB, from 1 GiB on GiB, with one decimal.

    >>> size_text(3 << 19), size_text(5 << 29)
    ('1.5 MiB', '2.5 GiB')
    """
    return _size(num_bytes, 1)


def _size(num_bytes: float, digits: int) -> str:
    unit, factor = ("GiB", 2**30) if abs(num_bytes) >= 2**30 else ("MiB", 2**20)
    return f"{num_bytes / factor:,.{digits}f} {unit}"


def distinct_sizes(*sizes: float) -> tuple[str, ...]:
    """Bytes for a message that compares them: as `size_text`, with so many digits that different ones read differently.

    >>> distinct_sizes(600_000, 600_000, 3 << 19), distinct_sizes(600_000, 629_000), distinct_sizes(600_000, 600_001)
    (('0.6 MiB', '0.6 MiB', '1.5 MiB'), ('0.57 MiB', '0.60 MiB'), ('600,000 bytes', '600,001 bytes'))
    """
    digits: list[Callable[[float], str]] = [lambda size, n=n: _size(size, n) for n in (1, 2, 3)]  # type: ignore[misc]
    return distinct_texts(sizes, [*digits, lambda size: f"{size:,.0f} bytes"])


def distinct_texts(values: Iterable[float], forms: Iterable[Callable[[float], str]]) -> tuple[str, ...]:
    """Numbers for a message that compares them, in the first form in which different ones read differently.

    Where there is none, in the last.

    >>> shares = "{:.0%}".format, "{:.1%}".format, "{:.2%}".format
    >>> distinct_texts((0.0496, 0.05), shares), distinct_texts((0.02, 0.05), shares)
    (('4.96%', '5.00%'), ('2%', '5%'))
    """
    values = tuple(values)
    texts: tuple[str, ...] = ()
    for form in forms:
        texts = tuple(map(form, values))
        if len(set(texts)) >= len(set(values)):
            break
    return texts


def distinct_numbers(*numbers: float) -> tuple[str, ...]:
    """Numbers for a message that compares them: of six digits, or of so many more that different ones read differently.

    >>> distinct_numbers(0.5, 1 / 3), distinct_numbers(0.33333333, 1 / 3)
    (('0.5', '0.333333'), ('0.33333333', '0.333333333'))
    """
    return distinct_texts(numbers, [f"{{:.{digits}g}}".format for digits in range(6, 18)])


def count_text(number: int, thing: str) -> str:
    """A number of things.

    >>> count_text(1, "shard"), count_text(1200, "shard")
    ('1 shard', '1,200 shards')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def picture_size(shape: Sequence[int]) -> str:
    """The size of a picture for messages and tables, where it is always width first and says so.

    >>> picture_size((240, 320, 3)), picture_size((240, 320))
    ('320x240x3 (width x height x channels)', '320x240 (width x height)')

    Args:
        shape: (height, width) or (height, width, channels), as arrays have it.
    """
    height, width, *channels = shape
    sides = "x".join(map(str, (width, height, *channels)))
    return f"{sides} (width x height{' x channels' if channels else ''})"


def exact_size(num_bytes: int) -> int | str:
    """The shortest exact text for `parse_size`; where there is none in MiB or GiB, the number of bytes.

    >>> exact_size(8589934592), exact_size(1000)
    ('8GiB', 1000)
    """
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if num_bytes and num_bytes % factor == 0:
            return f"{num_bytes // factor}{unit}"
    return num_bytes
