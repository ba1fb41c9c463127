"""LeRobot data sets as a packing job sees them: with the features that it wants, opened once in each process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from epistream.errors import SourceChangedError
from epistream.lazy import lazy
from epistream.sharding.files.storage import Options, join
from epistream.sharding.files.user_cache import default_folder
from epistream.sharding.format.left_out import sentence
from epistream.sharding.layouts.base import Candidate, Field, SourceEpisode
from epistream.sharding.lerobot.episode import SetSource
from epistream.sharding.lerobot.looks import keep_looks
from epistream.sharding.lerobot_meta.attributes import lerobot_attributes
from epistream.sharding.lerobot_meta.episode_statistics import EpisodeStatistics
from epistream.sharding.lerobot_meta.features import features_of
from epistream.sharding.lerobot_meta.metadata import LeRobotMeta, keep_metadata
from epistream.sharding.pack.choice import PackChoice
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.tasks.pulse import Pulse

_GROUP = "episode "


@dataclass(frozen=True, eq=False)
class ChosenSet:
    """A data set with the features that a job wants.

    Args:
        source: With these features only, so that nothing unwanted can be a fault.
        dropped: Those that it does not want.
        left_out: What is no feature, each with the reason.
    """

    source: SetSource
    dropped: tuple[Candidate, ...]
    left_out: tuple[str, ...]

    @lazy
    def statistics(self) -> EpisodeStatistics:
        """Of its episodes."""
        return EpisodeStatistics(self.source.meta, self.source.options)

    @lazy
    def attributes(self) -> Sequence[Mapping[str, Any]]:
        """Of its episodes, by position."""
        return lerobot_attributes(self.source.meta, self.source.options)


def chosen_set(root: str, digest: str, options: PackOptions, access: Options, pulse: Pulse) -> ChosenSet:
    """The data set as a process sees it, opened once in each.

    Raises:
        SourceChangedError: If its metadata are not those that the job knows.
    """
    known: dict[str, ChosenSet] = pulse.kept.setdefault("sets", {})
    if root not in known:
        known[root] = choose(root, keep_metadata(root, access), options, access)
    if known[root].source.meta.digest != digest:
        raise SourceChangedError(
            f"{join(root, 'meta')}: changed since the job looked at it. Pack again when nothing writes to it."
        )
    return known[root]


def choose(root: str, meta: LeRobotMeta, options: PackOptions, access: Options) -> ChosenSet:
    """What a job wants of a data set."""
    folder = default_folder()
    looks = keep_looks(root, access, meta, folder)
    codecs = {key: look.codec for key, look in looks.items()}
    features, left_out = features_of(meta.info, {key: look.group_steps for key, look in looks.items()}, codecs)
    choice = PackChoice(options)
    candidates = {one.name: Candidate(one.name, one.source_path, one.kind == "frames") for one in features.values()}
    taken = {name: features[name] for name, one in candidates.items() if choice.takes(one)}
    dropped = tuple(one for name, one in candidates.items() if name not in taken)
    return ChosenSet(SetSource(root, access, meta, taken, folder), dropped, tuple(left_out))


def group_of(number: int) -> str:
    """What a plan calls an episode by LeRobot's number, which is its position too."""
    return f"{_GROUP}{number}"


def position_of(group: str) -> int:
    """The inverse of `group_of`."""
    return int(group.removeprefix(_GROUP))


def episode_of(chosen: ChosenSet, position: int, fields: Sequence[Field]) -> SourceEpisode:
    """An episode as the packing of HDF5 files sees one, of some fields."""
    meta = chosen.source.meta
    ids = meta.task_ids[int(meta.task_offsets[position]) : int(meta.task_offsets[position + 1])]
    return SourceEpisode(
        group=group_of(int(meta.number[position])),
        length=int(meta.length[position]),
        fields=tuple(fields),
        tasks=tuple(meta.tasks[one] for one in ids.tolist()),
        attributes=chosen.attributes[position],
        dropped=chosen.dropped,
    )


def fault_of(url: str, group: str, error: Exception) -> str:
    """What is wrong with an episode, with the data file and its number in front."""
    text = sentence(error)
    where = f"{url}: {group}"
    return text if text.startswith((f"{where}:", f"{where},")) else f"{where}: {text}"
