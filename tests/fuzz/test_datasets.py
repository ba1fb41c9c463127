"""Manifests, tables, indexes and tars that are damaged or made up: streams, checks and looks end in named errors."""

import json
import shutil

import pytest
from fuzzing import as_json, damaged, fuzzed, only_named_errors, other_values
from hdf5_files import aloha_raw
from hypothesis import given
from hypothesis import strategies as st

import epistream as es
from epistream.sharding.check.inspect import describe
from epistream.sharding.check.verify import verify
from epistream.sharding.dataset import open_dataset
from epistream.sharding.format.checksums import checksum
from epistream.sharding.format.index import ShardIndex


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Four episodes of 5 steps with a JPEG and a PNG camera, in shards of two."""
    top = tmp_path_factory.mktemp("fuzz")
    for number in range(4):
        aloha_raw(top / "in" / f"episode_{number}.hdf5", seed=number)
    es.pack(top / "in", top / "jpeg", shard_size="64KiB", split_seed=1, val_fraction=0.5)
    es.pack(top / "in", top / "png", shard_size="64KiB", codec="png")
    return top


def use(folder):
    """All that is done with a dataset of somebody."""
    with only_named_errors():
        stream = es.EpisodeStream(folder, batch_size=4, split=None, cache="off", on_bad="raise", seed=2)
        for _, batch in zip(range(3), stream, strict=False):
            assert batch["action"].shape[0] <= 4
    with only_named_errors():
        dataset = open_dataset(folder)
        describe(dataset)
        verify(dataset)


def with_files(tmp_path, source, files):
    folder = tmp_path / "fuzzed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@fuzzed
@given(data=st.data())
def test_manifest_of_other_values_gives_named_errors(data, packed, tmp_path):
    document = json.loads((packed / "jpeg" / "dataset.json").read_bytes())
    use(with_files(tmp_path, packed / "jpeg", {"dataset.json": as_json(data.draw(other_values(document)))}))


@fuzzed
@given(data=st.data())
def test_any_damaged_file_gives_named_errors(data, packed, tmp_path):
    source = packed / data.draw(st.sampled_from(["jpeg", "png"]))
    name = data.draw(st.sampled_from(sorted(path.name for path in source.iterdir() if path.is_file())))
    use(with_files(tmp_path, source, {name: data.draw(damaged((source / name).read_bytes()))}))


@fuzzed
@given(data=st.data())
def test_damaged_index_gives_named_errors(data, packed):
    path = packed / "jpeg" / "shard-000000.index"
    with only_named_errors():
        index = ShardIndex.parse(data.draw(damaged(path.read_bytes())), path.name)
        list(index.keys), list(index.episodes)


@fuzzed
@given(data=st.data())
def test_damaged_index_that_the_manifest_agrees_with_gives_named_errors(data, packed, tmp_path):
    """The manifest agrees with the index: only the index itself can tell."""
    source = packed / "jpeg"
    torn = data.draw(damaged((source / "shard-000000.index").read_bytes()))
    document = json.loads((source / "dataset.json").read_bytes())
    tables = (source / document["tables"]["file"]).read_bytes()
    old = bytes.fromhex(checksum((source / "shard-000000.index").read_bytes()))
    assert tables.count(old) == 1
    tables = tables.replace(old, bytes.fromhex(checksum(torn)))
    name = f"dataset-{checksum(tables)[:8]}.tables"
    document["tables"] = {"file": name, "bytes": len(tables), "checksum": checksum(tables)}
    files = {"shard-000000.index": torn, name: tables, "dataset.json": as_json(document)}
    use(with_files(tmp_path, source, files))
