"""Whatever episodes hold, they are measured without a warning, and batches give what single episodes give."""

import numpy as np
import pytest
from ailing.episodes import healthy, write
from hypothesis import given, settings
from hypothesis import strategies as st

import epistream as es
from epistream.loader.doctor.facts.pairs import pair_facts
from epistream.loader.doctor.facts.segments import Segments
from epistream.loader.doctor.facts.values import made_finite, value_facts

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def longest_run(truths):
    best, first, count, begin = 0, 0, 0, None
    for step, one in enumerate([*truths, False]):
        if one and begin is None:
            begin, count = step, count + 1
        if not one and begin is not None:
            if step - begin > best:
                best, first = step - begin, begin
            begin = None
    return first, best, count


@given(LENGTHS, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_runs_of_each_episode_are_those_that_a_loop_finds(lengths, random):
    segments = Segments(lengths)
    truths = np.array([random.random() < 0.6 for _ in range(segments.num_steps)])
    found = segments.runs(truths)
    wanted = [longest_run(truths[part].tolist()) for part in segments.slices()]
    assert list(zip(found.first.tolist(), found.steps.tolist(), found.number.tolist(), strict=True)) == wanted
    assert segments.before(truths).tolist() == [
        next((step for step, one in enumerate(truths[part]) if one), part.stop - part.start)
        for part in segments.slices()
    ]


@given(LENGTHS, st.integers(0, 1 << 30))
@settings(max_examples=40, deadline=None)
def test_values_of_a_batch_are_measured_as_those_of_single_episodes(lengths, seed):
    random, segments = np.random.default_rng(seed), Segments(lengths)
    values = random.integers(-2, 3, (5, segments.num_steps)).astype(np.float64)
    values[random.random(values.shape) < 0.1] = np.nan
    together = value_facts(*made_finite(values, segments), segments, is_quaternion=True)
    for row, part in enumerate(segments.slices()):
        mine = Segments([lengths[row]])
        alone = value_facts(*made_finite(values[:, part], mine), mine, is_quaternion=True)
        for name, wanted in vars(alone).items():
            if not name.startswith(("norm", "flip")):  # which dimensions are looked at follows from all of a batch
                np.testing.assert_array_equal(getattr(together, name)[row], wanted[0], name)


def test_clipped_steps_leave_out_the_stretches_at_both_ends():
    values = np.array([[1, 1, 0, 1, 1, 0, 0.5, 1, 0, 1]])
    found = value_facts(values, values != values, Segments([10]), is_quaternion=False)
    assert found.clip_high.tolist() == [[pytest.approx(0.3)]]
    assert found.clip_low.tolist() == [[pytest.approx(0.3)]]
    assert found.extremes.tolist() == [[pytest.approx(0.9)]]


def test_shift_and_slope_of_actions_are_those_that_were_made():
    random, segments = np.random.default_rng(0), Segments([60, 400, 25])
    state = np.cumsum(random.normal(size=(3, 485)), axis=1)
    action = np.empty_like(state)
    for part in segments.slices():
        action[:, part] = 2 * np.concatenate([state[:, part][:, 4:], np.repeat(state[:, part][:, -1:], 4, 1)], axis=1)
    found = pair_facts(action, state, segments)
    assert found.lag.tolist() == [4, 4, pytest.approx(np.nan, nan_ok=True)]
    assert found.fit[:2].tolist() == [pytest.approx(1), pytest.approx(1)]
    assert found.slope[:2].ravel().tolist() == [pytest.approx(2)] * 6


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, 0.0])
def test_doctor_of_episodes_full_of_one_value_says_what_they_are(value, tmp_path):
    episodes = healthy(num=6, steps=12)
    for episode in episodes[:3]:
        for name in ("state", "action", "quat", "time"):
            episode[name][:] = value
    for name in ("state", "action", "quat", "time", "top", "wrist"):
        episodes[4][name] = episodes[4][name][:1]
    found = {one.code for one in es.doctor(str(write(episodes, tmp_path / "demos.hdf5"))).findings}
    assert "short-episode" in found
    assert ("not-finite" in found) == (not np.isfinite(value))
    assert ("huge-values" in found) == (value == 3e38)
    assert "nothing-moves" in found
    assert "time-backward" in found
