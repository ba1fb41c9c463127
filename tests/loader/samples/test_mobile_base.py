"""ACT++'s samples of a mobile robot: the base's actions behind those of the arms, as its own data set joins them."""

import code_bases
import h5py
import hdf5_files
import numpy as np
import pytest

import epistream as es
from epistream.errors import OptionError

LENGTH = 9


def joined_actions(path):
    """All actions of a file as ACT++ makes them, (T, A + 2)."""
    with h5py.File(path) as file:
        arms = file["action"][:]
        if "base_action" not in file:
            return np.concatenate([arms, np.zeros((len(arms), 2), np.float32)], axis=1)
        base = file["base_action"][:]
    smooth = np.stack([np.convolve(base[:, i], np.ones(5) / 5, mode="same") for i in range(2)], axis=1)
    return np.concatenate([arms, smooth.astype(np.float32)], axis=1)


@pytest.fixture(params=["hdf5", "shards"])
def sources(request, tmp_path):
    """Two recordings with a base, and where to stream them from."""
    paths = [hdf5_files.aloha_jpeg(tmp_path / f"e_{n}.hdf5", LENGTH - n, seed=n, base_action=True) for n in range(2)]
    if request.param == "hdf5":
        return paths, paths
    es.pack(paths, tmp_path / "shards")
    return paths, tmp_path / "shards"


@pytest.mark.parametrize("lag", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 20])
def test_act_with_a_mobile_base_equals_its_own_loader_at_every_window(sources, chunk, lag):
    paths, source = sources
    sample_format = es.ActFormat(chunk_size=chunk, lag_one_step=lag, base_action="base_action")
    stream = es.EpisodeStream(source, batch_size=1, shuffle=False, sample_format=sample_format)
    samples = iter(stream)
    for path in paths:
        actions = joined_actions(path)
        for t in range(len(actions)):
            _, _, action, is_pad = next(samples)
            episode = {"images": {"none": np.zeros((99, 1, 1, 3))}, "state": actions, "action": actions}
            _, _, expected, expected_pad = code_bases.act(episode, t, chunk, lag)
            np.testing.assert_allclose(action[0].numpy(), expected, rtol=2e-6, atol=1e-7, err_msg=f"{path}, {t}")
            np.testing.assert_array_equal(is_pad[0].numpy(), expected_pad)
    assert next(samples, None) is None


def test_a_recording_without_a_base_gets_two_zeros(tmp_path):
    path = hdf5_files.aloha_jpeg(tmp_path / "e.hdf5", LENGTH)
    sample_format = es.ActFormat(chunk_size=4, base_action="base_action")
    _, _, action, _ = next(iter(es.EpisodeStream(path, batch_size=LENGTH, shuffle=False, sample_format=sample_format)))
    np.testing.assert_array_equal(action[:, 0].numpy(), joined_actions(path))


def test_normalised_base_actions_are_those_of_the_smoothed_ones_also_where_padded(sources):
    paths, source = sources
    scales = {name: {"mean": [0.5] * width, "std": [2.0] * width} for name, width in (("base_action", 2),)}
    normalizer = es.Normalizer(scales, {"base_action": "mean_std"})
    sample_format = es.ActFormat(chunk_size=4, base_action="base_action")
    stream = es.EpisodeStream(source, batch_size=1, shuffle=False, sample_format=sample_format, normalize=normalizer)
    actions = joined_actions(paths[0])[:, -2:]
    for t, (_, _, action, _) in zip(range(LENGTH), stream, strict=False):
        raw = np.concatenate([actions[t : t + 4], np.zeros((max(0, t + 4 - LENGTH), 2))])
        np.testing.assert_allclose(action[0, :, -2:].numpy(), (raw - 0.5) / 2, rtol=1e-5, atol=1e-6)


def test_without_being_asked_for_the_base_is_left_alone(sources):
    _, source = sources
    _, _, action, _ = next(iter(es.EpisodeStream(source, sample_format=es.ActFormat(chunk_size=4))))
    assert action.shape == (1, 4, 14)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"sample_format": es.ActFormat(base_action="base_action"), "window": es.Window(action=[0, 2])},
            "wanted steps that follow each other",
        ),
        (
            {
                "sample_format": es.ActFormat(base_action="base_action"),
                "features": ["observation.images.top", "observation.state", "action"],
            },
            "['base_action'] not among the streamed features",
        ),
    ],
)
def test_a_base_that_cannot_be_joined_is_refused(sources, options, words):
    _, source = sources
    with pytest.raises(OptionError) as caught:
        es.EpisodeStream(source, **options)
    assert words in str(caught.value)


def test_a_base_that_is_an_action_already_is_refused():
    with pytest.raises(OptionError, match="'base_action' is named as action too"):
        es.ActFormat(action=("action", "base_action"), base_action="base_action")
