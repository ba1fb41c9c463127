"""Sidecars of neighbouring readers, so that the same tars serve them too: wids, Megatron-Energon, NVIDIA DALI."""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Literal, get_args

import yaml

from epistream.errors import FormatError
from epistream.sharding.format.episode_meta import NO_SPLIT
from epistream.sharding.tar.sample_names import split_key
from epistream.sharding.tar.tar_reader import Member, walk

Neighbour = Literal["wids", "energon", "dali"]
NEIGHBOURS: tuple[Neighbour, ...] = get_args(Neighbour)

# Energon takes any sample for "crude": the program that trains turns it into something.
_CRUDE = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}


@dataclass(frozen=True)
class ShardMembers:
    """What the neighbours want to know of one tar: its name, size, split, and members sample by sample."""

    name: str
    num_bytes: int
    split: str
    samples: tuple[tuple[Member, ...], ...]


def read_members(path: Path, split: str) -> ShardMembers:
    """The members of a local tar, grouped as WebDataset groups them.

    Raises:
        FormatError: If it is no whole tar.
    """
    with path.open("rb") as file:
        members = [member for member in walk(file, path.name) if split_key(member.name)[0]]
    grouped = groupby(members, key=lambda member: split_key(member.name)[0])
    samples = tuple(tuple(group) for _, group in grouped)
    return ShardMembers(path.name, path.stat().st_size, split, samples)


def sidecars(
    neighbour: Neighbour, shards: Sequence[ShardMembers], existing: Sequence[str] = ()
) -> Iterator[tuple[str, bytes]]:
    """(name in the dataset's folder, bytes) of every file that `neighbour` wants.

    Args:
        neighbour: Whose.
        shards: All tars.
        existing: Names that are there and must not be replaced, because people edit them.

    Raises:
        FormatError: If a member's name cannot be written in its format.
    """
    if neighbour == "wids":
        yield "wids.json", _wids(shards)
    elif neighbour == "energon":
        yield from ((Path(shard.name).stem + ".tar.idx", _energon_offsets(shard)) for shard in shards)
        yield ".nv-meta/.info.yaml", _yaml({"shard_counts": {shard.name: len(shard.samples) for shard in shards}})
        yield ".nv-meta/split.yaml", _yaml({"exclude": [], "split_parts": _energon_splits(shards)})
        if ".nv-meta/dataset.yaml" not in existing:
            yield ".nv-meta/dataset.yaml", _yaml(_CRUDE)
    else:
        yield from ((Path(shard.name).stem + ".idx", _dali(shard)) for shard in shards)


def _wids(shards: Sequence[ShardMembers]) -> bytes:
    """A shard list as in wids' specification: relative URLs are resolved against the JSON's own."""
    listed = [{"url": s.name, "nsamples": len(s.samples), "filesize": s.num_bytes} for s in shards]
    return json.dumps({"wids_version": 1, "shardlist": listed}, indent=1).encode()


def _energon_offsets(shard: ShardMembers) -> bytes:
    """uint64 for each sample: where the header of its first member begins; and where the last sample ends.

    Source: `TarIndexWriter` and `WebdatasetPreparator` of Megatron-Energon.
    """
    starts = [sample[0].header_offset for sample in shard.samples]
    last = shard.samples[-1][-1]
    end = last.offset + -(-last.size // BLOCKSIZE) * BLOCKSIZE
    return struct.pack(f"<{len(starts) + 1}Q", *starts, end)


def _energon_splits(shards: Sequence[ShardMembers]) -> Mapping[str, list[str]]:
    """Energon always asks for a part by name, and for `train` by default."""
    parts: dict[str, list[str]] = {}
    for shard in shards:
        parts.setdefault("train" if shard.split == NO_SPLIT else shard.split, []).append(shard.name)
    return parts


def _dali(shard: ShardMembers) -> bytes:
    """Text, version 1.2: a line for each sample of ``extension offset size name`` for each member.

    Source: `tools/wds2idx.py` of NVIDIA DALI.
    """
    lines = [f"v1.2 {len(shard.samples)}"]
    for sample in shard.samples:
        bad = next((member.name for member in sample if any(sign.isspace() for sign in member.name)), None)
        if bad:
            raise FormatError(f"{shard.name}, {bad!r}: a name with spaces, which DALI's index cannot hold.")
        lines.append(" ".join(f"{split_key(m.name)[1]} {m.offset} {m.size} {m.name}" for m in sample))
    return ("\n".join(lines) + "\n").encode()


def _yaml(value: object) -> bytes:
    return yaml.safe_dump(value, sort_keys=True).encode()
