"""What is known of one episode besides its bytes: its member ``<key>.meta.json``, in short in the index."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.files.foreign import stand_in
from epistream.sharding.format.features import Feature
from epistream.sharding.pictures.depth import Depth

VERSION = 1
# The split of episodes that belong to none.
NO_SPLIT = "all"
_MAX_TASKS = 10_000
# In a table of the instruction of each step: all of the episode's are of this one.
ALL_TASKS = 0xFFFFFFFF


@dataclass(frozen=True)
class EpisodeMeta:
    """One episode.

    Args:
        length: Steps, at least 1.
        episode_index: Where the episode stands among all that were packed. Orders the dataset; gaps left by
            episodes that were refused are closed by the manifest.
        split: Name of its split; ``all`` when the dataset has none.
        tasks: Its instructions, of which training draws one. Often one, may be none.
        task_steps: Where instructions are of some steps only: from each step at which another one begins, that step
            and its position in `tasks`, from step 0 on. None where all are of every step.
        depth: camera -> what its pixels stand for, of videos that hold depth. Not part of the index, whose streams say
            it; no video says it of itself.
        valid_ranges: Half-open step ranges that may be anchors, ascending, apart. None is all of them.
        source: The file that it came from.
        source_path: Where in that file, for files of many episodes.
        layout: Name of the layout that read it.
        attributes: Whatever else the source says, as JSON can hold it. Not part of the index.

    Raises:
        FormatError: If any of these cannot be.
    """

    length: int
    episode_index: int = 0
    split: str = NO_SPLIT
    tasks: tuple[str, ...] = ()
    valid_ranges: tuple[tuple[int, int], ...] | None = None
    source: str = ""
    source_path: str = ""
    layout: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    task_steps: tuple[tuple[int, int], ...] | None = None
    depth: Mapping[str, Depth] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = next(_problems(self), None)
        if problem:
            raise FormatError(f"episode {self.episode_index!r} of {self.source or 'no named source'}: {problem}.")

    def to_dict(self) -> dict[str, Any]:
        """The short form of the index: no attributes, nothing that is the default."""
        short: dict[str, Any] = {
            "length": self.length,
            "episode_index": self.episode_index,
            "split": self.split,
        }
        if self.tasks:
            short["tasks"] = list(self.tasks)
        if self.task_steps is not None:
            short["task_steps"] = [list(pair) for pair in self.task_steps]
        if self.valid_ranges is not None:  # no range at all is something else than every step
            short["valid_ranges"] = [list(pair) for pair in self.valid_ranges]
        texts = {"source": self.source, "source_path": self.source_path, "layout": self.layout}
        return {**short, **{name: text for name, text in texts.items() if text}}

    def to_json(self, features: Mapping[str, Feature]) -> bytes:
        """The contents of ``<key>.meta.json``: one line; the same input gives the same bytes."""
        described = [feature.to_dict() for feature in features.values()]
        whole = {
            "version": VERSION,
            **self.to_dict(),
            "features": described,
            "attributes": dict(self.attributes),
        }
        if self.depth:
            whole["depth"] = {name: depth.to_dict() for name, depth in self.depth.items()}
        return json.dumps(whole, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _problems(meta: EpisodeMeta) -> Iterator[str]:
    """What is wrong with `meta`; the checks later in the list rely on the earlier ones."""
    if not _is_count(meta.length) or meta.length < 1:
        yield f"length {meta.length!r}, wanted at least 1 step"
    if not _is_count(meta.episode_index):
        yield f"episode_index {meta.episode_index!r}, wanted a number from 0"
    texts = (meta.split, meta.source, meta.source_path, meta.layout)
    if not all(isinstance(text, str) for text in texts) or not meta.split or not meta.split.isprintable():
        yield f"split, source, source_path, layout {texts!r:.200}, wanted texts, the split not empty"
    if len(meta.tasks) > _MAX_TASKS or not all(isinstance(task, str) for task in meta.tasks):
        yield f"tasks {meta.tasks!r:.200}, wanted at most {_MAX_TASKS:,} texts"
    if not isinstance(meta.attributes, Mapping):
        yield f"attributes {meta.attributes!r:.200}, wanted a map"
    end = 0
    for pair in meta.valid_ranges or ():
        if len(pair) != 2 or not all(_is_count(step) for step in pair) or not end <= pair[0] < pair[1]:
            yield f"valid range {list(pair)!r:.80}, wanted [start, stop) after the one before"
        end = pair[1]
    if end > meta.length:
        yield f"a valid range that ends at {end}, wanted at most its length, {meta.length}"
    if meta.task_steps is not None:
        yield from _task_problems(meta)


def _task_problems(meta: EpisodeMeta) -> Iterator[str]:
    least = 0
    for pair in meta.task_steps or ((-1, -1),):
        is_one = len(pair) == 2 and all(map(_is_count, pair))
        if not is_one or not least <= pair[0] < meta.length or (least == 0 and pair[0]) or pair[1] >= len(meta.tasks):
            yield (
                f"task_steps {list(pair)!r:.80}, wanted [step, position in its {len(meta.tasks)} tasks], the first of "
                f"step 0 and each after the one before, of {meta.length} steps"
            )
            return
        least = pair[0] + 1


def task_steps_of(step_task: NDArray[np.uint32] | None) -> tuple[tuple[int, int], ...] | None:
    """`EpisodeMeta.task_steps` of the instruction of each step (length,)."""
    if step_task is None:
        return None
    first = np.append(0, np.flatnonzero(np.diff(step_task.astype(np.int64))) + 1)
    return tuple(zip(first.tolist(), step_task[first].tolist(), strict=True))


def step_task_of(episodes: Sequence[EpisodeMeta]) -> NDArray[np.uint32] | None:
    """The instruction of each step of some episodes (rows,), `ALL_TASKS` where all are; None if that is so of all."""
    if all(meta.task_steps is None for meta in episodes):
        return None
    parts = []
    for meta in episodes:
        pairs = np.array(meta.task_steps or ((0, ALL_TASKS),), np.int64)
        parts.append(np.repeat(pairs[:, 1], np.diff(pairs[:, 0], append=meta.length)).astype(np.uint32))
    return np.concatenate(parts)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def episode_meta_from_dict(value: object, where: str) -> EpisodeMeta:
    """The inverse of `EpisodeMeta.to_dict`, for values from a file. Unknown names are left out.

    Raises:
        FormatError: If `value` describes no episode; the message begins with `where`.
    """
    if not isinstance(value, dict):
        raise FormatError(f"{where}: {value!r:.80}, wanted a map with the episode's length.")
    known = {name: value[name] for name in EpisodeMeta.__dataclass_fields__ if name in value}
    try:
        if "depth" in known:
            known["depth"] = depths_of(known["depth"])
        if "tasks" in known:
            known["tasks"] = _tuple(known["tasks"])
        for name in ("valid_ranges", "task_steps"):
            if known.get(name) is not None:
                known[name] = tuple(_tuple(pair) for pair in _tuple(known[name]))
        return EpisodeMeta(**known)
    except (FormatError, TypeError) as error:
        raise FormatError(f"{where}: {error}") from error


def depths_of(value: object) -> dict[str, Depth]:
    """`EpisodeMeta.depth` of values from a file.

    Raises:
        FormatError: If they are no such thing.
    """
    if not isinstance(value, dict):
        raise FormatError(f"depth {value!r:.80}, wanted a map of cameras")
    return {str(name): Depth.from_dict(one) for name, one in value.items()}


def parse_json(data: bytes, where: str) -> Any:
    """JSON from outside.

    Raises:
        FormatError: If `data` is no JSON, or nests too deeply to be read.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        foreign = stand_in(bytes(data[:512]))
        if foreign:
            raise FormatError(f"{where}: {foreign.what}, wanted a JSON value. {foreign.advice}") from error
        raise FormatError(f"{where}: no readable JSON ({error}), wanted a JSON value.") from error


def _tuple(value: object) -> tuple[Any, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{value!r:.80}, wanted a list")
    return tuple(value)
