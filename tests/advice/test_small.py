"""Advice of the cache, of indexes and manifests, of tars, of checks, of configurations and commands, taken."""

import fcntl
import io
import json
import logging
import os
import re
import shutil
import tarfile

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hdf5_files import aloha_jpeg, aloha_raw
from words.advised import follow, taken

import epistream as es
from epistream.cache import admin
from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source.entry import Part
from epistream.cache.source.rows import check_range
from epistream.cache.store.directory import CacheDirectory
from epistream.commands import cli
from epistream.errors import CacheError, DatasetExistsError, DeadlineError, EpistreamError, FormatError
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.layouts.registry import LAYOUTS


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def shards(aloha_shards, tmp_path):
    """Two shards of a dataset, to be broken."""
    return shutil.copytree(aloha_shards, tmp_path / "shards")


def said(action, error=EpistreamError):
    with pytest.raises(error) as caught:
        action()
    return str(caught.value)


def run(*words):
    return CliRunner().invoke(cli, list(map(str, words)))


def steps_of(folder, **options):
    with es.StreamingLoader(
        es.EpisodeStream(folder, batch_size=20, features=["action"], **options), num_workers=0, num_threads=0
    ) as loader:
        return sum(len(batch["step_index"]) for batch in loader)


# --- indexes and manifests --------------------------------------------------------------------------------


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@taken("cache/source/local.py", "epistream index", "--overwrite")
@taken("cache/source/fetch.py", "epistream index", "--overwrite")
@pytest.mark.parametrize("cache", ["off", "shm"])
@pytest.mark.parametrize("harm", [flip, cut])
def test_index_that_is_not_of_the_manifest_make_it_again(shards, tmp_path, cache, harm):
    harm(shards / "shard-000000.index")
    options = {"cache": CacheOptions(mode=cache, directory=str(tmp_path / "node"))} if cache == "shm" else {}
    message = said(lambda: steps_of(shards, **options))
    follow(message, shards)
    assert steps_of(shards, **options) == 140


@taken("cache/source/local.py", "epistream index", "--overwrite")
def test_shard_that_was_written_to_make_its_index_again_if_that_is_meant(shards):
    stream = es.EpisodeStream(shards, batch_size=20, features=["action"], shuffle=False)
    batches = iter(stream)
    next(batches)
    for path in shards.glob("*.tar"):
        with path.open("ab") as file:
            file.write(bytes(10240))
    message = said(lambda: es.EpisodeStream(shards, features=["action"]).read(0, 0))
    follow(message, shards)
    assert steps_of(shards) == 140


@taken("sharding/format/index.py", "epistream index", "--overwrite")
@taken("sharding/check/inspect.py", "epistream index", "--overwrite")
@pytest.mark.parametrize("harm", [flip, cut, os.unlink])
def test_index_that_inspect_cannot_use_write_it_again(shards, tmp_path, harm):
    path = shards / "shard-000000.index"
    whole = path.read_bytes()
    harm(path)
    line = ["inspect", shards, "--episode", "0", "--image", tmp_path / "out.png"]
    failed = run(*line)
    assert failed.exit_code
    follow(failed.exception)
    assert run(*line).exit_code == 0
    follow(said(lambda: ShardIndex.parse(whole[:-8], "i"), FormatError), shards)


@taken("sharding/manifest/manifest.py", "epistream index", "--overwrite")
@taken("sharding/manifest/manifest_arrays.py", "epistream index", "--overwrite")
@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "dataset.json").write_text("{}"),
        lambda folder: cut(folder / "dataset.json"),
        lambda folder: next(folder.glob("dataset-*.tables")).unlink(),
        lambda folder: cut(next(folder.glob("dataset-*.tables"))),
        lambda folder: edit(folder, splits=[]),
    ],
)
def test_manifest_that_is_torn_make_it_again(shards, harm):
    harm(shards)
    message = said(lambda: es.open_dataset(shards))
    follow(message, shards)
    assert steps_of(shards) == 140


