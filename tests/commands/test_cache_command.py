"""`epistream cache`, run as a user runs it, on caches that this process holds or has left."""

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash
from click.testing import CliRunner

from epistream.cache import admin
from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source.entry import Entry, Part
from epistream.cache.store import places
from epistream.commands.cache import command
from epistream.errors import CacheError, EpistreamError

KIB = 1024


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default places, moved to where the test is alone."""
    shm, disk = tmp_path / "shm", tmp_path / "disk"
    shm.mkdir()
    disk.mkdir()
    monkeypatch.setattr(places, "SHM_PARENT", shm)
    monkeypatch.setattr(places, "DISK_PARENT", disk)
    return shm / f"epistream-{os.geteuid()}"


def entry_of(path: Path, number: int) -> Entry:
    file = path / f"{number}.tar"
    data = bytes([number]) * (100 * KIB)
    file.write_bytes(data)
    return Entry((Part(str(file), len(data), xxhash.xxh3_128_hexdigest(data)),))


@pytest.fixture
def cache(place: Path, tmp_path: Path) -> Iterator[NodeCache]:
    """Three entries, the first of them leased."""
    with NodeCache(CacheOptions(mode="shm", directory=str(place))) as made:
        leased = made.open(entry_of(tmp_path, 0))
        for number in (1, 2):
            made.open(entry_of(tmp_path, number)).close()
        yield made
        leased.close()


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.usefixtures("cache")
def test_ls_shows_entries_and_who_leases_them(place: Path) -> None:
    lines = run("ls").splitlines()
    assert lines[0].startswith(f"{place}: 0.3 MiB of ")
    assert f"[{os.getpid()}]" in lines[0]
    rows = [line for line in lines if "ready" in line]
    assert len(rows) == 3
    assert [f"[{os.getpid()}]" in row for row in rows] == [False, False, True], "the most recently used first"
    assert "0.tar" in rows[2]


@pytest.mark.usefixtures("cache")
def test_ls_json_has_the_facts(place: Path) -> None:
    (view,) = json.loads(run("ls", "--json"))
    assert view["path"] == str(place)
    assert view["pids"] == [os.getpid()]
    assert [entry["size"] for entry in view["entries"]] == [100 * KIB] * 3
    assert [entry["pids"] for entry in view["entries"]] == [[], [], [os.getpid()]]
    assert view["held_bytes"] == 300 * KIB


def test_ls_and_stats_show_what_live_processes_claim(cache: NodeCache, place: Path, tmp_path: Path) -> None:
    cache.claim("decoded a", 3 << 20)
    made = Entry((Part(str(tmp_path / "0.tar"), 1, "0" * 32),), "decoded 0", "decoded a")
    opened = cache.open_made(made, 2 << 20, lambda view: None)
    assert opened is not None
    opened.close()
    group = made.key[:8]
    (place / "claim-00000000").write_text("7")  # of a dead process
    what = f"3.0 MiB for decoded frames of {tmp_path} (group {group}), which hold 2.0 MiB; by "
    for name in ("ls", "stats"):
        text = " ".join(each for each in run(name).replace("│", " ").split())
        assert what in text
        line = text.partition(what)[2]
        assert f"[{os.getpid()}]" in line
    (view,) = json.loads(run("ls", "--json"))
    assert view["claims"] == [
        {"group": group, "num_bytes": 3 << 20, "held_bytes": 2 << 20, "pids": [os.getpid()]},
    ]


SETS = "s3://bucket/one", "https://ada:secret@host/signed", "/data/[red]lab"


def sets_of(cache: NodeCache) -> None:
    """Decoded frames of three sets, as many entries of each as its number, and HDF5 files of the last."""
    for number, folder in enumerate(SETS, 1):
        for n in range(number):
            parts = (Part(f"{folder}/{n}.hdf5?X-Amz-Signature=4d5e", 1, "0" * 32),)
            opened = cache.open_made(Entry(parts, f"decoded {n}", folder), 1 << 20, lambda view: None)
            assert opened is not None
            opened.close()


def lines_of_ls(*arguments: str) -> list[str]:
    return [" ".join(line.split()) for line in run("ls", *arguments).splitlines()]


def is_as_it_should(lines: list[str]) -> bool:
    found = [re.sub(r"\(group [0-9a-f]{8}\)", "(group)", line) for line in lines if "decoded" in line]
    return [line.partition(" ready")[0] for line in found] == [
        "decoded frames of /data/[red]lab (group), 3 entries 3.0 MiB",
        "decoded frames of https://***@host/signed (group), 2 entries 2.0 MiB",
        "decoded frames of s3://bucket/one (group), 1 entry 1.0 MiB",
    ]


def test_ls_has_one_line_for_the_decoded_frames_of_a_set_by_its_name_and_no_secrets(cache: NodeCache) -> None:
    sets_of(cache)
    assert is_as_it_should(lines_of_ls())
    (view,) = json.loads(run("ls", "--json"))
    assert [entry["is_made"] for entry in view["entries"]].count(True) == 6
    assert sorted(entry["url"] for entry in view["entries"] if entry["is_made"])[-1] == "s3://bucket/one/0.hdf5"
    for name in ("ls", "stats", "top"):
        text = run(name, *(["--count", "1"] if name == "top" else []))
        assert "secret" not in text
        assert "4d5e" not in text
    assert len([line for line in lines_of_ls("--all") if line.startswith("decoded frames of ")]) == 6


def test_ls_where_files_keep_no_attributes_shows_the_same_names(
    cache: NodeCache, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refused)
    sets_of(cache)
    assert is_as_it_should(lines_of_ls())
    names = (place / ".names").read_text()
    assert "secret" not in names
    assert "4d5e" not in names
    # It is for people, and does not grow for ever.
    (place / ".names").write_text("x" * (1 << 20) + "y")
    opened = cache.open_made(Entry((Part("s3://b/new/0.tar", 1, "0" * 32),), "new", "new"), 1 << 20, lambda view: None)
    assert opened is not None
    opened.close()
    assert (place / ".names").stat().st_size < 100
    assert any("decoded frames of s3://b/new (group" in line for line in lines_of_ls())


def test_ls_of_what_an_earlier_release_left_lists_it(cache: NodeCache, place: Path) -> None:
    sets_of(cache)
    shards = {os.getxattr(path, "user.epistream.url"): path for path in place.glob("*.shard")}
    for url, path in shards.items():
        if path.stat().st_mode & stat.S_ISVTX:  # decoded frames had no names
            os.removexattr(path, "user.epistream.url")
        elif url.endswith(b"/0.tar"):  # and those of shards had user and password
            os.setxattr(path, "user.epistream.url", b"https://ada:secret@host/a/0.tar")
    lines = lines_of_ls()
    assert [re.sub(r"[0-9a-f]{8}", "G", line).partition(" ready")[0] for line in lines if "decoded" in line] == [
        "decoded frames of group G, 3 entries 3.0 MiB",
        "decoded frames of group G, 2 entries 2.0 MiB",
        "decoded frames of group G, 1 entry 1.0 MiB",
    ]
    assert any(line.startswith("https://***@host/a/0.tar 0.1 MiB ready") for line in lines)


def test_ls_of_many_entries_has_a_line_for_each_set_and_what_is_damaged_is_listed(
    cache: NodeCache, place: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(10, 30):
        cache.open(entry_of(folder, number)).close()
    for number in range(5):
        path = tmp_path / f"{number}.hdf5"
        path.write_bytes(b"x" * KIB)
        cache.open(Entry((Part(str(path), KIB, version="1"),), content="packed bytes of HDF5")).close()
    (place / ("e" * 32 + ".part")).write_bytes(b"torn")
    (place / ("f" * 32 + ".shard")).write_bytes(b"")
    (place / "[red]odd.shard").mkdir()
    lines = [line.partition(" MiB")[0].rpartition(" ")[0] for line in lines_of_ls()]
    assert sorted(lines[2:]) == sorted(
        [
            *(f"{tmp_path}/{number}.tar" for number in range(3)),
            f"shards of {folder}, 20 entries",
            f"HDF5 files of {tmp_path}, 5 entries",
            *("e" * 32, "f" * 32, "[red]odd"),
        ]
    )
    assert len(lines_of_ls("--all")) == 2 + 3 + 20 + 5 + 3


@pytest.mark.usefixtures("place")
def test_without_a_cache_commands_say_so() -> None:
    for name in ("ls", "stats", "clear"):
        assert run(name) == "No cache of this user on this node.\n"


@pytest.mark.usefixtures("cache")
def test_clear_leaves_what_is_leased(place: Path) -> None:
    assert run("clear") == f"{place}: 0.2 MiB given back, 0.1 MiB leased or kept\n"
    assert len(list(place.glob("*.shard"))) == 1


def test_clear_removes_what_the_dead_left(place: Path) -> None:
    place.mkdir(mode=0o700)
    for name in (".users", "a" * 32 + ".shard", "b" * 32 + ".part", "b" * 32 + ".fill"):
        (place / name).write_bytes(b"x")
    dead = place.with_name(f".dead-{place.name}-1-00000000")
    dead.mkdir(mode=0o700)
    lines = sorted(run("clear").splitlines())
    assert lines == [f"{dead}: left by dead processes, removed", f"{place}: left by dead processes, removed"]
    assert list(place.parent.iterdir()) == []


def test_clear_of_a_directory_of_ones_own_choice_removes_what_the_dead_left(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o700)
    (mine / ("a" * 32 + ".shard")).write_bytes(b"x")
    assert run("clear", "--directory", str(mine)) == f"{mine}: 0.0 MiB given back, nothing left\n"
    assert not mine.exists()


def test_clear_forget_ends_a_kept_cache(place: Path, tmp_path: Path) -> None:
    with NodeCache(CacheOptions(mode="shm", directory=str(place), keep=True)) as cache:
        cache.open(entry_of(tmp_path, 0)).close()
    assert place.is_dir()
    run("clear")
    assert place.is_dir()
    assert run("clear", "--forget").endswith("nothing left\n")
    assert not place.exists()


def test_resize_changes_the_cap_for_all_and_evicts(cache: NodeCache, place: Path) -> None:
    assert run("resize", "200K") == f"{place}: a cap of 0.2 MiB, 0.1 MiB given back\n"
    budget = cache.budget()
    assert budget is not None
    assert budget.bytes == 200 * KIB
    assert len(list(place.glob("*.shard"))) == 2
    run("resize", "none")
    budget = cache.budget()
    assert budget is not None
    assert "cap" not in budget.terms


def test_resize_of_what_is_no_cache_or_to_what_is_no_size_is_a_named_error(tmp_path: Path) -> None:
    for arguments, error in (
        (["10%", "--directory", str(tmp_path / "none")], "none: not there, wanted a cache"),
        (["8GiB", "--directory", str(tmp_path / "none")], "none: not there, wanted a cache"),
        (["8 parsec"], "size: '8 parsec', wanted a size such as"),
        (["0%"], "size: '0%', wanted a size such as"),
    ):
        failed = CliRunner().invoke(command, ["resize", *arguments]).exception
        assert isinstance(failed, EpistreamError)
        assert error in str(failed)


@pytest.mark.usefixtures("cache")
def test_ls_after_a_resize_below_what_is_leased_says_so() -> None:
    assert "above the budget" not in run("ls")
    run("resize", "60K")
    line = run("ls").splitlines()[0]
    assert "0.10 MiB of 0.06 MiB (the least of: cap 0.06 MiB" in line
    assert ", 0.04 MiB above the budget until leases end; used by" in line


def test_keep_of_some_entries_lets_the_others_go_with_the_last_user(place: Path, tmp_path: Path) -> None:
    entries = [entry_of(tmp_path, number) for number in range(4)]
    options = CacheOptions(mode="shm", directory=str(place))
    with NodeCache(options) as cache:
        for entry in entries[:3]:
            cache.open(entry).close()
        cache.keep([entries[0]])
        cache.keep([entries[2]])
    kept = [f"{entries[0].key}.shard", f"{entries[2].key}.shard"]
    assert sorted(path.name for path in place.glob("[!.]*.shard")) == sorted(kept)
    with NodeCache(options) as cache:
        for entry in entries:
            cache.open(entry).close()
        assert cache.stats().hits == 2
    assert sorted(path.name for path in place.glob("[!.]*.shard")) == sorted(kept)
    with NodeCache(CacheOptions(mode="shm", directory=str(place), keep=True)) as cache:
        cache.open(entries[3]).close()
        cache.keep([entries[0]])  # who wants all wins
    assert len(list(place.glob("*.shard"))) == 3
    run("clear", "--forget")
    assert not place.exists()


def test_warm_of_local_files_keeps_them_alone_and_says_who_uses_them(place: Path, aloha_shards: Path) -> None:
    text = run("warm", str(aloha_shards), "--directory", str(place))
    assert text.startswith("2 of 2 shards are in the cache")
    assert "only jobs with cache='shm' use the copy" in text
    assert len(list(place.glob("*.shard"))) == 2
    assert len((place / ".keep").read_text().split()) == 2


@pytest.mark.usefixtures("cache")
def test_stats_says_what_the_budget_is_the_least_of() -> None:
    text = run("stats")
    assert re.search("the least of: (disk|filesystem) ", text)
    assert "0.3 MiB in 3 entries" in text


@pytest.mark.usefixtures("cache")
def test_top_shows_the_entries_and_ends_after_its_count() -> None:
    text = run("top", "--count", "2", "--interval", "0.05")
    assert "0.1 MiB leased" in text
    assert "2.tar" in text


def test_look_at_what_is_no_cache_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="not there, wanted a cache"):
        admin.look(tmp_path / "none")
    with pytest.raises(CacheError, match="not there, wanted a cache"):
        admin.resize(tmp_path / "none", 1)
    assert not (tmp_path / "none").exists()


def test_look_changes_nothing(place: Path, cache: NodeCache) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in place.iterdir())
    for _ in range(3):
        admin.look(place)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in place.iterdir()) == before
