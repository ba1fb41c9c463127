"""Edits that rewrite no byte of a shard: episodes removed, trimmed, relabelled, divided; features renamed, dropped."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from epistream.errors import EditError, OptionError
from epistream.sharding.dataset_facts import facts_of
from epistream.sharding.edit.changes import Rows, dropped, in_split, renamed, trimmed, with_tasks, without
from epistream.sharding.edit.revision import EditReport, Revision, counted, edited
from epistream.sharding.edit.true_statistics import with_statistics
from epistream.sharding.files.hdf5_sources import AnyPath
from epistream.sharding.files.storage import Options
from epistream.sharding.format.division import Division, identity_of
from epistream.sharding.format.episode_meta import NO_SPLIT
from epistream.sharding.format.feature_sets import matching
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.opened_dataset import Dataset, dataset_of
from epistream.sharding.selecting.listed import kept_steps
from epistream.sharding.selecting.selection import Episodes, parse_selection
from epistream.sharding.selecting.selection_file import read_selection
from epistream.units import count_text

Change = tuple[Manifest, str]


def remove(url: AnyPath, episodes: Episodes, *, storage_options: Options = None) -> EditReport:
    """Take episodes out of a dataset. Their bytes stay in the shards, for earlier fingerprints, until `compact`.

    Args:
        url: Of the dataset: a folder, or a URL that can be written to.
        episodes: Which ones: a text of the selection language, numbers, or truth values.
        storage_options: For fsspec.

    Raises:
        OptionError: If the selection cannot be understood, or means no episode.
        EditError: If no episode would be left.
        EditConflictError: If somebody else edited the dataset meanwhile.
        SourceError, FormatError: If the dataset cannot be read or written.
    """

    def change(revision: Revision) -> Change:
        rows = chosen(revision, episodes)
        what = f"{counted(int(rows.sum()), len(rows))} removed"
        return with_statistics(revision, without(revision.manifest, rows)), what

    return edited(url, storage_options, f"remove {told(episodes)}", change, [])


def trim(
    url: AnyPath,
    steps: slice | tuple[int | None, int | None] | None = None,
    episodes: Episodes | None = None,
    *,
    ranges: Mapping[int, tuple[int, int]] | None = None,
    storage_options: Options = None,
) -> EditReport:
    """Let windows stand only at some steps of episodes. Steps about them are still read as history and chunk.

    Statistics are of the steps that are left.

    Args:
        url: As for `remove`.
        steps: Those that stay of each episode, as Python slices: ``(10, -5)`` drops the first ten and the last five.
        episodes: Which ones; all if None.
        ranges: Instead of both: for each episode by its number the steps [start, stop) that stay.
        storage_options: For fsspec.

    Raises:
        EditError: If an episode would have no step left.
        OptionError, EditConflictError, SourceError, FormatError: As `remove`.
    """
    if (steps is None) == (ranges is None) or (ranges is not None and episodes is not None):
        raise OptionError("trim: give either steps, for some or all episodes, or ranges, for each by its number.")
    bounds = None if steps is None else _bounds(steps)
    given = {} if ranges is None else _ranges(ranges)

    def change(revision: Revision) -> Change:
        length = revision.manifest.columns.episode_length
        unknown = next((number for number in given if not 0 <= number < len(length)), None)
        if unknown is not None:
            raise OptionError(f"{revision.url}: episode {unknown}, wanted one of {len(length):,}.")
        slices = given
        if bounds is not None:
            slices = dict.fromkeys(np.flatnonzero(chosen(revision, episodes)).tolist(), bounds)
        keep = {row: one.indices(int(length[row]))[:2] for row, one in slices.items()}
        before = _num_valid(revision.manifest)
        cut = trimmed(revision.manifest, keep)
        left = before - _num_valid(cut)
        if not left:
            raise EditError(
                f"{revision.url}: no step is cut off, these episodes have no others already. Nothing was done. Steps "
                "that were cut come back by undoing that."
            )
        what = f"{counted(len(keep), len(length))} trimmed by {count_text(left, 'step')}"
        rows_of = np.zeros(len(length), np.bool_)
        rows_of[list(keep)] = True
        return with_statistics(revision, cut, made_anew=rows_of), what

    if bounds is not None:
        of = "" if episodes is None else f" --episodes {told(episodes)}"
        first, last = ("" if bound is None else bound for bound in (bounds.start, bounds.stop))
        command = f"trim {first}:{last}{of}"
    else:
        command = f"trim by ranges of {len(ranges or {}):,} episodes"
    return edited(url, storage_options, command, change, [])


def listed_ranges(url: AnyPath, file: str, *, storage_options: Options = None) -> dict[int, tuple[int, int]]:
    """The steps that a selection file says are to stay, by number of the episode: what `trim` takes as `ranges`.

    Raises:
        OptionError: If it says so of no episode of this dataset.
        SourceError, FormatError: If it or the dataset cannot be read.
    """
    return kept_steps(read_selection(file), facts_of(opened(Revision.read(url, storage_options))))


def tasks(
    url: AnyPath,
    task: str | Sequence[str] | None = None,
    episodes: Episodes | None = None,
    *,
    replacing: Mapping[str, str] | None = None,
    storage_options: Options = None,
) -> EditReport:
    """Correct instructions.

    Args:
        url: As for `remove`.
        task: The new instruction, or several; of all steps of each episode.
        episodes: Which ones; all if None.
        replacing: Instead of `task`: new instructions by old ones, wherever they stand.
        storage_options: For fsspec.

    Raises:
        EditError: If no instruction would change.
        OptionError, EditConflictError, SourceError, FormatError: As `remove`.
    """
    if (task is None) == (replacing is None):
        raise OptionError("tasks: give either the new instruction, or what replaces what.")
    new = () if task is None else (task,) if isinstance(task, str) else tuple(task)
    if any(not text.strip() for text in (*new, *(replacing or {}).values())):
        raise OptionError("tasks: an empty instruction, wanted a text. Quote what the shell should not take apart.")

    def change(revision: Revision) -> Change:
        manifest = revision.manifest
        rows = chosen(revision, episodes)
        now = {row: _tasks_of(manifest, row) for row in np.flatnonzero(rows).tolist()}
        if replacing is None:
            wanted = dict.fromkeys(now, new)
        else:
            missing = next((old for old in replacing if old not in manifest.tasks), None)
            if missing is not None:
                raise OptionError(f"{revision.url}: no instruction {missing!r}, wanted one that is there to replace.")
            wanted = {row: tuple(replacing.get(one, one) for one in texts) for row, texts in now.items()}
        wanted = {row: texts for row, texts in wanted.items() if texts != now[row]}
        if not wanted:
            raise EditError(f"{revision.url}: these instructions are so already, wanted a change. Nothing was done.")
        return with_tasks(manifest, wanted), f"instructions of {counted(len(wanted), len(rows))} changed"

    said = [shlex.quote(text) for text in new]
    said += [f"--replace {shlex.quote(f'{old}={text}')}" for old, text in (replacing or {}).items()]
    said += [] if episodes is None else [f"--episodes {told(episodes)}"]
    return edited(url, storage_options, f"tasks {' '.join(said)}", change, [])


def split(
    url: AnyPath,
    name: str | None = None,
    episodes: Episodes | None = None,
    *,
    val_fraction: float | None = None,
    split_seed: int = 0,
    storage_options: Options = None,
) -> EditReport:
    """Assign episodes to splits again.

    Args:
        url: As for `remove`.
        name: Of the split, for these episodes; the others keep theirs, and are ``train`` if they had none.
        episodes: Which ones; all if None.
        val_fraction: Instead of `name`: the share of these episodes that becomes ``val``, the others ``train``, as
            packing chooses them.
        split_seed: Which ones those are.
        storage_options: For fsspec.

    Raises:
        OptionError, EditError, EditConflictError, SourceError, FormatError: As `remove`.
    """
    if (name is None) == (val_fraction is None):
        raise OptionError("split: give either the name of a split, or val_fraction.")
    if name is not None and split_seed:
        raise OptionError(
            f"split {name!r} with split_seed {split_seed}: a seed chooses nothing where episodes are named, wanted it "
            "with val_fraction."
        )
    if name is not None and (not name or not name.isprintable()):
        raise OptionError(f"split {name!r}: wanted a name, for example val.")
    division = None if val_fraction is None else Division(val_fraction, split_seed)
    notes: list[str] = []

    def change(revision: Revision) -> Change:
        manifest, rows = revision.manifest, chosen(revision, episodes)
        num_chosen = int(rows.sum())
        names = [manifest.splits[number] for number in manifest.columns.split_of.tolist()]
        if division is None:
            names = [name or "" if wanted else old for old, wanted in zip(names, rows.tolist(), strict=True)]
        else:
            numbers = np.flatnonzero(rows).tolist()
            identities = _identities(revision)
            for number, chosen_split in zip(numbers, division.names([identities[n] for n in numbers]), strict=True):
                names[number] = chosen_split
        if NO_SPLIT in names and set(names) != {NO_SPLIT}:
            if name == NO_SPLIT:
                raise OptionError(f"split {name!r}: stands for no split, wanted it for all episodes or none.")
            # As where datasets are joined: what has no split is for training where other episodes have one.
            notes.append(f"{count_text(names.count(NO_SPLIT), 'episode')} without a split: train from now on")
            rows = rows | np.array([one == NO_SPLIT for one in names])
            names = ["train" if one == NO_SPLIT else one for one in names]
        changed = in_split(manifest, rows, names)
        if division is not None and episodes is None:  # so that episodes which are added later are divided alike
            said = {**(manifest.provenance.get("options") or {}), **asdict(division)}
            changed = replace(changed, provenance={**manifest.provenance, "options": said})
        counts = np.bincount(changed.columns.split_of, minlength=len(changed.splits)).tolist()
        now = ", ".join(f"{split} {count:,}" for split, count in zip(changed.splits, counts, strict=True))
        return with_statistics(revision, changed), f"{counted(num_chosen, len(rows))} assigned: {now}"

    said = f"split {name}" if name is not None else f"split --val-fraction {val_fraction} --split-seed {split_seed}"
    said += "" if episodes is None else f" --episodes {told(episodes)}"
    return edited(url, storage_options, said, change, notes)


def rename(url: AnyPath, names: Mapping[str, str], *, storage_options: Options = None) -> EditReport:
    """Call features otherwise.

    Args:
        url: As for `remove`.
        names: New names by those so far.
        storage_options: For fsspec.

    Raises:
        OptionError: If there is no such feature, or a name cannot be.
        EditConflictError, SourceError, FormatError: As `remove`.
    """

    def change(revision: Revision) -> Change:
        pairs = ", ".join(f"{old} to {new}" for old, new in names.items())
        return with_statistics(revision, renamed(revision.manifest, names)), f"renamed {pairs}"

    said = " ".join(shlex.quote(f"{old}={new}") for old, new in names.items())
    return edited(url, storage_options, f"rename {said}", change, [])


def drop(url: AnyPath, features: str | Sequence[str], *, storage_options: Options = None) -> EditReport:
    """Leave features out of a dataset.

    Args:
        url: As for `remove`.
        features: Their names, or patterns such as ``observation.images.*``.
        storage_options: For fsspec.

    Raises:
        OptionError: If there is no such feature.
        EditError: If none would be left.
        EditConflictError, SourceError, FormatError: As `remove`.
    """
    wanted = [features] if isinstance(features, str) else list(features)

    def change(revision: Revision) -> Change:
        manifest = revision.manifest
        found = [name for one in wanted for name in matching(manifest.features, [one]) or [one]]
        return with_statistics(revision, dropped(manifest, list(dict.fromkeys(found)))), f"dropped {', '.join(found)}"

    return edited(url, storage_options, f"drop {' '.join(map(shlex.quote, wanted))}", change, [])


def chosen(revision: Revision, episodes: Episodes | None) -> Rows:
    """(E,) whether each episode is meant; all of them if None."""
    if episodes is None:
        return np.ones(revision.manifest.columns.num_episodes, np.bool_)
    rows: Any = parse_selection(episodes).rows(facts_of(opened(revision)))
    return np.asarray(rows, np.bool_)


def opened(revision: Revision) -> Dataset:
    """The dataset as it was read."""
    return dataset_of(revision.manifest, revision.url, revision.access)


def told(episodes: Episodes) -> str:
    """A selection as a shell would take it."""
    return shlex.quote(parse_selection(episodes).text)


def _tasks_of(manifest: Manifest, episode: int) -> tuple[str, ...]:
    return tuple(manifest.tasks[task] for task in manifest.columns.tasks_of(episode))


def _identities(revision: Revision) -> list[str]:
    """What divides each episode, as when it was packed."""
    facts, sources, columns = facts_of(opened(revision)), revision.manifest.sources, revision.manifest.columns
    links = sources.table.episode_source if len(sources) else np.full(columns.num_episodes, -1)
    num_bytes = [int(sources.table.num_bytes[link]) if link >= 0 else 0 for link in links.tolist()]
    names, paths = ([text or "" for text in facts.column(name).of_each()] for name in ("source", "path"))
    return [identity_of(*one) for one in zip(names, paths, columns.episode_length.tolist(), num_bytes, strict=True)]


def _bounds(steps: slice | tuple[int | None, int | None]) -> slice:
    """The steps that `trim` was given.

    Raises:
        OptionError: If they are no slice of all steps between two.
    """
    found = (steps.start, steps.stop) if isinstance(steps, slice) and steps.step in (None, 1) else steps
    if not isinstance(found, tuple) or len(found) != 2 or not all(one is None or _is_step(one) for one in found):
        raise OptionError(
            f"trim: steps {steps!r:.80}, wanted the first that stays and the one behind the last: (10, -5)."
        )
    return slice(*found)


def _ranges(ranges: Mapping[int, tuple[int, int]]) -> dict[int, slice]:
    """Those that `trim` was given by episode, none below 0.

    Raises:
        OptionError: If they are anything else.
    """
    for number, one in ranges.items():
        if not _is_step(number) or not isinstance(one, tuple | list) or len(one) != 2 or not all(map(_is_step, one)):
            raise OptionError(
                f"trim: ranges {number!r:.80}: {one!r:.80}, wanted an episode's steps [start, stop): 0: (5, 90)."
            )
    return {int(number): slice(max(0, int(start)), max(0, int(stop))) for number, (start, stop) in ranges.items()}


def _is_step(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _num_valid(manifest: Manifest) -> int:
    _, ranges = manifest.columns.valid_ranges
    return int((ranges[:, 1] - ranges[:, 0]).sum())
