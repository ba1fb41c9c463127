"""What a stream of HDF5 files yields, window by window, against an independent reading of the same files."""

import shutil
from pathlib import Path

import fsspec
import h5py
import hdf5_world as world
import numpy as np
import pytest
from hdf5_world import check, everything, stream_of

import epistream as es
from epistream.errors import SourceError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", world.SHIPPED)
def test_stream_of_a_real_file_out_of_shared_memory_equals_direct_reading(example_data, name, tmp_path):
    path = example_data / name  # read in place, and from shards: test_every_window.py
    check(path, world.read_episodes(path), cache=es.CacheOptions(mode="shm", directory=str(tmp_path / "shm")))


# --- every way of storing a dataset ----------------------------------------------------------------------------------


def big_endian(group, name, array):
    group.create_dataset(name, data=array.astype(array.dtype.newbyteorder(">")))


def missing_chunk(group, name, array):
    array[4:6] = 0
    found = group.create_dataset(name, shape=array.shape, dtype=array.dtype, chunks=(2, *array.shape[1:]))
    found[:4], found[6:] = array[:4], array[6:]


def missing_chunk_with_fill_value(group, name, array):
    found = group.create_dataset(name, shape=array.shape, dtype=array.dtype, chunks=(2, *array.shape[1:]), fillvalue=7)
    found[:4], found[6:] = array[:4], array[6:]


def never_written(group, name, array):
    group.create_dataset(name, shape=array.shape, dtype=array.dtype)


def never_written_with_fill_value(group, name, array):
    group.create_dataset(name, shape=array.shape, dtype=array.dtype, fillvalue=3)


def grown(group, name, array):
    """As a recorder writes that appends a row at a time."""
    found = group.create_dataset(
        name, shape=(0, *array.shape[1:]), maxshape=(None, *array.shape[1:]), dtype=array.dtype, chunks=True
    )
    for step in range(len(array)):
        found.resize(step + 1, axis=0)
        found[step] = array[step]


def wide_chunks(group, name, array):
    """Chunks that reach beyond the dataset along every axis that may grow."""
    chunks = (4, *(size + 3 for size in array.shape[1:]))
    group.create_dataset(name, data=array, chunks=chunks, maxshape=(None,) * array.ndim)


