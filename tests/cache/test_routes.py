"""Which tiers serve what: a table."""

import pytest

from epistream.cache.routes import choose_route


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
