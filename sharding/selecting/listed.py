"""The episodes that a file lists, found again in a dataset that may be another than the file was made of."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from epistream.errors import OptionError
from epistream.hints import MOST_TOLD
from epistream.sharding.selecting.columns import Column, Int64, Rows
from epistream.sharding.selecting.facts import EpisodeFacts
from epistream.sharding.selecting.selection_file import ListedEpisode, ListedEpisodes
from epistream.shown_urls import shown

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listed:
    """The episodes of a file, as a term of a selection.

    They are found by their source and the path in it; without a source by their key; by their number only where the
    file has nothing else, and is of the same dataset or does not say of which. Of sources one may be the last parts of
    the other, since packing leaves out the folder that all have in common.
    """

    listed: ListedEpisodes

    names = frozenset[str]()

    def rows(self, facts: EpisodeFacts) -> Rows:
        """As `Term.rows`.

        Raises:
            OptionError: If an episode is listed by a source that several files of the dataset are called by.
        """
        rows = np.zeros(facts.num_episodes, np.bool_)
        finder = _Finder(self.listed, facts)
        missing: list[str] = []
        for told, found in finder.all():
            rows[found] = True
            if not len(found):
                missing.append(told)
        if missing:
            more = f" and {len(missing) - MOST_TOLD:,} more" * (len(missing) > MOST_TOLD)
            _log.warning(
                "%s: not among the episodes of %s: %s%s",
                self.listed.file,
                facts.url,
                ", ".join(missing[:MOST_TOLD]),
                more,
            )
        return rows


def kept_steps(listed: ListedEpisodes, facts: EpisodeFacts) -> dict[int, tuple[int, int]]:
    """By episode the steps [start, stop) that a file says should stay of it.

    Raises:
        OptionError: If it says so of none of these episodes; and as `Listed.rows`.
    """
    found: dict[int, tuple[int, int]] = {}
    for one, (_, rows) in zip(listed.episodes, _Finder(listed, facts).all(), strict=False):
        if one.keep is not None:
            found |= dict.fromkeys(rows.tolist(), one.keep)
    if not found:
        raise OptionError(
            f"{listed.file}: says of no episode of {facts.url} which steps should stay, wanted 'keep' as 'epistream "
            "doctor --fail-on warning --select-out' writes it for idle starts and ends."
        )
    return found


class _Finder:
    """Looks up what a file lists; what it asks of the episodes it asks once, and only if an entry needs it."""

    def __init__(self, listed: ListedEpisodes, facts: EpisodeFacts) -> None:
        self._listed, self._facts = listed, facts
        self._known: dict[str, dict[str, Int64]] = {}
        self._ends: dict[str, list[str]] | None = None

    def all(self) -> Iterator[tuple[str, Int64]]:
        """Each entry, and the episodes that it means."""
        for one in self._listed.episodes:
            if one.source and self._has_sources:
                yield str(one), self._one_of(self._of_source(one), one)
            elif one.key:
                yield str(one), self._one_of(self._rows("key", one.key), one)
            else:
                is_there = one.index is not None and self._is_same and one.index < self._facts.num_episodes
                yield str(one), np.array([one.index] if is_there else [], np.int64)
        for line in self._listed.lines:
            found = self._one_of(self._rows("key", line), ListedEpisode(key=line))
            yield line, found if len(found) else np.concatenate([_NONE, *self._sources_called(line)])

    @property
    def _is_same(self) -> bool:
        """Whether positions in the file are those in the dataset, which edits change."""
        url = shown(self._facts.url)
        return self._listed.of in ("", url, f"{url}@{getattr(self._facts, 'fingerprint', '')}")

    def _one_of(self, found: Int64, one: ListedEpisode) -> Int64:
        """The one of some episodes that an entry means; days of recordings have files of the same names.

        Raises:
            OptionError: If that cannot be told.
        """
        if len(found) < 2 or not (one.path or one.key or one.index is not None):
            return found  # of a whole file
        named = np.intersect1d(found, self._rows("key", one.key)) if one.key else found
        found = named if len(named) else found
        if len(found) > 1 and one.index is not None and self._is_same and one.index in found:
            return np.array([one.index], np.int64)
        if len(found) > 1:
            raise OptionError(
                f"{self._listed.file}: {one}: episodes {', '.join(map(str, found[:MOST_TOLD].tolist()))} of "
                f"{self._facts.url} are called so, wanted one. Write the file again from the dataset as it is now, or "
                "give their numbers."
            )
        return found

    @property
    def _has_sources(self) -> bool:
        return any(self._of("source"))

    def _of_source(self, one: ListedEpisode) -> Int64:
        found = self._sources_called(one.source)
        if one.path:
            in_file = self._rows("path", one.path)
            found = [rows for rows in (np.intersect1d(mine, in_file) for mine in found) if len(rows)]
        if len(found) > 1:
            raise OptionError(
                f"{self._listed.file}: {one}: {len(found)} files of {self._facts.url} are called so, wanted one. Write "
                "more of its path."
            )
        return found[0] if found else _NONE

    def _sources_called(self, name: str) -> list[Int64]:
        """The episodes of each source that ends like `name`; else of the longest one that `name` ends like."""
        if self._ends is None:
            self._ends = ends = dict[str, list[str]]()
            for source in self._of("source"):
                for end in dict.fromkeys(one.lstrip("/") for one in _ends_of(source)):
                    ends.setdefault(end, []).append(source)
        sources = self._ends.get(name.lstrip("/"))  # a folder may be mounted elsewhere
        if sources is None:
            whole = self._of("source")
            sources = next(([end] for end in _ends_of(name) if end in whole), [])
        return [self._rows("source", source) for source in sources if source]

    def _rows(self, name: str, value: str) -> Int64:
        return self._of(name).get(value, _NONE)

    def _of(self, name: str) -> dict[str, Int64]:
        """By value of a column, the episodes that have it."""
        if name not in self._known:
            self._known[name] = _by_value(self._facts.column(name))
        return self._known[name]


_NONE = np.zeros(0, np.int64)


def _by_value(column: Column) -> dict[str, Int64]:
    order = np.argsort(column.numbers, kind="stable")
    cuts = np.searchsorted(column.numbers[order], np.arange(1, len(column.values)))
    episodes = order if column.episodes is None else column.episodes[order]
    values: Sequence[str] = column.values
    return dict(zip(values, np.split(episodes, cuts), strict=True)) if len(values) else {}


def _ends_of(path: str) -> Iterator[str]:
    """A path, and its last parts, the longest first."""
    yield path
    at = path.find("/")
    while at >= 0:
        if path[at + 1 :]:
            yield path[at + 1 :]
        at = path.find("/", at + 1)
