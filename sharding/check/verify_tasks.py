"""The checks of all shards of a dataset, some at a time: in threads of this process, or on a Ray cluster."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from epistream.sharding.check.faults import Fault
from epistream.sharding.check.verify_shard import ShardCheck, VerifyOptions
from epistream.sharding.files.names import is_episode_url
from epistream.sharding.format.statistics import NotFinite, Summary
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.sharding.tasks.engine import EngineOptions, make_engine
from epistream.sharding.tasks.pool_process import Words
from epistream.sharding.tasks.pulse import Pulse

if TYPE_CHECKING:
    from epistream.sharding.check.verify_episode import EpisodeCheck

_WORDS = Words("a verifying process", "run verify again.")


@dataclass(frozen=True)
class Checked:
    """What came of the check of a shard: small, for it may come from another machine."""

    faults: list[Fault]
    num_bytes: int
    num_frames: int
    not_finite: dict[str, NotFinite]
    statistics: dict[str, Summary]


def checked(
    dataset: Dataset, options: VerifyOptions, advance: Callable[[int], None], split: int | None
) -> Iterator[Checked]:
    """What came of the check of each shard, in their order.

    Args:
        dataset: Opened.
        options: How thoroughly to look, and where.
        advance: Called with bytes that were dealt with, from several threads.
        split: Whose statistics are wanted; of all episodes if None.
    """
    shards = range(dataset.num_shards)
    if options.engine == "local":
        check_of = _checks(dataset, options, advance, split)
        with ThreadPoolExecutor(options.num_threads, "verify") as pool:
            yield from pool.map(lambda shard: _run(check_of(shard)), shards)
        return
    kept, told = {"dataset": dataset, "options": options, "split": split}, 0

    def tick(num_episodes: int, num_bytes: int) -> None:
        nonlocal told
        advance(num_bytes - told)
        told = num_bytes

    with make_engine(EngineOptions(options.engine, options.address), dataset.url, kept, _WORDS) as engine:
        yield from engine.map(_check, shards, tick)


def _check(shard: int, pulse: Pulse) -> Checked:
    """Check a shard in a process of an engine."""
    check_of = pulse.kept.get("checks")
    if check_of is None:
        check_of = pulse.kept["checks"] = _Checks(*(pulse.kept[name] for name in ("dataset", "options", "split")))
    return check_of.run(shard, pulse)


class _Checks:
    """The checks that one process makes, of which each tells the task that it runs in how far it is."""

    def __init__(self, dataset: Dataset, options: VerifyOptions, split: int | None) -> None:
        self._pulse: Pulse | None = None
        self._check_of = _checks(dataset, options, self._advance, split)

    def run(self, shard: int, pulse: Pulse) -> Checked:
        self._pulse = pulse
        return _run(self._check_of(shard))

    def _advance(self, num_bytes: int) -> None:
        if self._pulse is not None:
            self._pulse.add(num_bytes=num_bytes)


def _run(check: "ShardCheck | EpisodeCheck") -> Checked:
    done = check.run()
    return Checked(done.faults, done.num_bytes, done.num_frames, done.not_finite, done.statistics)


def _checks(
    dataset: Dataset, options: VerifyOptions, advance: Callable[[int], None], split: int | None
) -> "Callable[[int], ShardCheck | EpisodeCheck]":
    """Makes the check of a shard."""
    if not any(map(is_episode_url, dataset.index_url)):
        return lambda shard: ShardCheck(dataset, shard, options, advance, split)
    from epistream.sharding.check.verify_episode import EpisodeCheck, FreshIndexes

    indexes = FreshIndexes()

    def check_of(shard: int) -> "ShardCheck | EpisodeCheck":
        if is_episode_url(dataset.index_url[shard]):
            return EpisodeCheck(dataset, shard, options, advance, indexes)
        return ShardCheck(dataset, shard, options, advance, split)

    return check_of
