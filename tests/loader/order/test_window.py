import numpy as np
import pytest

from epistream.errors import OptionError
from epistream.loader.order.window import Window


def test_window_steps_at_both_ends_are_clipped_and_masked():
    window = Window(obs=range(-1, 1), action=range(3))
    anchor, length = np.array([0, 3]), np.array([4, 4])
    steps, is_pad = window.steps("observation.state", anchor, length)
    assert steps.tolist() == [[0, 0], [2, 3]]
    assert is_pad.tolist() == [[True, False], [False, False]]
    steps, is_pad = window.steps("action", anchor, length)
    assert steps.tolist() == [[0, 1, 2], [3, 3, 3]]
    assert is_pad.tolist() == [[False, False, False], [False, True, True]]


def test_window_longer_than_the_episode_pads_both_ends():
    steps, is_pad = Window(obs=range(-3, 4)).steps("x", np.array([0]), np.array([2]))
    assert steps.tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    assert is_pad.tolist() == [[True, True, True, False, False, True, True]]


def test_window_offsets_by_feature_name():
    window = Window(obs=[0], action=[0, 1], overrides={"observation.effort": [-2, 0]})
    assert window.offsets("action") == (0, 1)
    assert window.offsets("action.base") == (0, 1)
    assert window.offsets("observation.state") == (0,)
    assert window.offsets("observation.effort") == (-2, 0)
    assert window.reach(["action", "observation.effort"]) == (-2, 1)


@pytest.mark.parametrize("offsets", [[], [0, 0], [1, 0]])
def test_window_with_impossible_offsets_is_refused(offsets):
    with pytest.raises(OptionError, match=r"Window\.obs"):
        Window(obs=offsets)


@pytest.mark.parametrize("offsets", [[10**400], [-(10**400), 0], [1 << 48], [float("inf")], ["a"]])
def test_window_with_offsets_that_no_episode_has_is_refused(offsets):
    with pytest.raises(OptionError, match=r"Window\.obs"):
        Window(obs=offsets)


@pytest.mark.parametrize("must_fit", [(-(10**400), 0), (0, 10**400)])
def test_window_that_must_fit_into_more_than_any_episode_is_refused(must_fit):
    with pytest.raises(OptionError, match=r"Window\.must_fit"):
        Window(must_fit=must_fit)


def test_window_with_unknown_pad_is_refused():
    with pytest.raises(OptionError, match="'wrap', wanted 'edge' or 'zero'"):
        Window(pad="wrap")


def test_window_of_a_bare_number_is_refused_with_the_range_that_was_meant():
    with pytest.raises(OptionError, match=r"A chunk of 16 is range\(16\)"):
        Window(action=16)
