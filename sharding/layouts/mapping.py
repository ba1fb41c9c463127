"""Layouts that are a table of paths: those of people who bring their own, and several known ones."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import h5py
import natsort
import numpy as np

from epistream.errors import LayoutError
from epistream.sharding.format.features import IMAGES, Channels
from epistream.sharding.layouts.base import Choice, Field, SourceEpisode, group_at, looks_like_frames, turned
from epistream.sharding.layouts.draft import ACTION, Draft
from epistream.sharding.layouts.names import feature_name
from epistream.sharding.layouts.values import read_attributes, small_value, texts
from epistream.sharding.opening.walking import child, datasets_in, tree


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
            candidates = [f"/{path}" for path in natsort.natsorted(_paths_like(file, self.episodes))]
        return [path for path in candidates if self._fits(child(file, path))]

    def episode(self, file: h5py.File, group: str, choice: Choice | None = None) -> SourceEpisode:
        """Describe one."""
        node = group_at(file, group)
        paths = sorted(datasets_in(node))
        draft = Draft(file, group, choice)
        used, shift = self._take(draft, file, group, paths)
        action = next((rule for rule in self.rules if rule.name.split(".")[0] == ACTION), None)
        if action is not None:
            draft.need_action(f"{group.rstrip('/')}/{action.path}")
        if not used.intersection(paths) - set(self.tasks) - {self.fps_path}:
            raise LayoutError(f"{group}: nothing in it that a rule names, wanted {self.looks_for}")
        attributes, large = read_attributes(*([file, node] if group != "/" else [file]))
        draft.left_out += [f"{group.rstrip('/')}/{path}" for path in paths if path not in used]
        return draft.episode(shift=shift, tasks=self._tasks(file, node), attributes=attributes, more_left_out=large)

    def plain(self) -> dict[str, Any]:
        """The table as JSON can hold it."""
        return asdict(self)

    def _fits(self, node: h5py.Dataset | h5py.Group | None) -> bool:
        if not isinstance(node, h5py.Group):
            return False
        if self.needs_task_file and not any(path.is_file() for path in self._task_paths(node.file)):
            return False

        def has(pattern: str) -> bool:
            return any(True for _ in _paths_like(node, pattern))

        # Those without stars first: they say without a search that most files are not of this layout.
        needs = sorted(self.needs, key=lambda need: "*" in need)
        return all(map(has, needs)) and not any(map(has, self.lacks))

    def _take(self, draft: Draft, file: h5py.File, group: str, paths: list[str]) -> tuple[set[str], int]:
        """Take what the rules name; gives the paths of which something was made, and the largest shift."""
        plain = {rule.path for rule in self.rules if "*" not in rule.path}
        used, shift = {*self.tasks, self.fps_path}, 0
        fps = self._rate(file, group)
        for rule in self.rules:
            for path in paths:
                matched = _match(rule.path, path)
                if matched is None or ("*" in rule.path and path in plain):
                    continue
                name = rule.name.replace("*", feature_name(".".join(matched)))
                _take(draft, file, f"{group.rstrip('/')}/{path}", rule, name, fps)
                used.add(path)
                shift = max(shift, rule.shift)
        return used, shift

    def _rate(self, file: h5py.File, group: str) -> float | None:
        path = f"{group.rstrip('/')}/{self.fps_path}"
        values = np.ravel(small_value(file, path)).tolist() if self.fps_path and path in file else []
        is_rate = len(values) == 1 and isinstance(values[0], int | float) and 0 < values[0] < 1e6
        return float(values[0]) if is_rate else self.fps

    def _tasks(self, file: h5py.File, node: h5py.Group) -> tuple[str, ...]:
        inside = [path for path in self.tasks if path in node]
        found = [text for path in inside for text in texts(small_value(file, f"{node.name.rstrip('/')}/{path}"))]
        for path in self._task_paths(file):
            if path.is_file():
                try:
                    value = json.loads(path.read_bytes())
                    found += _texts_in(value.get(self.task_key, value) if isinstance(value, dict) else value)
                except (OSError, ValueError, RecursionError) as error:
                    raise LayoutError(f"{path}: instructions that cannot be read ({error}), wanted JSON") from error
        return tuple(dict.fromkeys(found))

    def _task_paths(self, file: h5py.File) -> Iterator[Path]:
        source = Path(file.filename)
        numbers = re.findall(r"\d+", source.stem)
        for name in self.task_files:
            yield source.parent / name.format(stem=source.stem, number=numbers[-1] if numbers else "")


def _take(draft: Draft, file: h5py.File, path: str, rule: Rule, name: str, fps: float | None) -> None:
    kind = rule.kind
    if kind == "auto":
        kind = "frames" if looks_like_frames(file, path) else "array"
        name = (IMAGES if kind == "frames" else "observation.") + name
    if kind == "array":
        draft.array(path, name, fps=fps, first_row=rule.shift)
        return

    def change(field: Field) -> Field:
        return replace(turned(field, rule.rotate), first_row=rule.shift)

    draft.frames(path, name, change=change, jpeg_channels=rule.jpeg_channels, fps=fps)


def _paths_like(node: h5py.Group, pattern: str) -> Iterator[str]:
    """The paths below a group that fit a pattern; only where they can be is looked."""
    head = "/".join(itertools.takewhile(lambda part: "*" not in part, pattern.strip("/").split("/")))
    start = child(node, head) if head else node
    if "*" not in pattern or not isinstance(start, h5py.Group):
        if head == pattern.strip("/") and head in node:
            yield head
        return
    for below, _ in tree(start):
        path = f"{head}/{below}" if head else below
        if _match(pattern, path) is not None:
            yield path


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
