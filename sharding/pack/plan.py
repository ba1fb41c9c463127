"""Decides, before anything is encoded, which episodes are packed, in which split, and which share a shard."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import xxhash

from epistream.errors import OptionError, PackError
from epistream.hints import grouped
from epistream.sharding.format.division import identity_of
from epistream.sharding.format.episode_meta import NO_SPLIT
from epistream.sharding.format.feature_sets import with_longest_groups
from epistream.sharding.format.features import IMAGES, Feature
from epistream.sharding.format.fill_shards import fill_shards
from epistream.sharding.format.left_out import oddity, usual_features
from epistream.sharding.layouts.base import SourceEpisode
from epistream.sharding.layouts.names import made_names
from epistream.sharding.layouts.registry import looked_for
from epistream.sharding.opening.other_files import OtherFile
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pack.outputs import OF_VIDEO
from epistream.sharding.pictures.codecs import WRITTEN
from epistream.sharding.selecting.columns import flat_attributes

_log = logging.getLogger(__name__)
# Only what a layout knows is bgr; rgb may be no more than an assumption.
_COLOURS_DIFFER = (
    " Give --color-order bgr, by which arrays are encoded for it too. Files whose layout says rgb are refused then: "
    "pack those apart, or all of them with --codec png."
)


@dataclass(frozen=True)
class ScannedEpisode:
    """An episode as the plan needs it: a few hundred bytes, for a million of them fit into memory.

    `refused` are features that it could have had, by name, each with the reason why not; `told` is what it says of
    itself, where the job chooses by that.
    """

    group: str
    length: int
    split: str | None
    source_bytes: int
    estimated_bytes: int
    features: tuple[Feature, ...]
    refused: tuple[tuple[str, str], ...] = ()
    told: "ToldOfEpisode | None" = None


class ToldOfEpisode(NamedTuple):
    """What an episode of a source says of itself: its instructions, and its attributes as selections know them."""

    tasks: tuple[str, ...]
    attributes: dict[str, Any]

    @classmethod
    def of(cls, episode: SourceEpisode, options: PackOptions) -> "ToldOfEpisode | None":
        """Of an episode; None where the job does not choose by it."""
        return cls(episode.tasks, flat_attributes(episode.attributes)) if options.asks_of_episodes else None


@dataclass(frozen=True)
class SourceFile:
    """A file as the job found it, and the others that it reads from.

    `name` is what the dataset calls it: its path below the job's root. `path` can be a URL: then times and inodes are
    0, and `version` is what its server tells.
    """

    path: str
    name: str
    layout: str
    num_bytes: int
    mtime_ns: int
    inode: int
    others: tuple[OtherFile, ...] = ()
    version: str = ""


@dataclass(frozen=True)
class SetFile(SourceFile):
    """A data file of a LeRobot data set. `path` can be a URL; then times and inodes are 0.

    `root` is the data set, `digest` that of its metadata, `files` what its episodes are read from, as path in the data
    set and version: itself and their videos.
    """

    root: str = ""
    digest: str = ""
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ScannedFile:
    """A source file as the plan needs it.

    `left_out` is what is not packed, by its path without the episode; `applied` is that of `applied_options`.
    """

    source: SourceFile
    episodes: tuple[ScannedEpisode, ...]
    faults: tuple[str, ...]
    left_out: tuple[str, ...]
    applied: frozenset[str]


@dataclass(frozen=True)
class PlannedEpisode:
    """One episode of the plan. `source_index` is its file's position among the scans."""

    episode_index: int
    source_index: int
    group: str
    length: int
    split: str
    source_bytes: int


@dataclass(frozen=True)
class PackPlan:
    """What a job will do.

    Args:
        features: Of every episode, in the order of the manifest.
        splits: Their names.
        shards: The episodes that share each, all of one split; in the order of their first ones.
        faults: Why episodes or files cannot be packed.
    """

    features: dict[str, Feature]
    splits: tuple[str, ...]
    shards: tuple[tuple[PlannedEpisode, ...], ...]
    faults: tuple[str, ...]

    @property
    def num_episodes(self) -> int:
        """Episodes to be packed."""
        return sum(map(len, self.shards))

    @property
    def source_bytes(self) -> int:
        """What they take in the source."""
        return sum(episode.source_bytes for shard in self.shards for episode in shard)


