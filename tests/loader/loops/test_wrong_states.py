"""States of wrong types and values: each key that is wrong is named with what was found and wanted."""

import json
import re

import numpy as np
import pytest
import torch

import epistream as es
from epistream.errors import OptionError, StateError

WRONG = {
    "none": None,
    "list": [1],
    "dict": {"a": 1},
    "text": "1",
    "true": True,
    "numpy true": np.bool_(True),
    "torch true": torch.tensor(True),
    "half": 0.5,
    "nan": float("nan"),
    "numpy nan": np.float64("nan"),
    "float tensor": torch.tensor(1.0),
    "two": np.array([1, 2]),
    "negative": -1,
    "huge": 10**5000,
    "nested": json.loads("[" * 900 + "]" * 900),
    "bytes": b"1",
}


@pytest.fixture(scope="module")
def of_each_kind(aloha_shards):
    def stream():
        return es.EpisodeStream(aloha_shards, batch_size=10, features=["action"], seed=1)

    streams = {"stream": stream(), "mixture": es.Mixture([stream(), stream()], [1, 1], batch_size=10)}
    loader = es.StreamingLoader(stream(), num_workers=0)
    for each in (*streams.values(), loader.stream):
        each.set_epoch(1, 30)
    return {**streams, "loader": loader, "numbered": loader.dataset}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", ["stream", "mixture", "loader", "numbered"])
def test_value_of_a_wrong_type_is_named_and_nothing_is_loaded(of_each_kind, kind, wrong):
    each = of_each_kind[kind]
    before = each.state_dict()
    for name in (*before, "num_batches_given"):
        if name == "shuffle" and "true" in wrong:
            continue
        with pytest.raises(StateError, match=rf"state: .*\b{name}\b") as caught:
            each.load_state_dict({**before, name: WRONG[wrong]})
        assert re.search("wanted|this stream has|this release reads", str(caught.value))
        assert len(str(caught.value)) < 600
        assert each.state_dict() == before


@pytest.mark.parametrize("kind", ["stream", "mixture", "loader", "numbered"])
def test_key_that_is_missing_is_named(of_each_kind, kind):
    each = of_each_kind[kind]
    before = each.state_dict()
    for name in before:
        left = {key: value for key, value in before.items() if key != name}
        with pytest.raises(StateError, match=rf"state: .*\b{name}\b.* missing|state: {name} missing"):
            each.load_state_dict(left)
        assert each.state_dict() == before


@pytest.mark.parametrize("state", [None, 3, "state", [("epoch", 1)], {1, 2}, float("nan"), b"", object], ids=repr)
def test_what_is_no_dict_is_refused(of_each_kind, state):
    for each in (*of_each_kind.values(), iter(of_each_kind["stream"])):
        with pytest.raises(StateError, match=r"state: .*, wanted the dict that state_dict\(\)"):
            each.load_state_dict(state)


@pytest.mark.parametrize("number", [np.int64, np.uint8, np.array, torch.tensor, lambda n: torch.tensor([n]), np.int32])
def test_numbers_of_numpy_and_torch_are_numbers(of_each_kind, number):
    for each in of_each_kind.values():
        state = each.state_dict()
        made = {
            name: number(value) if isinstance(value, int) and not isinstance(value, bool) and value < 256 else value
            for name, value in state.items()
        }
        each.load_state_dict(made)
        assert each.state_dict() == state


def test_texts_and_lists_of_numpy_and_tuples_are_what_they_hold(of_each_kind):
    each = of_each_kind["mixture"]
    state = each.state_dict()
    for made in (np.array, tuple, lambda value: [np.str_(item) for item in value]):
        each.load_state_dict({name: made(value) if isinstance(value, list) else value for name, value in state.items()})
        assert each.state_dict() == state
    stream = of_each_kind["stream"]
    state = stream.state_dict()
    for shuffle in (np.bool_(True), torch.tensor(True)):
        stream.load_state_dict({**state, "shuffle": shuffle, "window": np.str_(state["window"])})
        assert stream.state_dict() == state


@pytest.mark.parametrize("wrong", WRONG)
def test_state_of_an_iterator_names_what_is_wrong_and_stays_where_it_was(aloha_shards, wrong):
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"])
    batches = iter(stream)
    next(batches)
    before, place = batches.state_dict(), stream.state_dict()
    for name in before:
        with pytest.raises(StateError, match=rf"state: .*\b{name}\b"):
            batches.load_state_dict({**before, name: WRONG[wrong]})
        assert (batches.state_dict(), stream.state_dict()) == (before, place)
    with pytest.raises(StateError, match="num_batches_done is 15, wanted an integer of 0 to 14"):
        batches.load_state_dict({**before, "num_batches_done": 15})
    assert next(batches)["step_index"].shape == (10,)


@pytest.mark.parametrize("epoch", [None, "1", True, 0.5, [1], -1, 10**30])
def test_epoch_that_is_none_is_refused(of_each_kind, epoch):
    for each in of_each_kind.values():
        before = each.state_dict()
        with pytest.raises(OptionError, match=r"set_epoch: epoch .*, wanted integers of 0 or more"):
            each.set_epoch(epoch)
        assert each.state_dict() == before
