"""Files that an HDF5 file reads from: never outside of its folder unasked, never fill values for what is missing."""

import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor

import fsspec
import h5py
import numpy as np
import pytest
from hdf5_files import aloha_raw

import epistream as es
from epistream.errors import EpistreamError, LayoutError, PackError, SourceChangedError, SourceError
from epistream.sharding.opening import other_files as module

ACTION = np.arange(70, dtype=np.float32).reshape(10, 7) + 1
KINDS = ("external link", "virtual dataset", "external storage")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))


def episode(path, kind, other, values=ACTION, *, name=None):
    """An episode whose action is in another file, which is written as well unless `values` is None."""
    aloha_raw(path, 10, cameras=("top",))
    name = str(other) if name is None else name
    if values is not None:
        other.parent.mkdir(parents=True, exist_ok=True)
        if kind == "external storage":
            other.write_bytes(values.tobytes())
        else:
            with h5py.File(other, "w") as file:
                file["deep/a"] = values
    with h5py.File(path, "a") as file:
        del file["action"]
        if kind == "external link":
            file["action"] = h5py.ExternalLink(name, "/deep/a")
        elif kind == "external storage":
            file.create_dataset("action", ACTION.shape, "f4", external=[(name, 0, ACTION.nbytes)])
        else:
            virtual(file, "action", name, "deep/a")
    return path


def virtual(file, path, name, target, shape=ACTION.shape):
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource(name, target, shape)
    file.create_virtual_dataset(path, layout)


def streamed(path, **options):
    stream = es.EpisodeStream(str(path), batch_size=10, shuffle=False, remainder="pad", features=["action"], **options)
    return np.asarray(next(iter(stream))["action"])[:, 0]


def packed(tmp_path, path, **options):
    es.pack(path, tmp_path / "out", codec="raw", overwrite=True, **options)
    return streamed(tmp_path / "out"), json.loads((tmp_path / "out" / "dataset.json").read_text())["provenance"]


def refused(path, kind=EpistreamError, **options):
    """What a stream says, once packing was seen to say the same."""
    with pytest.raises(kind) as streaming:
        streamed(path, **options)
    with pytest.raises(PackError) as packing:
        es.pack(path, path.parent / "refused", **options)
    assert not (path.parent / "refused").exists()
    said = str(streaming.value)
    assert said.rstrip(".") in str(packing.value)
    assert said.startswith(f"{path}: ")
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_file_in_the_folder_or_below_is_read(tmp_path, kind):
    path = episode(tmp_path / "in" / "e.hdf5", kind, tmp_path / "in" / "sub" / "raw")
    np.testing.assert_array_equal(streamed(path), ACTION)
    values, provenance = packed(tmp_path, path)
    np.testing.assert_array_equal(values, ACTION)
    assert "outside_files" not in provenance
    assert "allow_outside_files" not in provenance["options"]


@pytest.mark.parametrize("kind", KINDS)
def test_file_outside_is_refused_until_it_is_allowed_and_then_listed(tmp_path, kind):
    other = tmp_path / "away" / "raw"
    path = episode(tmp_path / "in" / "e.hdf5", kind, other)
    for _ in range(2):  # what was allowed once is not allowed for ever: indexes are kept
        said = refused(path, LayoutError)
        assert f"/action: {kind}" in said
        assert f"that is {other}, outside" in said
        assert "allow_outside_files=True" in said
        assert "--allow-outside-files" in said
        np.testing.assert_array_equal(streamed(path, allow_outside_files=True), ACTION)
    values, provenance = packed(tmp_path, path, allow_outside_files=True)
    np.testing.assert_array_equal(values, ACTION)
    assert provenance["outside_files"] == [str(other)]


@pytest.mark.parametrize("kind", KINDS)
def test_missing_file_is_an_error_and_putting_it_where_the_error_says_cures_it(tmp_path, kind):
    path = episode(tmp_path / "in" / "e.hdf5", kind, tmp_path / "in" / "raw")
    kept = (tmp_path / "in" / "raw").rename(tmp_path / "kept")
    said = refused(path, SourceError)
    assert "no such file" in said
    kept.rename(said.rsplit("Put it at ", 1)[1].removesuffix("."))
    np.testing.assert_array_equal(streamed(path), ACTION)


@pytest.mark.parametrize("kind", KINDS)
def test_file_that_has_less_than_is_taken_is_an_error(tmp_path, kind):
    path = episode(tmp_path / "in" / "e.hdf5", kind, tmp_path / "in" / "raw", ACTION[:6])
    if kind == "external link":  # how long it should be, only the episode's other datasets say
        refused(path)
        return
    assert "wanted" in refused(path, SourceError)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_file_without_the_dataset_or_that_is_no_hdf5_is_an_error(tmp_path, kind):
    other = tmp_path / "in" / "raw"
    path = episode(tmp_path / "in" / "e.hdf5", kind, other)
    with h5py.File(other, "a") as file:
        file.move("deep", "elsewhere")
    assert "deep/a" in refused(path, SourceError)
    other.write_bytes(b"text" * 100)
    assert "cannot be read as HDF5" in refused(path, SourceError)