def edit(folder, **changes):
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@taken("cache/source/entry.py", "epistream index", "--overwrite")
@taken("cache/source/rows.py", "epistream index", "--overwrite")
def test_index_that_points_elsewhere_make_it_again(shards):
    checksums = np.zeros(3, np.uint64)
    follow(said(lambda: Part("s.tar", 10, block_checksums=checksums)), shards)
    follow(said(lambda: check_range("s.tar", 10, 8, 4)), shards)
    assert steps_of(shards) == 140


@taken("sharding/tar/reindex.py", "epistream verify", "--overwrite", "--emit")
def test_manifest_that_is_there_check_replace_or_emit(shards):
    message = said(lambda: run("index", shards).exception and (_ for _ in ()).throw(run("index", shards).exception))
    follow(message)
    assert "Replace it with --overwrite, write other sidecars with --emit" in message
    for more in (["--overwrite"], ["--emit", "wids"]):
        assert run("index", shards, *more).exit_code == 0


# --- folders without a manifest ---------------------------------------------------------------------------


@taken("sharding/files/folder_hint.py", "epistream pack", "epistream index", "--resume")
@taken("sharding/dataset.py", "epistream index")
@taken("sharding/pack/workspace.py", "epistream index")
def test_folder_without_a_manifest_pack_or_index(shards, tmp_path):
    aloha_raw(tmp_path / "in" / "a.hdf5", 4)
    for source in (tmp_path / "in", tmp_path / "in" / "a.hdf5"):
        out = tmp_path / f"out of {source.name}"
        message = str(run("verify", source).exception)
        follow(message, OUT=out)
        assert es.open_dataset(out).num_episodes == 1
    (tmp_path / "empty").mkdir()
    message = said(lambda: es.open_dataset(tmp_path / "empty"))
    follow(message.replace("SRC...", "SRC"), SRC=tmp_path / "in", OUT=tmp_path / "empty")
    assert es.open_dataset(tmp_path / "empty").num_episodes == 1
    (shards / "dataset.json").unlink()
    message = said(lambda: es.pack(tmp_path / "in", shards), DatasetExistsError)
    assert "'epistream index' makes them a dataset" in message
    message = said(lambda: es.open_dataset(shards))
    assert "run it again with --resume" in message
    assert run("pack", tmp_path / "in", tmp_path / "new", "--resume", "--workers", "1").exit_code == 0
    follow(message)
    assert steps_of(shards) == 140


@taken("sharding/dataset.py", "epistream index")
def test_remote_tars_without_a_manifest_index_them(shards):
    import fsspec

    remote, number = fsspec.filesystem("memory"), os.getpid()
    for path in shards.glob("*.tar"):
        remote.pipe(f"/advice-{number}/{path.name}", path.read_bytes())
    message = said(lambda: es.open_dataset(f"memory://advice-{number}/shard-{{000000..000001}}.tar"))
    follow(message)
    assert es.open_dataset(f"memory://advice-{number}").num_episodes == 2


@taken("sharding/check/inspect.py", "epistream pack")
@taken("sharding/check/verify.py", "epistream pack")
def test_hdf5_file_that_only_a_packed_one_would_do_for_pack_it(tmp_path):
    path = aloha_jpeg(tmp_path / "a b.hdf5", 4)
    message = str(run("verify", path).exception)
    follow(message, OUT=tmp_path / "out")
    assert es.open_dataset(tmp_path / "out").num_episodes == 1


# --- packing ----------------------------------------------------------------------------------------------


