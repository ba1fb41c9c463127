"""Layouts that are a table of paths: those of people who bring their own, and several known ones."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import natsort
import numpy as np

from epistream.errors import LayoutError
from epistream.sharding.format.features import IMAGES, Channels
from epistream.sharding.layouts.base import (
    Field,
    SourceEpisode,
    array_field,
    check_lengths,
    datasets_in,
    feature_name,
    finished,
    frames_field,
    looks_like_frames,
    read_attributes,
    texts,
    turned,
)


@dataclass(frozen=True)
class Rule:
    """What one path, or all paths that fit a pattern, become.

    Args:
        path: Below the episode's group; each ``*`` stands for one name, ``**`` for any number of them.
        name: Of the feature; ``*`` stands for what the path's stars matched, joined by dots.
        kind: ``frames`` for cameras, ``array`` for numbers, ``auto`` looks: four axes of which the last is short are
            cameras, and ``name`` is then put behind ``observation.images.`` or ``observation.``.
        jpeg_channels: What the code base's own reader decodes JPEG rows to.
        rotate: Degrees that turn the picture upright.
        shift: Step 0 is this row; the last rows of unshifted features are left out then.
    """

    path: str
    name: str
    kind: Literal["frames", "array", "auto"] = "array"
    jpeg_channels: Channels = "rgb"
    rotate: Literal[0, 180] = 0
    shift: int = 0


@dataclass(frozen=True)
class MappingLayout:
    """A layout as a table of rules.

    Args:
        name: What ``--layout`` calls it.
        needs: Paths from the root of the file (or of an episode) by which it is recognised; ``*`` as in a rule.
        rules: A path that an earlier rule names without stars is not taken by the stars of a later one.
        episodes: Pattern of the groups that are episodes, for files of many; empty is one a file.
        lacks: Paths that must not be there.
        tasks: Datasets that hold instructions.
        task_files: JSON files beside the source; ``{stem}`` is the source's name without suffix, ``{number}`` the
            last number in it. Every text in them is an instruction.
        task_key: Take only what is under this key of a task file, if it has it.
        needs_task_file: Whether a task file is one of the marks.
        fps: Steps per second.
        fps_path: Dataset that says so instead, a number.
    """

    name: str
    needs: tuple[str, ...]
    rules: tuple[Rule, ...]
    episodes: str = ""
    lacks: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    task_files: tuple[str, ...] = ()
    task_key: str = ""
    needs_task_file: bool = False
    fps: float | None = None
    fps_path: str = ""

    @property
    def looks_for(self) -> str:
        """The marks in words."""
        head = f"/{self.episodes}/" if self.episodes else "/"
        marks = [head + need for need in self.needs] + [f"no {head}{path}" for path in self.lacks]
        return ", ".join([*marks, *(f"beside it {name}" for name in self.task_files if self.needs_task_file)])

    def matches(self, file: h5py.File) -> bool:
        """Whether `file` is of this layout."""
        return bool(self.groups(file))

    def groups(self, file: h5py.File) -> list[str]:
        """The episodes of `file`, in order."""
        candidates = ["/"]
        if self.episodes:
            candidates = [
                f"/{path}" for path in natsort.natsorted(_names_in(file)) if _match(self.episodes, path) is not None
            ]
        return [path for path in candidates if self._fits(file[path])]

    def episode(self, file: h5py.File, group: str) -> SourceEpisode:
        """Describe one."""
        node = file[group]
        paths = sorted(datasets_in(node))
        fields, used = self._fields(file, group, paths)
        if not fields:
            raise LayoutError(f"{group}: nothing in it that a rule names, wanted {self.looks_for}")
        shift = max(item.first_row for item in fields)
        reference = next((item for item in fields if item.feature.name == "action"), fields[0])
        length = len(file[reference.path]) - shift
        check_lengths(file, fields, length, reference.path, spare=shift)
        attributes, large = read_attributes(*([file, node] if group != "/" else [file]))
        left_out = [f"{group.rstrip('/')}/{path}" for path in paths if path not in used]
        return SourceEpisode(
            group,
            length,
            finished(fields, group),
            self._tasks(file, node),
            attributes=attributes,
            left_out=(*left_out, *large),
        )

    def plain(self) -> dict[str, Any]:
        """The table as JSON can hold it."""
        return asdict(self)

    def _fits(self, node: h5py.Group) -> bool:
        if not isinstance(node, h5py.Group):
            return False
        paths = _names_in(node) if any("*" in path for path in (*self.needs, *self.lacks)) else None

        def has(pattern: str) -> bool:
            if "*" not in pattern or paths is None:
                return pattern in node
            return any(_match(pattern, path) is not None for path in paths)

        if self.needs_task_file and not any(path.is_file() for path in self._task_paths(node.file)):
            return False
        return all(map(has, self.needs)) and not any(map(has, self.lacks))

    def _fields(self, file: h5py.File, group: str, paths: list[str]) -> tuple[list[Field], set[str]]:
        plain = {rule.path for rule in self.rules if "*" not in rule.path}
        used = {*self.tasks, self.fps_path}  # paths of which something was made
        fps = self._rate(file[group])
        fields = []
        for rule in self.rules:
            for path in paths:
                matched = _match(rule.path, path)
                if matched is None or ("*" in rule.path and path in plain):
                    continue
                item = self._field(file, f"{group.rstrip('/')}/{path}", rule, feature_name(".".join(matched)), fps)
                if item is not None:
                    fields.append(item)
                    used.add(path)
        return fields, used

    def _rate(self, node: h5py.Group) -> float | None:
        values = np.ravel(node[self.fps_path][()]).tolist() if self.fps_path and self.fps_path in node else []
        is_rate = len(values) == 1 and isinstance(values[0], int | float) and 0 < values[0] < 1e6
        return float(values[0]) if is_rate else self.fps

    def _field(self, file: h5py.File, path: str, rule: Rule, matched: str, fps: float | None) -> Field | None:
        name = rule.name.replace("*", matched)
        kind = rule.kind
        if kind == "auto":
            kind = "frames" if looks_like_frames(file[path]) else "array"
            name = (IMAGES if kind == "frames" else "observation.") + name
        if kind == "array":
            item = array_field(file, path, name, fps=fps)
        else:
            item = turned(frames_field(file, path, name, jpeg_channels=rule.jpeg_channels, fps=fps), rule.rotate)
        return item and Field(item.feature, item.path, item.num_bytes, rule.shift)

    def _tasks(self, file: h5py.File, node: h5py.Group) -> tuple[str, ...]:
        found = [text for path in self.tasks if path in node for text in texts(node[path][()])]
        for path in self._task_paths(file):
            if path.is_file():
                try:
                    value = json.loads(path.read_bytes())
                    found += _texts_in(value.get(self.task_key, value) if isinstance(value, dict) else value)
                except (OSError, ValueError) as error:
                    raise LayoutError(f"{path}: instructions that cannot be read ({error}), wanted JSON") from error
        return tuple(dict.fromkeys(found))

    def _task_paths(self, file: h5py.File) -> Iterator[Path]:
        source = Path(file.filename)
        numbers = re.findall(r"\d+", source.stem)
        for name in self.task_files:
            yield source.parent / name.format(stem=source.stem, number=numbers[-1] if numbers else "")


def _names_in(node: h5py.Group) -> list[str]:
    """The paths of everything below a group that can be opened."""
    found: list[str] = []
    node.visititems(lambda path, _: found.append(path))
    return found


def _match(pattern: str, path: str) -> list[str] | None:
    """What the stars of `pattern` stand for in `path`; None if it does not fit."""
    expression = ""
    for part in re.split(r"(\*\*|\*)", pattern.strip("/")):
        expression += {"**": "(.+)", "*": "([^/]+)"}.get(part) or re.escape(part)
    match = re.fullmatch(expression, path)
    return None if match is None else [text.replace("/", ".") for text in match.groups()]


def _texts_in(value: Any) -> list[str]:
    """Every text of a JSON value, in order."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts_in(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts_in(item)]
    return [value] if isinstance(value, str) and value else []
