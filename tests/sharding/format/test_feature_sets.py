"""Sets of features: patterns choose in a fixed order, and what differs is named, not both whole lists."""

import pytest

from epistream.errors import FormatError, OptionError
from epistream.sharding.format.feature_sets import agreed, choose_features, describe_difference
from epistream.sharding.format.features import Feature


def camera(name, height=480, width=640, **changes):
    changes = {"codec": "jpeg", "jpeg_channels": "rgb"} | changes
    return Feature(f"observation.images.{name}", "frames", "uint8", (height, width, 3), **changes)


def array(name, width=14, **changes):
    return Feature(name, "array", changes.pop("dtype", "float32"), (width,), "npy", **changes)


def of(*features):
    return {feature.name: feature for feature in features}


ALOHA = of(camera("top"), camera("left"), camera("right"), array("observation.state"), array("action"))


@pytest.mark.parametrize("wanted", [5, [1], [None], ["action", b"action"]])
def test_anything_but_names_is_refused_by_choosing_and_by_comparing(wanted):
    with pytest.raises(OptionError, match=r"^features: .*, wanted a list of names and patterns such as"):
        choose_features(ALOHA, wanted)
    with pytest.raises(OptionError, match=r"^features: .*, wanted a list of names and patterns such as"):
        agreed(ALOHA, "a.h5", of(array("action", 7)), "b.h5", wanted)


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("observation.images.*", ["top", "left", "right"]),
        (["action", "observation.images.*"], ["action", "top", "left", "right"]),
        (["observation.images.right", "observation.images.*"], ["right", "top", "left"]),
        (["*.l*", "action*"], ["left", "action"]),
        (["observation.images.[lr]*"], ["left", "right"]),
        (["*"], ["top", "left", "right", "observation.state", "action"]),
        (["action", "action"], ["action"]),
    ],
)
def test_patterns_choose_in_the_given_order_then_in_that_of_the_dataset(wanted, chosen):
    assert [name.removeprefix("observation.images.") for name in choose_features(ALOHA, wanted)] == chosen


@pytest.mark.parametrize("wanted", [["wrist*"], ["action", "observation.image.*"], "Action*", []])
def test_pattern_that_matches_nothing_is_an_error_that_lists_what_there_is(wanted):
    with pytest.raises(OptionError) as caught:
        choose_features(ALOHA, wanted)
    assert all(name in str(caught.value) for name in ALOHA)


def test_difference_names_what_is_missing_extra_and_other_and_nothing_else():
    mine = of(camera("top", 240, 320), camera("wrist"), array("observation.state"), array("action", 7, fps=10.0))
    assert describe_difference(mine, ALOHA) == (
        "lacks observation.images.left, observation.images.right and also has observation.images.wrist; "
        "observation.images.top: width x height 320x240 instead of 640x480; "
        "action: shape (7,) instead of (14,), fps 10.0 instead of None"
    )


def test_difference_of_many_features_names_four_and_counts_the_others():
    wanted = of(*(array(f"a{number}") for number in range(100)))
    assert describe_difference(of(array("a0")), wanted) == "lacks a1, a2, a3, a4 and 95 more"
    other = of(*(array(f"a{number}", 2) for number in range(100)))
    text = describe_difference(other, wanted)
    assert text.startswith("a0: shape (2,) instead of (14,); a1:")
    assert text.endswith("a3: shape (2,) instead of (14,) and 96 more")
    assert len(text) < 200


def test_another_codec_is_one_difference_and_another_kind_is_all_that_is_said():
    png = of(camera("top", codec="png", jpeg_channels=None))
    assert describe_difference(png, of(camera("top"))) == "observation.images.top: codec png instead of jpeg"
    numbers = of(array("observation.images.top", dtype="float64"))
    assert describe_difference(numbers, of(camera("top"))) == "observation.images.top: array instead of frames"


def test_source_paths_make_no_difference():
    assert describe_difference(of(array("action", source_path="/a")), of(array("action", source_path="/b"))) is None


def test_parts_agree_in_what_is_named_and_keep_what_is_alike():
    other = of(camera("top", 240, 320), camera("left"), array("action"), array("extra"))
    found = agreed(ALOHA, "a", other, "b", ["action"])
    assert list(found) == ["observation.images.left", "action"]
    assert agreed(ALOHA, "a", dict(ALOHA), "b", None) is ALOHA


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (None, "also has extra; observation.images.top: width x height 320x240"),
        (["observation.images.*"], "b: lacks observation.images.right; observation.images.top: width"),
        (["ext*"], "b: also has extra, wanted the features that were named as in a"),
        (["observation.state"], "b: lacks observation.state, wanted the features that were named as in a"),
    ],
)
def test_parts_that_do_not_agree_in_what_is_named_are_refused_with_what_they_share(wanted, says):
    other = of(camera("top", 240, 320), camera("left"), array("action"), array("extra"))
    with pytest.raises(FormatError) as caught:
        agreed(ALOHA, "a", other, "b", wanted)
    assert says in str(caught.value)
    shared = str(caught.value).partition("features=")[2].partition("]")[0] + "]"
    assert set(agreed(ALOHA, "a", other, "b", eval(shared))) >= set(eval(shared))  # the advice holds


def test_parts_that_share_nothing_are_told_so():
    with pytest.raises(FormatError, match=r"They share no feature: stream them one by one"):
        agreed(of(array("a")), "a", of(array("b")), "b", None)