def cut_rows(group, name, array):
    group.create_dataset(name, data=array, chunks=(3, *(max(1, size * 2 // 5) for size in array.shape[1:])))


def cut_rows_big_endian(group, name, array):
    chunks = (3, *(max(1, size * 2 // 5) for size in array.shape[1:]))
    group.create_dataset(name, data=array.astype(array.dtype.newbyteorder(">")), chunks=chunks)


def compact(group, name, array):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple(array.shape)
    found = h5py.h5d.create(group.id, name.encode(), h5py.h5t.py_create(array.dtype), space, plist)
    found.write(h5py.h5s.ALL, h5py.h5s.ALL, array)


def odd_integers(group, name, array):
    """40 bits, somewhere within 64."""
    if array.dtype.kind != "i":
        group.create_dataset(name, data=array)
        return
    kind = h5py.h5t.NATIVE_INT64.copy()
    kind.set_precision(40)
    kind.set_offset(5)
    found = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, h5py.h5s.create_simple(array.shape)))
    found[...] = array


def as_bool(group, name, array):
    group.create_dataset(name, data=array > 0)


def as_half(group, name, array):
    group.create_dataset(name, data=array.astype(np.float16))


def external(group, name, array):
    file = Path(group.file.filename)
    side = file.with_name(f"{file.stem}.{name}.bin")
    found = group.create_dataset(name, shape=array.shape, dtype=array.dtype, external=[(str(side), 0, array.nbytes)])
    found[...] = array


def virtual(group, name, array):
    file = Path(group.file.filename)
    path = file.with_name(f"{file.stem}.{name}.source")
    with h5py.File(path, "w") as file:
        file["x"] = array
    layout = h5py.VirtualLayout(shape=array.shape, dtype=array.dtype)
    layout[:] = h5py.VirtualSource(str(path), "x", shape=array.shape)
    group.create_virtual_dataset(name, layout)


IN_PLACE = {
    "contiguous": {},
    "one row a chunk": "rows",
    "three rows a chunk": "three",
    "missing chunk": missing_chunk,
    "missing chunk with fill value": missing_chunk_with_fill_value,
    "never written": never_written,
    "never written with fill value": never_written_with_fill_value,
    "big endian": big_endian,
    "grown": grown,
    "wide chunks": wide_chunks,
    "cut rows": cut_rows,
    "cut rows, big endian": cut_rows_big_endian,
    "bool": as_bool,
    "half": as_half,
}
THROUGH_H5PY = {
    "gzip": {"compression": "gzip", "chunks": True},
    "lzf, shuffled": {"compression": "lzf", "shuffle": True},
    "checksums": {"fletcher32": True},
    "compact": compact,
    "external": external,
    "virtual": virtual,
}


def storing(how):
    rows = {"rows": 1, "three": 3}.get(how) if isinstance(how, str) else None
    if rows is None:
        return how
    return lambda group, name, array: group.create_dataset(name, data=array, chunks=(rows, *array.shape[1:]))


@pytest.mark.parametrize("cache", ["off", "shm"])
@pytest.mark.parametrize("how", [*IN_PLACE, *THROUGH_H5PY])
def test_stream_of_every_kind_of_storage_equals_h5py(tmp_path, how, cache, caplog):
    store = storing({**IN_PLACE, **THROUGH_H5PY}[how])
    is_camera_too = how not in ("bool", "half", "compact")  # a camera of these would be none, or larger than 64 KiB
    paths = [
        world.write_episode(
            tmp_path / f"episode_{n}.hdf5", 11 - n, seed=n, values=store, camera=store if is_camera_too else None
        )
        for n in range(2)
    ]
    episodes = [episode for path in paths for episode in world.read_episodes(path)]
    options = es.CacheOptions(mode=cache, directory=str(tmp_path / "shm") if cache == "shm" else None)
    with caplog.at_level("WARNING"):
        check([str(path) for path in paths], episodes, cache=options)
    slow = [record.getMessage() for record in caplog.records if "h5py" in record.getMessage()]
    if how in THROUGH_H5PY:
        assert len(slow) == 1
        assert slow[0].startswith("2 of 2 HDF5 files: /action, ")
        assert "epistream pack" in slow[0]
    else:
        assert slow == []


def test_stream_of_integers_of_40_bits_equals_h5py(tmp_path):
    path = world.write_episode(tmp_path / "episode.hdf5", values=odd_integers)
    check(path, world.read_episodes(path), cache="off")


def test_stream_of_a_file_with_a_user_block_equals_h5py(tmp_path):
    path = world.write_episode(tmp_path / "episode.hdf5", userblock_size=512)
    check(path, world.read_episodes(path), cache="off")


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_stream_of_files_of_old_and_new_versions_of_hdf5_equals_h5py(tmp_path, libver):
    path = world.write_episode(tmp_path / "episode.hdf5", values=grown, camera=cut_rows, libver=libver)
    check(path, world.read_episodes(path), cache="off")


def test_stream_of_grey_frames_without_a_channel_axis_equals_h5py(tmp_path):
    def grey(group, name, array):
        group.create_dataset(name, data=array[..., 0], chunks=(1, 7, 9))

    path = world.write_episode(tmp_path / "episode.hdf5", camera=grey)
    check(path, world.read_episodes(path), cache="off")


# --- JPEG rows -------------------------------------------------------------------------------------------------------


def padded(array, extra=5):
    data = [world.jpeg(image) for image in array]
    rows = np.zeros((len(data), max(map(len, data)) + extra), np.uint8)
    for row, one in zip(rows, data, strict=True):
        row[: len(one)] = np.frombuffer(one, np.uint8)
    return rows


def jpeg_rows(**options):
    return lambda group, name, array: group.create_dataset(name, data=padded(array), **options)


def jpeg_strings(group, name, array):
    data = [world.jpeg(image) for image in array]
    group.create_dataset(name, data=np.array(data, f"S{max(map(len, data))}"))


def jpeg_of_variable_length(group, name, array):
    found = group.create_dataset(name, (len(array),), h5py.vlen_dtype(np.uint8))
    for step, image in enumerate(array):
        found[step] = np.frombuffer(world.jpeg(image), np.uint8)


JPEG = {
    "padded": jpeg_rows(),
    "one row a chunk": lambda group, name, array: group.create_dataset(
        name, data=padded(array), chunks=(1, padded(array).shape[1])
    ),
    "cut by chunks": jpeg_rows(chunks=(4, 100)),
    "strings": jpeg_strings,
    "variable length": jpeg_of_variable_length,
    "gzip": jpeg_rows(compression="gzip"),
}


@pytest.mark.parametrize("cache", ["off", "shm"])
@pytest.mark.parametrize("how", JPEG)
def test_stream_of_jpeg_rows_of_every_kind_equals_direct_reading(tmp_path, how, cache):
    path = world.write_episode(tmp_path / "episode.hdf5", camera=JPEG[how])
    options = es.CacheOptions(mode=cache, directory=str(tmp_path / "shm") if cache == "shm" else None)
    check(path, world.read_episodes(path), cache=options)


# --- like a packed dataset -------------------------------------------------------------------------------------------

ORDER = es.OrderOptions(lanes=2, resident_shards=4)


@pytest.mark.parametrize("shuffle", [False, True])
def test_stream_of_files_gives_the_batches_of_the_packed_dataset(tmp_path, shuffle):
    paths = [world.write_episode(tmp_path / f"e_{n}.hdf5", 30 + n, seed=n, camera=cut_rows) for n in range(5)]
    es.pack(paths, tmp_path / "shards", codec="raw", shard_size="64KiB")
    options = {"shuffle": shuffle, "order": ORDER, "seed": 5}
    ours, theirs = stream_of(paths, **options), stream_of(tmp_path / "shards", **options)
    assert ours.job.dataset.num_shards == theirs.job.dataset.num_shards == 5
    for epoch in range(2):
        ours.set_epoch(epoch)
        theirs.set_epoch(epoch)
        for one, other in zip(ours, theirs, strict=True):
            assert one.keys() == other.keys()
            for key in one:
                equal = one[key] == other[key]
                assert equal if key == "task" else bool(equal.all()), key


def test_stream_of_files_resumes_anywhere(tmp_path):
    paths = [world.write_episode(tmp_path / f"e_{n}.hdf5", 9, seed=n) for n in range(4)]
    options = {"shuffle": True, "order": ORDER, "remainder": "drop", "features": ["action"]}
    with es.StreamingLoader(stream_of(paths, **options), num_workers=0, num_threads=2) as loader:
        whole = [batch["action"].clone() for batch in loader]
    with es.StreamingLoader(stream_of(paths, **options), num_workers=0, num_threads=0) as loader:
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        state = loader.state_dict()
    moved = [Path(shutil.copy(path, tmp_path / f"moved_{path.name}")) for path in paths]
    with es.StreamingLoader(stream_of(moved, **options), num_workers=0) as loader:
        loader.load_state_dict(state)
        rest = [batch["action"].clone() for batch in loader]
    assert len(rest) == len(whole) - 3
    assert all(bool((one == other).all()) for one, other in zip(rest, whole[3:], strict=True))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_stream_of_files_in_worker_processes_equals_h5py_also_through_h5py(tmp_path, method):
    paths = [world.write_episode(tmp_path / f"e_{n}.hdf5", 9, seed=n, values={"compression": "gzip"}) for n in range(2)]
    episodes = [episode for path in paths for episode in world.read_episodes(path)]
    stream = stream_of(paths, cache="off")
    assert len(list(stream)) == 5  # h5py has the files open in this process when the others are made
    with es.StreamingLoader(stream, num_workers=2, start_method=method, timeout_s=120.0) as loader:
        loader.set_epoch(0)
        assert world.assert_stream_equals(loader, episodes, (-1, 0), (0, 1, 2, 5), "edge") == everything(episodes)


def test_stream_of_remote_files_equals_h5py(tmp_path):
    memory = fsspec.filesystem("memory")
    for number, values in enumerate([{"compression": "gzip"}, None]):
        path = world.write_episode(tmp_path / f"e_{number}.hdf5", seed=number, values=values, camera=JPEG["padded"])
        memory.pipe_file(f"/remote-{tmp_path.name}/e_{number}.hdf5", path.read_bytes())
    episodes = [e for n in range(2) for e in world.read_episodes(tmp_path / f"e_{n}.hdf5")]
    source = f"memory://remote-{tmp_path.name}/e_{{0,1}}.hdf5"
    for mode in ("off", "auto"):
        check(source, episodes, cache=es.CacheOptions(mode=mode, directory=str(tmp_path / "shm")))


def test_remote_file_that_is_missing_is_refused_by_name():
    with pytest.raises(SourceError, match=r"memory://nowhere/e\.hdf5: .*wanted an HDF5 file"):
        es.EpisodeStream("memory://nowhere/e.hdf5")
