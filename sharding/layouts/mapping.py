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
from epistream.sharding.layouts.places import Place, Scalar, judge
from epistream.sharding.layouts.transposed import transposed_field
from epistream.sharding.layouts.values import read_attributes, small_value, texts
from epistream.sharding.opening.walking import child, datasets_in, names_in, tree

_MAX_LISTED = 20
# Fields that came after indexes were kept by what `plain` gives: where they say nothing, those stay good.
_LATER = {"transpose", "optional", "where", "tasks_optional", "is_own"}


@dataclass(frozen=True)
class Rule:
    """What one path, or all paths that fit a pattern, become.

    Args:
        path: Below the episode's group; each ``*`` stands for one name, ``**`` for any number of them.
        name: Of the feature; ``*`` stands for what the path's stars matched, joined by dots.
        kind: ``frames`` for cameras, ``array`` for numbers, ``auto`` looks: four axes of which the last is short are
            cameras, and ``name`` is then put behind ``observation.images.`` or ``observation.``.
        jpeg_channels: What the code base's own reader decodes JPEG rows to; RGB if nobody says.
        rotate: Degrees that turn the picture upright.
        shift: Step 0 is this row; the last rows of unshifted features are left out then.
        transpose: The axes of one stored frame, if they are not height, width, channels: ``chw``.
        optional: Whether it may fit nothing in an episode, where the layout is somebody's own.
    """

    path: str
    name: str
    kind: Literal["frames", "array", "auto"] = "array"
    jpeg_channels: Channels | None = None
    rotate: Literal[0, 180] = 0
    shift: int = 0
    transpose: str = ""
    optional: bool = False


