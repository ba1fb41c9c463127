"""The index of a tar with one sample a step: its samples as steps of episodes, as a mapping says. Nothing is repacked.

Pictures stay in the tar, and the index says where each lies. Rows of numbers are small and scattered over members that
are mostly padding, so they are collected into the index.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import natsort
import numpy as np

from epistream.errors import FormatError
from epistream.sharding.format.checksums import ShardHasher, hash_file
from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.features import feature_order
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.tar.step_columns import Pictures, Rows, column_of
from epistream.sharding.tar.step_mapping import MOST_DIGITS, TAR, Origin, StepMapping
from epistream.sharding.tar.step_samples import MISSING, Sample, samples_of
from epistream.sharding.tar.tar_reader import walk

_log = logging.getLogger(__name__)

GAPS = "Write the missing samples, or say 'gaps: true' in the mapping if step numbers only give the order."
LAYOUT = "one sample a step"


@dataclass(frozen=True)
class Piece:
    """What one tar has of an episode, usually all of it.

    Args:
        name: Of the episode.
        first: Number of the first step.
        last: Number of the last step.
        first_sample: For messages.
        last_sample: For messages.
    """

    name: str
    first: int
    last: int
    first_sample: str
    last_sample: str


@dataclass(frozen=True, eq=False)
class StepTar:
    """A tar as `index_steps` reads it: its index, and what each episode of that is."""

    index: ShardIndex
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, eq=False)
class _Episode:
    """The samples of one episode in the order of their steps."""

    piece: Piece
    samples: Sequence[Sample]


def index_steps(path: Path, mapping: StepMapping, hasher: ShardHasher | None = None) -> StepTar:
    """The index of a local tar whose samples are steps. Its episodes are in natural order of their names.

    Whether they are whole, only all tars together say: see `settle`.

    Args:
        path: The tar. All JSON, text and rows of it are read, and the header of every picture.
        mapping: What the samples mean.
        hasher: What `hash_file` said of the tar, if that is known.

    Raises:
        FormatError: If it is no whole tar; or a sample does not fit the mapping, or is there twice, or one is missing
            between two others. The message names the sample.
    """
    with path.open("rb") as file:
        samples = samples_of(walk(file, path.name), path.name)
        if not samples:
            raise FormatError(f"{path.name}: no samples, wanted one a step.")
        episodes = _episodes(file, samples, mapping, path)
        columns = {feature.name: column_of(feature) for feature in mapping.features}
        tasks = []
        for episode in episodes:
            texts: dict[tuple[str, ...], Sample] = {}
            for sample in episode.samples:
                for column in columns.values():
                    column.add(file, sample)
                if mapping.task:
                    _take_task(file, sample, mapping.task, texts, episode.piece.name)
                sample.forget()
            tasks.append(next(iter(texts), ()))
    _name_left_out(samples, mapping, path.name)
    if mapping.task and not any(tasks):
        raise FormatError(
            f"{path.name}: no sample has {mapping.task.member}, wanted it as its task. Correct the mapping."
        )
    described = [column.feature(mapping.fps, path.name) for column in columns.values()]
    hasher = hasher or hash_file(path)
    index = ShardIndex(
        shard_name=path.name,
        shard_bytes=hasher.num_bytes,
        shard_checksum=hasher.checksum,
        features={feature.name: feature for feature in sorted(described, key=feature_order)},
        keys=[_key(episode.piece.name, number) for number, episode in enumerate(episodes)],
        length=np.array([len(episode.samples) for episode in episodes], np.int64),
        array_offset={},
        frame_offset={n: np.array(c.offsets, np.uint64) for n, c in columns.items() if isinstance(c, Pictures)},
        frame_size={n: np.array(c.sizes, np.uint32) for n, c in columns.items() if isinstance(c, Pictures)},
        episodes=[
            EpisodeMeta(len(episode.samples), number, tasks=task, source_path=episode.piece.name, layout=LAYOUT)
            for number, (episode, task) in enumerate(zip(episodes, tasks, strict=True))
        ],
        block_checksums=hasher.block_checksums,
        values={name: column.values() for name, column in columns.items() if isinstance(column, Rows)},
        steps={"mapping": mapping.plain()},
    )
    return StepTar(index, tuple(episode.piece for episode in episodes))


def _episodes(file: BinaryIO, samples: Sequence[Sample], mapping: StepMapping, path: Path) -> list[_Episode]:
    """Samples sorted into episodes and by their steps, whatever their order in the tar."""
    steps_of: dict[str, dict[int, Sample]] = {}
    for sample in samples:
        name, step = _place(file, sample, mapping, path)
        sample.forget()
        steps = steps_of.setdefault(name, {})
        if step in steps:
            raise FormatError(
                f"{path.name}: samples {steps[step].key} and {sample.key} are both step {step} of episode {name}, "
                "wanted each step once. Correct the mapping's key, or take one of them out."
            )
        steps[step] = sample
    episodes = []
    for name in natsort.natsorted(steps_of):
        numbers = sorted(steps_of[name])
        ordered = [steps_of[name][number] for number in numbers]
        if not mapping.gaps:
            _check_gaps(numbers, ordered, name)
        piece = Piece(name, numbers[0], numbers[-1], ordered[0].where, ordered[-1].where)
        episodes.append(_Episode(piece, ordered))
    return episodes


def _check_gaps(numbers: Sequence[int], samples: Sequence[Sample], name: str) -> None:
    gap = next((at for at, number in enumerate(numbers) if number != numbers[0] + at), None)
    if gap is not None:
        raise FormatError(
            f"{samples[gap].where}: step {numbers[gap]} of episode {name} follows {samples[gap - 1].key}, step "
            f"{numbers[gap - 1]}, wanted step {numbers[gap - 1] + 1}. {GAPS}"
        )


def _place(file: BinaryIO, sample: Sample, mapping: StepMapping, path: Path) -> tuple[str, int]:
    """Name of the episode, and number of the step."""
    said: dict[str, Any] = {}
    if mapping.key:
        matched = mapping.key_pattern().fullmatch(sample.key)
        if matched is None:
            raise FormatError(
                f"{sample.where}: a key that does not fit the mapping, wanted {mapping.key!r}. Correct 'key', or take "
                "the sample out of the tar."
            )
        said = matched.groupdict()
    for part, origin in (("episode", mapping.episode), ("step", mapping.step)):
        if origin is not None:
            is_tar = part == "episode" and origin == Origin(TAR)
            said[part] = path.stem if is_tar else _field(file, sample, origin)
    step = str(said["step"])
    if not step.isdecimal() or len(step) > MOST_DIGITS:
        raise FormatError(f"{sample.where}: step {said['step']!r:.60}, wanted a whole number from 0.")
    if not str(said["episode"]):
        raise FormatError(f"{sample.where}: an episode without a name, wanted a number or a text.")
    return str(said["episode"]), int(step)


def _field(file: BinaryIO, sample: Sample, origin: Origin) -> int | str:
    """A whole number or a text, from JSON, a text, or a ``.npy`` of one number."""
    value: Any = sample.array(file, origin) if origin.kind == "npy" else sample.value(file, origin)
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        found = "nothing" if value is MISSING else repr(value)
        place = f"{sample.where}.{origin.member}" + (f", {origin.path}" if origin.path else "")
        raise FormatError(f"{place}: {found:.60}, wanted a whole number or a text. Correct the mapping.")
    return value


def _take_task(
    file: BinaryIO, sample: Sample, origin: Origin, texts: dict[tuple[str, ...], Sample], episode: str
) -> None:
    """Note what a sample says of the task; samples may say nothing, those of an episode nothing different."""
    if origin.member not in sample.members:
        return
    value = sample.value(file, origin)
    found = [value] if isinstance(value, str) else value
    if value is MISSING or not found:
        return
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise FormatError(f"{sample.where}.{origin.member}: {value!r:.80} as task, wanted a text or a list of texts.")
    task = tuple(text for text in dict.fromkeys(found) if text)
    if task:
        texts.setdefault(task, sample)
    if len(texts) > 1:
        (one, first), (other, second) = list(texts.items())[:2]
        raise FormatError(
            f"{sample.tar}: episode {episode} has task {one[0]!r:.60} at {first.key} and {other[0]!r:.60} at "
            f"{second.key}, wanted one. Make the parts episodes of their own, or leave 'task' out of the mapping."
        )


def _name_left_out(samples: Sequence[Sample], mapping: StepMapping, where: str) -> None:
    left_out = sorted({name for sample in samples for name in sample.members} - mapping.members())
    if left_out:
        _log.warning(
            "%s: these fields are not in the mapping of steps and left out: %s",
            where,
            ", ".join(left_out[:10]) + (", ..." if len(left_out) > 10 else ""),
        )


def _key(name: str, number: int) -> str:
    """What messages call an episode."""
    return name if name.isascii() and name.isprintable() else f"episode {number}"
