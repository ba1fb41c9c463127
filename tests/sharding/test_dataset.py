"""Opening: every form of source, subsets, concatenation, and messages that say what is there instead."""

import os
import pickle
import re

import fsspec
import pytest
from handmade import write_dataset
from web.faulty_server import serve

from epistream.bodies import RetryOptions
from epistream.errors import FormatError, OptionError, SourceError
from epistream.sharding.dataset import open_dataset
from epistream.sharding.manifest.manifest_file import read_manifest
from epistream.sharding.manifest.manifest_writing import write_manifest


@pytest.fixture
def folder(tmp_path):
    metas = {0: {"tasks": ["lift"]}, 1: {"tasks": ["lift", "drop"], "valid_ranges": [[0, 1], [2, 3]]}}
    return write_dataset(tmp_path / "ds", lengths=((5, 3), (4,), (2,)), metas=metas)


def names(dataset):
    return [url.rsplit("/", 1)[1] for url in dataset.shard_url]


def test_folder_opens_with_everything_its_manifest_says(folder):
    dataset = open_dataset(folder)
    assert dataset.shard_url[0] == str(folder / "shard-000000.tar")
    assert dataset.index_url[-1] == str(folder / "shard-000002.index")
    assert dataset.index_url[1:][0] == str(folder / "shard-000001.index")
    assert dataset.shard_bytes.tolist() == [path.stat().st_size for path in sorted(folder.glob("*.tar"))]
    assert (dataset.num_shards, dataset.num_episodes, dataset.num_steps) == (3, 4, 14)
    assert dataset.episode_shard.tolist() == [0, 0, 1, 2]
    assert dataset.episode_in_shard.tolist() == [0, 1, 0, 0]
    assert dataset.valid_ranges[0].tolist() == [0, 1, 3, 4, 5]
    assert dataset.valid_ranges[1].tolist() == [[0, 5], [0, 1], [2, 3], [0, 4], [0, 2]]
    assert (dataset.tasks, dataset.splits) == (("lift", "drop"), ("all",))
    assert len(dataset.shard_checksum[0]) == 32
    assert dataset.fingerprint == read_manifest(str(folder)).fingerprint


@pytest.mark.parametrize("form", ["{}/dataset.json", "{}/", "file://{}", "{}/shard-{{000000..000002}}.tar", "{}/*.tar"])
def test_forms_of_one_source_are_one_dataset(folder, form):
    assert open_dataset(form.format(folder)).fingerprint == open_dataset(folder).fingerprint


def test_relative_path_is_made_absolute_because_workers_may_be_elsewhere(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert open_dataset("ds").shard_url[0] == str(folder / "shard-000000.tar")


def test_brace_pattern_in_a_datasets_folder_is_that_part_of_it(folder):
    part = open_dataset(f"{folder}/shard-00000{{1,0}}.tar")
    assert names(part) == ["shard-000001.tar", "shard-000000.tar"]
    assert part.episode_length.tolist() == [5, 3, 4]
    assert part.episode_shard.tolist() == [1, 1, 0]
    assert part.valid_ranges[0].tolist() == [0, 1, 3, 4]
    assert part.episode_tasks[1].tolist() == [0, 0, 1]
    assert part.index_url[0] == str(folder / "shard-000001.index")
    assert part.fingerprint != open_dataset(folder).fingerprint


def test_list_of_sources_follows_each_other(folder, tmp_path):
    other = write_dataset(tmp_path / "other", lengths=((6,),), metas={0: {"tasks": ["push", "drop"]}})
    both = open_dataset([str(other), folder, folder / "shard-000002.tar"])
    assert both.episode_length.tolist() == [6, 5, 3, 4, 2, 2]
    assert both.episode_shard.tolist() == [0, 1, 1, 2, 3, 4]
    assert both.tasks == ("push", "drop", "lift")
    assert both.episode_tasks[0].tolist() == [0, 2, 3, 5, 5, 5, 5]
    assert both.episode_tasks[1].tolist() == [0, 1, 2, 2, 1]
    assert both.valid_ranges[0].tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert both.shard_url[0] == str(other / "shard-000000.tar")
    assert both.shard_url[4] == str(folder / "shard-000002.tar")
    assert both.fingerprint != open_dataset([folder, str(other)]).fingerprint


def test_part_without_a_split_counts_as_train_beside_one_that_has(folder, tmp_path):
    metas = {0: {"split": "train"}, 1: {"split": "val"}}
    other = write_dataset(tmp_path / "other", lengths=((6,), (7,)), metas=metas)
    both = open_dataset([folder, other])
    assert both.splits == ("train", "val")
    assert both.episode_split.tolist() == [0, 0, 0, 0, 0, 1]


def test_list_whose_features_differ_is_refused_with_both_sides(folder, tmp_path):
    other = write_dataset(tmp_path / "other", codec="png")
    with pytest.raises(FormatError) as caught:
        open_dataset([folder, other])
    assert str(caught.value).startswith(f"{other}: observation.images.top: codec png instead of jpeg, wanted the same")
    assert str(folder) in str(caught.value)


def test_statistics_of_a_list_are_those_of_all_values(folder, tmp_path):
    import dataclasses

    import numpy as np

    rng = np.random.default_rng(0)
    groups = [rng.normal(3, 2, (50, 3)), rng.normal(-1, 1, (20, 3))]
    paths = []
    for number, values in enumerate(groups):
        path = write_dataset(tmp_path / f"d{number}")
        moments = {"mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0)}
        plain = {"count": len(values), **{name: array.tolist() for name, array in moments.items()}}
        manifest = read_manifest(str(path))
        write_manifest(dataclasses.replace(manifest, statistics={"action": plain}, statistics_split="all"), str(path))
        paths.append(path)
    merged = open_dataset(paths).statistics["action"]
    whole = np.concatenate(groups)
    assert merged["count"] == 70
    np.testing.assert_allclose(merged["mean"], whole.mean(0))
    np.testing.assert_allclose(merged["std"], whole.std(0))
    np.testing.assert_allclose(merged["min"], whole.min(0))
    np.testing.assert_allclose(merged["max"], whole.max(0))


def test_dataset_pickles_for_worker_processes(folder):
    dataset = open_dataset([folder, folder])
    back = pickle.loads(pickle.dumps(dataset))
    assert list(back.shard_url) == list(dataset.shard_url)
    assert back.fingerprint == dataset.fingerprint
    one = pickle.loads(pickle.dumps(open_dataset(folder)))
    assert list(one.shard_checksum) == list(open_dataset(folder).shard_checksum)


def test_remote_folder_opens_through_fsspec(folder):
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/opening/{path.name}", path.read_bytes())
    dataset = open_dataset("memory://opening/shard-{000000..000002}.tar")
    assert dataset.shard_url[1] == "memory://opening/shard-000001.tar"
    assert dataset.fingerprint == open_dataset(folder).fingerprint


def fill(tmp_path, *files):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "The folder is empty. Pack episodes into it"),
        (["a.tar"], "Found 1 tars. Index them first: epistream index"),
        (["shard-000000.tar", "shard-000000.index", ".x.tmp"], "did not finish: run it again with --resume"),
        (["notes.txt"], "Found 1 other files or folders (notes.txt). Check the path: a dataset is the folder"),
        (["a", "b.tar", "c", "d", "e"], "Found 1 tars, 4 other files or folders (a, c, d, ...). Index them first"),
    ],
)
def test_folder_without_a_manifest_says_what_is_there(tmp_path, files, message):
    with pytest.raises(SourceError, match=re.escape("dataset.json: no such file. ")) as caught:
        open_dataset(fill(tmp_path, *files))
    assert message in str(caught.value)


