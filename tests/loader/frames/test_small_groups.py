"""Video in groups of two, as LeRobot writes it: by windows while all frames can be kept, else by blocks of a group."""

import numpy as np
import pytest
from robots.lerobot_meta import numbers, video
from robots.lerobot_sets import RobotSet
from robots.reading import all_steps, steps_seen, stream_of

import epistream as es
from epistream.loader.frames import block_pool_plan
from epistream.loader.frames.block_pool_plan import resolved_order
from epistream.loader.frames.frames import FrameOptions
from epistream.loader.order.window import Window
from epistream.sharding.format.features import Feature

TOP = "observation.images.top"
FRAME = 480 * 640 * 3  # bytes; half of it as planes
FEW, MANY, HUGE = [100], [200] * 10, [200] * 100  # 0.1, 1.7 and 17 GiB decoded


def resolved(order, lengths, group_steps=2, obs=(0,), **frames):
    features = {TOP: Feature(TOP, "frames", "uint8", (480, 640, 3), codec="av1", group_steps=group_steps)}
    order = resolved_order(order, np.array(lengths), features, Window(obs=obs), FrameOptions(**frames))
    return order.by, order.block_steps, order.pool_blocks


@pytest.mark.parametrize(
    ("lengths", "how", "expected"),
    [
        (FEW, {}, ("windows", None, None)),
        (MANY, {}, ("blocks", 2, 1_000)),  # all of them: 2,000 steps as planes are 0.9 GiB
        ([199] * 10, {}, ("blocks", 2, 1_000)),  # an episode's last block may be cut short
        (HUGE, {}, ("blocks", 2, 512)),  # as many steps as 128 blocks of eight
        (HUGE, {"obs": (-1, 0)}, ("blocks", 8, 128)),  # a group of a window of two steps would be decoded twice
        (HUGE, {"image_size": (48, 64)}, ("windows", None, None)),
        (HUGE, {"decode": "per_read"}, ("blocks", 2, 512)),  # states do not depend on it
        (HUGE, {"group_steps": 1}, ("windows", None, None)),
        (FEW, {"group_steps": 30}, ("blocks", 30, 128)),
    ],
)
def test_order_that_is_left_open_follows_from_how_much_there_is_to_decode(lengths, how, expected):
    assert resolved(es.OrderOptions(), lengths, **how) == expected


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (es.OrderOptions(by="windows"), ("windows", None, None)),
        (es.OrderOptions(by="blocks"), ("blocks", 2, 512)),
        (es.OrderOptions(block_steps=4), ("blocks", 4, 256)),
        (es.OrderOptions(block_steps=32), ("blocks", 32, 128)),
        (es.OrderOptions(pool_blocks=64), ("blocks", 2, 64)),
        (es.OrderOptions(shuffle=False), ("windows", None, None)),
        (es.OrderOptions(lanes=4), ("blocks", 2, 256)),
    ],
)
def test_what_the_user_says_of_the_order_stays(order, expected):
    assert resolved(order, HUGE) == expected


def test_pool_of_a_node_takes_no_more_than_4_gib():
    block_bytes = FRAME // 2 * 2
    most = (4 << 30) // block_bytes
    assert resolved(es.OrderOptions(), [2] * most)[2] == most
    assert resolved(es.OrderOptions(), [2] * (most + 1))[2] == 512
    assert resolved(es.OrderOptions(nodes=2), [2] * (most + 1))[2] == most + 1


def test_each_frame_is_decoded_once_in_all_epochs_where_the_pool_holds_all(tmp_path, monkeypatch):
    pytest.importorskip("av")
    monkeypatch.setattr(block_pool_plan, "_FEW_BYTES", 0)
    spec = RobotSet(lengths=(8, 33, 7), group_steps=2, features={"action": numbers(14), TOP: video()})
    stream = stream_of(spec.write(tmp_path / "set"), shuffle=True, delta_timestamps=None)
    assert (stream.job.part.plan.options.by, stream.job.part.plan.blocks.steps) == ("blocks", 2)
    for epoch in range(3):
        stream.set_epoch(epoch)
        assert steps_seen(stream, spec) == all_steps(spec)
    stats = stream.job.decoded_stats()
    assert (stats.num_decoded, stats.num_again, stats.num_unpooled) == (48, 0, 0)
    assert stats.num_taken == 3 * 48
    stream.job.cache.close()