@pytest.mark.parametrize("kind", KINDS)
def test_fifo_device_and_folder_in_place_of_the_file_are_named_at_once(tmp_path, kind):
    other = tmp_path / "in" / "raw"
    path = episode(tmp_path / "in" / "e.hdf5", kind, other)
    other.unlink()
    os.mkfifo(other)
    assert "named pipe" in refused(path, SourceError)
    other.unlink()
    other.mkdir()
    assert "a folder" in refused(path, SourceError)
    other.rmdir()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(other))
        assert "a socket" in refused(path, SourceError)
    other.unlink()
    other.symlink_to("/dev/zero")
    assert "outside" in refused(path, LayoutError)
    assert "a device" in refused(path, SourceError, allow_outside_files=True)


@pytest.mark.parametrize("kind", KINDS)
def test_symbolic_link_to_a_file_outside_is_outside(tmp_path, kind):
    away, link = tmp_path / "away" / "raw", tmp_path / "in" / "raw"
    path = episode(tmp_path / "in" / "e.hdf5", kind, away, name=str(link))
    link.symlink_to(away)
    assert str(away) in refused(path, LayoutError)
    np.testing.assert_array_equal(streamed(path, allow_outside_files=True), ACTION)


def test_symbolic_link_to_the_file_itself_is_what_the_user_gave(tmp_path):
    real = episode(tmp_path / "real" / "e.hdf5", "virtual dataset", tmp_path / "real" / "raw.h5", name="raw.h5")
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "e.hdf5"
    link.symlink_to(real)
    np.testing.assert_array_equal(streamed(link), ACTION)


@pytest.mark.parametrize(
    "how", ["link to a link", "soft link through a group", "virtual of virtual", "link to storage"]
)
def test_file_that_is_only_reached_through_another_is_judged(tmp_path, how):
    inside, away = tmp_path / "in", tmp_path / "away.h5"
    path = episode(inside / "e.hdf5", "external link", inside / "middle.h5", name="middle.h5")
    with h5py.File(away, "w") as file:
        file["deep/a"] = ACTION
    with h5py.File(inside / "middle.h5", "a") as middle, h5py.File(path, "a") as file:
        del middle["deep"], file["action"]
        if how == "link to a link":
            middle["deep"] = h5py.ExternalLink(str(away), "/deep")
            file["action"] = h5py.ExternalLink("middle.h5", "/deep/a")
        elif how == "soft link through a group":
            middle["x"] = h5py.ExternalLink("../away.h5", "/")
            file["g/all"] = h5py.ExternalLink("middle.h5", "/")
            file["action"] = h5py.SoftLink("/g/all/x/deep/a")
        elif how == "virtual of virtual":
            virtual(middle, "deep/a", str(away), "deep/a")
            virtual(file, "action", "middle.h5", "deep/a")
        else:
            (tmp_path / "raw").write_bytes(ACTION.tobytes())
            middle.create_dataset("deep/a", ACTION.shape, "f4", external=[(str(tmp_path / "raw"), 0, ACTION.nbytes)])
            file["action"] = h5py.ExternalLink("middle.h5", "/deep/a")
    assert "outside" in refused(path, LayoutError)
    np.testing.assert_array_equal(streamed(path, allow_outside_files=True), ACTION)
    np.testing.assert_array_equal(packed(tmp_path, path, allow_outside_files=True)[0], ACTION)


@pytest.mark.parametrize(
    ("kind", "variable"), [("external link", "HDF5_EXT_PREFIX"), ("virtual dataset", "HDF5_VDS_PREFIX")]
)
def test_prefix_in_the_environment_is_followed_as_hdf5_does(tmp_path, monkeypatch, kind, variable):
    path = episode(tmp_path / "in" / "e.hdf5", kind, tmp_path / "in" / "raw.h5", name="raw.h5")
    np.testing.assert_array_equal(streamed(path), ACTION)
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["deep/a"] = ACTION + 100
    monkeypatch.setenv(variable, str(tmp_path))
    assert str(tmp_path / "raw.h5") in refused(path, LayoutError)  # although an index was kept without it
    np.testing.assert_array_equal(streamed(path, allow_outside_files=True), ACTION + 100)


def test_storage_beside_the_file_that_hdf5_looks_for_elsewhere_is_explained(tmp_path, monkeypatch):
    path = episode(tmp_path / "in" / "e.hdf5", "external storage", tmp_path / "in" / "raw", name="raw")
    monkeypatch.chdir(tmp_path)
    assert "HDF5_EXTFILE_PREFIX='${ORIGIN}'" in refused(path, SourceError)
    monkeypatch.chdir(tmp_path / "in")
    np.testing.assert_array_equal(streamed(path), ACTION)


