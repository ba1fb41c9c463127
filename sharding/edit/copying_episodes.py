"""One task of compacting: the episodes of a new shard, their members copied byte for byte from the old ones."""

import itertools
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from epistream.errors import FormatError
from epistream.file_systems import local_path
from epistream.sharding.files.names import index_name
from epistream.sharding.files.storage import Options, local_copy, write_local
from epistream.sharding.format.episode_meta import EpisodeMeta, depths_of, episode_meta_from_dict, parse_json
from epistream.sharding.format.features import Feature
from epistream.sharding.tar.index_tar import index_tar
from epistream.sharding.tar.shard_store import upload
from epistream.sharding.tar.shard_writer import episode_key
from epistream.sharding.tar.tar_reader import Member, read_member, walk
from epistream.sharding.tar.tar_writer import TarWriter
from epistream.sharding.tasks.pulse import Pulse

# Folders beside the shards in which new ones are made.
TEMPORARY = re.compile(r"\.compact-[A-Za-z0-9_]+")
_META = "meta.json"
_PIECE_BYTES = 1 << 22


@dataclass(frozen=True)
class CopiedEpisode:
    """An episode of an old shard, and what is different now.

    Args:
        key: In the old shard.
        number: In the dataset.
        split: Its split.
        tasks: Its instructions; None where they are those of the shard.
        valid_ranges: Its valid ranges; None where they are those of the shard.
    """

    key: str
    number: int
    split: str
    tasks: tuple[str, ...] | None = None
    valid_ranges: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class OldShard:
    """A shard to copy from.

    Args:
        url: The tar.
        episodes: Of it, in order.
        renamed: Name of a feature in the dataset -> its name in the shard, of those that differ.
    """

    url: str
    episodes: tuple[CopiedEpisode, ...]
    renamed: Mapping[str, str]


@dataclass(frozen=True)
class CopyTask:
    """One shard to make: its file name, the folder or URL it goes to, what it is copied from, and its features."""

    name: str
    url: str
    shards: tuple[OldShard, ...]
    features: Mapping[str, Feature]
    options: Options = None


def copy_shard(task: CopyTask, pulse: Pulse) -> bytes:
    """Make a shard; the contents of its index.

    Raises:
        FormatError: If an old shard is torn, or does not hold what it should.
        SourceError: If one cannot be read.
        PackError: If the new one cannot be written.
    """
    target = local_path(task.url)
    with tempfile.TemporaryDirectory(prefix=".compact-", dir=target, ignore_cleanup_errors=True) as made_in:
        path = Path(made_in) / task.name
        with path.open("w+b") as file:
            tar = TarWriter(file)
            for shard in task.shards:
                with local_copy(shard.url, task.options) as old, old.open("rb") as source:
                    _copy_episodes(source, shard, task.features, tar, pulse)
            tar.finish()
        index = index_tar(path).to_bytes()
        index_path = path.with_name(index_name(task.name))
        index_path.write_bytes(index)
        for one in (index_path, path):
            if target is None:
                upload(one, task.url, task.options)
            else:
                with one.open("rb") as made:
                    write_local(target / one.name, made.read() if one == index_path else _copying(made), sync=True)
    return index


def _copying(file: BinaryIO) -> Any:
    def write(out: BinaryIO) -> None:
        while data := file.read(_PIECE_BYTES):
            out.write(data)

    return write


def _copy_episodes(
    file: BinaryIO, shard: OldShard, features: Mapping[str, Feature], tar: TarWriter, pulse: Pulse
) -> None:
    wanted = {episode.key: episode for episode in shard.episodes}
    stored = {shard.renamed.get(name, name): name for name in features}
    members = walk(file, shard.url)
    num_found = 0
    for key, group in itertools.groupby(members, lambda member: member.name.partition(".")[0]):
        episode = wanted.get(key)
        if episode is None:
            continue
        num_found += 1
        for member, name in _renamed(list(group), episode_key(episode.number), stored):
            if name.endswith(f".{_META}"):
                tar.add(name, _meta(read_member(file, member), episode, features, shard.url))
                continue
            tar.begin(name, member.size)
            for data in _pieces(file, member):
                tar.write(data)
                pulse.add(num_bytes=len(data))
        pulse.add(episodes=1)
    if num_found != len(wanted):
        raise FormatError(
            f"{shard.url}: {num_found} of {len(wanted)} episodes found, wanted all. Run 'epistream verify'."
        )


def _renamed(members: Sequence[Member], key: str, stored: Mapping[str, str]) -> Iterator[tuple[Member, str]]:
    """The members of an episode that are of wanted features, under their new names; that of what is known of it."""
    by_length = sorted(stored, key=len, reverse=True)
    for member in members:
        field = member.name.partition(".")[2]
        if field == _META:
            yield member, f"{key}.{_META}"
            continue
        was = next((name for name in by_length if field.startswith(f"{name}.")), None)
        if was is not None and _is_of(field.removeprefix(f"{was}.")):
            yield member, f"{key}.{stored[was]}.{field.removeprefix(f'{was}.')}"


def _is_of(rest: str) -> bool:
    """Whether what follows a feature's name is a suffix, perhaps with the number of a step, and no longer name."""
    number, _, suffix = rest.rpartition(".")
    return "." not in suffix and (not number or number.isdecimal())


def _pieces(file: BinaryIO, member: Member) -> Iterator[bytes]:
    file.seek(member.offset)
    left = member.size
    if not left:
        yield b""
    while left:
        data = file.read(min(left, _PIECE_BYTES))
        if not data:
            raise FormatError(f"{member.name}: ends {left:,} bytes early, wanted all of it. Run 'epistream verify'.")
        left -= len(data)
        yield data


def _meta(data: bytes, episode: CopiedEpisode, features: Mapping[str, Feature], where: str) -> bytes:
    """What is known of an episode, as it is now."""
    said = parse_json(data, where)
    meta: EpisodeMeta = episode_meta_from_dict(said, where)
    meta = replace(meta, depth=depths_of(said.get("depth", {})), attributes=said.get("attributes", {}))
    meta = replace(meta, episode_index=episode.number, split=episode.split)
    if episode.tasks is not None:
        meta = replace(meta, tasks=episode.tasks, task_steps=None)
    if episode.valid_ranges is not None:
        meta = replace(meta, valid_ranges=episode.valid_ranges)
    return meta.to_json(features)