@taken("sharding/pack/workspace.py", "--overwrite", "--resume")
@taken("sharding/pack/pack.py", "--overwrite")
def test_pack_into_what_is_there_replace_it_or_finish_it(tmp_path):
    aloha_raw(tmp_path / "in" / "a.hdf5", 4)
    line = ["pack", tmp_path / "in", tmp_path / "out", "--workers", "1"]
    assert run(*line).exit_code == 0
    for other in ([], ["--resume", "--val-fraction", "0.5"]):
        message = str(run(*line, *other).exception)
        assert "or replace it with --overwrite" in message
        assert run(*line, "--overwrite").exit_code == 0

    def interrupt(progress):
        if progress.stage == "publishing":
            raise KeyboardInterrupt

    shutil.rmtree(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        es.pack(tmp_path / "in", tmp_path / "out", progress=interrupt)
    message = str(run(*line).exception)
    assert "Finish it with --resume, or begin again with --overwrite." in message
    message = str(run(*line, "--resume", "--fps", "3").exception)
    assert "Give them as before, or begin again with --overwrite." in message
    again = shutil.copytree(tmp_path / "out", tmp_path / "again")
    assert run("pack", tmp_path / "in", again, "--workers", "1", "--overwrite", "--fps", "3").exit_code == 0
    assert run(*line, "--resume").exit_code == 0


# --- tars of others ---------------------------------------------------------------------------------------


def tar_of(path, members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def steps_tar(folder, key="ep{e}_{s:03d}"):
    def values(number):
        out = io.BytesIO()
        np.save(out, np.full(2, number, np.float32))
        return out.getvalue()

    names = {f"{key.format(e=e, s=s)}.action.npy": values(s) for e in range(2) for s in range(3)}
    return tar_of(folder / "a.tar", names)


@taken("sharding/tar/step_draft.py", "epistream index", "--steps")
@taken("sharding/tar/samples.py", "epistream index", "--draft")
@taken("sharding/tar/index_cache.py", "epistream index")
@taken("sharding/tar/reindex.py", "--steps", "--key", "--overwrite")
@taken("epistream/commands/index.py", "--steps", "--key", "--draft")
def test_tars_of_single_steps_draft_a_mapping_and_index_by_it(tmp_path):
    folder = steps_tar(tmp_path / "tars").parent
    message = str(run("index", folder).exception)
    assert "'epistream index URL --steps steps.yaml'" in message
    drafted = run("index", folder, "--draft")
    assert drafted.exit_code == 0, drafted.output
    steps = tmp_path / "steps.yaml"
    steps.write_text(drafted.output)
    for wrong in (["--draft", "--steps", steps], ["--steps", steps, "--key", "ep{episode}_{step}"]):
        assert run("index", folder, *wrong).exit_code
    follow(re.search("'epistream index URL --steps steps.yaml'", message)[0], folder, **{"steps.yaml": steps})
    assert es.open_dataset(folder).episode_length.tolist() == [3, 3]
    message = str(run("index", folder, "--steps", steps, "--emit", "wids").exception)
    assert "Add --overwrite, or leave out --steps and --key" in message
    assert run("index", folder, "--steps", steps, "--emit", "wids", "--overwrite").exit_code == 0
    assert run("index", folder, "--emit", "wids").exit_code == 0


# --- the cache --------------------------------------------------------------------------------------------


@taken("cache/admin.py", "epistream cache ls")
@taken("cache/store/budget.py", "epistream cache resize")
@taken("cache/store/markers.py", "epistream cache resize")
@taken("epistream/commands/cache.py", "epistream cache warm")
def test_cache_that_is_not_there_or_too_small_list_warm_or_resize(shards, tmp_path, monkeypatch, caplog):
    follow(said(lambda: admin.look(tmp_path / "none"), CacheError))
    place = tmp_path / "a place" / "node"
    place.parent.mkdir()
    with NodeCache(CacheOptions(mode="shm", directory=str(place), budget_bytes="8MiB")) as cache:
        assert cache.budget().bytes == 8 << 20
        with NodeCache(CacheOptions(mode="shm", directory=str(place), budget_bytes="64MiB")) as other:
            caplog.set_level(logging.WARNING)
            other.budget()
            [text] = [record.getMessage() for record in caplog.records if "is in force" in record.getMessage()]
            follow(text)
            assert other.budget().bytes == 64 << 20
        cure = cache.budget().cure
        assert cure == "raise budget_bytes, or run 'epistream cache resize SIZE'"
        follow(
            f"{cure.removesuffix(chr(39))} --directory '{place}''".replace(f"'{place}'", "PLACE"),
            SIZE="70MiB",
            PLACE=place,
        )
        assert cache.budget().bytes == 70 << 20
    monkeypatch.setattr(admin, "find_caches", lambda: [])
    message = str(run("cache", "resize", "1GiB").exception)
    follow(message.replace("SOURCE", f"SOURCE --directory {tmp_path / 'warm'}"), SOURCE=shards)
    assert run("cache", "clear", "--forget", "--directory", tmp_path / "warm").exit_code == 0


def test_cache_directory_that_a_process_holds_end_that_process(tmp_path):
    place = tmp_path / "node"
    place.mkdir(mode=0o700)
    with (place / ".users").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        message = said(lambda: CacheDirectory.enter(place, 0.0), DeadlineError)
        assert f"process [{os.getpid()}]" in message or str(os.getpid()) in message
        assert "End that process" in message
    directory, _ = CacheDirectory.enter(place, 0.0)  # as its end would close it
    directory.leave()


# --- configurations and commands --------------------------------------------------------------------------


@taken("configs/config.py", "epistream config show")
def test_configuration_that_is_wrong_show_all_keys(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("preset: small\nstream: {batch_size: none}\n")
    follow(said(lambda: es.load_config(path)))
    path.write_text("preset: small\n")
    failed = run("config", "show", path, "--set", "stream.batch_size")
    [example] = re.findall(r"for example (\S+)", failed.output)
    assert run("config", "show", path, "--set", example).exit_code == 0


@taken("configs/replaced.py", "epistream config show", "--yaml", "--preset")
def test_configuration_of_the_replaced_system_write_it_anew(tmp_path, caplog):
    path = tmp_path / "old run.yaml"
    path.write_text("optimization: {enabled: true}\n")
    for preset in (None, "small"):
        caplog.clear()
        es.load_config(path, preset=preset)
        [text] = [record.getMessage() for record in caplog.records if "Written anew" in record.getMessage()]
        follow(text.splitlines()[-1])


@taken("configs/replaced.py", "world=")
def test_configuration_that_wants_every_window_on_every_rank(shards, tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("distributed: {use_distributed_sampler: false}\n")
    assert "Leave it out, or make the stream with world=World()" in said(lambda: es.load_config(path))
    assert steps_of(shards, world=es.World()) == 140
    path.write_text("optimization: {enabled: true}\n")
    assert es.load_config(path)


@taken("sharding/opening/foreign_hdf5.py", "epistream pack", "--layout-file", "layout=")
def test_hdf5_file_of_another_program_describe_it(tmp_path):
    path, layout = tmp_path / "a.h5", tmp_path / "layout.yaml"
    with h5py.File(path, "w") as file:
        file.attrs["_NCProperties"] = "version=2"
        file["state"] = file["command"] = np.zeros((5, 3), np.float32)
    rows = "{path: state, name: observation.state}, {path: command, name: action}"
    layout.write_text(f"name: mine\nfeatures: [{rows}]\n")
    for action in (lambda: es.open_dataset(path), lambda: es.pack(path, tmp_path / "out")):
        assert "Describe it by a layout file (epistream pack --layout-file, layout=)" in said(action)
    assert es.open_dataset(path, layout=str(layout)).num_steps == 5
    done = run("pack", path, tmp_path / "out", "--layout-file", layout, "--workers", "1")
    assert done.exit_code == 0, done.exception
    assert es.open_dataset(tmp_path / "out").num_steps == 5


@taken("epistream/commands/sources.py", "--layout", "--layout-file")
@taken("epistream/commands/inspect.py", "--json", "--image")
@taken("epistream/commands/cache.py", "cache=")
def test_commands_that_want_one_of_two_or_show_the_rest_elsewhere(shards, tmp_path):
    path, layout = aloha_raw(tmp_path / "a.hdf5", 4), tmp_path / "layout.yaml"
    layout.write_text("x: 1")
    assert "wanted one" in str(run("inspect", path, "--layout", "aloha", "--layout-file", layout).exception)
    assert any(run("inspect", path, "--layout", one.name).exit_code == 0 for one in LAYOUTS)
    assert json.loads(run("inspect", path, "--json").output)
    warmed = run("cache", "warm", shards, "--directory", tmp_path / "warm")
    [mode] = re.findall("only jobs with cache='(.*)' use the copy", warmed.output)
    assert steps_of(shards, cache=CacheOptions(mode=mode, directory=str(tmp_path / "warm"))) == 140
    run("cache", "clear", "--forget", "--directory", tmp_path / "warm")
