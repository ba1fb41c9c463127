"""What is known of one episode besides its bytes: its member ``<key>.meta.json``, in short in the index."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from epistream.errors import FormatError
from epistream.sharding.files.foreign import stand_in
from epistream.sharding.format.features import Feature

VERSION = 1
# The split of episodes that belong to none.
NO_SPLIT = "all"
_MAX_TASKS = 10_000


@dataclass(frozen=True)
class EpisodeMeta:
    """One episode.

    Args:
        length: Steps, at least 1.
        episode_index: Where the episode stands among all that were packed. Orders the dataset; gaps left by
            episodes that were refused are closed by the manifest.
        split: Name of its split; ``all`` when the dataset has none.
        tasks: Its instructions, of which training draws one. Often one, may be none.
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
        if "tasks" in known:
            known["tasks"] = _tuple(known["tasks"])
        if known.get("valid_ranges") is not None:
            known["valid_ranges"] = tuple(_tuple(pair) for pair in _tuple(known["valid_ranges"]))
        return EpisodeMeta(**known)
    except (FormatError, TypeError) as error:
        raise FormatError(f"{where}: {error}") from error


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
