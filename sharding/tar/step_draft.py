"""Whether a tar has one sample a step, and a draft of the mapping that says what its samples mean."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from epistream.errors import FormatError
from epistream.sharding.format.features import IMAGES
from epistream.sharding.tar.npy import NpyHeader
from epistream.sharding.tar.sample_names import is_video, split_key
from epistream.sharding.tar.step_mapping import TAR, Origin, StepFeature, StepMapping, key_pattern
from epistream.sharding.tar.step_samples import MAX_ROW_BYTES, Sample, numbers, samples_of
from epistream.sharding.tar.tar_reader import Member, walk
from epistream.yaml_text import dump_yaml

# So many samples are looked into; all tell what one tells, or they do not go together.
_LOOKED_AT = 64
_MAX_DEPTH = 4
# Rows of no more numbers, in samples that are steps by their keys, are not taken for that many steps.
_SHORT = 16
_RUNS = re.compile(r"(\d+)")
_EPISODES = (
    "episode_index",
    "episode_id",
    "episode",
    "traj_id",
    "traj_index",
    "trajectory_id",
    "trajectory",
    "traj",
    "demo",
)
_STEPS = ("frame_index", "step_index", "step_id", "frame_id", "step", "frame", "timestep")
_TASKS = ("language_instruction", "instruction", "task", "language", "prompt", "text", "caption")
_BOOKKEEPING = {*_EPISODES, *_STEPS, "index", "timestamp", "time", "task_index", "fps"}
_USUAL = {"state": "observation.state", "actions": "action"}


def refuse_steps(file: BinaryIO, members: Sequence[Member], where: str) -> None:
    """Nothing for a tar of whole episodes.

    Args:
        file: The tar.
        members: All of it.
        where: Its name, for messages.

    Raises:
        FormatError: If each of its samples is one step; the message has a draft of the mapping.
    """
    names = [split_key(member.name) for member in members]
    if any(name.lower() == "meta.json" or _is_frame(name) or is_video(name) for _, name in names):
        return  # written as episodes
    if len({key for key, _ in names if key}) < 2:
        return
    samples = _alike(samples_of(members, where))
    mapping = _guess(file, samples)
    if mapping is None or not mapping.features or not _are_steps(file, samples[:_LOOKED_AT], mapping):
        return
    raise FormatError(
        f"{where}: {len(samples)} samples of one step each ({samples[0].key}, {samples[1].key}, ...), wanted one "
        "sample an episode. To stream them as episodes, correct this draft of what they mean, save it as steps.yaml, "
        f"and run 'epistream index URL --steps steps.yaml' once; whole episodes say so in their KEY.meta.json, "
        f'{{"length": steps}}:\n{to_yaml(mapping)}'
    )


def draft_of(path: Path) -> StepMapping:
    """What the samples of a local tar may mean, from the first of them.

    Raises:
        FormatError: If nothing says which step of which episode a sample is.
    """
    with path.open("rb") as file:
        samples = _alike(samples_of(walk(file, path.name), path.name))
        mapping = _guess(file, samples) if samples else None
    if mapping is None:
        found = ", ".join(sample.key for sample in samples[:3]) or "none"
        raise FormatError(
            f"{path.name}: samples {found}, wanted a number of the step in their keys, or in JSON under one of the "
            f"names {', '.join(_STEPS)}. Write the mapping by hand."
        )
    return mapping


def complete(mapping: StepMapping, path: Path) -> StepMapping:
    """A mapping without features, with those that the first samples of a local tar have.

    Raises:
        FormatError: If they have none.
    """
    with path.open("rb") as file:
        samples = _alike(samples_of(walk(file, path.name), path.name))
        features, task = _features(file, samples[0]) if samples else ((), None)
    used = {mapping.episode, mapping.step, mapping.task}
    features = tuple(feature for feature in features if feature.origin not in used)
    if not features:
        found = ", ".join(sorted(samples[0].members)) if samples else "no samples"
        raise FormatError(
            f"{path.name}: {found}, wanted .npy, JSON or pictures. Name the features in a mapping, with --steps."
        )
    return replace(mapping, features=features, task=mapping.task or task)


def to_yaml(mapping: StepMapping) -> str:
    """A mapping as its file says it."""
    return dump_yaml(mapping.plain(), a_line_each=True)


def _alike(samples: Sequence[Sample]) -> list[Sample]:
    """Those with the fields that most have, and maybe others: without a README, say, that lies among the steps."""
    usual = Counter(frozenset(sample.members) for sample in samples).most_common(1)
    return [sample for sample in samples if usual[0][0] <= sample.members.keys()]


def _is_frame(name: str) -> bool:
    """Whether a field is a numbered frame as in `docs/format.md`, of which an episode has one a step."""
    return bool(re.fullmatch(r".+\.\d{6,}\.[^.]+", name))


def _are_steps(file: BinaryIO, samples: Sequence[Sample], mapping: StepMapping) -> bool:
    """Whether what samples hold can be no episode: pictures that are not numbered, rows without an axis of steps."""
    pictures = [feature.origin.member for feature in mapping.features if feature.is_camera]
    has_pictures = any(not re.fullmatch(r".+\.\d+\.[^.]+", name) for name in pictures)
    arrays = [feature.origin for feature in mapping.features if feature.origin.kind == "npy" and not feature.is_camera]
    has_numbers = arrays or any(feature.origin.kind == "json" for feature in mapping.features)
    shapes = [tuple(_shape(file, sample, origin) for origin in arrays) for sample in samples]
    if not has_numbers or len(set(shapes)) != 1:
        return False
    are_rows = bool(arrays) and all(shape is not None and (len(shape) < 2 or shape[0] == 1) for shape in shapes[0])
    if are_rows or mapping.episode == Origin(TAR):
        return are_rows
    lengths = {shape[0] for shape in shapes[0] if shape}
    # A row of 4 numbers beside a matrix of (4, 4) could be 4 steps, too; so many episodes of 4 steps are unlikely.
    has_short_rows = any(shape is not None and len(shape) == 1 for shape in shapes[0]) and max(lengths) <= _SHORT
    return has_pictures or not arrays or len(lengths) > 1 or has_short_rows


def _shape(file: BinaryIO, sample: Sample, origin: Origin) -> tuple[int, ...] | None:
    header = _header(file, sample, origin)
    return header.shape if header else None


def _header(file: BinaryIO, sample: Sample, origin: Origin) -> NpyHeader | None:
    try:
        return sample.npy_header(file, origin)
    except FormatError:
        return None


def _guess(file: BinaryIO, samples: Sequence[Sample]) -> StepMapping | None:
    """A mapping by which some samples are steps of one episode."""
    keys = [sample.key for sample in samples]
    features, task = _features(file, samples[0])
    key = _key_with_both(keys)
    episode, step = _named(file, samples[0], _EPISODES), _named(file, samples[0], _STEPS)
    if key:
        episode = step = None
    elif episode and not step:
        key = _key_with_step(keys)
        if not key:
            return None
    elif not episode:
        key = "" if step else _key_with_step(keys)
        episode = Origin(TAR)
        if not key and not step:
            return None
    return StepMapping(features, key, episode, step, task)


def _key_with_both(keys: Sequence[str]) -> str:
    """A pattern of episode and step that fits all keys, in which some episode has neighbouring steps; empty if none."""
    skeletons = {tuple(_RUNS.split(key)[::2]) for key in keys[:_LOOKED_AT]}
    candidates = []
    if len(skeletons) == 1:
        [parts] = skeletons
        if len(parts) > 2:
            candidates.append(f"{parts[0]}{{episode}}{parts[-2]}{{step}}{parts[-1]}")
        if len(parts) > 3:  # a time behind the step
            candidates.append(f"{parts[0]}{{episode}}{parts[1]}{{step}}{parts[2]}*")
    ends = {re.sub(r"^.*?([^A-Za-z0-9]+)\d+(\D*)$", r"\1\n\2", key, flags=re.DOTALL) for key in keys[:_LOOKED_AT]}
    if len(ends) == 1:
        separator, found, tail = ends.pop().partition("\n")
        candidates += [f"{{episode}}{separator}{{step}}{tail}"] if found else []
    return next((key for key in candidates if _has_neighbours(key, keys)), "")


def _key_with_step(keys: Sequence[str]) -> str:
    skeletons = {tuple(_RUNS.split(key)[::2]) for key in keys[:_LOOKED_AT]}
    if len(skeletons) != 1:
        return ""
    [parts] = skeletons
    if len(parts) < 2:
        return ""
    key = ("*" if len(parts) > 2 else parts[0]) + ("" if len(parts) == 2 else parts[-2]) + f"{{step}}{parts[-1]}"
    return key if _has_neighbours(key, keys) else ""


def _has_neighbours(key: str, keys: Sequence[str]) -> bool:
    pattern = key_pattern(key)
    matches = [pattern.fullmatch(one) for one in keys]
    places = [(match.groupdict().get("episode", ""), int(match["step"])) for match in matches if match]
    known = set(places)
    is_plain = None not in matches[:_LOOKED_AT] and len(known) == len(places)
    return is_plain and any((name, step + 1) in known for name, step in places)


def _named(file: BinaryIO, sample: Sample, names: Sequence[str]) -> Origin | None:
    """Where a whole number, or a text, of one of these names is."""
    found = {
        path.rpartition(".")[2]: Origin(member, path)
        for member, path, value in _leaves(file, sample)
        if _is_name(value)
    }
    for member in sample.members:
        stem, origin = member.rpartition(".")[0], Origin.parse(member)
        if stem in names and _is_one(file, sample, origin):
            found.setdefault(stem, origin)
    return next((found[name] for name in names if name in found), None)


def _is_one(file: BinaryIO, sample: Sample, origin: Origin) -> bool:
    """Whether a member is a text or one number."""
    return origin.kind == "text" or (origin.kind == "npy" and _shape(file, sample, origin) in ((), (1,)))


def _is_name(value: Any) -> bool:
    """Numbers may have become floating-point ones on their way through a table."""
    is_whole = isinstance(value, float) and value.is_integer()
    return is_whole or (isinstance(value, int | str) and not isinstance(value, bool))


def _features(file: BinaryIO, sample: Sample) -> tuple[tuple[StepFeature, ...], Origin | None]:
    """What can be a feature of a sample, and what can be its task."""
    found: dict[str, StepFeature] = {}
    task, task_stem = None, ""
    for member in sample.members:
        origin = Origin.parse(member)
        stem = member.rpartition(".")[0]
        if stem in (*_EPISODES, *_STEPS) and _is_one(file, sample, origin):
            continue
        if origin.kind == "npy":
            name = _npy_name(file, sample, origin, stem)
        else:
            name = _camera_name(stem) if origin.kind == "picture" else ""
        if name:
            _add(found, name, origin)
        is_task = origin.kind == "text" and member.endswith(("txt", "text"))
        if is_task and (task is None or (stem in ("", *_TASKS) and task_stem not in ("", *_TASKS))):
            task, task_stem = origin, stem  # rather than a text of another name, as rows may be
    for member, path, value in _leaves(file, sample):
        last = path.rpartition(".")[2].lower()
        if _is_text(value) and last in _TASKS:
            task = task or Origin(member, path)
        elif last not in _BOOKKEEPING and not isinstance(value, str) and numbers(value) is not None:
            _add(found, path, Origin(member, path))
    return tuple(found.values()), task


def _is_text(value: Any) -> bool:
    """Whether it is a text, or a list of which training draws one."""
    texts = value if isinstance(value, list) and value else [value]
    return all(isinstance(text, str) for text in texts)


def _add(found: dict[str, StepFeature], name: str, origin: Origin) -> None:
    name = re.sub(r"[^a-z0-9_.\-]", "_", name.lower())
    name = _USUAL.get(name, name)
    found.setdefault(name, StepFeature(name, origin))


def _npy_name(file: BinaryIO, sample: Sample, origin: Origin, stem: str) -> str:
    """Empty for what is no array of numbers; large ones of two or three axes are pictures, and colours of any size."""
    header = _header(file, sample, origin)
    if header is None:
        return ""
    is_large = sample.members[origin.member].size > MAX_ROW_BYTES and len(header.shape) in (2, 3)
    has_colours = header.dtype == "uint8" and len(header.shape) == 3 and header.shape[2] in (1, 3, 4)
    return _camera_name(stem) if is_large or has_colours else stem or "npy"


def _camera_name(stem: str) -> str:
    if stem.startswith(IMAGES):
        return stem
    name = re.sub(r"^(observation\.)?(images?|rgb|cam|camera)\.", "", stem)
    return IMAGES + re.sub(r"(^|\.)(\d{6,})$", r"\1camera_\2", name or "image")


def _leaves(file: BinaryIO, sample: Sample) -> Iterator[tuple[str, str, Any]]:
    """(member, path, value) of everything in JSON that is no map."""
    for member in sample.members:
        if Origin.parse(member) != Origin(member) or not member.endswith("json"):
            continue
        try:
            value = sample.value(file, Origin(member))
        except FormatError:
            continue
        if isinstance(value, dict):
            yield from ((member, path, leaf) for path, leaf in _walk(value, "", _MAX_DEPTH))


def _walk(value: Mapping[str, Any], above: str, depth: int) -> Iterator[tuple[str, Any]]:
    for name, one in value.items():
        if isinstance(one, dict):
            if depth > 1:
                yield from _walk(one, f"{above}{name}.", depth - 1)
        else:
            yield above + name, one
