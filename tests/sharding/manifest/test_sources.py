"""Sources of a dataset: in a file of their own that nothing but a look at them reads."""

import dataclasses
import gc
import json
import pickle
import shutil
import sys

import numpy as np
import pytest
import xxhash
from handmade import write_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from web.faulty_server import serve

import epistream as es
from epistream.errors import FormatError
from epistream.sharding.check.verify import verify
from epistream.sharding.dataset import open_dataset
from epistream.sharding.format.features import Feature
from epistream.sharding.format.tables import parse_tables
from epistream.sharding.manifest import manifest_file, manifest_writing
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.manifest_columns import ManifestColumns
from epistream.sharding.manifest.manifest_file import read_manifest
from epistream.sharding.manifest.manifest_writing import write_manifest
from epistream.sharding.manifest.sources import NO_SOURCES, Source, Sources, SourceTable

FEATURES = {"action": Feature("action", "array", "float32", (2,), "npy", fps=20.0)}
CHECKSUM = "0123456789abcdef" * 2
TWO = (Source("a.h5", 12, CHECKSUM), Source("b.h5"))


def manifest_of(sources, links, num_shards=1):
    """A manifest without shards: episodes of three steps, `links` says of which source each is."""
    count = len(links)
    columns = ManifestColumns(
        names=tuple(f"shard-{number:06d}.tar" for number in range(num_shards)),
        shard_bytes=np.full(num_shards, 1000),
        shard_checksums=np.zeros((num_shards, 16), np.uint8),
        index_bytes=np.full(num_shards, 100),
        index_checksums=np.zeros((num_shards, 16), np.uint8),
        shard_split=np.zeros(num_shards, np.uint8),
        episode_shard=np.arange(count) * num_shards // count,
        episode_in_shard=np.arange(count) % (count // num_shards),
        episode_length=np.full(count, 3),
        task_offsets=np.zeros(count + 1, np.int64),
        task_ids=np.zeros(0, np.int64),
    )
    return Manifest(FEATURES, ("all",), columns, sources=Sources.of(sources, np.array(links, np.int64)))


def written(folder, sources=TWO, links=(0, 1, 0, -1)):
    """The folder, and the path of its sources."""
    write_manifest(manifest_of(sources, links), str(folder))
    return next(folder.glob("sources-*.tables"), None)


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that manifests read, as they are read."""
    names = []
    real = manifest_file.read_bytes

    def counted(url, *arguments, **options):
        names.append(url.rpartition("/")[2].partition("-")[0])
        return real(url, *arguments, **options)

    monkeypatch.setattr(manifest_file, "read_bytes", counted)
    return names


@pytest.mark.parametrize(
    ("sources", "links"),
    [
        ([Source("a.h5", 12, CHECKSUM)], [0, 0, 0]),  # many episodes of one
        ([Source("日本/a ☃\n.h5", 2**40, CHECKSUM), Source("日本/b.h5")], [1, -1, 0]),
        ([Source("", 0, "")], [-1, -1]),
        ([Source("a", 1), Source("a", 2), Source("c" * 5000, 3)], [2]),
        ([], [-1, -1]),
    ],
)
def test_sources_come_back_as_they_were_written(tmp_path, sources, links):
    path = written(tmp_path, sources, links)
    back = read_manifest(str(tmp_path)).sources
    assert list(back) == sources
    assert [back[number] for number in range(len(back))] == sources
    assert back[1:] == tuple(sources[1:])
    assert (path is None) == (not sources)
    if sources:
        assert back[-1] == sources[-1]
        assert back.table.episode_source.tolist() == links


@given(
    st.lists(
        st.builds(
            Source,
            st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
            st.integers(0, 2**63 - 1),
            st.just("") | st.binary(min_size=16, max_size=16).filter(any).map(bytes.hex),
        ),
        min_size=1,
        max_size=5,
    ),
    st.data(),
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sources_of_any_kind_come_back(tmp_path, sources, data):
    links = data.draw(st.lists(st.integers(-1, len(sources) - 1), min_size=1, max_size=6))
    written(tmp_path, sources, links)
    back = read_manifest(str(tmp_path)).sources
    assert (list(back), back.table.episode_source.tolist()) == (sources, links)
    assert len(list(tmp_path.glob("*.tables"))) == 2  # those before are gone


def test_sources_lie_in_a_file_as_the_specification_says(tmp_path):
    data = written(tmp_path).read_bytes()
    about = json.loads((tmp_path / "dataset.json").read_text())["sources"]
    digest = xxhash.xxh3_128_hexdigest(data)
    assert about == {"file": f"sources-{digest[:16]}.tables", "bytes": len(data), "checksum": digest, "count": 2}
    tables = parse_tables(data, "epistream.dataset-sources", "x", "")
    assert tables.meta == {"num_sources": 2, "num_episodes": 4}
    arrays = tables.arrays
    assert list(arrays) == ["paths", "path_offsets", "num_bytes", "checksums", "episode_source"]
    assert arrays["paths"].tobytes() == b"a.h5b.h5"
    assert [arrays[name].dtype.str for name in arrays] == ["|u1", "<i8", "<i8", "|u1", "<i8"]
    assert arrays["path_offsets"].tolist() == [0, 4, 8]
    assert arrays["num_bytes"].tolist() == [12, 0]
    assert arrays["checksums"].tobytes().hex() == CHECKSUM + "00" * 16
    assert arrays["episode_source"].tolist() == [0, 1, 0, -1]


def test_sources_are_read_once_and_when_somebody_looks(tmp_path, reads):
    written(tmp_path)
    manifest = read_manifest(str(tmp_path))
    part = manifest.select([0])
    assert reads == ["dataset.json", "dataset"]
    assert [source.path for source in manifest.sources] == ["a.h5", "b.h5"]
    assert len(manifest.sources) == 2
    assert part.sources.table.episode_source.tolist() == [0, 1, 0, -1]
    assert reads == ["dataset.json", "dataset", "sources"]


def test_sources_of_some_shards_link_their_episodes(tmp_path):
    sources = [Source("a.h5"), Source("b.h5")]
    write_manifest(manifest_of(sources, [0, 1, -1, 1, 1, 0], num_shards=3), str(tmp_path))
    part = read_manifest(str(tmp_path)).select([2, 0])
    assert list(part.sources) == sources
    assert part.sources.table.episode_source.tolist() == [0, 1, 1, 0]
    assert len(manifest_of([], [-1, -1], num_shards=2).select([1]).sources) == 0


def test_manifest_without_sources_has_no_file_of_them(tmp_path, reads):
    manifest = dataclasses.replace(manifest_of([], [-1]), sources=NO_SOURCES)
    write_manifest(manifest, str(tmp_path))
    assert json.loads((tmp_path / "dataset.json").read_text())["sources"] is None
    assert list(read_manifest(str(tmp_path)).sources) == []
    assert reads == ["dataset.json", "dataset"]


def stream_all(url):
    """Every window of a dataset that two workers read."""
    stream = es.EpisodeStream(url, batch_size=4)
    with es.StreamingLoader(stream, num_workers=2) as loader:
        return sum(len(batch["step_index"]) for batch in loader)


def test_opening_and_streaming_ask_for_two_files_and_never_for_sources(tmp_path):
    folder = write_dataset(tmp_path / "ds", metas={0: {"source": "a.h5"}, 1: {"source": "b.h5"}})
    with serve() as server:
        server.files = {f"/ds/{path.name}": path.read_bytes() for path in folder.iterdir()}
        dataset = open_dataset(f"{server.url}/ds")
        asked = [path.rpartition("/")[2].partition("-")[0] for path, _ in server.requests]
        assert asked == ["dataset.json", "dataset"]
        assert stream_all(f"{server.url}/ds") == dataset.num_steps == 12
        assert not [path for path, _ in server.requests if "sources" in path]
        manifest = read_manifest(f"{server.url}/ds")
        assert [source.path for source in manifest.sources] == ["a.h5", "b.h5"]
        assert len([path for path, _ in server.requests if "sources" in path]) == 1


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda path: path.unlink(), "no such file, wanted the 2 sources of dataset.json"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes with checksum"),
        (lambda path: path.write_bytes(bytes(100)), "100 bytes with checksum"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\1"), "bytes with checksum"),
    ],
)
def test_sources_that_are_missing_or_damaged_hurt_only_who_asks(tmp_path, damage, found):
    folder = write_dataset(tmp_path / "ds", metas={0: {"source": "a.h5"}, 1: {"source": "b.h5"}})
    (path,) = folder.glob("sources-*.tables")
    whole = path.read_bytes()
    damage(path)
    assert open_dataset(folder).num_episodes == 3
    assert stream_all(folder) == 12
    sources = read_manifest(str(folder)).sources
    with pytest.raises(FormatError) as caught:
        list(sources)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert found in text
    assert "Copy it again, or make it anew with 'epistream index URL --overwrite'." in text
    (fault,) = verify(open_dataset(folder)).faults
    assert fault.file == path.name
    path.write_bytes(whole)
    assert len(sources) == 2  # an error is not remembered
    assert verify(open_dataset(folder)).faults == []


def test_sources_that_were_lost_are_made_again_by_index(tmp_path):
    from click.testing import CliRunner

    from epistream.commands import cli

    folder = write_dataset(tmp_path / "ds", metas={0: {"source": "b.h5"}, 2: {"source": "a.h5"}})
    (path,) = folder.glob("sources-*.tables")
    whole = path.read_bytes()
    path.unlink()
    assert CliRunner().invoke(cli, ["index", str(folder), "--overwrite"]).exit_code == 0
    assert path.read_bytes() == whole
    manifest = read_manifest(str(folder))
    assert list(manifest.sources) == [Source("b.h5"), Source("a.h5")]
    assert manifest.sources.table.episode_source.tolist() == [0, -1, 1]


def forge(folder, arrays, **about):
    """Put other sources in place, with checksums that are right."""
    from epistream.sharding.format.tables import write_tables

    document = json.loads((folder / "dataset.json").read_text())
    data = write_tables("epistream.dataset-sources", {}, arrays)
    digest = xxhash.xxh3_128_hexdigest(data)
    name = f"sources-{digest[:16]}.tables"
    (folder / name).write_bytes(data)
    document["sources"] |= {"file": name, "bytes": len(data), "checksum": digest, **about}
    (folder / "dataset.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paths": None}, "table 'paths' is missing, wanted uint8"),
        ({"num_bytes": np.zeros(2, np.int32)}, r"table 'num_bytes' is int32 \(2,\), wanted int64"),
        ({"checksums": np.zeros((2, 15), np.uint8)}, r"table 'checksums' is uint8 \(2, 15\)"),
        ({"checksums": np.zeros((3, 16), np.uint8)}, "3 checksums of sources, wanted 2"),
        ({"num_bytes": np.zeros(1, np.int64)}, "1 num_bytes of sources, wanted 2"),
        ({"num_bytes": np.array([0, -1])}, r"num_bytes\[1\] is -1, wanted 0"),
        ({"path_offsets": np.array([0, 9, 8])}, "offsets of texts that do not rise, wanted 0 to 8"),
        ({"path_offsets": np.array([0, 8])}, "1 paths of sources, wanted 2"),
        ({"episode_source": np.array([0, 2, 0, 0])}, r"episode_source\[1\] is 2, wanted -1 to 1"),
        ({"episode_source": np.array([0, -2, 0, 0])}, r"episode_source\[1\] is -2, wanted -1 to 1"),
        ({"episode_source": np.zeros(5, np.int64)}, "5 of episode_source, wanted 4"),
    ],
)
def test_sources_that_cannot_be_are_refused_by_name(tmp_path, change, message):
    written(tmp_path)
    arrays = dict(zip(("paths", "path_offsets"), read_manifest(str(tmp_path)).sources.table.paths.arrays, strict=True))
    table = read_manifest(str(tmp_path)).sources.table
    arrays |= {name: getattr(table, name) for name in ("num_bytes", "checksums", "episode_source")}
    forge(tmp_path, {name: array for name, array in (arrays | change).items() if array is not None})
    manifest = read_manifest(str(tmp_path))
    with pytest.raises(FormatError, match=rf"sources-[0-9a-f]{{16}}\.tables: {message}"):
        list(manifest.sources)


@pytest.mark.parametrize("name", ["../sources-00000000.tables", "sources-0.tables", "/etc/passwd"])
def test_sources_outside_the_folder_are_refused(tmp_path, name):
    written(tmp_path)
    document = json.loads((tmp_path / "dataset.json").read_text())
    document["sources"]["file"] = name
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(FormatError, match=r"sources\.file"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("checksum", ["ab", "x" * 32, CHECKSUM + "00", "ß" * 32])
def test_source_with_a_checksum_that_is_none_is_refused(checksum):
    with pytest.raises(FormatError, match=r"sources: a\.h5: checksum '.*', wanted 32 hexadecimal digits"):
        Sources.of([Source("a.h5", 1, checksum)], np.array([0]))


@pytest.mark.parametrize("dies_at", ["dataset-", "sources-", "dataset.json"])
def test_writer_that_dies_at_any_file_leaves_the_old_dataset_with_its_sources(tmp_path, monkeypatch, dies_at):
    written(tmp_path)
    real = manifest_writing.write_atomic

    def dies(url, data, options=None):
        if url.rpartition("/")[2].startswith(dies_at):
            raise KeyboardInterrupt
        real(url, data, options)

    monkeypatch.setattr(manifest_writing, "write_atomic", dies)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(manifest_of([Source("c.h5")], [0, 0]), str(tmp_path))
    monkeypatch.undo()
    assert [source.path for source in read_manifest(str(tmp_path)).sources] == ["a.h5", "b.h5"]
    write_manifest(manifest_of([Source("c.h5")], [0, 0]), str(tmp_path))
    assert [source.path for source in read_manifest(str(tmp_path)).sources] == ["c.h5"]
    assert len(list(tmp_path.iterdir())) == 3


def test_manifest_that_is_read_before_an_overwrite_says_that_its_sources_are_gone(tmp_path):
    path = written(tmp_path)
    old = read_manifest(str(tmp_path))
    written(tmp_path, [Source("c.h5")], [0])
    with pytest.raises(FormatError, match=rf"{path.name}: no such file, wanted the 2 sources"):
        list(old.sources)


def test_dataset_of_many_sources_carries_none_of_them(tmp_path):
    num_episodes = 20_000
    folder = tmp_path / "many"
    paths = [Source(f"day_{number // 1000}/episode_{number}.hdf5", 1, CHECKSUM) for number in range(num_episodes)]
    manifest = manifest_of(paths, range(num_episodes))
    tasks = [f"pick up object {number}" for number in range(num_episodes)]
    columns = dataclasses.replace(
        manifest.columns, task_offsets=np.arange(num_episodes + 1), task_ids=np.arange(num_episodes)
    )
    write_manifest(dataclasses.replace(manifest, columns=columns, tasks=tasks), str(folder))
    del paths, tasks, manifest
    gc.collect()
    before = sys.getallocatedblocks()
    dataset = open_dataset(folder)
    stream = es.EpisodeStream(folder, batch_size=4)
    packed = pickle.dumps(stream.job, 5)
    job = pickle.loads(packed)
    gc.collect()
    assert sys.getallocatedblocks() - before < num_episodes / 2  # nothing for each episode
    shutil.rmtree(folder)
    assert job.dataset.tasks[num_episodes - 1] == dataset.tasks[-1] == f"pick up object {num_episodes - 1}"
    columns = job.dataset.columns
    arrays = [array for array in vars(columns).values() if isinstance(array, np.ndarray)]
    texts = sum(array.nbytes for array in job.dataset.tasks.arrays)
    plan = 8 * num_episodes  # where the windows of each episode begin
    assert len(packed) < sum(array.nbytes for array in arrays) + texts + 2 * plan
    assert b"day_19" not in packed


def test_table_of_sources_is_the_same_bytes_again():
    table = SourceTable.of([Source("a.h5", 12, CHECKSUM), Source("b.h5")], np.array([1, 0]), "x")
    data = table.to_bytes()
    assert SourceTable.parse(data, "x").to_bytes() == data
