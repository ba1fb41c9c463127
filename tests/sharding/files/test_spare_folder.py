"""A home that keeps nothing costs the kept indexes, says so once, and nothing else."""

import errno
import os
import shutil
import signal

import hdf5_world as world
import pytest
from handmade import members, write_tar
from machine.no_home import KINDS, refuse_writes, temporary, use_home, without_home  # noqa: F401, a fixture

import epistream as es
from epistream.errors import CacheError
from epistream.sharding.files import spare_folder
from epistream.sharding.files.hdf5_sources import find_sources
from epistream.sharding.files.user_cache import default_folder
from epistream.sharding.hdf5 import kept as hdf5_kept

# Of Python 3.12 on, where others left threads in this process; what is forked here takes no lock of theirs.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def steps_of(source):
    stream = es.EpisodeStream(source, batch_size=1, features=["action"], shuffle=False)
    return [step for batch in stream for step in batch["step_index"].tolist()]


def warnings_in(caplog):
    return [text for record in caplog.records if "wanted to keep indexes" in (text := record.getMessage())]


@pytest.mark.parametrize("kind", KINDS)
def test_home_that_keeps_nothing_is_told_once_and_files_are_streamed(kind, tmp_path, monkeypatch, caplog, temporary):  # noqa: F811
    path = world.write_episode(tmp_path / "data" / "episode.hdf5")
    tar = write_tar(tmp_path / "a.tar", members(0, 4, "jpeg"))
    folder = use_home(monkeypatch, tmp_path, kind)
    monkeypatch.chdir(tmp_path / "data")
    for _ in range(2):
        assert steps_of(path) == list(range(world.LENGTH))
        assert steps_of(tar) == list(range(4))
    [told] = warnings_in(caplog)
    assert told.startswith(f"{folder}: ")
    assert "Set XDG_CACHE_HOME to a folder that can be written" in told
    [spare] = temporary.iterdir()
    assert f"they are in {spare} until this job ends" in told
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["episode.hdf5"]
    home = tmp_path / "home"
    assert not home.is_dir() or [file for file in home.rglob("*") if file.is_file() and file.name != ".pruned"] == []


