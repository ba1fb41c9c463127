"""Saved states of anybody: loaded, or refused by name, and what refuses one stays where it was."""

import copy
import json

import numpy as np
import pytest
import torch
from fuzzing import JUNK, fuzzed, only_named_errors, other_values
from hypothesis import given
from hypothesis import strategies as st

import epistream as es
from epistream.errors import StateError


class Odd:
    """Of anybody: says nothing about itself."""

    def __repr__(self):
        raise RuntimeError("no")

    def __index__(self):
        raise RuntimeError("no")

    def __eq__(self, other):
        raise RuntimeError("no")

    __hash__ = None


KINDS = ("stream", "mixture", "many", "loader", "numbered", "iterator")
# What JSON cannot hold.
MORE_JUNK = st.one_of(
    JUNK,
    st.sampled_from(
        [b"x", {1}, (1, 2), Odd(), [Odd()] * 2, object, 3j, np.array([1, 2]), np.zeros((2, 2)), np.bool_(1)]
    ),
    st.sampled_from([torch.tensor(True), torch.tensor([1, 2]), torch.tensor(0.5), torch.ones(2, device="meta")]),
    st.sampled_from([np.array(["a", "b"]), np.array([None]), np.float64("nan"), np.datetime64(0, "s"), 10**5000]),
)


@pytest.fixture(scope="module")
def made(aloha_shards):
    """An object of each kind, what its place is, and a state of it in mid-epoch."""
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"])
    mixture = es.Mixture([stream, stream], [1, 2], batch_size=10)
    many = es.Mixture([stream] * 9, [1] * 9, batch_size=10)
    loader = es.StreamingLoader(es.EpisodeStream(aloha_shards, batch_size=10, features=["action"]), num_workers=0)
    found = {"stream": stream, "mixture": mixture, "many": many, "loader": loader, "numbered": loader.dataset}
    for each in (stream, mixture, many, loader):
        each.set_epoch(1)
        if each is not loader:
            each.set_epoch(1, 20)
    loader.stream.set_epoch(1, 20)
    found["iterator"] = iter(es.EpisodeStream(aloha_shards, batch_size=10, features=["action"]))
    next(found["iterator"])
    return {kind: (each, json.loads(json.dumps(each.state_dict()))) for kind, each in found.items()}


def check(each, state):
    """Load it; a refusal leaves everything as it was, and shows itself in a few lines."""
    before = json.dumps(each.state_dict())
    refused = None
    try:
        each.load_state_dict(state)
    except StateError as error:
        refused = str(error)
    if refused is not None:
        assert refused.startswith("state: ")
        assert len(refused) < 4000
        assert json.dumps(each.state_dict()) == before


@pytest.mark.parametrize("kind", KINDS)
@fuzzed
@given(data=st.data())
def test_any_state_is_loaded_or_refused_by_name(made, kind, data):
    each, sound = made[kind]
    if data.draw(st.booleans()):
        state = data.draw(other_values(sound))
    else:
        state = copy.deepcopy(sound)
        names = st.sampled_from(sorted(state))
        for name in data.draw(st.lists(names, min_size=1, max_size=3)):
            state[name] = data.draw(MORE_JUNK)
            if isinstance(sound[name], list) and data.draw(st.booleans()):
                state[name] = [data.draw(MORE_JUNK), *sound[name][1:]]
    with only_named_errors():
        check(each, state)
    each.load_state_dict(sound)
    assert each.state_dict() == sound
