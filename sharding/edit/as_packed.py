"""What features were called when a dataset was packed: who adds to it packs them so, whatever they are called now."""

from typing import Any

from epistream.sharding.manifest.groups import ShardGroup
from epistream.sharding.manifest.manifest import Manifest

_NOTE = "as_packed"


def as_packed(manifest: Manifest) -> ShardGroup:
    """The names of the dataset's features where it was packed, and those that it has left out since.

    Those of its first group of shards, and of what was noted when these were made of older ones.
    """
    first, said = manifest.groups[0], manifest.provenance.get(_NOTE)
    renamed, dropped = (said.get("renamed"), said.get("dropped")) if isinstance(said, dict) else ({}, [])
    if not isinstance(renamed, dict) or not isinstance(dropped, list):
        return first
    names = {name: first.renamed.get(name, name) for name in manifest.features}
    packed = {name: str(renamed.get(stored, stored)) for name, stored in names.items()}
    return ShardGroup(
        renamed={name: was for name, was in packed.items() if was != name},
        dropped=(*map(str, dropped), *(str(renamed.get(name, name)) for name in first.dropped)),
    )


def noted(manifest: Manifest) -> dict[str, Any]:
    """The provenance of a dataset whose shards are made anew, with the names that it has now."""
    packed = as_packed(manifest)
    if not packed.renamed and not packed.dropped:
        return manifest.provenance
    return {**manifest.provenance, _NOTE: {"renamed": dict(packed.renamed), "dropped": list(packed.dropped)}}
