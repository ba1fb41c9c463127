"""What folders the manifest of a fetched dataset may name: such as it was fetched from itself, and no others."""

import shutil

import pytest
from hdf5_files import aloha_raw

import epistream as es
from epistream.errors import FormatError
from epistream.sharding.manifest.groups import groups_from


def groups(folder):
    return [{"url": folder, "renamed": {}, "dropped": []}]


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("s3://bucket/x", "/etc"),
        ("s3://bucket/x", "file:///etc"),
        ("s3://bucket/x", "http://other/x"),
        ("http://server/x", "http://other/x"),
        ("http://server/x", "http://server\\@other/x"),
        ("http://server/x", "http://[server/x"),
        ("simplecache::s3://bucket/x", "simplecache::file:///etc"),
        ("simplecache::s3://bucket/x", "s3://bucket/x"),
        ("simplecache::http://server/x", "simplecache::http://other/x"),
    ],
)
def test_a_fetched_dataset_names_no_folder_of_another_kind(url, folder):
    with pytest.raises(FormatError, match=r"shards in .*, wanted "):
        groups_from(groups(folder), url, "w")


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("/data/x", "s3://bucket/x"),
        ("s3://bucket/x", "s3://another/x"),
        ("http://server/x", "http://server/y"),
        ("simplecache::s3://bucket/x", "simplecache::s3://bucket/y"),
        ("simplecache::http://server/x", "simplecache::http://server/y"),
    ],
)
def test_a_dataset_names_folders_of_its_own_kind(url, folder):
    assert groups_from(groups(folder), url, "w")[0].url == folder


def test_a_kept_state_that_is_of_another_fingerprint_is_refused(tmp_path):
    """Else a file that was copied over it would be read in its place."""
    path = aloha_raw(tmp_path / "e.hdf5", 5)
    out = tmp_path / "out"
    es.pack(path, out)
    fingerprint = es.open_dataset(out).fingerprint
    wrong = f"{int(fingerprint[:1], 16) ^ 1:x}{fingerprint[1:]}"
    shutil.copy(out / "dataset.json", out / f"manifest-{wrong}.json")
    with pytest.raises(FormatError, match=f"of fingerprint {fingerprint}, wanted {wrong}. Copy it again"):
        es.open_dataset(f"{out}@{wrong}")
