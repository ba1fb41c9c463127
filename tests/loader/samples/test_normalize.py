"""Normalisation, deltas and instructions: what a stream does to a batch, against numpy on the HDF5 file."""

import json
import pickle

import code_bases
import h5py
import numpy as np
import pytest
import torch

import epistream as es
from epistream.errors import OptionError
from epistream.loader.samples.action_delta import ActionDelta, delta_statistics
from epistream.loader.samples.normalize import Normalizer

LOW_DIM = ["observation.state", "action"]


@pytest.fixture(scope="module")
def motion(aloha_files):
    """State and action of both example episodes, (140, 14) each."""
    state, action = [], []
    for path in aloha_files:
        with h5py.File(path) as file:
            state.append(file["observations/qpos"][:])
            action.append(file["action"][:])
    return {"observation.state": np.concatenate(state), "action": np.concatenate(action)}


def everything(stream, key):
    return np.concatenate([batch[key].numpy() for batch in stream])


def in_order(source, **options):
    options = {"features": LOW_DIM, "batch_size": 16, "shuffle": False, "remainder": "uneven", **options}
    return es.EpisodeStream(source, **options)


def by_hand(mode, values):
    values = values.astype(np.float64)
    if mode == "mean_std":
        center, half = values.mean(axis=0), values.std(axis=0)
    else:
        low, high = (
            (values.min(axis=0), values.max(axis=0)) if mode == "min_max" else np.quantile(values, [0.01, 0.99], axis=0)
        )
        center, half = (high + low) / 2, (high - low) / 2
    return (values - center) / np.where(half < 1e-8, 1, half)


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantiles"])
def test_normalize_equals_numpy_over_all_windows_and_can_be_taken_back(aloha_shards, motion, mode):
    stream = in_order(aloha_shards, normalize=mode)
    for key in LOW_DIM:
        normalized = everything(stream, key)[:, 0]
        np.testing.assert_allclose(normalized, by_hand(mode, motion[key]), rtol=2e-4, atol=2e-4)
        back = stream.normalizer.unnormalize(key, torch.from_numpy(normalized))
        np.testing.assert_allclose(back.numpy(), motion[key], rtol=1e-5, atol=1e-6)


def test_normalize_min_max_lies_in_minus_one_to_one(aloha_shards):
    values = everything(in_order(aloha_shards, normalize="min_max"), "action")
    assert np.abs(values).max() <= 1 + 1e-5
    moving = np.ptp(values[:, 0], axis=0) > 0
    np.testing.assert_allclose(values[:, 0].max(axis=0)[moving], 1, atol=1e-5)


def test_normalize_comes_after_zero_padding(aloha_shards, motion):
    window = es.Window(action=range(4), pad="zero")
    stream = in_order(aloha_shards, normalize={"action": "mean_std"}, window=window)
    last = everything(stream, "action")[-1]
    mean, std = motion["action"].astype(np.float64).mean(axis=0), motion["action"].astype(np.float64).std(axis=0)
    np.testing.assert_allclose(last[3], -mean / np.where(std < 1e-8, 1, std), rtol=1e-3, atol=1e-4)


def test_normalize_by_feature_leaves_the_others_as_they_are(aloha_shards, motion):
    stream = in_order(aloha_shards, normalize={"action": "min_max"})
    np.testing.assert_array_equal(everything(stream, "observation.state")[:, 0], motion["observation.state"])
    assert list(stream.normalizer.affine) == ["action"]


def test_normalize_act_way_clips_the_deviation_and_equals_its_arithmetic(aloha_shards, aloha_files, motion):
    dataset = es.open_dataset(aloha_shards)
    modes = {"observation.state": "mean_std", "action": "mean_std"}
    stream = in_order(
        aloha_shards, features=None, sample_format="act", normalize=Normalizer(dataset.statistics, modes, min_std=1e-2)
    )
    stats = {
        key: (
            np.float32(dataset.statistics[key]["mean"]),
            np.clip(np.float32(dataset.statistics[key]["std"]), 1e-2, None),
        )
        for key in modes
    }
    _, state, action, _ = next(iter(stream))
    for t in range(16):
        _, qpos, padded, _ = code_bases.act(code_bases.aloha(aloha_files[0]), t, 80)
        for found, expected, key in ((state[t], qpos, "observation.state"), (action[t], padded, "action")):
            mean, std = stats[key]
            np.testing.assert_array_equal(found.numpy(), (expected - mean) / std)


def test_dimension_that_never_moves_is_only_shifted():
    statistics = {"x": {"count": 2, "mean": [5.0, None], "std": [0.0, None], "min": [5.0, None], "max": [5.0, None]}}
    for mode in ("mean_std", "min_max"):
        normalizer = Normalizer(statistics, {"x": mode})
        values = torch.tensor([[5.0, 3.0]])
        assert normalizer.normalize("x", values.clone()).tolist() == [[0.0, 3.0]]
        assert normalizer.unnormalize("x", torch.tensor([[0.0, 3.0]])).tolist() == [[5.0, 3.0]]


