"""A dataset examined: opened, read by as many processes as asked for, judged, and what was found."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from epistream.errors import EpistreamError
from epistream.loader.doctor.checks.check import LEVELS, Finding, Level
from epistream.loader.doctor.checks.registry import chosen, judged
from epistream.loader.doctor.checks.set_checks import OF_SUCCESS
from epistream.loader.doctor.examine import DATASET, SAMPLE, examinations, examine
from epistream.loader.doctor.facts.facts import Facts, Measured
from epistream.loader.doctor.options import DoctorOptions
from epistream.options import changed
from epistream.sharding.dataset import open_dataset
from epistream.sharding.dataset_facts import facts_of
from epistream.sharding.files.sources import AnySource
from epistream.sharding.layouts.layout_file import chosen_layout
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.sharding.selecting.selection_file import ListedEpisode, write_selection
from epistream.sharding.tasks.engine import make_engine
from epistream.sharding.tasks.pool_process import Words

if TYPE_CHECKING:
    from epistream.sharding.layouts.mapping import MappingLayout

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What was found.

    Args:
        url: Of the dataset.
        findings: In the order of the checks, and of episodes.
        num_episodes: Episodes that were looked at.
        num_steps: Their steps.
        cameras: Names of those whose pictures were looked at.
        checks: Codes of the checks that were made.
        fingerprint: Of the dataset.
    """

    url: str
    findings: Sequence[Finding]
    num_episodes: int
    num_steps: int
    cameras: Sequence[str]
    checks: Sequence[str]
    fingerprint: str = ""

    def at_least(self, level: Level) -> list[Finding]:
        """Findings of this level and above."""
        return [one for one in self.findings if LEVELS.index(one.level) >= LEVELS.index(level)]

    @property
    def counts(self) -> dict[Level, int]:
        """Findings by level, the worst first."""
        found = Counter(one.level for one in self.findings)
        return {level: found[level] for level in reversed(LEVELS)}

    def episodes(self, level: Level = "error") -> dict[int, list[Finding]]:
        """Episodes with findings of this level and above, each with these."""
        found: dict[int, list[Finding]] = {}
        for one in self.at_least(level):
            if one.place.episode is not None:
                found.setdefault(one.place.episode, []).append(one)
        return dict(sorted(found.items()))

    def select(self, path: AnyPath, level: Level = "error") -> int:
        """Write these episodes as a selection file, and say how many they are.

        Raises:
            SourceError: If it cannot be written.
        """
        rows = [
            ListedEpisode(
                index=episode,
                source=some[0].source,
                path=some[0].path,
                key=some[0].key,
                codes=tuple(dict.fromkeys(one.code for one in some)),
                keep=next((one.place.keep for one in some if one.place.keep is not None), None),
            )
            for episode, some in self.episodes(level).items()
        ]
        write_selection(path, rows, f"{self.url}@{self.fingerprint}")
        return len(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "url": self.url,
            "num_episodes": self.num_episodes,
            "num_steps": self.num_steps,
            "cameras": list(self.cameras),
            "checks": list(self.checks),
            "counts": self.counts,
            "findings": [one.to_dict() for one in self.findings],
        }


def doctor(
    source: AnySource | Sequence[AnySource] | Dataset,
    options: DoctorOptions | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    layout: "str | AnyPath | MappingLayout | None" = None,
    allow_outside_files: bool = False,
    progress: Callable[[int, int], None] = lambda num_done, num_total: None,
    **changes: Any,
) -> Diagnosis:
    """Look for what is wrong with the episodes of a dataset.

    Args:
        source: As `EpisodeStream` takes it: shards, HDF5 files, LeRobot data sets; or a dataset that is open.
        options: All options together; see `DoctorOptions`.
        storage_options: For fsspec.
        layout: Of HDF5 files, as `EpisodeStream` takes it.
        allow_outside_files: Likewise.
        progress: Called in the calling thread, now and then, with episodes that are done, and all.
        changes: Single options by name, for example ``frames=False``.

    Raises:
        OptionError: If an option cannot work.
        SourceError, FormatError, LayoutError, FetchError: If nothing can be opened at `source`.
        WorkerError: If a process died.
    """
    options = changed(options or DoctorOptions(), changes, "doctor")
    checks = chosen(options.only, options.skip, frames=options.frames)
    dataset = source
    if not isinstance(dataset, Dataset):
        dataset = open_dataset(
            dataset, storage_options, on_bad="skip", layout=layout, allow_outside_files=allow_outside_files
        )
    looks = any(check.needs_frames for check in checks)
    tasks = list(examinations(dataset, frames=looks))
    total = dataset.num_episodes
    kept = {DATASET: dataset, SAMPLE: options.sample if looks else 0}
    parts: list[Measured] = []
    with make_engine(options.engine_options, dataset.url, kept, _WORDS) as engine:
        for part in engine.map(examine, tasks, on_tick=lambda episodes, _: progress(episodes, total)):
            parts.append(part)
    measured = Measured.join(parts)
    if any(check.find in OF_SUCCESS for check in checks):
        said = _success_of(dataset, layout, allow_outside_files)
        measured = replace(measured, success=[said[number] for number in measured.episode.tolist()])
    facts = Facts(dataset, measured)
    return Diagnosis(
        url=dataset.url,
        findings=tuple(judged(facts, checks)),
        num_episodes=total,
        num_steps=dataset.num_steps,
        cameras=tuple(facts.measured.cameras),
        checks=tuple(check.code for check in checks),
        fingerprint=dataset.fingerprint,
    )


def _success_of(dataset: Dataset, layout: Any, allow_outside_files: bool) -> list[bool | None]:
    """What each episode says of whether it succeeded; None where it says nothing, or nothing that can be read."""
    found: list[bool | None] = [None] * dataset.num_episodes
    with suppress(EpistreamError):
        facts = facts_of(dataset, layout=chosen_layout(layout), allow_outside_files=allow_outside_files)
        columns = facts.attributes(_SUCCESS)
        for name in reversed([name for name in _SUCCESS if name in columns]):
            for number, value in enumerate(columns[name].of_each()):
                found[number] = bool(value) if isinstance(value, bool | int | float) else found[number]
    return found


_SUCCESS = ("success", "is_success", "succeeded", "task_success")
_WORDS = Words("a process that examines episodes", "begin again.")