@dataclass(frozen=True)
class MappingLayout:
    """A layout as a table of rules.

    Args:
        name: What ``--layout`` calls it.
        needs: Paths from the root of the file (or of an episode) by which it is recognised; ``*`` as in a rule.
        rules: A path that an earlier rule names without stars is not taken by the stars of a later one.
        episodes: Pattern of the groups that are episodes, for files of many; empty is one a file.
        lacks: Paths that must not be there.
        tasks: Where instructions are, see `places`.
        task_files: JSON files beside the source; ``{stem}`` is the source's name without suffix, ``{number}`` the
            last number in it. Every text in them is an instruction.
        task_key: Take only what is under this key of a task file, if it has it.
        needs_task_file: Whether a task file is one of the marks.
        fps: Steps per second.
        fps_path: Dataset that says so instead, a number.
        where: What an episode must be to be taken: places, and the values that each may have.
        tasks_optional: Whether an episode may have no instruction, where the layout is somebody's own.
        is_own: Whether somebody described files of his own by it: then all that it names must be there.
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
    where: tuple[tuple[str, tuple[Scalar, ...]], ...] = ()
    tasks_optional: bool = False
    is_own: bool = False

    @property
    def looks_for(self) -> str:
        """The marks in words."""
        head = f"/{self.episodes}/" if self.episodes else "/"
        marks = [head + need for need in self.needs] + [f"no {head}{path}" for path in self.lacks]
        return ", ".join([*marks, *(f"beside it {name}" for name in self.task_files if self.needs_task_file)])

    def matches(self, file: h5py.File) -> bool:
        """Whether `file` is of this layout."""
        return any(self._fits(group_at(file, path)) for path in self._candidates(file))

    def lacking(self, file: h5py.File) -> list[str]:
        """The marks that are not there, in words: of that group which lacks fewest."""
        candidates = self._candidates(file)
        if not candidates:
            return [f"a group /{self.episodes}"]
        return min((list(self._lacking(group_at(file, path))) for path in candidates[:_MAX_LISTED]), key=len)

    def groups(self, file: h5py.File) -> list[str]:
        """The episodes of `file` that are wanted, in order. Those that cannot be judged are among them."""
        return [path for path, reason in self._judged(file) if not reason]

    def excluded(self, file: h5py.File) -> list[str]:
        """The groups that could be episodes and are not wanted, each with the reason."""
        return [f"{path} ({reason})" for path, reason in self._judged(file) if reason]

    def _judged(self, file: h5py.File) -> Iterator[tuple[str, str]]:
        # Where the marks are what the features name, a group that lacks some is an episode with a fault.
        must_fit = not self.is_own or set(self.needs) != {rule.path for rule in self.rules if not rule.optional}
        for path in self._candidates(file):
            node = group_at(file, path)
            if not self.is_own:
                if self._fits(node):
                    yield path, ""
                continue
            lacking = list(self._lacking(node)) if must_fit else []
            try:
                yield path, f"no {', '.join(lacking)}" if lacking else judge(node, self.where)
            except LayoutError:
                yield path, ""  # and `episode` raises it

    def _candidates(self, file: h5py.File) -> list[str]:
        if not self.episodes:
            return ["/"]
        found = [f"/{path}" for path in natsort.natsorted(_paths_like(file, self.episodes))]
        return [path for path in found if isinstance(child(file, path), h5py.Group)]

    def episode(self, file: h5py.File, group: str, choice: Choice | None = None) -> SourceEpisode:
        """Describe one."""
        node = group_at(file, group)
        judge(node, self.where)
        paths = sorted(datasets_in(node))
        draft = Draft(file, group, choice)
        used, shift = self._take(draft, file, group, paths)
        action = next((rule for rule in self.rules if rule.name.split(".")[0] == ACTION), None)
        if action is not None and not action.optional:
            draft.need_action(f"{group.rstrip('/')}/{action.path}")
        if not used:
            raise LayoutError(f"{group}: nothing in it that a rule names, wanted {self.looks_for}")
        attributes, large = read_attributes(*([file, node] if group != "/" else [file]))
        used |= {self.fps_path, *(place.path.strip("/") for place in self._task_places() if place.attribute is None)}
        draft.left_out += [f"{group.rstrip('/')}/{path}" for path in paths if path not in used]
        return draft.episode(shift=shift, tasks=self._tasks(file, node), attributes=attributes, more_left_out=large)

    def plain(self) -> dict[str, Any]:
        """The table as JSON can hold it. Fields of later releases are there only where they say something."""
        values = {name: value for name, value in asdict(self).items() if value or name not in _LATER}
        values.pop("is_own", None)
        values["rules"] = [
            {name: value for name, value in asdict(rule).items() if value or name not in _LATER}
            | {"jpeg_channels": rule.jpeg_channels or "rgb"}
            for rule in self.rules
        ]
        return values

    def _fits(self, node: h5py.Group) -> bool:
        return next(self._lacking(node), None) is None

    def _lacking(self, node: h5py.Group) -> Iterator[str]:
        """The marks that a group lacks, in words."""
        head = f"{node.name.rstrip('/')}/"
        # Those without stars first: they say without a search that most files are not of this layout.
        for need in sorted(self.needs, key=lambda need: "*" in need):
            if not _has(node, need):
                yield head + need
        yield from (f"no {head}{path}" for path in self.lacks if _has(node, path))
        if self.needs_task_file and not any(path.is_file() for path in self._task_paths(node.file)):
            yield from (f"beside it {name}" for name in self.task_files)

    def _take(self, draft: Draft, file: h5py.File, group: str, paths: list[str]) -> tuple[set[str], int]:
        """Take what the rules name; gives the paths that they do, and the largest shift."""
        plain = {rule.path for rule in self.rules if "*" not in rule.path}
        used: set[str] = set()
        shift = 0
        fps = self._rate(file, group)
        for number, rule in enumerate(self.rules):
            refused: list[str] = []
            fitting = [(path, matched) for path in paths if (matched := _match(rule.path, path)) is not None]
            if "*" in rule.path:
                fitting = [(path, matched) for path, matched in fitting if path not in plain]
            for path, matched in fitting:
                name = rule.name.replace("*", feature_name(".".join(matched)))
                why = _take(draft, file, f"{group.rstrip('/')}/{path}", rule, name, fps)
                refused += [f"/{path} ({why})"] if why else []
                used.add(path)
                shift = max(shift, rule.shift)
            if self.is_own and len(refused) == len(fitting) and (fitting or not self._may_lack(rule, draft)):
                raise LayoutError(_nothing_made(group, f"features.{number}", rule.path, refused, paths))
        return used, shift

    def _may_lack(self, rule: Rule, draft: Draft) -> bool:
        """Whether nothing need fit a rule: it says so, or what it makes is not wanted."""
        return rule.optional or ("*" not in rule.name and not draft.wants(rule.name, rule.path, rule.kind == "frames"))

    def _rate(self, file: h5py.File, group: str) -> float | None:
        path = f"{group.rstrip('/')}/{self.fps_path}"
        values = np.ravel(small_value(file, path)).tolist() if self.fps_path and path in file else []
        is_rate = len(values) == 1 and isinstance(values[0], int | float) and 0 < values[0] < 1e6
        return float(values[0]) if is_rate else self.fps

    def _tasks(self, file: h5py.File, node: h5py.Group) -> tuple[str, ...]:
        found = self._own_tasks(node) if self.is_own else self._known_tasks(node)
        for path in self._task_paths(file):
            if path.is_file():
                try:
                    value = json.loads(path.read_bytes())
                    found += _texts_in(value.get(self.task_key, value) if isinstance(value, dict) else value)
                except (OSError, ValueError, RecursionError) as error:
                    raise LayoutError(f"{path}: instructions that cannot be read ({error}), wanted JSON") from error
        return tuple(dict.fromkeys(found))

    def _task_places(self) -> list[Place]:
        return [Place.parse(text) for text in self.tasks]

    def _known_tasks(self, node: h5py.Group) -> list[str]:
        inside = [f"{node.name.rstrip('/')}/{path}" for path in self.tasks if path in node]
        return [text for path in inside for text in texts(small_value(node.file, path))]

    def _own_tasks(self, node: h5py.Group) -> list[str]:
        found = [place.texts(node) for place in self._task_places()]
        if self.tasks and not self.tasks_optional and all(one is None for one in found):
            there = [f"@{name}" for name in names_in(node.attrs)] + names_in(node)
            raise LayoutError(
                f"{node.name}: tasks: nothing at {' or '.join(self.tasks)}, found {_listed(there)}. Correct it in the "
                "layout file, or say 'tasks_optional: true' there"
            )
        return [text for one in found for text in one or ()]

    def _task_paths(self, file: h5py.File) -> Iterator[Path]:
        source = Path(file.filename)
        numbers = re.findall(r"\d+", source.stem)
        for name in self.task_files:
            yield source.parent / name.format(stem=source.stem, number=numbers[-1] if numbers else "")


def _take(draft: Draft, file: h5py.File, path: str, rule: Rule, name: str, fps: float | None) -> str:
    """Take one dataset; gives the reason if it cannot be what the rule says."""
    kind = rule.kind
    if kind == "auto":
        kind = "frames" if looks_like_frames(file, path) else "array"
        name = (IMAGES if kind == "frames" else "observation.") + name
    if kind == "array":
        return draft.array(path, name, fps=fps, first_row=rule.shift)

    def change(field: Field) -> Field:
        return replace(turned(field, rule.rotate), first_row=rule.shift)

    if rule.transpose:
        return draft.frames(path, name, change=change, make=transposed_field, stored=rule.transpose, fps=fps)
    return draft.frames(path, name, change=change, jpeg_channels=rule.jpeg_channels, fps=fps)


def _nothing_made(group: str, where: str, pattern: str, refused: list[str], paths: list[str]) -> str:
    """What is wrong with a feature that a layout file names and an episode has not."""
    if refused:
        return f"{group}: {where}: {pattern!r} fits {_listed(refused)}, wanted a row for each step. Leave it out"
    return (
        f"{group}: {where}: {pattern!r} fits nothing there, found {_listed(paths)}. Correct the path in the layout "
        "file, or say 'optional: true' beside it"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_MAX_LISTED]) + ", ..." * (len(names) > _MAX_LISTED) if names else "nothing"


def _has(node: h5py.Group, pattern: str) -> bool:
    return any(True for _ in _paths_like(node, pattern))


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
