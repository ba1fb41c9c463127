"""A starting layout file for an HDF5 file of no known layout, with the reasons for what it says in comments."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import h5py
import natsort

from epistream.errors import EpistreamError, LayoutError
from epistream.sharding.check.layout_groups import below, find_episodes, has_rows, picture
from epistream.sharding.layouts.draft import STATE
from epistream.sharding.layouts.judging import why_no_rows
from epistream.sharding.layouts.layout_file import layout_of_values
from epistream.sharding.layouts.names import feature_name
from epistream.sharding.layouts.places import Place
from epistream.sharding.opening.walking import CANNOT_OPEN, Node, go_on, names_in, patience, tree
from epistream.yaml_text import dump_yaml, parse_yaml

# A file of more objects than this is looked at in part; the draft says so.
MAX_OBJECTS = 20_000
# Of many episodes so many are compared.
_MAX_COMPARED = 8
_ACTION = re.compile(r"(^|[/_.])(actions?|act|commands?|cmd|controls?|targets?)($|[/_.\d])")
_STATE = re.compile(r"(^|[/_.])(state|qpos|proprio|joints?|joint_pos(itions?)?|robot_state|agent_pos)($|[/_.\d])")
_TASK = re.compile(r"(^|_)(instructions?|language|lang|task|prompt|goal|caption|command|annotation)(_|$)")
_SUCCESS = re.compile(r"^(is_)?(success|successful|succeeded)$")
_RATE = re.compile(r"^(fps|hz|freq|frequency|control_freq|control_hz|rate)$")


@dataclass
class _Draft:
    """What is known of a file so far."""

    episodes: str
    groups: list[str]
    features: list[dict[str, object]] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)  # by path: why it is left out
    reasons: dict[str, str] = field(default_factory=dict)  # by path: what is said beside the feature
    tasks: list[str] = field(default_factory=list)
    tasks_optional: bool = False
    success: str = ""
    fps: float | None = None
    length_of: str = ""


def draft_layout(file: h5py.File, name: str) -> str:
    """A layout file for `file`, with comments. What it names can be read.

    Args:
        file: An open file.
        name: What the layout is called.

    Raises:
        LayoutError: If nothing in the file can be the rows of an episode.
    """
    with patience():
        return _draft_layout(file, name)


def _draft_layout(file: h5py.File, name: str) -> str:
    objects = list(islice(tree(file), MAX_OBJECTS + 1))
    is_whole = len(objects) <= MAX_OBJECTS
    unread = {path: why for path, node in objects if (why := _why_unread(node))}
    paths = [path for path, _ in objects[:MAX_OBJECTS] if path not in unread]
    datasets = [path for path in paths if isinstance(file[path], h5py.Dataset)]
    draft = _Draft(*find_episodes(file, paths, datasets, cut="" if is_whole else objects[-1][0]))
    group = draft.groups[0]
    draft.notes.update((path, unread[f"{group}/{path}".strip("/")]) for path in below(list(unread), group))
    first = file[draft.groups[0]]
    inside = natsort.natsorted(below(datasets, draft.groups[0]))
    draft.length_of = _reference(first, inside)
    for path in inside if draft.length_of else ():
        go_on(path)
        _describe(file, draft, path)
    if not draft.features:
        found = ", ".join(f"/{path} {file[path].dtype} {file[path].shape}" for path in datasets[:20]) or "no datasets"
        raise LayoutError(f"found {found}, of which none can be rows of steps: wanted arrays of numbers or pictures")
    _name(draft)
    _attributes(file, draft)
    _choose_task(file, draft)
    _check(file, draft, name)
    return _text(draft, name, first, is_whole)


def _why_unread(node: Node | None) -> str:
    """Why nothing can be said of what is in a file; empty if something can."""
    if node is None:
        return "cannot be opened"
    why = why_no_rows(node) if isinstance(node, h5py.Dataset) else None
    return "" if why in (None, "a single value") else why


def _reference(node: h5py.Group, inside: Sequence[str]) -> str:
    """The dataset whose rows are the steps: an action, else a camera, else one of the length that most have."""
    rows = [path for path in inside if has_rows(node[path])] or [
        path for path in inside if node[path].ndim and node[path].dtype.kind in "biuf"
    ]
    lengths = Counter(len(node[path]) for path in rows)

    def rank(path: str) -> tuple[int, int, int]:
        kind = 2 if _ACTION.search(path.lower()) and node[path].ndim > 1 else bool(picture(node[path])[0])
        return kind, lengths[len(node[path])], len(node[path])

    return max(rows, key=rank, default="")


def _describe(file: h5py.File, draft: _Draft, path: str) -> None:
    """A feature of a dataset, or the reason why it is none."""
    nodes = [file[group] for group in draft.groups[:_MAX_COMPARED]]
    found = nodes[0][path]
    kind, problem = picture(found)
    there = [node for node in nodes if isinstance(node.get(path), h5py.Dataset)]
    if found.dtype.kind in "SO" and not kind and not problem:
        is_task = bool(_TASK.search(path.rpartition("/")[2].lower()))
        if is_task and _texts(nodes[0], path):
            draft.tasks.append(path)
            return
        problem = "texts; under 'tasks' if they are instructions" if _texts(nodes[0], path) else "no numbers"
    elif found.dtype.kind not in "biufSO":
        problem = f"{found.dtype}, no numbers"
    elif found.ndim == 0:
        problem = "one value, no rows"
    elif len(there) < len(nodes):
        problem = f"only in {len(there)} of {len(nodes)} episodes"
    elif any(not _is_long_as(node, path, draft.length_of) for node in nodes):
        problem = f"{len(found)} rows, not the {len(nodes[0][draft.length_of])} steps of {draft.length_of}"
    elif found.ndim > 4:
        problem = "more than four axes; a camera is a dataset of its own"
    if problem:
        draft.notes[path] = f"{_shape(found)}: {problem}"
    elif kind:
        draft.features.append({"path": path, "camera": "", **({"transpose": "chw"} if kind == "chw" else {})})
        if kind == "jpeg":
            draft.reasons[path] = "JPEG rows; if red and blue are swapped: jpeg_channels: bgr"
    else:
        draft.features.append({"path": path, "name": ""})


def _is_long_as(node: h5py.Group, path: str, reference: str) -> bool:
    found, other = node[path], node.get(reference)
    return found.ndim > 0 and isinstance(other, h5py.Dataset) and len(found) == len(other)


def _texts(node: h5py.Group, text: str) -> tuple[str, ...]:
    try:
        return Place.parse(text).texts(node) or ()
    except (EpistreamError, *CANNOT_OPEN):
        return ()


def _name(draft: _Draft) -> None:
    """Names by paths: short where they differ; one action and one state where paths say so."""
    cameras = [one for one in draft.features if "camera" in one]
    numbers = [one for one in draft.features if "name" in one]
    taken: set[str] = set()
    for one, name in zip(cameras, _short_names([str(one["path"]) for one in cameras]), strict=True):
        one["camera"] = _free(taken, f"camera_{name}" if name.isdecimal() else name)
    taken = {"action", STATE}
    for pattern, wanted in ((_ACTION, "action"), (_STATE, STATE)):
        fitting = [one for one in numbers if not one["name"] and pattern.search(str(one["path"]).lower())]
        top = [one for one in fitting if _depth(one) == min(map(_depth, fitting))]
        exact = [one for one in fitting if str(one["path"]).lower().rpartition("/")[2].rstrip("s") in _EXACT]
        # Of several that nothing tells apart, none is the one.
        for one in next((few for few in (fitting, exact, top) if len(few) == 1), []):
            one["name"] = wanted
        if wanted == "action":
            rest = [one for one in fitting if not one["name"]]
            for one, name in zip(rest, _short_names([str(one["path"]) for one in rest]), strict=True):
                one["name"] = _free(taken, f"action.{name.removeprefix('action').strip('._') or name}")
    for one in numbers:
        if not one["name"]:
            name = "observation." + feature_name(str(one["path"]).replace("/", "."))
            one["name"] = _free(taken, re.sub(r"^observation\.(obs|observations?)\.", "observation.", name), name)


def _free(taken: set[str], *names: str) -> str:
    """The first of some names that no other feature has; else the last one, made longer. It is taken from now on."""
    name = next((name for name in names if name not in taken), names[-1])
    while name in taken:
        name += "_"
    taken.add(name)
    return name


_EXACT = {"action", "state", "qpo", "proprio"}


def _depth(one: dict[str, object]) -> int:
    return str(one["path"]).count("/")


def _short_names(paths: Sequence[str]) -> list[str]:
    """The parts of paths that tell them apart; the last part, without a word for colour, of a single one."""
    parts = [path.lower().split("/") for path in paths]
    while len(parts) > 1 and all(len(one) > 1 for one in parts) and len({one[0] for one in parts}) == 1:
        parts = [one[1:] for one in parts]
    while len(parts) > 1 and all(len(one) > 1 for one in parts) and len({one[-1] for one in parts}) == 1:
        parts = [one[:-1] for one in parts]
    parts = [one[-1:] for one in parts] if len({one[-1] for one in parts}) == len(parts) else parts
    names: list[str] = []
    for one in parts:
        name = re.sub(r"[^a-z0-9_\-]", "_", "_".join(one)) or "camera"
        names.append(f"{name}_{len(names)}" if name in names else name)
    return names


def _attributes(file: h5py.File, draft: _Draft) -> None:
    """Instructions, rates and marks of success among the attributes of the episode, of what it lies in, of the file."""
    group = max(draft.groups[:_MAX_COMPARED], key=lambda group: len(file[group].attrs))  # some lack what others have
    above = [group] if group == "/" else [group, *_parents(group)]
    for where in above:
        node = file[where]
        for name in natsort.natsorted(names_in(node.attrs)):
            place = f"@{name}" if where == group else f"{where}@{name}"
            word = name.lower()
            if _TASK.search(word) and _texts(file[group], place):
                draft.tasks.append(place)
            draft.tasks += [
                f"{place}[{key}]" for key in _json_keys(file[group], place) if _texts(file[group], f"{place}[{key}]")
            ]
            if not draft.success and _SUCCESS.match(word):
                draft.success = place
            rate = _number(node, name) if _RATE.match(word) else None
            if draft.fps is None and rate and 0 < rate < 10_000:
                draft.fps = rate


def _choose_task(file: h5py.File, draft: _Draft) -> None:
    """Have the instruction first that every episode has; where there is none such, episodes may lack it."""
    nodes = [file[group] for group in draft.groups[:_MAX_COMPARED]]
    everywhere = {place: all(_texts(node, place) for node in nodes) for place in draft.tasks}
    draft.tasks.sort(key=lambda place: not everywhere[place])
    draft.tasks_optional = bool(draft.tasks) and not everywhere[draft.tasks[0]]


def _number(node: h5py.Group, name: str) -> float | None:
    try:
        value = Place("", name).scalar(node)
    except LayoutError:
        return None
    return float(value) if isinstance(value, int | float) else None


def _parents(group: str) -> Iterator[str]:
    while group.count("/") > 1:
        group = group.rpartition("/")[0]
        yield group
    yield "/"


def _json_keys(node: h5py.Group, place: str) -> list[str]:
    found = _texts(node, place) or ()
    keys = re.findall(r'"((?:[a-z0-9]+_)*(?:lang|language|instruction|task)(?:_[a-z]+)*)"\s*:', "".join(found)[:65_536])
    return list(dict.fromkeys(keys)) if "".join(found).lstrip().startswith("{") else []


def _values(draft: _Draft, name: str) -> dict[str, object]:
    said = {"name": name, "episodes": draft.episodes, "fps": draft.fps, "tasks": draft.tasks[:1]}
    said |= {"tasks_optional": draft.tasks_optional}
    return {key: value for key, value in said.items() if value} | {"features": draft.features}


def _check(file: h5py.File, draft: _Draft, name: str) -> None:
    """Leave out what cannot be read after all, so that the draft works as it is."""
    for one in list(draft.features):
        alone = layout_of_values(_values(draft, name) | {"features": [one], "tasks": []}, "draft")
        try:
            for group in draft.groups[:_MAX_COMPARED]:
                alone.episode(file, group)
        except (EpistreamError, *CANNOT_OPEN) as error:
            draft.features.remove(one)
            draft.notes[str(one["path"])] = f"cannot be read ({error})"
    kept = layout_of_values(_values(draft, name), "draft") if draft.features else None
    if kept is None:
        raise LayoutError("; ".join(f"{path}: {note}" for path, note in draft.notes.items()))
    for group in draft.groups[:_MAX_COMPARED]:
        kept.episode(file, group)


def _text(draft: _Draft, name: str, first: h5py.Group, is_whole: bool) -> str:
    lines = [
        "# A draft by 'epistream layouts draft': look at names, cameras and the action, and correct what is not so.",
        "# Then: epistream inspect FILE --layout-file THIS; epistream pack FILE OUT --layout-file THIS;",
        "# in Python EpisodeStream(FILE, layout=THIS). What each key means: docs/hdf5.md.",
    ]
    lines += [] if is_whole else [f"# The file has more than {MAX_OBJECTS:,} objects; the rest was not looked at."]
    lines.append(_line("name", name))
    if draft.episodes:
        counted = f"{len(draft.groups):,} groups, each an episode; paths are below them"
        lines.append(f"{_line('episodes', draft.episodes)}  # {counted}")
    else:
        lines.append("# One file is one episode. For groups of a file: episodes: data/demo_*")
    lines.append(f"fps: {draft.fps:g}" if draft.fps else "# fps: 30            # steps per second, if you know them")
    if draft.tasks:
        lines.append(f"{_line('tasks', draft.tasks[:1])}  # the instruction" + _others(draft.tasks[1:]))
        lines += ["tasks_optional: true  # some episodes have none"] * draft.tasks_optional
    else:
        lines.append('# tasks: ["@instruction"]  # a dataset, or "@NAME" for an attribute of the episode')
    if draft.success:
        lines.append(f"# {_line('where', {draft.success: True})}  # takes only episodes for which this holds")
    lines.append(f"features:  # of {len(first[draft.length_of]):,} steps, as many as rows of {_plain(draft.length_of)}")
    for one in draft.features:
        found = first[str(one["path"])]
        reason = draft.reasons.get(str(one["path"]))
        lines.append(f"  - {dump_yaml(one, one_line=True)}  # {_shape(found)}" + (f"; {reason}" if reason else ""))
    if not any(str(one.get("name", "")).split(".")[0] == "action" for one in draft.features):
        state = next((str(one["path"]) for one in draft.features if one.get("name") == STATE), "PATH")
        example = dump_yaml({"path": state, "name": "action", "shift": 1}, one_line=True)
        lines += ["  # No action was recognised. If it is the state of the next step:", f"  # - {example}"]
    lines += ["# Left out:"] * bool(draft.notes)
    lines += [f"#   {_plain(path)}: {_plain(note)}" for path, note in list(draft.notes.items())[:100]]
    text = "\n".join(lines) + "\n"
    parse_yaml(text)
    return text


def _others(tasks: Sequence[str]) -> str:
    return f"; also {_plain(', '.join(tasks[:5]))}" if tasks else ""


def _line(key: str, value: object) -> str:
    return dump_yaml({key: value}, one_line=True).removeprefix("{").removesuffix("}")


def _shape(found: h5py.Dataset) -> str:
    return f"{found.dtype} {found.shape}"


def _plain(text: str) -> str:
    """For comments, which end with their line."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)[:300]
