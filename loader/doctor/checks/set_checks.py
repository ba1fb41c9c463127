"""Checks of what a dataset says of its episodes: files, instructions, success, splits, statistics."""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial

import numpy as np

from epistream.loader.doctor.checks.check import Check, Place
from epistream.loader.doctor.checks.robust import number
from epistream.loader.doctor.facts.facts import Facts
from epistream.sharding.format.left_out import UNLIKE
from epistream.units import count_text

_PLACEHOLDERS = frozenset(
    ("task", "todo", "test", "none", "null", "unknown", "default", "untitled", "dummy", "tbd", "instruction", "n a")
)
_LEAST_CHARACTERS = 4
_MOST_TASKS = 300
_ALIKE = 0.9
# Sums in another order, and float32 in place of float64, differ by less.
_RELATIVE = 1e-3
_SMALL_SPLIT, _LEAST_EPISODES = 0.02, 50


def _left_out_files(facts: Facts, *, unlike: bool) -> Iterator[Place]:
    for path, why in facts.dataset.skipped.items():
        if (UNLIKE in why) == unlike:
            yield Place(why.rstrip(".") if path in why else f"{path}: {why}".rstrip("."))


def _unreadable(facts: Facts) -> Iterator[Place]:
    for episode, why in sorted(facts.measured.unreadable.items()):
        yield Place(why.rstrip("."), episode)


def _tasks_of(facts: Facts) -> list[list[int]]:
    """Positions in the dataset's tasks, of every episode."""
    offsets, flat = facts.dataset.episode_tasks
    bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    return [flat[first:stop].tolist() for first, stop in bounds]


def _missing_task(facts: Facts) -> Iterator[Place]:
    tasks = facts.dataset.tasks
    if not len(tasks):
        return
    empty = {number for number, text in enumerate(tasks) if not text.strip()}
    each = _tasks_of(facts)
    if all(set(mine) <= empty for mine in each):
        return
    for episode, mine in enumerate(each):
        if set(mine) <= empty:
            yield Place("no instruction" if not mine else "an empty instruction", episode)


def _no_tasks(facts: Facts) -> Iterator[Place]:
    if not any(text.strip() for text in facts.dataset.tasks):
        yield Place(f"none of {count_text(facts.dataset.num_episodes, 'episode')} has one")


