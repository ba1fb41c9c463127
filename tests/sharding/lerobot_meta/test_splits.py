"""Splits of LeRobot data sets: each episode in one, or an error that says which is not."""

import json

import pytest
from robots.lerobot_meta import MadeSet

from epistream.errors import FormatError
from epistream.sharding.lerobot_meta.info import parse_info
from epistream.sharding.lerobot_meta.splits import splits_of


def split(splits, num_episodes=6):
    made = MadeSet(lengths=[3] * num_episodes, info={"splits": splits})
    names, numbers = splits_of(parse_info(json.dumps(made.plain_info()).encode(), "info.json"), "info.json")
    return names, numbers.tolist()


def test_training_comes_first_and_the_others_in_their_order():
    assert split({"test": "5:6", "val": "3:5", "train": "0:3"}) == (("train", "test", "val"), [0, 0, 0, 2, 2, 1])
    assert split({"a": "0:2", "b": "2:6"}) == (("a", "b"), [0, 0, 1, 1, 1, 1])


def test_slices_may_leave_out_their_ends():
    assert split({"train": ":4", "val": "4:"}) == (("train", "val"), [0, 0, 0, 0, 1, 1])
    assert split({"train": " 0 : 4 ", "val": "4:6"}) == (("train", "val"), [0, 0, 0, 0, 1, 1])


@pytest.mark.parametrize("splits", [{}, None])
def test_without_splits_there_is_the_one_of_shards_without_any(splits):
    assert split(splits) == (("all",), [0] * 6)


@pytest.mark.parametrize("value", ["0:6", "0:4", "0:60", "2:6"])
def test_the_only_split_has_all_episodes_as_lerobot_reads_them(value, caplog):
    assert split({"train": value}) == (("train",), [0] * 6)
    assert ("the only split" in caplog.text) == (value != "0:6")


def test_a_split_without_episodes_is_none():
    assert split({"train": "0:6", "val": "6:6"}) == (("train",), [0] * 6)


@pytest.mark.parametrize(
    ("splits", "what"),
    [
        ({"train": "0:4", "val": "3:6"}, "episode 3 is in 2 of the splits train, val"),
        ({"train": "0:3", "val": "4:6"}, "episode 3 is in 0 of the splits"),
        ({"train": "0:3", "val": "3:7"}, "split val is '3:7', but there are 6 episodes"),
        ({"train": "0-3"}, "split 'train' is '0-3', wanted a slice such as '0:50'"),
        ({"train": "0:-1"}, "'0:-1'"),
        ({"train": [0, 1]}, r"\[0, 1\]"),
        ({"train": 0.8, "val": 0.2}, "0.8"),
        ({"": "0:6"}, "split '' is '0:6'"),
        ({"train": "0:9999999999999999"}, "wanted a slice"),
        ({f"s{number}": "0:0" for number in range(300)}, "300 splits"),
    ],
)
def test_splits_that_leave_it_open_are_named(splits, what):
    with pytest.raises(FormatError, match=rf"^info\.json: .*{what}"):
        split(splits)
