"""The task of a doctor: some episodes, read and measured. What comes of it is small, whatever they hold."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.errors import EpistreamError
from epistream.loader.doctor.facts.facts import ACTION, STATE, Measured, fps_of
from epistream.loader.doctor.facts.kinds import actions_of, is_mark, is_time, measured_features, states_of, width
from epistream.loader.doctor.facts.motion import MotionFacts, motion_facts, rest_steps
from epistream.loader.doctor.facts.pairs import pair_facts, pairs_of
from epistream.loader.doctor.facts.pictures import CameraFacts, camera_facts, small_shape
from epistream.loader.doctor.facts.segments import Bool, Float, Segments
from epistream.loader.doctor.facts.tables import joined
from epistream.loader.doctor.facts.times import TimeFacts, time_facts
from epistream.loader.doctor.facts.values import ValueFacts, made_finite, value_facts
from epistream.loader.doctor.opened import TIMESTAMP, OpenedEpisodes, ReadEpisode
from epistream.sharding.format.features import Feature
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.sharding.tasks.pulse import Pulse

DATASET, SAMPLE, _OPENED = "dataset", "sample", "opened"

# Arrays in work: 8 bytes a number, a few copies. With few episodes a task progress is seen, and cores are shared.
_MOST_NUMBERS, _MOST_EPISODES, _MOST_WITH_FRAMES = 1 << 20, 64, 4
_SKETCH_STEPS, _SKETCH_DIMS = 8, 64
_CHANGES = 0.05
_HALF_BYTES = 4


class Examination(NamedTuple):
    """Some episodes.

    Attributes:
        first: Position of the first in the dataset.
        stop: The one after the last.
    """

    first: int
    stop: int


def examinations(dataset: Dataset, *, frames: bool) -> Iterator[Examination]:
    """All episodes, in tasks of bounded memory."""
    dims = max(1, sum(width(one) for one in measured_features(dataset.features)))
    most_steps, most = max(1, _MOST_NUMBERS // dims), _MOST_WITH_FRAMES if frames else _MOST_EPISODES
    first, steps = 0, 0
    for episode, length in enumerate(np.asarray(dataset.episode_length).tolist()):
        if episode > first and (steps + length > most_steps or episode - first >= most):
            yield Examination(first, episode)
            first, steps = episode, 0
        steps += length
    if first < dataset.num_episodes:
        yield Examination(first, dataset.num_episodes)


def examine(task: Examination, pulse: Pulse) -> Measured:
    """Read and measure episodes.

    Args:
        task: Which.
        pulse: Its `kept` has the dataset, and how many pictures are looked at of each camera and episode: 0 for none.
    """
    dataset: Dataset = pulse.kept[DATASET]
    num_samples: int = pulse.kept[SAMPLE]
    cameras = [one for one in dataset.features.values() if one.kind == "frames"] if num_samples else []
    reads: list[_Read] = []
    looks: list[dict[str, CameraFacts]] = []
    unreadable: dict[int, str] = {}
    with pulse.kept.setdefault(_OPENED, OpenedEpisodes(dataset)) as opened:
        for number in range(task.first, task.stop):
            try:
                episode = opened.open(number)
                read = _read(episode)
                looks.append({one.name: _look(episode, one, num_samples) for one in cameras})
                reads.append(read)
            except EpistreamError as error:
                unreadable[number] = str(error)
            pulse.add(1, 0)
    return _measure(dataset, reads, looks, unreadable)


@dataclass(frozen=True, eq=False)
class _Read:
    """What was read of one episode."""

    number: int
    key: str
    source: str
    path: str
    length: int
    values: dict[str, NDArray[Any]]
    times: NDArray[np.float64] | None


def _read(episode: ReadEpisode) -> _Read:
    dataset = episode.opened.dataset
    arrays = {name: episode.values(one) for name, one in dataset.features.items() if one.kind == "array"}
    meta = episode.meta
    return _Read(
        number=episode.number,
        key=episode.key,
        source=meta.source or _file_name(dataset, episode.number),
        path=meta.source_path,
        length=episode.length,
        values={name: one.reshape(episode.length, -1) for name, one in arrays.items()},
        times=episode.timestamps(),
    )


def _file_name(dataset: Dataset, episode: int) -> str:
    return dataset.shard_url[int(dataset.episode_shard[episode])].rpartition("/")[2]


def _look(episode: ReadEpisode, camera: Feature, num_samples: int) -> CameraFacts:
    run = episode.stored_run(camera)
    shape = small_shape(camera.shape)
    return camera_facts(shape, episode.length, lambda steps: episode.frames(camera, steps), num_samples, run)


def _measure(
    dataset: Dataset, reads: Sequence[_Read], looks: Sequence[dict[str, CameraFacts]], unreadable: dict[int, str]
) -> Measured:
    segments = Segments([one.length for one in reads])
    features = measured_features(dataset.features)
    finite: dict[str, tuple[Float, Bool]] = {}
    if reads:
        finite = {one.name: made_finite(_beside(one, reads, segments), segments) for one in features}
    rest = rest_steps(fps_of(dataset.features))
    values = {
        name: value_facts(now, bad, segments, is_quaternion="quat" in name) for name, (now, bad) in finite.items()
    }
    groups = {STATE: states_of(finite), ACTION: actions_of(finite)}
    motion: dict[str, MotionFacts] = {}
    for name, some in groups.items():
        if some:
            motion[name] = motion_facts(np.concatenate([finite[one][0] for one in some]), segments, rest)
    pairs = {
        pair: pair_facts(finite[pair.action][0][: pair.dims], finite[pair.state][0][: pair.dims], segments)
        for pair in pairs_of(dataset.features)
        if reads and pair.action in finite and pair.state in finite
    }
    return Measured(
        episode=np.array([one.number for one in reads], np.int64),
        key=[one.key for one in reads],
        source=[one.source for one in reads],
        path=[one.path for one in reads],
        hash=np.array([_hash(one, dataset) for one in reads], np.uint64),
        sketch=_sketch(finite, groups, segments),
        values=values,
        motion=motion,
        held_while_acting=_held_while_acting(values, finite, groups[ACTION], segments),
        pairs=pairs,
        times=_times(dataset, reads, segments),
        cameras={name: joined([one[name] for one in looks]) for name in looks[0]} if looks else {},
        success=[None for _ in reads],  # of all episodes at once, where the dataset is opened
        unreadable=unreadable,
    )


def _beside(feature: Feature, reads: Sequence[_Read], segments: Segments) -> Float:
    """(D, N) values of a feature, an episode beside the other; float32 where that holds them."""
    is_small = np.dtype(feature.dtype).itemsize <= _HALF_BYTES and np.dtype(feature.dtype).kind == "f"
    found = np.empty((width(feature), segments.num_steps), np.float32 if is_small else np.float64)
    for one, part in zip(reads, segments.slices(), strict=True):
        found[:, part] = one.values[feature.name].T
    return found


def _hash(read: _Read, dataset: Dataset) -> int:
    """Of all values but time stamps; 0 where nothing changes, and so nothing tells an episode from another."""
    digest, moves = xxhash.xxh3_64(), False
    for name, values in sorted(read.values.items()):
        if not is_time(dataset.features[name]) and not is_mark(name):
            moves = moves or bool((values[1:] != values[:1]).any())
            digest.update(values.tobytes())
    return digest.intdigest() if moves else 0


def _sketch(
    finite: Mapping[str, tuple[Float, Bool]], groups: Mapping[str, list[str]], segments: Segments
) -> NDArray[np.float32]:
    """(R, K) states and actions at a few steps of each episode."""
    names = [name for some in groups.values() for name in some]
    if not names:
        return np.zeros((len(segments), 0), np.float32)
    share = np.linspace(0, 1, _SKETCH_STEPS)
    at = segments.first + np.rint(share[:, None] * (segments.length - 1)).astype(np.int64)
    whole = np.concatenate([finite[name][0][:, at] for name in names])[:_SKETCH_DIMS]
    with np.errstate(over="ignore"):
        sketch: NDArray[np.float32] = whole.reshape(-1, len(segments)).T.astype(np.float32)
    return sketch


def _held_while_acting(
    values: Mapping[str, ValueFacts],
    finite: Mapping[str, tuple[Float, Bool]],
    actions: list[str],
    segments: Segments,
) -> Bool:
    """(R,) whether actions go far while the state is held longest."""
    state, found = values.get("observation.state"), np.zeros(len(segments), np.bool_)
    if state is None or not actions:
        return found
    action = finite[actions[0]][0]
    for row, part in enumerate(segments.slices()):
        first, steps = int(state.held_first[row]), int(state.held_steps[row])
        if steps > 1:
            mine = action[:, part]
            reach, meanwhile = np.ptp(mine, axis=1), np.ptp(mine[:, first : first + steps], axis=1)
            found[row] = bool((meanwhile > _CHANGES * reach.max(initial=0.0)).any())
    return found


def _times(dataset: Dataset, reads: Sequence[_Read], segments: Segments) -> dict[str, TimeFacts]:
    columns = {
        name: [one.values[name][:, 0] for one in reads] for name, two in dataset.features.items() if is_time(two)
    }
    if reads and all(one.times is not None for one in reads):
        columns[TIMESTAMP] = [one.times for one in reads if one.times is not None]
    found = {}
    for name, parts in columns.items():
        if parts:
            whole = np.concatenate(parts).astype(np.float64)[None]
            found[name] = time_facts(made_finite(whole, segments)[0][0], segments)
    return found
