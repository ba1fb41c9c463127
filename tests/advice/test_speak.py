"""Advice about states, functions of the user's and stock loaders, taken."""

import json
import re

import pytest
import torch
from of_users import FailsAlways
from torch.utils.data import DataLoader

import epistream as es
from epistream.errors import OptionError, StateError


@pytest.fixture
def stream(aloha_shards):
    return es.EpisodeStream(aloha_shards, batch_size=10, features=["action"])


def test_state_that_was_changed_on_its_way_is_loaded_as_it_was_returned(stream, tmp_path):
    stream.set_epoch(1, 30)
    state = stream.state_dict()
    with pytest.raises(StateError, match=r"position is '30', wanted .*\. Load what state_dict\(\) returned\."):
        stream.load_state_dict({**state, "position": "30"})
    torch.save(state, tmp_path / "state.pt")
    for kept in (json.loads(json.dumps(state)), torch.load(tmp_path / "state.pt", weights_only=True)):
        stream.set_epoch(0)
        stream.load_state_dict(kept)
        assert stream.cursor == (1, 30)


def test_state_without_a_key_names_all_that_state_dict_returns(stream):
    state = stream.state_dict()
    with pytest.raises(StateError, match=r"state: epoch missing from .*, wanted all that state_dict\(\) returned"):
        stream.load_state_dict({name: value for name, value in state.items() if name != "epoch"})
    stream.load_state_dict(state)


def test_epoch_that_is_no_number_is_counted_from_0(stream):
    with pytest.raises(OptionError, match="Count epochs from 0"):
        stream.set_epoch("1")
    stream.set_epoch(0)
    assert stream.cursor == (0, 0)


def test_window_of_a_batch_that_failed_is_seen_alone_as_the_note_says(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"], transform=FailsAlways())
    for made, name in ((stream, "stream"), (es.Mixture([stream, stream], [1, 1], batch_size=10), "streams[0]")):
        with pytest.raises(ValueError, match="no such gripper") as caught:
            next(iter(made))
        [call] = re.findall(rf"To see one alone: {re.escape(name)}\.read\((.*)\)", "\n".join(caught.value.__notes__))
        arguments = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", call)}
        with pytest.raises(ValueError, match="no such gripper") as again:
            stream.read(**arguments)
        where = f"episode {arguments['episode_index']} .*: step {arguments['step']}"
        assert re.search(where, "\n".join(again.value.__notes__))


def test_stock_loader_that_would_stack_batches_names_two_that_do_not(stream):
    with pytest.raises(OptionError, match=r"Make it DataLoader\(stream, batch_size=None\), or take epistream\.Strea"):
        next(iter(DataLoader(stream, batch_size=10)))
    for loader in (DataLoader(stream, batch_size=None), es.StreamingLoader(stream, num_workers=0)):
        assert next(iter(loader))["action"].shape == (10, 1, 14)