def test_disk_that_fills_up_in_the_middle_costs_no_second_look(tmp_path, monkeypatch, caplog, temporary):  # noqa: F811
    path = str(world.write_episode(tmp_path / "episode.hdf5"))
    monkeypatch.setattr(hdf5_kept, "SHARD_BYTES", 1)
    indexed, real = [], hdf5_kept.index_hdf5

    def index(url, *arguments, **options):
        indexed.append(url)
        return real(url, *arguments, **options) * 3

    monkeypatch.setattr(hdf5_kept, "index_hdf5", index)
    monkeypatch.setattr(hdf5_kept, "_read", lambda first, *_, **__: [first] if first.exists() else None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    refuse_writes(monkeypatch, tmp_path / "home", errno.ENOSPC, after=2)
    [kept] = hdf5_kept.keep_indexes(path)
    assert indexed == [path]
    assert kept.is_relative_to(temporary)
    assert len(list(kept.parent.glob("*.index"))) == 3
    assert list((tmp_path / "home").rglob("*.index")) == []  # its room is given back
    assert "No space left on device" in warnings_in(caplog)[0]


def test_home_that_became_read_only_still_gives_what_it_keeps(tmp_path, monkeypatch, caplog, temporary):  # noqa: F811
    path = world.write_episode(tmp_path / "episode.hdf5")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    steps = steps_of(path)
    use_home(monkeypatch, tmp_path, "locks refused")
    assert steps_of(path) == steps
    assert warnings_in(caplog) == []


def test_home_that_is_repaired_keeps_again(tmp_path, monkeypatch, temporary):  # noqa: F811
    path = world.write_episode(tmp_path / "episode.hdf5")
    use_home(monkeypatch, tmp_path, "a file")
    steps = steps_of(path)
    (tmp_path / "home").unlink()
    assert steps_of(path) == steps
    assert any(default_folder().glob("*.index"))


def test_no_folder_at_all_is_an_error_that_names_each(tmp_path, monkeypatch, temporary):  # noqa: F811
    path = world.write_episode(tmp_path / "episode.hdf5")
    (tmp_path / "memory").mkdir()
    refuse_writes(monkeypatch, tmp_path, errno.ENOSPC)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with pytest.raises(CacheError) as caught:
        steps_of(path)
    told = str(caught.value)
    for folder in ("home", "tmp", "memory"):
        assert f"{tmp_path / folder}/epistream" in told
    assert told.count("No space left on device") == 3
    assert told.endswith("Set XDG_CACHE_HOME to a folder that can be written.")
    spare_folder._leave_all()
    assert list((tmp_path / "memory").iterdir()) == []


def test_memory_serves_where_temporary_files_have_no_room(tmp_path, monkeypatch, temporary):  # noqa: F811
    path = world.write_episode(tmp_path / "episode.hdf5")
    (tmp_path / "memory").mkdir()
    use_home(monkeypatch, tmp_path, "a file")
    refuse_writes(monkeypatch, temporary, errno.ENOSPC)
    assert steps_of(path) == list(range(world.LENGTH))
    assert any((tmp_path / "memory").rglob("*.index"))
    spare_folder._leave_all()
    assert list((tmp_path / "memory").iterdir()) == []


# --- who shares it, and when it goes ---------------------------------------------------------------------------------


class Child:
    """A forked process that enters the spare folder, says whether it was first to speak, and waits."""

    def __init__(self, parent):
        said, self._say = os.pipe()
        self._wait, go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(go)  # else nobody ends it who dies
                folder = spare_folder.enter(parent)
                is_first = spare_folder.is_first_to_say(folder, "full")
                os.write(self._say, f"{folder} {is_first}".encode())
                os.read(self._wait, 1)
                spare_folder._leave_all()
                status = 0
            finally:
                os._exit(status)
        self._go = go
        name, _, is_first = os.read(said, 1000).decode().rpartition(" ")
        self.folder, self.is_first = parent / name, is_first == "True"
        os.close(said)

    def end(self, kill=False):
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        else:
            os.write(self._go, b".")
        for descriptor in (self._go, self._wait, self._say):
            os.close(descriptor)
        _, status = os.waitpid(self.pid, 0)
        assert status == (signal.SIGKILL if kill else 0)


def test_siblings_share_a_folder_one_speaks_and_the_last_removes_it(tmp_path):
    first, second = Child(tmp_path), Child(tmp_path)
    assert first.folder == second.folder == tmp_path / f"epistream-indexes-{os.geteuid()}-{os.getpid()}"
    assert [first.is_first, second.is_first] == [True, False]
    first.end()
    assert first.folder.is_dir()
    second.end()
    assert list(tmp_path.iterdir()) == []


def test_children_use_the_folder_of_their_parent_which_outlives_them(tmp_path):
    folder = spare_folder.enter(tmp_path)
    assert spare_folder.is_first_to_say(folder, "full")
    child = Child(tmp_path)
    assert (child.folder, child.is_first) == (folder, False)
    child.end()
    assert folder.is_dir()
    spare_folder._leave_all()
    assert list(tmp_path.iterdir()) == []


def test_parent_that_ends_first_leaves_the_folder_to_its_child(tmp_path):
    folder = spare_folder.enter(tmp_path)
    child = Child(tmp_path)
    spare_folder._leave_all()
    assert folder.is_dir()
    child.end()
    assert not folder.exists()


def test_folder_of_killed_processes_is_removed_by_the_next_and_is_no_word_of_theirs(tmp_path):
    child = Child(tmp_path)
    (child.folder / "x.index").write_bytes(b"left")
    child.end(kill=True)
    assert child.folder.is_dir()
    again = Child(tmp_path)
    assert again.is_first
    assert not (again.folder / "x.index").exists()
    again.end()
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_removed_by_hand_is_entered_anew(tmp_path):
    folder = spare_folder.enter(tmp_path)
    shutil.rmtree(folder)
    assert spare_folder.enter(tmp_path).is_dir()
    spare_folder._leave_all()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_folder_that_others_could_have_made_is_not_entered(tmp_path, kind):
    name = tmp_path / f"epistream-indexes-{os.geteuid()}-{os.getppid()}"
    if kind == "open to others":
        name.mkdir()
        name.chmod(0o777)
    elif kind == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        name.symlink_to(tmp_path / "elsewhere")
    else:
        name.write_text("")
    refusals = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spare_folder.tempfile, "tempdir", str(tmp_path))
        patch.setattr(spare_folder, "_MEMORY", str(tmp_path / "missing"))
        assert list(spare_folder.spare_folders(refusals)) == []
    assert len(refusals) == 2
    assert refusals[0].startswith(f"{tmp_path}: ")


# --- other places that ask for a home --------------------------------------------------------------------------------


def test_pattern_with_an_unknown_home_is_a_name_that_matches_nothing(monkeypatch):
    without_home(monkeypatch)
    with pytest.raises(es.EpistreamError, match=r"~/\*\.hdf5: matches nothing"):
        find_sources("~/*.hdf5")
