"""Which tiers serve what: a table."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from epistream.cache.routes import Routes, choose_route
from epistream.cache.source.blob import Blob, Supply
from epistream.cache.source.entry import Entry, Part


@pytest.mark.parametrize(
    ("mode", "file_system", "tiers", "reason"),
    [
        ("auto", None, ("shm", "disk", "direct"), "a remote source"),
        ("auto", "nfs4", ("shm", "disk", "direct"), "on a network file system (nfs4)"),
        ("auto", "fuse.sshfs", ("shm", "disk", "direct"), "on a network file system (fuse.sshfs)"),
        ("auto", "ext4", ("direct",), "on a local file system (ext4), which the page cache shares"),
        ("auto", "tmpfs", ("direct",), "on a local file system (tmpfs), which the page cache shares"),
        ("shm", None, ("shm", "direct"), "asked for"),
        ("shm", "ext4", ("shm", "direct"), "asked for"),
        ("disk", "ext4", ("disk", "direct"), "asked for"),
        ("off", None, ("direct",), "the cache is off"),
        ("off", "nfs4", ("direct",), "the cache is off"),
    ],
)
def test_route_follows_the_mode_and_the_file_system(mode, file_system, tiers, reason):
    route = choose_route(mode, file_system)
    assert (route.tiers, route.reason) == (tiers, reason)
    assert route.keeping_tier == (tiers[0] if len(tiers) > 1 else None)


@pytest.mark.parametrize(
    ("mode", "file_system", "tiers", "reason"),
    [
        ("auto", "ext4", ("shm", "disk", "direct"), "reading it in place costs much more than reading a copy"),
        ("auto", None, ("shm", "disk", "direct"), "a remote source"),
        ("disk", "ext4", ("disk", "direct"), "asked for"),
        ("off", "ext4", ("direct",), "the cache is off"),
    ],
)
def test_what_is_costly_in_place_is_kept_wherever_the_mode_keeps_anything(mode, file_system, tiers, reason):
    route = choose_route(mode, file_system, is_costly=True)
    assert (route.tiers, route.reason) == (tiers, reason)


class Costly(Supply):
    is_costly = True

    def open(self) -> Blob:
        raise NotImplementedError

    def local_ranges(self) -> Iterable[tuple[Path, int, int]]:
        return ()


class Cheap(Costly):
    is_costly = False


def test_entries_of_one_folder_that_cost_differently_have_routes_of_their_own(tmp_path):
    routes = Routes("auto")
    entries = [Entry((Part(f"{tmp_path}/a", 1, "0", supply=supply),)) for supply in (Cheap(), Costly(), None, Costly())]
    assert [routes.of(entry).keeping_tier for entry in entries] == [None, "shm", None, "shm"]
    index = Part(f"{tmp_path}/b", 1, "0")
    assert Entry((index, entries[1].parts[0])).is_costly
    assert not Entry((index, index)).is_costly
    assert Cheap().pieces() is None
