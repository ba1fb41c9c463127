"""What a stream yields, window by window, against an independent reading of the HDF5 files."""

import numpy as np
import pytest
import reference
import torch
from torch.utils.data import DataLoader

import epistream as es
from epistream.errors import OptionError

LENGTHS = [80, 60]  # steps of the two example episodes


def windows_of(batches) -> list[tuple[int, int]]:
    return [pair for b in batches for pair in zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True)]


@pytest.mark.parametrize(
    ("obs", "action", "pad"),
    [
        ([0], [0], "edge"),
        (range(-1, 1), range(16), "edge"),
        (range(-2, 2), range(100), "edge"),  # longer than the episode
        ([-7, 0, 3], [-1, 0, 5], "zero"),
        ([-200], [200], "zero"),  # nothing but padding
    ],
)
def test_stream_window_at_every_position_equals_direct_reading(aloha_shards, aloha_files, obs, action, pad):
    stream = es.EpisodeStream(
        aloha_shards, batch_size=7, window=es.Window(obs=obs, action=action, pad=pad), shuffle=False
    )
    seen = []
    for batch in stream:
        for row, (episode, step) in enumerate(windows_of([batch])):
            expected = reference.window(reference.aloha_episode(aloha_files[episode]), step, obs, action, pad)
            for key, value in expected.items():
                np.testing.assert_array_equal(batch[key][row].numpy(), value, err_msg=f"{key} at {episode}, {step}")
                assert batch[key].numpy().dtype == value.dtype
            seen.append((episode, step))
    assert seen == [(e, t) for e, length in enumerate(LENGTHS) for t in range(length)]


def test_stream_batch_has_the_documented_keys_types_and_shapes(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=5, window=es.Window(obs=range(-1, 1), action=range(4)))
    batch = next(iter(stream))
    shapes = {key: (value.dtype, tuple(value.shape)) for key, value in batch.items() if key != "task"}
    assert shapes == {
        "observation.images.angle": (torch.uint8, (5, 2, 480, 640, 3)),
        "observation.images.angle_is_pad": (torch.bool, (5, 2)),
        "observation.images.top": (torch.uint8, (5, 2, 480, 640, 3)),
        "observation.images.top_is_pad": (torch.bool, (5, 2)),
        "observation.state": (torch.float32, (5, 2, 14)),
        "observation.state_is_pad": (torch.bool, (5, 2)),
        "observation.qvel": (torch.float32, (5, 2, 14)),
        "observation.qvel_is_pad": (torch.bool, (5, 2)),
        "action": (torch.float32, (5, 4, 14)),
        "action_is_pad": (torch.bool, (5, 4)),
        "episode_index": (torch.int64, (5,)),
        "step_index": (torch.int64, (5,)),
    }
    assert batch["task"] == [""] * 5


def test_stream_features_overrides_and_squeeze(aloha_shards):
    window = es.Window(action=range(3), overrides={"observation.qvel": [-2, 0]})
    features = ["action", "observation.state", "observation.qvel"]
    stream = es.EpisodeStream(aloha_shards, batch_size=2, window=window, features=features, squeeze=True)
    batch = next(iter(stream))
    assert [key for key in batch if key in features] == features
    assert tuple(batch["observation.state"].shape) == (2, 14)
    assert tuple(batch["observation.state_is_pad"].shape) == (2,)
    assert tuple(batch["observation.qvel"].shape) == (2, 2, 14)
    assert tuple(batch["action"].shape) == (2, 3, 14)


def test_stream_sample_format_function_gets_the_batch_and_gives_what_is_yielded(aloha_shards):
    stream = es.EpisodeStream(
        aloha_shards, batch_size=2, features=["action"], sample_format=lambda batch: tuple(batch["action"].shape)
    )
    assert next(iter(stream)) == (2, 1, 14)


