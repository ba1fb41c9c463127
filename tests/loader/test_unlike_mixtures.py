"""Mixtures of unlike streams: the error says what is other, and nothing of what is alike."""

import pytest
from hdf5_files import aloha_jpeg

import epistream as es
from epistream.errors import OptionError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two packed datasets of four cameras, of which one has smaller pictures, and wrist in place of low."""
    root = tmp_path_factory.mktemp("mixed")
    for name, cameras in (("a", ("high", "left", "right", "low")), ("b", ("high", "left", "right", "wrist"))):
        aloha_jpeg(root / f"{name}.hdf5", cameras=cameras)
        es.pack(root / f"{name}.hdf5", root / name, image_size=(16, 8) if name == "b" else None)
    return root / "a", root / "b"


def refused(folders, **options):
    streams = [es.EpisodeStream(folder, batch_size=2, **options) for folder in folders]
    with pytest.raises(OptionError) as caught:
        es.Mixture(streams, [1, 1])
    return str(caught.value)


def test_error_names_the_features_that_differ_and_those_to_name(folders):
    text = refused(folders)
    found = text.partition(", wanted")[0]
    assert "lacks observation.images.low and also has observation.images.wrist" in found
    assert "observation.images.high: width x height 16x8 instead of 32x24" in found
    assert "action" not in found
    names = eval(text.partition("features=")[2].partition("]")[0] + "]")
    streams = [es.EpisodeStream(folder, batch_size=2, features=names) for folder in folders]
    assert es.Mixture(streams, [1, 1]).num_windows


def test_error_over_sizes_alone_names_the_option_that_cures_them(folders):
    text = refused(folders, features=["action", "observation.images.high"])
    assert "image_size=(height, width)" in text
    options = {"features": ["action", "observation.images.high"], "image_size": (8, 16)}
    assert es.Mixture([es.EpisodeStream(folder, **options) for folder in folders], [1, 1]).num_windows


def test_error_over_the_order_of_features_gives_one(folders):
    chosen = ["action", "observation.state"]
    streams = [es.EpisodeStream(folders[0], features=chosen), es.EpisodeStream(folders[0], features=chosen[::-1])]
    with pytest.raises(OptionError, match=r"features in the order .*state.*, 'action'\].*features=\['action', "):
        es.Mixture(streams, [1, 1])


def test_error_over_windows_shows_both(folders):
    streams = [es.EpisodeStream(folders[0], window=es.Window(action=range(n))) for n in (4, 8)]
    with pytest.raises(OptionError, match=r"window .*action \[0\.\.7\].*, wanted .*action \[0\.\.3\].*window="):
        es.Mixture(streams, [1, 1])


def test_error_over_dtypes_names_the_option_that_made_them(folders):
    streams = [es.EpisodeStream(folders[0], features=["action"], dtypes=each) for each in (None, {"action": "float64"})]
    with pytest.raises(OptionError, match=r"dtype float64 instead of float32.*or the same dtypes=\."):
        es.Mixture(streams, [1, 1])