def test_normalizer_travels_in_json_and_by_pickle():
    statistics = {"x": {"count": 2, "mean": [1.0, 2.0], "std": [0.5, 3.0]}}
    normalizer = Normalizer(statistics, {"x": "mean_std"})
    values = torch.tensor([[0.3, 7.0]], dtype=torch.float64)
    expected = normalizer.normalize("x", values)
    assert expected.dtype == torch.float32
    for copy in (
        Normalizer.from_dict(json.loads(json.dumps(normalizer.to_dict()))),
        pickle.loads(pickle.dumps(normalizer)),
    ):
        assert torch.equal(copy.normalize("x", values), expected)
    with pytest.raises(OptionError, match="no feature 'y'"):
        normalizer.unnormalize("y", values)
    with pytest.raises(OptionError, match="equal shapes"):
        Normalizer.from_dict({"x": {"mode": "mean_std", "shift": [0.0], "scale": [0.0]}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "zscore"}, "normalize: 'zscore', wanted one of mean_std, min_max, quantiles"),
        ({"normalize": {"action": "none"}}, "normalize['action']: 'none'"),
        ({"normalize": {"actions": "min_max"}}, "['actions'] not among the low-dimensional features"),
        ({"normalize": {"observation.images.top": "min_max"}, "features": None}, "observation.images.top"),
        ({"normalize": "mean_std", "action_delta": "delta_step"}, "delta_statistics"),
        ({"action_delta": "delta"}, "wanted one of delta_step, delta_first"),
        ({"action_delta": "delta_step", "features": ["action"]}, "'observation.state' is no streamed feature"),
        ({"action_delta": ActionDelta("delta_first", dims=(0, 14))}, "dims (0, 14) of 14 action"),
        ({"instruction": "some"}, "wanted one of first, random, all"),
    ],
)
def test_stream_with_impossible_sample_options_is_refused_at_construction(aloha_shards, options, message):
    with pytest.raises(OptionError) as caught:
        in_order(aloha_shards, **options)
    assert message in str(caught.value)


def test_normalize_without_statistics_is_refused_with_what_would_work(tmp_path):
    from handmade import write_dataset

    source = write_dataset(tmp_path / "shards")
    statistics = es.open_dataset(source).statistics
    if statistics:
        pytest.skip("indexing a tar computes statistics too")
    with pytest.raises(OptionError, match="has no statistics of"):
        es.EpisodeStream(source, normalize="mean_std")


def test_delta_step_subtracts_the_state_of_each_step(aloha_shards, aloha_files):
    check_delta(aloha_shards, aloha_files, "delta_step", "edge", lambda state, t, i: state[min(t + i, len(state) - 1)])


def test_delta_first_subtracts_the_state_of_the_anchor(aloha_shards, aloha_files):
    check_delta(aloha_shards, aloha_files, "delta_first", "edge", lambda state, t, i: state[t])


@pytest.mark.parametrize("kind", ["delta_step", "delta_first"])
def test_delta_of_zero_padded_actions_is_zero(aloha_shards, aloha_files, kind):
    def subtrahend(state, t, i):
        return state[t + i if kind == "delta_step" else t]

    check_delta(aloha_shards, aloha_files, kind, "zero", subtrahend)


def check_delta(shards, files, kind, pad, subtrahend):
    """Every window; the state keeps the steps that were asked for, whatever the delta needs besides."""
    window = es.Window(obs=[-3, 0], action=range(-1, 9), pad=pad)
    stream = in_order(shards, action_delta=kind, window=window)
    windows = iter([(path, t) for path, length in zip(files, (80, 60), strict=True) for t in range(length)])
    for batch in stream:
        for row in range(len(batch["action"])):
            path, t = next(windows)
            episode = code_bases.aloha(path)
            state, action = episode["state"], episode["action"]
            for place, i in enumerate(range(-1, 9)):
                inside = 0 <= t + i < len(action)
                if not inside and pad == "zero":
                    expected = np.zeros(14, np.float32)
                else:
                    step = min(max(t + i, 0), len(action) - 1)
                    expected = action[step] - subtrahend(state, t, max(i, -t))
                np.testing.assert_array_equal(batch["action"][row, place].numpy(), expected)
            assert batch["observation.state"].shape == (len(batch["action"]), 2, 14)
            np.testing.assert_array_equal(batch["observation.state"][row, 1].numpy(), state[t])
            assert batch["observation.state_is_pad"][row].tolist() == [t < 3, False]
    assert next(windows, None) is None


def test_delta_of_some_dimensions_leaves_the_others_absolute(aloha_shards, motion):
    stream = in_order(aloha_shards, action_delta=ActionDelta("delta_first", dims=(0, 3)))
    expected = motion["action"].copy()
    expected[:, [0, 3]] -= motion["observation.state"][:, [0, 3]]
    np.testing.assert_array_equal(everything(stream, "action")[:, 0], expected)


