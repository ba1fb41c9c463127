"""Manifests of both versions: what each says of sources and instructions is read, whatever file it is in."""

import hashlib
import json
import shutil
from itertools import pairwise

import h5py
import numpy as np
import pytest
import xxhash

import epistream as es
from epistream.errors import DatasetExistsError, FormatError
from epistream.sharding.check.verify import verify
from epistream.sharding.manifest.manifest_file import read_manifest
from epistream.sharding.manifest.manifest_writing import write_manifest
from epistream.sharding.manifest.sources import Source


@pytest.fixture
def second(stored):
    """What the release with manifests of version 2 wrote."""
    return stored.parent / "manifest-2"


def sources_in(folder, *names):
    """The source files of a folder, as the file system and xxhash know them."""
    found = []
    for name in names:
        data = (folder / name).read_bytes()
        found.append(Source(name, len(data), xxhash.xxh3_128_hexdigest(data)))
    return found


def tasks_of(manifest):
    """The instructions of each episode."""
    texts = [manifest.tasks[task] for task in manifest.columns.task_ids.tolist()]
    return [texts[a:b] for a, b in pairwise(manifest.columns.task_offsets.tolist())]


@pytest.mark.parametrize(
    ("name", "folder", "files", "links"),
    [
        ("jpeg", "", ["demos.hdf5"], [0, 0, 0, 0, 0]),
        ("png", "tiny", ["episode_0.hdf5", "episode_1.hdf5"], [0, 1]),
        ("raw", "tiny", ["episode_0.hdf5", "episode_1.hdf5"], [0, 1]),
    ],
)
def test_stored_manifest_of_version_1_names_its_sources(stored, name, folder, files, links):
    assert json.loads((stored / name / "dataset.json").read_text())["version"] == 1
    manifest = read_manifest(str(stored / name))
    assert list(manifest.sources) == sources_in(stored / folder, *files)
    assert manifest.sources.table.episode_source.tolist() == links


def test_stored_manifest_of_version_2_names_its_sources(second):
    manifest = read_manifest(str(second / "words"))
    assert list(manifest.sources) == sources_in(second / "sources", "plain.hdf5", "東京/積む ☃.hdf5")
    assert manifest.sources.table.episode_source.tolist() == [0, 0, 0, 1, 1]


def test_stored_manifest_of_version_2_says_what_the_sources_say(second):
    said, lengths, values = [], [], []
    for name in ("plain.hdf5", "東京/積む ☃.hdf5"):
        with h5py.File(second / "sources" / name) as file:
            for demo in file["data"].values():
                said.append([json.loads(demo.attrs["ep_meta"])["lang"]] if "ep_meta" in demo.attrs else [])
                lengths.append(len(demo["actions"]))
                values.append(demo["actions"][:])
    manifest = read_manifest(str(second / "words"))
    assert tasks_of(manifest) == said
    assert manifest.columns.episode_length.tolist() == lengths
    stream = es.EpisodeStream(second / "words", shuffle=False, batch_size=sum(lengths), cache="off")
    (batch,) = list(stream)
    np.testing.assert_array_equal(batch["action"][:, 0].numpy(), np.concatenate(values))
    assert batch["task"] == [
        texts[0] if texts else "" for texts, n in zip(said, lengths, strict=True) for _ in range(n)
    ]


def test_stored_dataset_is_whole_with_a_manifest_of_version_2(second):
    assert verify(es.open_dataset(second / "words")).faults == []
    assert es.open_dataset(second / "raw").fingerprint == "381e8f870c0b956cfcd33841839e738c"  # as that of version 1


def test_stored_manifest_of_version_1_is_written_again_with_the_tables_of_version_2(stored, second, tmp_path):
    old = read_manifest(str(stored / "raw"))
    write_manifest(old, str(tmp_path))
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for path in (second / "raw").glob("*.tables"):
        [name] = [name for name in written if name.startswith(path.stem)]  # with more digits of its checksum since
        assert written.pop(name) == path.read_bytes()
    assert list(written) == ["dataset.json"]
    assert read_manifest(str(tmp_path)).fingerprint == old.fingerprint


def test_stored_packing_is_not_resumed_over_other_sources_of_either_version(stored, second, tmp_path):
    for number, folder in enumerate((stored / "raw", second / "raw")):
        out = tmp_path / str(number)
        shutil.copytree(folder, out)
        before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}
        with pytest.raises(DatasetExistsError, match="other sources or options"):
            es.pack(stored / "demos.hdf5", out, resume=True)
        assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()} == before


def test_stored_manifest_of_version_1_with_torn_sources_hurts_only_who_asks(stored, tmp_path):
    shutil.copytree(stored / "raw", tmp_path / "raw")
    document = json.loads((tmp_path / "raw" / "dataset.json").read_text())
    tables = tmp_path / "raw" / document["tables"]["file"]
    data = tables.read_bytes().replace(b'["episode_1.hdf5"', b'["episode_1.hdf5 ')
    tables.write_bytes(data)
    document["tables"]["checksum"] = xxhash.xxh3_128_hexdigest(data)
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps(document))
    assert es.open_dataset(tmp_path / "raw").num_episodes == 2
    with pytest.raises(FormatError, match=r"no readable JSON|no list of \[path, bytes, checksum\]"):
        list(read_manifest(str(tmp_path / "raw")).sources)


def test_stored_dataset_that_was_edited_gives_what_it_gave(stored):
    url = stored.parent / "manifest-3" / "edited"
    dataset = es.open_dataset(url)
    assert dataset.episode_length.tolist() == [6, 7]
    assert [dataset.splits[number] for number in dataset.episode_split.tolist()] == ["train", "val"]
    batches = {
        split: next(iter(es.EpisodeStream(url, split=split, shuffle=False, batch_size=size, cache="off")))
        for split, size in (("train", 6), ("val", 5))
    }
    assert batches["train"]["action"][:, 0, 0].tolist() == [100, 102, 104, 106, 108, 110]
    assert batches["val"]["observation.joints"][:, 0, 1].tolist() == [-203, -205, -207, -209, -211]
    assert set(batches["train"]["task"]) == {"lift the cube"}
    assert set(batches["val"]["task"]) == {"task 2"}
    assert dataset.statistics["action"]["mean"] == pytest.approx([105, 106])
    assert [edit.command.partition(" ")[0] for edit in es.edit.log(url)] == [
        *("", "add", "rename", "trim", "tasks", "split", "remove")
    ]
    assert verify(dataset).faults == []
    for edit in es.edit.log(url):
        assert verify(es.open_dataset(f"{url}@{edit.fingerprint}")).faults == []