def test_source_that_is_no_dataset_is_refused_with_a_next_step(folder, tmp_path):
    fill(tmp_path, "a.txt")
    (tmp_path / "a.txt").write_text("notes")
    for source, error, message in (
        (tmp_path / "nowhere", SourceError, "does not exist or cannot be listed"),
        (tmp_path / "a.txt", SourceError, "Found a file where a folder was wanted. Give the dataset's folder"),
        (tmp_path / "*.zarr", SourceError, "matches nothing"),
        (f"{folder}/shard-{{000001..000004}}.tar", SourceError, "not one of the 3 shards"),
        ([folder / "shard-000001.tar", folder / "shard-000001.tar"], SourceError, "given twice"),
        ("s3:/{oops", OptionError, "Unbalanced braces"),
        ("gs9://bucket/x", OptionError, "Protocol not known: gs9"),
        ("memory://bucket/*.tar", OptionError, "a glob on something remote"),
        ("", OptionError, "empty"),
        ([], OptionError, "wanted a path, a URL, a pattern, or a list"),
        (7, OptionError, "wanted a path"),
        ("x-{0..99999999}.tar", OptionError, "more than 1,000,000 names"),
    ):
        with pytest.raises(error) as caught:
            open_dataset(source)
        assert message in str(caught.value), source


def test_scheme_whose_package_is_missing_names_the_extra(monkeypatch):
    def missing(url, **options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("epistream.file_systems.url_to_fs", missing)
    with pytest.raises(OptionError, match=re.escape("pip install 'epistream[s3]'")):
        open_dataset("s3://bucket/data")


def test_remote_that_fails_is_tried_as_often_as_shards_are_and_then_named(monkeypatch):
    import tenacity

    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: None)
    calls = []

    class Broken:
        def info(self, path):
            calls.append(path)
            raise ConnectionResetError("reset by peer")

    monkeypatch.setattr("epistream.file_systems.url_to_fs", lambda url, **options: (Broken(), url))
    with pytest.raises(SourceError, match="ConnectionResetError: reset by peer, wanted to read it"):
        open_dataset("s3://bucket/data")
    assert calls == ["s3://bucket/data/dataset.json"] * RetryOptions().attempts


def test_remote_tar_is_asked_for_one_byte_to_see_whether_a_manifest_is_beside_it(folder):
    """A server may have anything there: 1 GiB of it was read, and thrown away."""
    with serve() as server:
        server.files = {f"/ds/{path.name}": path.read_bytes() for path in folder.iterdir()}
        tar = sorted(path.name for path in folder.glob("*.tar"))[0]
        assert open_dataset(f"{server.url}/ds/{tar}").num_shards == 1
    assert [asked for path, asked in server.requests if path == "/ds/dataset.json"] == ["bytes=0-0", ""]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_manifest_that_may_not_be_read_is_named(folder):
    (folder / "dataset.json").chmod(0)
    with pytest.raises(SourceError, match="PermissionError"):
        open_dataset(folder)