def blocks(path, file_name, target="a"):
    """A virtual dataset of any number of files, each of two steps."""
    aloha_raw(path, 6, cameras=("top",))
    space = h5py.h5s.create_simple((6, 7), (h5py.h5s.UNLIMITED, 7))
    space.select_hyperslab((0, 0), (h5py.h5s.UNLIMITED, 1), stride=(2, 1), block=(2, 7))
    source = h5py.h5s.create_simple((2, 7))
    source.select_hyperslab((0, 0), (1, 1), block=(2, 7))
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_virtual(space, file_name.encode(), target.encode(), source)
    with h5py.File(path, "a") as file:
        del file["action"]
        whole = h5py.h5s.create_simple((6, 7), (h5py.h5s.UNLIMITED, 7))
        h5py.h5d.create(file.id, b"action", h5py.h5t.IEEE_F32LE, whole, dcpl=plist)
    return path


def test_numbered_sources_are_judged_one_by_one(tmp_path):
    path = blocks(tmp_path / "in" / "e.hdf5", "part%b.h5")
    assert "part0.h5" in refused(path, SourceError)
    for number in range(3):
        with h5py.File(tmp_path / "in" / f"part{number}.h5", "w") as file:
            file["a"] = ACTION[2 * number :][:2]
    values = np.asarray(streamed(path))
    np.testing.assert_array_equal(values[:6], ACTION[:6])
    (tmp_path / "in" / "part1.h5").rename(tmp_path / "part1.h5")
    said = refused(path)
    assert "'part1.h5' is not there and 'part2.h5' is" in said
    (tmp_path / "in" / "part1.h5").symlink_to(tmp_path / "part1.h5")
    assert "outside" in refused(path, LayoutError)


def test_numbered_datasets_of_one_source_have_no_gap(tmp_path):
    path = blocks(tmp_path / "in" / "e.hdf5", "parts.h5", "x/a%b")
    with h5py.File(tmp_path / "in" / "parts.h5", "w") as file:
        for number in range(3):
            file[f"x/a{number}"] = ACTION[2 * number :][:2]
    np.testing.assert_array_equal(np.asarray(streamed(path))[:6], ACTION[:6])
    with h5py.File(tmp_path / "in" / "parts.h5", "a") as file:
        del file["x/a1"]
    assert "x/a1" in refused(path, SourceError)


def test_virtual_dataset_of_the_same_file_is_read_and_must_be_there(tmp_path):
    path = aloha_raw(tmp_path / "e.hdf5", 10, cameras=("top",))
    with h5py.File(path, "a") as file:
        del file["action"]
        file["raw/a"] = ACTION
        virtual(file, "action", ".", "raw/a")
    np.testing.assert_array_equal(streamed(path), ACTION)
    with h5py.File(path, "a") as file:
        file.move("raw/a", "raw/b")
    assert "raw/a" in refused(path, SourceError)


def test_steps_that_no_source_covers_are_an_error_and_gaps_within_steps_are_not(tmp_path):
    path = episode(tmp_path / "e.hdf5", "virtual dataset", tmp_path / "raw.h5")
    for rows, columns, is_whole in ((slice(0, 8), slice(0, 7), False), (slice(0, 10), slice(0, 5), True)):
        layout = h5py.VirtualLayout((10, 7), "f4")
        layout[rows, columns] = h5py.VirtualSource("raw.h5", "deep/a", ACTION.shape)[rows, columns]
        with h5py.File(path, "a") as file:
            del file["action"]
            file.create_virtual_dataset("action", layout, fillvalue=-3)
        if is_whole:
            np.testing.assert_array_equal(streamed(path)[:, :5], ACTION[:, :5])
            assert (streamed(path)[:, 5:] == -3).all()
        else:
            assert "step 8 of 10" in refused(path, LayoutError)