def _normal(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def _counts(facts: Facts) -> list[int]:
    counts: list[int] = np.bincount(facts.dataset.episode_tasks[1], minlength=len(facts.dataset.tasks)).tolist()
    return counts


def _variants(facts: Facts) -> Iterator[Place]:
    groups: dict[str, list[int]] = defaultdict(list)
    for position, text in enumerate(facts.dataset.tasks):
        if _normal(text):
            groups[_normal(text)].append(position)
    yield from _unlike(facts, [group for group in groups.values() if len(group) > 1], "elsewhere")


def _typos(facts: Facts) -> Iterator[Place]:
    from difflib import SequenceMatcher

    tasks, counts = list(facts.dataset.tasks), _counts(facts)
    if len(tasks) > _MOST_TASKS:
        return
    for position, text in enumerate(tasks):
        for other, known in enumerate(tasks):
            if counts[position] > 1 or counts[other] < 3 or _normal(text) == _normal(known):
                continue
            numbers = [re.findall(r"\d+", one) for one in (text, known)]
            same = SequenceMatcher(None, _normal(text), _normal(known))
            # One word that is another word is another task: 'left' for 'right', 'red' for 'green'.
            if numbers[0] == numbers[1] and same.ratio() > _ALIKE and _is_one_word_off(text, known):
                yield from _unlike(facts, [[other, position]], "perhaps")


def _is_one_word_off(text: str, known: str) -> bool:
    from difflib import SequenceMatcher

    mine, theirs = _normal(text).split(), _normal(known).split()
    off = [pair for pair in zip(mine, theirs, strict=False) if pair[0] != pair[1]]
    return len(mine) == len(theirs) and len(off) == 1 and SequenceMatcher(None, *off[0]).ratio() > 0.7


def _unlike(facts: Facts, groups: list[list[int]], how: str) -> Iterator[Place]:
    counts, each = _counts(facts), _tasks_of(facts)
    tasks = facts.dataset.tasks
    for group in groups:
        main = max(group, key=lambda one: counts[one])
        for position in group:
            if position == main:
                continue
            for episode, mine in enumerate(each):
                if position in mine:
                    others = count_text(counts[main], "episode")
                    yield Place(f"{tasks[position]!r:.80}, {how} {tasks[main]!r:.80} ({others})", episode)


def _placeholders(facts: Facts) -> Iterator[Place]:
    bad = {
        position
        for position, text in enumerate(facts.dataset.tasks)
        if text.strip() and (_normal(text) in _PLACEHOLDERS or len(text.strip()) < _LEAST_CHARACTERS)
    }
    for episode, mine in enumerate(_tasks_of(facts)):
        for position in set(mine) & bad:
            yield Place(f"{facts.dataset.tasks[position]!r} tells nothing", episode)


def _failed(facts: Facts) -> Iterator[Place]:
    said = [one for one in facts.measured.success if one is not None]
    if any(said):
        for row, success in enumerate(facts.measured.success):
            if success is False:
                yield Place("says that it failed", int(facts.measured.episode[row]))


def _all_failed(facts: Facts) -> Iterator[Place]:
    said = [one for one in facts.measured.success if one is not None]
    if said and not any(said):
        yield Place(f"all {len(said)} episodes that say it say that they failed")


def _no_success(facts: Facts) -> Iterator[Place]:
    if all(one is None for one in facts.measured.success):
        return
    for row, success in enumerate(facts.measured.success):
        if success is None:
            yield Place("does not say whether it succeeded", int(facts.measured.episode[row]))


def _small_splits(facts: Facts) -> Iterator[Place]:
    splits = facts.dataset.splits
    counts = np.bincount(facts.dataset.episode_split, minlength=len(splits)).tolist()
    total = sum(counts)
    for name, count in zip(splits, counts, strict=True):
        if total >= _LEAST_EPISODES and len(splits) > 1 and count < max(2, _SMALL_SPLIT * total):
            yield Place(f"{count_text(count, 'episode')} of {total:,} in split {name}")


def _statistics(facts: Facts) -> Iterator[Place]:
    dataset, measured = facts.dataset, facts.measured
    if facts.num < dataset.num_episodes or dataset.columns.ranges is not None:
        return
    rows = np.ones(facts.num, np.bool_)
    if "train" in dataset.splits:
        rows = facts.split == dataset.splits.index("train")
    for name, said in dataset.statistics.items():
        found = measured.values.get(name)
        if found is None or found.num_bad.any() or not rows.any():
            continue
        low, high = found.low[rows].min(axis=0), found.high[rows].max(axis=0)
        steps = int(facts.length[rows].sum())
        scale = np.maximum(np.abs(low), np.abs(high))
        real = {"mean": found.total[rows].sum(axis=0) / steps, "min": low, "max": high}
        if said["count"] != steps:
            yield Place(f"of {said['count']:,} steps, the episodes have {steps:,}", feature=name)
            continue
        for moment, values in real.items():
            told = np.asarray(said[moment], np.float64).reshape(-1)
            off = np.flatnonzero(~(np.abs(told - values) <= _RELATIVE * scale + 1e-9)).tolist()
            if off:
                wrong, right = number(told[off[0]]), number(values[off[0]])
                text = f"{moment} of dimension {off[0]} is {wrong}, the values say {right}"
                yield Place(text, feature=name, dims=tuple(off))
                break


CHECKS = (
    Check(
        "unreadable-file",
        "error",
        "files that cannot be read, or fit no layout",
        "Record or copy the file again, or move it out of the folder.",
        partial(_left_out_files, unlike=False),
    ),
    Check(
        "unlike-file",
        "warning",
        "files that have other features than most, which were not looked at",
        "Pack or stream them apart, or name the features that all have.",
        partial(_left_out_files, unlike=True),
    ),
    Check(
        "unreadable-episode",
        "error",
        "episodes that cannot be read",
        "Copy its files again, or remove the episode.",
        _unreadable,
    ),
    Check(
        "missing-task",
        "warning",
        "episodes without an instruction among others that have one",
        "Write one, or remove the episode; a policy with instructions reads an empty one.",
        _missing_task,
    ),
    Check(
        "no-tasks",
        "info",
        "datasets without any instruction",
        "Policies with instructions need one; all others do not.",
        _no_tasks,
    ),
    Check(
        "task-variants",
        "warning",
        "instructions that differ in case, spaces or punctuation only",
        "Write them alike.",
        _variants,
    ),
    Check(
        "task-typo",
        "info",
        "an instruction of one episode that is nearly that of others",
        "Correct it if it is a slip of the pen.",
        _typos,
    ),
    Check(
        "task-placeholder",
        "warning",
        "instructions that tell nothing",
        "Write what is done in the episode.",
        _placeholders,
    ),
    Check(
        "failed-episode",
        "info",
        "episodes that say of themselves that they failed",
        "Leave them out of imitation: success == True as a selection.",
        _failed,
    ),
    Check(
        "all-failed",
        "warning",
        "datasets all of whose episodes say that they failed",
        "See whether the recorder sets the mark at all.",
        _all_failed,
    ),
    Check(
        "missing-success",
        "info",
        "episodes that do not say whether they succeeded, among others that do",
        "Add the mark; selections by success leave such episodes out.",
        _no_success,
    ),
    Check(
        "small-split",
        "info",
        "splits of hardly any episode",
        "Divide again with a larger share; means over so few say little.",
        _small_splits,
    ),
    Check(
        "statistics",
        "error",
        "statistics of the dataset that are not those of its values",
        "Make them anew ('epistream index URL --overwrite', or pack again): normalisation goes by them.",
        _statistics,
    ),
)

# What asks whether episodes succeeded.
OF_SUCCESS = (_failed, _all_failed, _no_success)
