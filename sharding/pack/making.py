"""The shards of a job: those that are complete are taken as they are, all others made by the engine."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from epistream.errors import PackError
from epistream.sharding.format.statistics import NotFinite, Summary, add_counts, merge_all
from epistream.sharding.manifest.manifest_builder import ShardSummary
from epistream.sharding.pack.job_note import read_note
from epistream.sharding.pack.kept_results import (
    keep_statistics,
    kept_result,
    kept_statistics,
    pack_and_keep,
    statistics_of_kept,
)
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pack.report import Listener, PackProgress
from epistream.sharding.pack.shard_task import ShardResult, ShardTask
from epistream.sharding.pictures.fidelity import Fidelity
from epistream.sharding.tar.shard_store import Store
from epistream.sharding.tasks.ahead import ahead
from epistream.sharding.tasks.engine import Engine

# How often in a job the statistics so far are kept: a job that resumes reads them once, and those of few shards.
_NUM_SUMS = 16
_MOST_NAMED = 20


@dataclass
class Results:
    """What came of the tasks so far, added up in the order of the plan: shards, and the statistics of one split.

    `checksums` are those of source files, by their position among the scans.
    """

    statistics_split: str = ""
    shards: list[ShardSummary] = field(default_factory=list)
    num_resumed: int = 0
    checksums: dict[int, str] = field(default_factory=dict)
    statistics: dict[str, Summary] = field(default_factory=dict)
    not_finite: dict[str, NotFinite] = field(default_factory=dict)
    fidelity: dict[str, Fidelity] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def take(self, result: ShardResult, *, is_summed: bool) -> None:
        """Add the next result in the order of the plan, whose statistics may be in it already."""
        self.checksums |= result.checksums
        self.faults += result.faults
        if result.shard is None:
            return
        self.shards.append(result.shard)
        if result.shard.split == self.statistics_split and not is_summed:
            self.statistics = merge_all((self.statistics, result.statistics))
        self.not_finite = add_counts((self.not_finite, result.not_finite))
        for name, measured in result.fidelity.items():
            self.fidelity.setdefault(name, Fidelity()).add(measured)


class Making:
    """Makes the shards of one job, or a task's share of them.

    Args:
        engine: Runs the tasks.
        store: Where they write.
        options: Of the job.
        tell: Called now and then.
    """

    def __init__(self, engine: Engine, store: Store, options: PackOptions, tell: Listener) -> None:
        self._engine, self._store, self._options, self._tell = engine, store, options, tell

    def run(self, tasks: Sequence[ShardTask], results: Results, num_faults: int, *, is_resumed: bool) -> Results:
        """What comes of the tasks, added to `results`.

        Args:
            tasks: In the order of the plan.
            results: With the split of the statistics.
            num_faults: Known already, for whoever is told.
            is_resumed: Whether shards may be complete.

        Raises:
            PackError: If all should be complete, and some are not.
        """
        kept: list[ShardResult | None] = [None] * len(tasks)
        if is_resumed:
            kept = list(ahead(lambda task: kept_result(task, self._store), tasks))
        if self._options.publish:
            self._refuse_missing([number for number, result in enumerate(kept) if result is None], len(tasks))
        else:  # what had no good episode is tried again
            kept = [result if result and result.shard else None for result in kept]
        missing = [task for task, result in zip(tasks, kept, strict=True) if result is None]
        made = self._engine.map(pack_and_keep, missing, self._tick(tasks, kept, results, num_faults))
        self._add_up(tasks, kept, made, results)
        return results

    def _tick(
        self, tasks: Sequence[ShardTask], kept: Sequence[ShardResult | None], results: Results, num_faults: int
    ) -> Callable[[int, int], None]:
        """Tells how far the job is, of which some shards are done."""
        every = [[(one.source_bytes) for one in task.episodes] for task in tasks]
        done = [sizes for sizes, result in zip(every, kept, strict=True) if result]
        num_total, bytes_total = sum(map(len, every)), sum(map(sum, every))
        num_done, bytes_done = sum(map(len, done)), sum(map(sum, done))

        def tick(num_episodes: int, num_bytes: int) -> None:
            faults = num_faults + len(results.faults)
            now = (num_done + num_episodes, num_total, bytes_done + num_bytes, bytes_total)
            self._tell(PackProgress("packing", *now, faults))

        return tick

    def _add_up(
        self,
        tasks: Sequence[ShardTask],
        kept: Sequence[ShardResult | None],
        made: Iterator[ShardResult],
        results: Results,
    ) -> None:
        """Take every result, in the order of the plan: for the same bits with any number of workers.

        Statistics are merged at once, because those of 100,000 shards do not fit into memory. A task of an array only
        sees that they are whole.
        """
        is_share = self._options.num_tasks is not None
        keys = [result.key if result else "" for result in kept]
        num_summed, results.statistics = (0, {}) if is_share else kept_statistics(self._store, keys)

        def with_statistics(number: int) -> ShardResult | None:
            return self._with_statistics(tasks[number], kept[number], is_summed=number < num_summed)

        found = ahead(with_statistics, range(len(tasks)))
        for number, (task, result) in enumerate(zip(tasks, found, strict=True)):
            is_torn = result is None and kept[number] is not None
            if is_torn and self._options.publish:
                self._refuse_missing([number], len(tasks))
            results.num_resumed += result is not None
            taken = result or next(self._engine.map(pack_and_keep, [task]) if is_torn else made)
            keys[number] = taken.key
            results.take(taken, is_summed=number < num_summed)
            is_time = (number + 1) % -(-len(tasks) // _NUM_SUMS) == 0
            if is_time and not is_share and number >= num_summed and all(keys[: number + 1]):
                keep_statistics(self._store, keys[: number + 1], results.statistics)
        next(made, None)  # it tells how far it is once more at its end

    def _with_statistics(self, task: ShardTask, result: ShardResult | None, *, is_summed: bool) -> ShardResult | None:
        """A result that was kept, with its statistics unless these are in a sum; None if they are torn."""
        if result is None or is_summed:
            return result
        statistics = statistics_of_kept(task, result.key, self._store)
        return None if statistics is None else replace(result, statistics=statistics)

    def _refuse_missing(self, numbers: Sequence[int], num_shards: int) -> None:
        """Say which tasks of an array did not do their part.

        Raises:
            PackError: If there is any.
        """
        if not numbers:
            return
        note = read_note(self._store)
        num_tasks = (note and note.num_tasks) or 1
        tasks = sorted({task_of(number, num_shards, num_tasks) for number in numbers})
        named = ", ".join(map(str, tasks[:_MOST_NAMED])) + (", ..." if len(tasks) > _MOST_NAMED else "")
        raise PackError(
            f"{self._store.url}: {len(numbers):,} of {num_shards:,} shards are not there, wanted all to publish. Run "
            f"again with --num-tasks {num_tasks} and --task-index {named}; or finish it here with --resume."
        )


def share_of(task_index: int, num_tasks: int, num_shards: int) -> range:
    """The shards that a task of an array makes: neighbours, since they often come from one file."""
    return range(task_index * num_shards // num_tasks, (task_index + 1) * num_shards // num_tasks)


def task_of(shard: int, num_shards: int, num_tasks: int) -> int:
    """The task of an array that makes a shard: the inverse of `share_of`."""
    return ((shard + 1) * num_tasks - 1) // num_shards