def test_stream_shuffled_epochs_hold_every_window_once_in_different_orders(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"], seed=3)
    orders = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        orders.append(windows_of(stream))
    everything = [(e, t) for e, length in enumerate(LENGTHS) for t in range(length)]
    assert sorted(orders[0]) == sorted(orders[1]) == everything
    assert orders[0] != orders[1] != everything


def test_stream_drop_incomplete_leaves_only_whole_windows(aloha_shards):
    window = es.Window(obs=range(-2, 1), action=range(5), drop_incomplete=True)
    stream = es.EpisodeStream(aloha_shards, batch_size=4, window=window, features=["observation.state", "action"])
    assert stream.num_windows == (80 - 6) + (60 - 6)
    for batch in stream:
        assert not batch["action_is_pad"].any()
        assert not batch["observation.state_is_pad"].any()


def test_stream_ranks_are_disjoint_and_complete_but_for_the_remainder(aloha_shards):
    per_rank = [
        windows_of(es.EpisodeStream(aloha_shards, batch_size=9, features=["action"], world=es.World.of(rank, 3, 3)))
        for rank in range(3)
    ]
    assert [len(windows) for windows in per_rank] == [45, 45, 45]  # 140 // 27 = 5 batches of 9
    union = sum(per_rank, [])
    assert len(set(union)) == 135


def test_stream_pad_marks_repeats(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=32, features=["action"], remainder="pad")
    batches = list(stream)
    assert [len(batch["step_index"]) for batch in batches] == [32] * 5
    repeats = torch.cat([batch["is_repeat"] for batch in batches])
    assert int(repeats.sum()) == 160 - 140
    kept = [pair for pair, again in zip(windows_of(batches), repeats.tolist(), strict=True) if not again]
    assert len(set(kept)) == 140


def test_stream_uneven_ends_with_a_short_batch(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=32, features=["action"], remainder="uneven")
    batches = list(stream)
    assert [len(batch["action"]) for batch in batches] == [32, 32, 32, 32, 12]
    assert len(set(windows_of(batches))) == 140


def test_stream_is_no_map_style_dataset(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"])
    assert not hasattr(stream, "__len__")
    assert (stream.num_windows, stream.num_batches) == (140, 14)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_stock_dataloader_gives_the_same_order_and_follows_set_epoch(aloha_shards, num_workers, method):
    if num_workers == 0 and method == "spawn":
        pytest.skip("no workers, nothing to spawn")
    stream = es.EpisodeStream(aloha_shards, batch_size=20, features=["action", "observation.state"])
    expected = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        expected.append(windows_of(stream))
    context = method if num_workers else None
    loader = DataLoader(
        stream,
        batch_size=None,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        multiprocessing_context=context,
    )
    for epoch in range(2):
        stream.set_epoch(epoch)
        assert windows_of(loader) == expected[epoch]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0, wanted an integer of at least 1"),
        ({"batch_size": 4.0}, "batch_size: 4.0, wanted an integer"),
        ({"window": 16}, "window: 16, wanted a Window"),
        ({"features": ["top"]}, "Did you mean 'observation.images.top'?"),
        ({"batch_size": 141}, "141 windows a batch, but an epoch has 140"),
        ({"features": ["observation.images.wrist"]}, "'observation.images.wrist'"),
        ({"features": []}, "an empty list"),
        ({"split": "val"}, "val"),
        ({"remainder": "keep"}, "remainder: 'keep'"),
        ({"window": es.Window(overrides={"observation.effort": [0]})}, "observation.effort"),
        ({"window": es.Window(action=range(81), drop_incomplete=True)}, "the longest episode has 80"),
    ],
)
def test_stream_with_impossible_options_is_refused_at_construction(aloha_shards, options, message):
    with pytest.raises(OptionError) as caught:
        es.EpisodeStream(aloha_shards, **options)
    assert message in str(caught.value)


def test_stream_locate_names_the_window_of_every_position(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"])
    stream.set_epoch(1)
    places = [stream.locate(position) for position in range(140)]
    assert [(place.episode_index, place.step_index) for place in places] == windows_of(stream)
    assert places[0] == stream.locate(0, epoch=1)
    for place in places:
        assert place.shard_url.endswith(f"shard-{place.episode_index:06d}.tar")
    with pytest.raises(OptionError, match="position"):
        stream.locate(140)


def test_stream_read_shows_a_window_again(aloha_shards, aloha_files):
    stream = es.EpisodeStream(aloha_shards, batch_size=10, window=es.Window(obs=range(-1, 1), action=range(5)))
    batch = stream.read(1, 58)
    expected = reference.window(reference.aloha_episode(aloha_files[1]), 58, range(-1, 1), range(5), "edge")
    for key, value in expected.items():
        np.testing.assert_array_equal(batch[key][0].numpy(), value)
    for episode, step in [(2, 0), (-1, 0), (1, 60), (1, -1)]:
        with pytest.raises(OptionError, match=f"episode {episode}, step {step} of 2 episodes"):
            stream.read(episode, step)


def test_stream_repetitions_make_a_curriculum(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"], repetitions=[0, 3])
    assert stream.num_windows == 180
    assert sorted(windows_of(stream)) == sorted([(1, step) for step in range(60)] * 3)
    other = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"])
    with pytest.raises(es.EpistreamError, match="anchors is"):
        other.load_state_dict(stream.state_dict())
