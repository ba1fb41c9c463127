"""Sizes as text: every place of the program reads and writes them alike."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epistream.cache.store.budget import Budget
from epistream.configs.config import load_config
from epistream.errors import EpistreamError, OptionError
from epistream.sharding.pack.options import PackOptions
from epistream.units import distinct_numbers, distinct_sizes, parse_size, size_text

SIZES = [
    ("0", 0),
    ("4096", 4096),
    ("7k", 7168),
    ("512M", 512 << 20),
    ("1G", 1 << 30),
    ("1T", 1 << 40),
    ("500MB", 500_000_000),
    ("500MiB", 500 << 20),
    ("2tb", 2 * 10**12),
    ("1TiB", 1 << 40),
    ("1.5GiB", 3 << 29),
    ("0.5 GB", 500_000_000),
    (" 64 KiB ", 1 << 16),
    ("12B", 12),
    ("9007199254740993", 9007199254740993),
]
NONE = [
    "",
    "M",
    "-1",
    "1X",
    "inf",
    "nan",
    "one",
    "1e3",
    "1 0",
    "8 parsec",
    "10%",
    "1i",
    "9" * 400 + ".5GB",
    "9" * 5000,
    True,
]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", NONE)
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"room: .*wanted a size such as 128MiB"):
        parse_size(text, "room")


@pytest.mark.parametrize(("text", "size"), [("10%", 200), ("150 %", 3000), ("0.1%", 2), ("1K", 1024)])
def test_shares_are_read_where_there_is_something_to_share(text: str, size: int) -> None:
    assert parse_size(text, whole=2000) == size


@pytest.mark.parametrize("text", ["ten%", "%", "-5%", "0%", "9" * 400 + "%"])
def test_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="or a share such as 10%"):
        parse_size(text, whole=2000)


@pytest.mark.parametrize(("text", "size"), [(text, size) for text, size in SIZES if 1 << 16 <= size <= 1 << 39])
def test_options_and_configurations_read_the_same_sizes(text: str, size: int, tmp_path: Path) -> None:
    assert PackOptions(shard_size=text).shard_bytes == size
    (tmp_path / "run.yaml").write_text(f"pack:\n  shard_size: {text}\ncache:\n  budget_bytes: {text}\n")
    config = load_config(tmp_path / "run.yaml")
    assert config.settings.pack.shard_size == size
    assert config.settings.cache.budget_bytes == size


@pytest.mark.parametrize("text", ["1X", "-5M", "8 parsec"])
def test_options_and_configurations_refuse_the_same_sizes(text: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        PackOptions(shard_size=text)
    (tmp_path / "run.yaml").write_text(f"cache:\n  budget_bytes: {text}\n")
    with pytest.raises(EpistreamError, match="wanted a size such as"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.0 MiB"), (3 << 19, "1.5 MiB"), (1023 << 20, "1,023.0 MiB"), (1 << 30, "1.0 GiB"), (5 << 39, "2,560.0 GiB")],
)
def test_sizes_are_written_in_mib_and_gib(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("sizes", "texts"),
    [
        ((629_145, 1 << 30), ("0.6 MiB", "1.0 GiB")),
        ((600_000, 629_000), ("0.57 MiB", "0.60 MiB")),
        ((629_000, 630_000), ("0.600 MiB", "0.601 MiB")),
        ((629_145, 629_146), ("629,145 bytes", "629,146 bytes")),
        ((0, 1), ("0 bytes", "1 bytes")),
        ((5 << 30, 5 << 30), ("5.0 GiB", "5.0 GiB")),
        ((5 << 30, (5 << 30) + 1, 5 << 30), ("5,368,709,120 bytes", "5,368,709,121 bytes", "5,368,709,120 bytes")),
        ((), ()),
    ],
)
def test_sizes_side_by_side_read_differently_where_they_differ(sizes: tuple[int, ...], texts: tuple[str, ...]) -> None:
    assert distinct_sizes(*sizes) == texts


@given(st.lists(st.integers(0, 1 << 45) | st.integers(629_000, 630_000), max_size=6))
def test_sizes_side_by_side_are_as_different_as_they_are(sizes: list[int]) -> None:
    texts = distinct_sizes(*sizes)
    assert len(texts) == len(sizes)
    assert len(set(texts)) == len(set(sizes))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=6))
def test_numbers_side_by_side_are_as_different_as_they_are(numbers: list[float]) -> None:
    texts = distinct_numbers(*numbers)
    assert len(set(texts)) >= len(set(numbers))


def test_message_on_a_shard_above_the_budget_by_little_tells_them_apart() -> None:
    budget = Budget(629_145, {"cap": 629_145, "memory": 5 << 30})
    assert budget.beside(629_146) == (
        "629,145 bytes (the least of: cap 629,145 bytes, memory 5,368,709,120 bytes)",
        "629,146 bytes",
    )
    assert str(budget) == "0.6 MiB (the least of: cap 0.6 MiB, memory 5.0 GiB)"