def left_out_once(paths: Iterable[str]) -> tuple[str, ...]:
    """What was left out of many episodes, each path once and with the reason of the first of them."""
    first: dict[str, str] = {}
    for path in paths:
        first.setdefault(path.partition(" (")[0], path)
    return tuple(first.values())


def left_out_of(scans: Sequence[ScannedFile], *, with_reason: bool = False) -> tuple[str, ...]:
    """What is not packed of all files; if asked, only what could have been a feature and is none."""
    paths = left_out_once(path for scan in scans for path in scan.left_out)
    return tuple(path for path in paths if path.endswith((")", "), ..."))) if with_reason else paths


def make_plan(scans: Sequence[ScannedFile], options: PackOptions) -> PackPlan:
    """The plan for some files in the order given.

    Raises:
        PackError: If no episode can be packed.
        FormatError: If the episodes are to join a dataset of other features.
    """
    faults = [fault for scan in scans for fault in scan.faults]
    # Episodes from other processes each bring features of their own; equal ones are made one, to save memory.
    shared: dict[tuple[Feature, ...], tuple[Feature, ...]] = {}
    pairs = [
        (index, replace(episode, features=shared.setdefault(episode.features, episode.features)))
        for index, scan in enumerate(scans)
        for episode in scan.episodes
    ]
    if not pairs:
        left_out = next((item for scan in scans for item in scan.left_out), "")
        hint = f" Left out as the layout file says: {left_out}. Correct its 'where'." if left_out else ""
        raise PackError(
            describe_faults(faults, any_good=False) if faults else f"sources: no episodes, wanted one.{hint}"
        )
    votes = Counter(episode.features for _, episode in pairs)
    features = dict(usual_features((_by_name(mine), count) for mine, count in votes.items()))
    features = dict(options.chosen_features(map(_by_name, votes), features))
    oddities = {mine: oddity(_by_name(mine), features) for mine in votes}
    for mine, odd in oddities.items():
        features = with_longest_groups(features, _by_name(mine)) if odd is None else features
    kept: list[tuple[int, ScannedEpisode]] = []
    for index, episode in pairs:
        odd = oddities[episode.features]
        if odd is None:
            kept.append((index, episode))
        else:
            hint = _COLOURS_DIFFER if "jpeg_channels" in odd else ""
            hint = "".join(f" It has {why}." for name, why in episode.refused if name in features) or hint
            faults.append(f"{scans[index].source.path}: {episode.group}: {odd}.{hint}")
    _tell_made_names(features.values(), options)
    _check_applied(frozenset().union(*(scan.applied for scan in scans)), features, options)
    splits, names = _assign_splits(scans, kept, options)
    planned = [
        PlannedEpisode(number, index, episode.group, episode.length, split, episode.source_bytes)
        for number, ((index, episode), split) in enumerate(zip(kept, names, strict=True))
    ]
    sizes = (episode.estimated_bytes for _, episode in kept)
    groups = fill_shards(zip(planned, names, sizes, strict=True), options.shard_bytes)
    return PackPlan(features, splits, tuple(map(tuple, groups)), tuple(faults))


def identity(scans: Sequence[ScannedFile], options: PackOptions, versions: dict[str, str]) -> dict[str, str]:
    """What a resumed job must have in common with the interrupted one: a hash each of sources, options, versions."""
    sources = [(scan.source.path, scan.source.num_bytes, scan.source.mtime_ns, len(scan.episodes)) for scan in scans]
    others = [vars(other) for scan in scans for other in scan.source.others]
    sets = [(scan.source.digest, scan.source.files) for scan in scans if isinstance(scan.source, SetFile)]
    said: Any = [sources, others, sets] if sets else [sources, others] if others else sources
    if versions_of_files := [scan.source.version for scan in scans if scan.source.version]:
        said = [said, versions_of_files]
    parts: dict[str, Any] = {"sources": said, "options": options.deciding(), "versions": versions}
    return {
        name: xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True).encode()) for name, value in parts.items()
    }


