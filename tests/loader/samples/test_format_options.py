"""The options of sample formats, and what of them is refused."""

import pickle

import h5py
import numpy as np
import pytest
import torch
from sample_checks import in_order

import epistream as es
from epistream.errors import OptionError, StateError
from epistream.loader.samples.formats.act import ActFormat
from epistream.loader.samples.formats.base import Padding
from epistream.loader.samples.formats.diffusion_policy import DiffusionPolicyFormat
from epistream.loader.samples.formats.ilstudio import IlStudioFormat


def test_padding_options_set_value_mask_name_and_polarity_each_by_itself(aloha_shards):
    octo = IlStudioFormat(padding=Padding("edge", "{key}_pad_mask", "valid"), chunk_size=3)
    stream = in_order(aloha_shards, sample_format=octo, batch_size=80)
    last = {key: value[-1] for key, value in next(iter(stream)).items()}
    assert last["action_pad_mask"].tolist() == [True, False, False]
    assert torch.equal(last["action"][0], last["action"][2])
    assert "is_pad" not in last
    without = IlStudioFormat(padding=Padding("zero", None))
    assert not [key for key in next(iter(in_order(aloha_shards, sample_format=without))) if "pad" in key]


def test_format_overrides_the_pad_of_the_users_window_and_keeps_its_offsets(aloha_shards):
    window = es.Window(action=range(5), pad="edge")
    stream = in_order(aloha_shards, sample_format="ilstudio", window=window, batch_size=80)
    batch = next(iter(stream))
    assert tuple(batch["action"].shape) == (80, 5, 14)
    assert not batch["action"][-1][1:].any()


def test_is_repeat_is_added_only_where_windows_repeat(aloha_shards):
    for name in ("ilstudio", "lerobot", "diffusion_policy"):
        padded = in_order(aloha_shards, sample_format=name, remainder="pad", batch_size=9)
        assert "is_repeat" in next(iter(padded))
        assert "is_repeat" not in next(iter(in_order(aloha_shards, sample_format=name, batch_size=9)))


@pytest.mark.parametrize("name", ["act", "diffusion_policy", "lerobot", "ilstudio"])
def test_stream_with_a_format_survives_pickling(aloha_shards, name):
    stream = es.EpisodeStream(aloha_shards, sample_format=name, batch_size=2)
    again = pickle.loads(pickle.dumps(stream))
    assert_same(next(iter(stream)), next(iter(again)))


def assert_same(one, other):
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, tuple):
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_format": "ilstudo"}, "Did you mean 'ilstudio'?"),
        ({"sample_format": 3}, "or a function"),
        ({"sample_format": "act", "squeeze": True}, "Leave squeeze out"),
        ({"sample_format": "act", "window": es.Window(obs=[-1, 0])}, "[-1, 0], wanted a single one"),
        ({"sample_format": "act", "features": ["observation.state", "action"]}, "no cameras, wanted cameras"),
        ({"sample_format": "ilstudio", "features": ["observation.images.top", "action"]}, "'observation.state'"),
        ({"sample_format": IlStudioFormat(state="observation.effort")}, "observation.effort"),
        (
            {"sample_format": ActFormat(lag_one_step=True), "window": es.Window(action=range(4))},
            "range(-1, chunk_size)",
        ),
        ({"sample_format": "diffusion_policy", "features": ["observation.state"]}, "action"),
    ],
)
def test_stream_with_an_impossible_format_is_refused_at_construction(aloha_shards, options, message):
    with pytest.raises(OptionError) as caught:
        es.EpisodeStream(aloha_shards, **options)
    assert message in str(caught.value)


def test_cameras_of_several_sizes_are_refused_by_name(aloha_shards, tmp_path):
    from handmade import encoded, members, picture, write_tar

    wrist = encoded(picture(0, 0)[:12, :16], "jpeg")
    pairs = members(0, 2, meta={}) + [(f"ep-000000000.observation.images.wrist.{t:06d}.jpg", wrist) for t in (0, 1)]
    tar = write_tar(tmp_path / "shard-000000.tar", pairs)
    with pytest.raises(OptionError, match=r"wrist 16x12x3 \(width x height x channels\), wanted cameras of one size"):
        es.EpisodeStream(str(tar), sample_format=IlStudioFormat(state="action"))


def test_diffusion_policy_with_a_horizon_too_short_is_refused():
    with pytest.raises(OptionError, match="horizon >= num_obs_steps - 1"):
        DiffusionPolicyFormat(8, 2, 8)


def test_padding_with_unknown_words_is_refused():
    with pytest.raises(OptionError, match="'repeat'"):
        Padding("repeat", None)


def test_cameras_of_several_sizes_stack_once_they_are_resized_alike(tmp_path):
    with h5py.File(tmp_path / "episode_0.hdf5", "w") as file:
        file.attrs["sim"] = True
        file["observations/qpos"] = file["action"] = np.zeros((3, 2), np.float32)
        file["observations/images/top"] = np.full((3, 24, 32, 3), 9, np.uint8)
        file["observations/images/wrist"] = np.full((3, 12, 16, 3), 200, np.uint8)
    path = tmp_path / "episode_0.hdf5"
    batch = next(iter(es.EpisodeStream(path, batch_size=3, sample_format="ilstudio", image_size=(6, 8))))
    assert batch["image"].shape == (3, 2, 3, 6, 8)
    assert batch["image"][:, 0].unique().tolist() == [9]
    assert batch["image"][:, 1].unique().tolist() == [200]


def test_window_must_fit_is_part_of_the_state_and_refuses_nonsense(aloha_shards):
    streams = [
        es.EpisodeStream(aloha_shards, features=["action"], window=es.Window(action=range(4), must_fit=must_fit))
        for must_fit in (None, (0, 2), (-2, 0))
    ]
    assert [stream.num_windows for stream in streams] == [140, 136, 136]
    with pytest.raises(StateError, match="window is"):
        streams[2].load_state_dict(streams[1].state_dict())
    for nonsense in ((1, 2), (-2, -1)):
        with pytest.raises(OptionError, match="must_fit"):
            es.Window(must_fit=nonsense)