@pytest.mark.parametrize("kind", KINDS)
def test_other_file_that_changes_is_noticed(tmp_path, kind):
    other = tmp_path / "in" / "raw"
    path = episode(tmp_path / "in" / "e.hdf5", kind, other)
    stream = es.EpisodeStream(str(path), batch_size=10, shuffle=False, features=["action"])
    fingerprint = stream.job.dataset.fingerprint
    if kind == "external storage":
        other.write_bytes((ACTION + 5).tobytes())
    else:
        with h5py.File(other, "a") as file:
            file["deep/a"][...] = ACTION + 5
    os.utime(other, ns=(1, 1))
    with pytest.raises(SourceChangedError):
        next(iter(stream))
    np.testing.assert_array_equal(streamed(path), ACTION + 5)
    assert es.open_dataset(path).fingerprint != fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_other_file_that_changes_between_scan_and_packing_is_noticed(tmp_path, kind, monkeypatch):
    from epistream.sharding.pack import pack as packing

    other = tmp_path / "in" / "raw"
    path = episode(tmp_path / "in" / "e.hdf5", kind, other)
    real = packing.make_plan

    def make_plan(scans, options):
        os.utime(other, ns=(1, 1))
        return real(scans, options)

    monkeypatch.setattr(packing, "make_plan", make_plan)
    with pytest.raises(SourceChangedError, match="raw: replaced"):
        es.pack(path, tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_bad_ones_are_left_out_by_name(tmp_path, kind):
    episode(tmp_path / "in" / "bad.hdf5", kind, tmp_path / "away" / "raw")
    aloha_raw(tmp_path / "in" / "good.hdf5", 10, cameras=("top",))
    report = es.pack(tmp_path / "in", tmp_path / "out", skip_bad=True)
    assert report.num_episodes == 1
    assert "bad.hdf5" in report.faults[0]
    assert "allow_outside_files" in report.faults[0]
    stream = es.EpisodeStream(str(tmp_path / "in"), on_bad="skip")
    assert list(stream.job.dataset.skipped) == [str(tmp_path / "in" / "bad.hdf5")]


@pytest.mark.parametrize("kind", KINDS)
def test_remote_file_that_reads_from_others_is_an_error_and_never_this_machine_s_files(tmp_path, kind):
    path = episode(tmp_path / "e.hdf5", kind, tmp_path / "raw")
    url = f"memory://others/{kind.replace(' ', '-')}/e.hdf5"
    fsspec.filesystem("memory").pipe_file(url, path.read_bytes())
    for options in ({}, {"allow_outside_files": True}):
        with pytest.raises(LayoutError, match=f"e.hdf5: /action: {kind} in another file, '{tmp_path}/raw'"):
            streamed(url, **options)


def test_resumed_job_looks_at_the_option_and_at_the_other_files(tmp_path):
    from epistream.sharding.pack.kept_scans import if_unchanged
    from epistream.sharding.pack.options import PackOptions
    from epistream.sharding.pack.plan import identity
    from epistream.sharding.pack.scan import scan_file

    other = tmp_path / "away" / "raw"
    path = episode(tmp_path / "in" / "e.hdf5", "external storage", other)
    allowed = PackOptions(allow_outside_files=True)
    scan = scan_file(str(path), "e.hdf5", allowed)
    assert if_unchanged(scan, "e.hdf5") == scan
    assert identity((), allowed, {}) != identity((), PackOptions(), {})
    before = identity((scan,), allowed, {})
    os.utime(other, ns=(1, 1))
    assert if_unchanged(scan, "e.hdf5") is None
    assert identity((scan_file(str(path), "e.hdf5", allowed),), allowed, {}) != before


def test_link_to_rows_that_look_alike_at_both_ends_is_read_from_the_other_file(tmp_path):
    # The bytes at its offset in this file are zeros too, as are its first and last rows.
    values = ACTION.copy()
    values[[0, -1]] = 0
    path = episode(tmp_path / "e.hdf5", "external link", tmp_path / "raw.h5", values)
    with h5py.File(path, "a") as file:
        file["observations/effort"] = np.zeros((10, 700), np.float32)
    np.testing.assert_array_equal(streamed(path), values)


@pytest.mark.parametrize("groups", [("observations",), ("action",), ("observations", "action")])
def test_groups_that_are_links_are_read_from_the_other_file(tmp_path, groups):
    path = tmp_path / "in" / "linked.hdf5"
    with h5py.File(aloha_raw(tmp_path / "in" / "parts" / "whole.hdf5", 10, cameras=("top",)), "r+") as file:
        file["action"][...] = wanted = np.arange(140, dtype=np.float32).reshape(10, 14)
    with h5py.File(aloha_raw(path, 10, cameras=("top",)), "r+") as file:
        for name in groups:
            del file[name]
            file[name] = h5py.ExternalLink("parts/whole.hdf5", f"/{name}")
        if "action" not in groups:
            file["action"][...] = wanted
    np.testing.assert_array_equal(streamed(path), wanted)
    np.testing.assert_array_equal(packed(tmp_path, path)[0], wanted)
    with ThreadPoolExecutor() as pool:  # h5py's lock is free, also for others
        assert pool.submit(h5py.is_hdf5, path).result(60)


def test_file_that_names_no_others_is_walked_once_for_all_its_episodes(tmp_path, monkeypatch):
    path = aloha_raw(tmp_path / "e.hdf5", 10, cameras=("top",))
    calls = []
    real = module.mentions
    monkeypatch.setattr(module, "mentions", lambda file: calls.append(file.filename) or real(file))
    es.pack(path, tmp_path / "out")
    assert len(calls) == 1