def outside_files(scans: Sequence[ScannedFile]) -> tuple[str, ...]:
    """Files outside of the folders of the sources that these read from, each once."""
    others = (other for scan in scans if scan.episodes for other in scan.source.others)
    return tuple(sorted({other.path for other in others if other.is_outside}))


def _by_name(features: Sequence[Feature]) -> dict[str, Feature]:
    return {feature.name: feature for feature in features}


def _tell_made_names(features: Iterable[Feature], options: PackOptions) -> None:
    given = {new for _, new in options.rename}
    made = made_names(one for one in features if not given & {one.name, one.name.removeprefix(IMAGES)})
    if made:
        _log.warning(
            "keys that no feature can be called by: %s. Call them otherwise with --rename KEY=NAME", "; ".join(made)
        )


def _check_applied(applied: frozenset[str], features: dict[str, Feature], options: PackOptions) -> None:
    """Refuse options that no source has anything for, before hours of packing show it."""
    for old, new in options.rename:
        if not any(new in (name, name.rsplit(".", 1)[-1]) for name in features):
            raise OptionError(f"rename {old}={new}: nothing is called {old!r}, found {', '.join(features)}.")
    for pattern in options.drop:
        if pattern not in applied:
            raise OptionError(f"drop {pattern!r}: no feature is called so, found {', '.join(features)}.")
    if options.quality != PackOptions.quality and "quality" not in applied:
        lossy = " or ".join(n.upper() for n, codec in WRITTEN.items() if codec.is_lossy and codec.storage != "video")
        lossless = " and ".join(name for name, codec in WRITTEN.items() if not codec.is_lossy)
        if options.is_video:
            raise OptionError(
                f"quality: {options.quality}, which is of {lossy}, and {options.codec} has crf. Give that instead."
            )
        raise OptionError(
            f"quality: {options.quality}, but no camera is encoded as {lossy}: what is {lossy} in the source is copied "
            f"as it is, and the codecs {lossless} make none. Leave it out; to make {lossy} smaller, give an image size."
        )
    _check_video(applied, options)


def _check_video(applied: frozenset[str], options: PackOptions) -> None:
    for name in OF_VIDEO:
        value, default = getattr(options, name), getattr(PackOptions, name)
        if value != default and name not in applied:
            found = f"the codec is {options.codec or 'not given'}"
            if options.is_video:
                found = "no camera has pictures of bytes in colour"
            raise OptionError(
                f"{name}: {value}, which is of H.264, and {found}. Leave it out, or give codec h264 for such a camera."
            )


def _assign_splits(
    scans: Sequence[ScannedFile], kept: Sequence[tuple[int, ScannedEpisode]], options: PackOptions
) -> tuple[tuple[str, ...], list[str]]:
    """The names of the splits, and the split of each episode."""
    if options.division is not None:
        of_files = [(scans[number].source, episode) for number, episode in kept]
        names = options.division.names(
            [identity_of(file.name, one.group, one.length, file.num_bytes) for file, one in of_files]
        )
    elif any(episode.split for _, episode in kept):
        # A file without masks among files with them is training data.
        names = [episode.split or "train" for _, episode in kept]
    else:
        names = [NO_SPLIT] * len(kept)
    order = {"train": 0, "val": 1, "test": 2}
    return tuple(sorted(set(names), key=lambda name: (order.get(name, 3), name))), names


def describe_faults(faults: Sequence[str], *, any_good: bool) -> str:
    """The message of a job that stops at bad sources: a line for each, or for many that are alike.

    Args:
        faults: What is wrong, each with its file.
        any_good: Whether there would be anything to pack without them.
    """
    # The list of layouts is long, and the same for every file that fits none.
    known = looked_for()
    lines = [f"  {line}" for line in grouped(fault.removesuffix(known).rstrip() for fault in faults)]
    if any(fault.endswith(known) for fault in faults):
        lines.append(known)
    count = f"{len(faults)} fault" + "s" * (len(faults) != 1)
    remedy = "Go on without them: --skip-bad." if any_good else "No episode is left. Correct the files or the options."
    return "\n".join([f"{count} in the sources, nothing was published:", *lines, remedy])