def test_delta_then_normalize_by_statistics_of_the_differences(aloha_shards, motion):
    statistics = delta_statistics(in_order(aloha_shards, action_delta="delta_step", batch_size=9))
    difference = motion["action"].astype(np.float64) - motion["observation.state"]
    np.testing.assert_allclose(statistics["action"]["mean"], difference.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(statistics["action"]["std"], difference.std(axis=0), atol=1e-6)
    normalizer = Normalizer(statistics, {"action": "mean_std"})
    values = everything(in_order(aloha_shards, action_delta="delta_step", normalize=normalizer), "action")[:, 0]
    np.testing.assert_allclose(values, by_hand("mean_std", difference), rtol=1e-3, atol=1e-3)


def test_delta_statistics_leave_out_padded_actions(aloha_shards, aloha_files):
    window = es.Window(action=range(70), pad="zero")
    statistics = delta_statistics(in_order(aloha_shards, action_delta="delta_first", window=window))
    differences = []
    for path in aloha_files:
        episode = code_bases.aloha(path)
        for t in range(len(episode["action"])):
            differences.append(episode["action"][t : t + 70] - episode["state"][t])
    expected = np.concatenate(differences).astype(np.float64)
    np.testing.assert_allclose(statistics["action"]["mean"], expected.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(statistics["action"]["max"], expected.max(axis=0), atol=1e-6)


def test_changes_in_place_do_not_outlive_their_batch_in_recycled_slots(aloha_shards):
    window = es.Window(action=range(6), pad="zero")
    options = {"window": window, "action_delta": ActionDelta("delta_first", dims=(1,)), "normalize": None}
    statistics = es.open_dataset(aloha_shards).statistics
    options["normalize"] = Normalizer(statistics, {"action": "min_max", "observation.state": "mean_std"})
    stream = es.EpisodeStream(aloha_shards, batch_size=7, features=LOW_DIM, **options)
    direct = []
    for epoch in range(3):
        stream.set_epoch(epoch)
        direct += [{key: batch[key].clone() for key in LOW_DIM} for batch in stream]
    stream.set_epoch(0)
    with es.StreamingLoader(stream, num_workers=0, num_threads=1, prefetch=1) as loader:
        streamed = [{key: batch[key].clone() for key in LOW_DIM} for _ in range(3) for batch in loader]
    assert len(direct) == len(streamed) == 60
    for one, other in zip(direct, streamed, strict=True):
        for key in LOW_DIM:
            assert torch.equal(one[key], other[key])


@pytest.fixture(scope="module")
def told(tmp_path_factory, aloha_files):
    """Three short episodes with 3, 1 and 0 instructions."""
    folder = tmp_path_factory.mktemp("told")
    texts = [["lift", "pick up the cube", "raise it"], ["push"], []]
    for number, instructions in enumerate(texts):
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            file.attrs["sim"] = True
            file["observations/qpos"] = np.zeros((40, 2), np.float32)
            file["observations/images/top"] = np.zeros((40, 8, 8, 3), np.uint8)
            file["action"] = np.zeros((40, 2), np.float32)
            if instructions:
                file["instruction"] = json.dumps(instructions)
    es.pack([folder], folder / "shards", codec="raw")
    return folder / "shards", texts


def texts_of(stream):
    return [
        (episode, step, text)
        for batch in stream
        for episode, step, text in zip(
            batch["episode_index"].tolist(), batch["step_index"].tolist(), batch["task"], strict=True
        )
    ]


def test_instruction_first_and_all(told):
    source, texts = told
    for episode, _, text in texts_of(in_order(source, features=["action"])):
        assert text == (texts[episode][0] if texts[episode] else "")
    for episode, _, text in texts_of(in_order(source, features=["action"], instruction="all")):
        assert text == tuple(texts[episode])


def test_instruction_random_is_a_function_of_seed_epoch_and_window_alone(told):
    source, texts = told

    def draw(epoch, **options):
        stream = es.EpisodeStream(
            source, features=["action"], instruction="random", remainder="uneven", **{"batch_size": 7, **options}
        )
        stream.set_epoch(epoch)
        return sorted(texts_of(stream))

    drawn = draw(0, seed=5)
    assert drawn == draw(0, seed=5, batch_size=3)
    halves = [draw(0, seed=5, world=es.World.of(rank, 2, 2)) for rank in range(2)]
    assert drawn == sorted(halves[0] + halves[1])
    assert drawn != draw(1, seed=5) != draw(0, seed=6)
    for episode, _, text in drawn:
        assert text in (texts[episode] or [""])
    counts = [sum(text == wanted for _, _, text in drawn) for wanted in texts[0]]
    assert min(counts) >= 5  # of 40 windows, three instructions: each about 13 times


def test_instruction_random_is_the_same_in_workers_and_loaders(told):
    source, _ = told
    stream = es.EpisodeStream(source, features=["action"], instruction="random", batch_size=8)
    direct = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        direct.append(texts_of(stream))
    stream.set_epoch(0)
    with es.StreamingLoader(stream, num_workers=1) as loader:
        assert [texts_of(loader) for _ in range(2)] == direct
