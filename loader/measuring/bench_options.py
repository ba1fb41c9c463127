"""What `epistream bench` measures: apart from the measuring, so that the command's help needs no torch."""

from dataclasses import dataclass
from typing import Annotated

from epistream.cache.options import Mode
from epistream.options import Count, Range, check


@dataclass(frozen=True)
class BenchOptions:
    """What to measure; the defaults are those of ``epistream bench``.

    Args:
        features: names or patterns such as ``action*``; all features if none.
        batch_size: windows per batch.
        obs: step offsets of observations.
        action: step offsets of actions.
        parallel: worker processes, and threads; or several numbers of them.
        cache: where shards are kept.
        rounds: interleaved rounds; medians are shown.
        seconds: length of each measurement.
        once: also with all frames decoded before. Where they fit the cache's budget.
        layout: of HDF5 files, or a YAML file that describes one; found if None.
        allow_outside_files: let HDF5 files that you trust read from others outside of their folders.

    Raises:
        OptionError: a number that measures nothing.
    """

    features: tuple[str, ...] = ()
    batch_size: Count = 32
    obs: range = range(1)
    action: range = range(100)
    parallel: Count | tuple[Count, ...] = 2
    cache: Mode = "auto"
    rounds: Count = 5
    seconds: Annotated[float, Range(gt=0)] = 2.0
    once: bool = True
    layout: str | None = None
    allow_outside_files: bool = False

    def __post_init__(self) -> None:
        check(self, "bench ")

    @property
    def numbers(self) -> tuple[int, ...]:
        """`parallel` as a tuple."""
        return self.parallel if isinstance(self.parallel, tuple) else (self.parallel,)
