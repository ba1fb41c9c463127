"""Each advice of what packs, looks and lists is taken, and works: (what is asked, what the message advises)."""

import re

import pytest
from click.testing import CliRunner
from hdf5_files import aloha_jpeg, aloha_raw

import epistream as es
from epistream.commands import cli
from epistream.errors import EpistreamError


def run(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)))


def said(action):
    with pytest.raises(EpistreamError) as caught:
        action()
    return str(caught.value)


def named_features(text):
    """The list that follows ``features=`` in a message."""
    return re.findall(r"'([^']+)'", text.partition("features=")[2].partition("]")[0])


@pytest.fixture
def unlike(tmp_path):
    """An episode of two cameras, and one of another camera, packed smaller."""
    one, other = aloha_jpeg(tmp_path / "a.hdf5", 4), aloha_jpeg(tmp_path / "b.hdf5", 4, cameras=("wrist",))
    es.pack(one, tmp_path / "one")
    es.pack(one, tmp_path / "small", image_size=(16, 8))
    es.pack(other, tmp_path / "other")
    return tmp_path


@pytest.mark.parametrize("names", [("a.hdf5", "b.hdf5"), ("one", "other"), ("one", "small"), ("one", "b.hdf5")])
def test_unlike_sources_name_only_what_all_of_them_share(unlike, names):
    sources = [unlike / name for name in names]
    shared = named_features(said(lambda: es.EpisodeStream(sources)))
    assert es.EpisodeStream(sources, features=shared).num_windows == 8
    assert run("plan", *sources, "--batch-size=2", *(f"--feature={name}" for name in shared)).exit_code == 0
    assert run("inspect", *sources, *(f"--feature={name}" for name in shared)).exit_code == 0


def test_sources_that_share_nothing_stream_one_by_one_or_as_a_mixture_of_what_is_alike(unlike):
    sources = [unlike / "a.hdf5", unlike / "b.hdf5"]
    text = said(lambda: es.EpisodeStream(sources, features=["observation.images.*"]))
    shared = named_features(text)
    assert es.EpisodeStream(sources, features=shared).num_windows == 8


@pytest.mark.parametrize("other", ["other", "small"])
def test_mixture_give_all_streams_the_features_that_they_share(unlike, other):
    folders = [unlike / "one", unlike / other]
    text = said(lambda: es.Mixture([es.EpisodeStream(folder) for folder in folders], [1, 1]))
    shared = named_features(text)
    assert es.Mixture([es.EpisodeStream(folder, features=shared) for folder in folders], [1, 1]).num_windows
    if "image_size=(height, width)" in text:
        assert es.Mixture([es.EpisodeStream(folder, image_size=(8, 16)) for folder in folders], [1, 1]).num_windows


def test_mixture_give_all_streams_the_same_window(unlike):
    def streams(*lengths):
        return [es.EpisodeStream(unlike / "one", window=es.Window(action=range(n))) for n in lengths]

    assert "the same window=" in said(lambda: es.Mixture(streams(2, 3), [1, 1]))
    assert es.Mixture(streams(3, 3), [1, 1]).num_windows


@pytest.mark.parametrize("wanted", ["wrist*", "acton"])
def test_feature_that_is_not_there_name_some_of_these_or_leave_it_out(unlike, wanted):
    text = said(lambda: es.EpisodeStream(unlike / "one", features=[wanted]))
    listed = re.findall(r"'([^']+)'", text.partition("which has ")[2].partition("]")[0])
    meant = re.findall(r"Did you mean '([^']+)'", text)
    assert es.EpisodeStream(unlike / "one", features=meant or listed[:2]).num_windows == 4
    assert es.EpisodeStream(unlike / "one").num_windows == 4


def test_pack_of_bad_files_go_on_without_them_with_skip_bad(tmp_path):
    aloha_jpeg(tmp_path / "in" / "a.hdf5", 3)
    for number in range(5):
        (tmp_path / "in" / f"bad_{number}.hdf5").write_text("no")
    line = ["pack", tmp_path / "in", tmp_path / "out", "--workers", "1"]
    assert "Go on without them: --skip-bad." in str(run(*line).exception)
    assert run(*line, "--skip-bad").exit_code == 0
    assert es.open_dataset(tmp_path / "out").num_episodes == 1


def test_pack_image_size_as_in_the_example_of_the_message(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5", 2)
    failed = run("pack", path, tmp_path / "out", "--image-size", "16")
    [example] = re.findall(r"for example (\d+x\d+)", str(failed.exception))
    assert run("pack", path, tmp_path / "out", "--image-size", example, "--workers", "1").exit_code == 0
    height, width, _ = es.open_dataset(tmp_path / "out").features["observation.images.top"].shape
    assert f"{width}x{height}" == example


def test_pack_rename_as_in_the_example_of_the_message(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5", 2, cameras=("cam_high",))
    failed = run("pack", path, tmp_path / "out", "--rename", "cam_high")
    [example] = re.findall(r"for example (\w+=\w+)", str(failed.exception))
    assert run("pack", path, tmp_path / "out", "--rename", example, "--workers", "1").exit_code == 0
    assert "observation.images.top" in es.open_dataset(tmp_path / "out").features


def test_inspect_image_needs_a_name_such_as_that_of_the_message(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5", 2)
    failed = run("inspect", path, "--image", tmp_path / "sheet.xyz")
    [example] = re.findall(r"such as (\w+\.\w+)", str(failed.exception))
    assert run("inspect", path, "--image", tmp_path / example).exit_code == 0
    assert (tmp_path / example).stat().st_size > 1000
