"""Windows in seconds."""

import pytest

import epistream as es
from epistream.errors import OptionError
from epistream.loader.samples.delta_timestamps import window_in_seconds
from epistream.sharding.format.features import Feature


def feature(name, fps):
    if ".images." in name:
        return Feature(name, "frames", "uint8", (4, 4, 3), "raw", fps=fps)
    return Feature(name, "array", "float32", (2,), "npy", fps=fps)


FEATURES = {
    name: feature(name, fps)
    for name, fps in {
        "observation.images.top": 30.0,
        "observation.images.wrist": 30.0,
        "observation.state": 50.0,
        "action": 50.0,
        "reward": None,
    }.items()
}


def test_seconds_become_steps_of_each_features_own_rate():
    window = window_in_seconds(
        {"observation.images.top": [-1 / 30, 0.0], "observation.state": [-0.1, -0.02, 0.0], "action": [0.0, 0.1, 0.2]},
        FEATURES,
    )
    assert window.offsets("observation.images.top") == (-1, 0)
    assert window.offsets("observation.state") == (-5, -1, 0)
    assert window.offsets("action") == (0, 5, 10)
    assert window.offsets("observation.images.wrist") == (0,)


def test_pattern_stands_for_features_without_a_key_of_their_own():
    window = window_in_seconds({"observation.images.*": [-0.1, 0.0], "observation.images.wrist": [0.0]}, FEATURES)
    assert window.offsets("observation.images.top") == (-3, 0)
    assert window.offsets("observation.images.wrist") == (0,)


def test_base_window_keeps_everything_else():
    base = es.Window(obs=[-2, 0], action=range(3), overrides={"reward": [1]}, pad="zero", drop_incomplete=True)
    window = window_in_seconds({"action": [0.0]}, FEATURES, base=base)
    assert window == es.Window(
        obs=[-2, 0], action=range(3), overrides={"reward": [1], "action": [0]}, pad="zero", drop_incomplete=True
    )


@pytest.mark.parametrize("fps", [3, 15, 24, 29.97, 30, 50, 60, 59.94, 1000])
def test_every_multiple_of_the_step_is_found_within_the_default_tolerance(fps):
    features = {"action": feature("action", fps)}
    # Rounded to the digits that people write, and computed by adding up.
    written = [round(i / fps, 4) for i in range(200)]
    added = [0.0]
    for _ in range(199):
        added.append(added[-1] + 1 / fps)
    for seconds in (written, added):
        assert window_in_seconds({"action": seconds}, features).offsets("action") == tuple(range(200))


def test_rate_given_by_hand_wins_and_fills_in():
    assert window_in_seconds({"reward": [0.1]}, FEATURES, fps=10).offsets("reward") == (1,)
    window = window_in_seconds({"reward": [0.1], "action": [0.1]}, FEATURES, fps={"reward": 20})
    assert (window.offsets("reward"), window.offsets("action")) == ((2,), (5,))


@pytest.mark.parametrize("seconds", [1e308, -1e308, float("inf"), float("nan")])
def test_seconds_beyond_every_episode_are_refused(seconds):
    with pytest.raises(OptionError, match=r"delta_timestamps\['action'\]: .*, wanted seconds"):
        window_in_seconds({"action": [seconds]}, FEATURES)


def test_tolerance_decides_what_is_near_enough():
    with pytest.raises(OptionError, match=r"0.05 s is no step at 30 Hz; the nearest are 0.0333333 s and 0.0666667 s"):
        window_in_seconds({"observation.images.top": [0.05]}, FEATURES)
    window = window_in_seconds({"observation.images.top": [0.051]}, FEATURES, tolerance_s=0.02)
    assert window.offsets("observation.images.top") == (2,)


def test_seconds_that_are_a_step_but_for_their_last_digits_are_told_from_it():
    asked = {"observation.images.top": [0.0333334]}
    with pytest.raises(OptionError, match=r"0\.0333334 s is no step.*nearest are 0\.0333333 s and") as caught:
        window_in_seconds(asked, FEATURES, tolerance_s=1e-9)
    asked = {"observation.images.top": [0.03333333]}
    with pytest.raises(OptionError, match=r"0\.03333333 s is no step.*nearest are 0 s and 0\.033333333"):
        window_in_seconds(asked, FEATURES, tolerance_s=1e-12)
    needed = float(str(caught.value).partition("tolerance_s of ")[2].partition(" ")[0])
    window = window_in_seconds({"observation.images.top": [0.0333334]}, FEATURES, tolerance_s=needed)
    assert window.offsets("observation.images.top") == (1,)


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        ({"observation.images.left": [0.0]}, {}, "'observation.images.left' not among"),
        ({"observation.depth.*": [0.0]}, {}, "'observation.depth.*' not among"),
        ({"reward": [0.0]}, {}, "does not say its rate, wanted steps per second. Give the window of window_in_seconds"),
        ({"action": [0.0, 0.005]}, {"tolerance_s": 1.0}, "wanted each step once"),
        ({"action": [0.02, 0.0]}, {}, "does not ascend"),
        ({"action": []}, {}, "no step offsets"),
        ({"action": [float("nan")]}, {}, "nan, wanted seconds"),
        ({"action": [float("inf")]}, {}, "inf, wanted seconds"),
        ({"action": [0.0]}, {"tolerance_s": -1}, "wanted 0 or more seconds"),
        ({"action": [0.0]}, {"fps": 0}, "fps of action: 0"),
    ],
)
def test_impossible_times_are_refused_with_what_would_work(asked, options, message):
    with pytest.raises(OptionError) as caught:
        window_in_seconds(asked, FEATURES, **options)
    assert message in str(caught.value)


def test_stream_takes_seconds_at_the_rate_of_the_manifest(aloha_shards):
    seconds = {"observation.state": [-0.04, 0.0], "action": [0.0, 0.02, 0.1]}
    features = ["observation.state", "action"]
    timed = es.EpisodeStream(aloha_shards, batch_size=9, features=features, delta_timestamps=seconds)
    window = es.Window(overrides={"observation.state": [-2, 0], "action": [0, 1, 5]})
    stepped = es.EpisodeStream(aloha_shards, batch_size=9, features=features, window=window)
    for one, other in zip(timed, stepped, strict=True):
        for key in features:
            assert (one[key] == other[key]).all()
    with pytest.raises(OptionError, match="no step at 50 Hz"):
        es.EpisodeStream(aloha_shards, delta_timestamps={"action": [0.01]})
