import numpy as np
import pytest

from epistream.sharding.format.statistics import merge, merge_all, summarize, to_plain


def plain_of(parts):
    return to_plain(merge_all({"x": summarize(part)} for part in parts)["x"])


def expected(values):
    values = np.asarray(values, np.float64)
    return {
        "count": len(values),
        "mean": values.mean(0),
        "std": values.std(0),
        "min": values.min(0),
        "max": values.max(0),
        "q01": np.quantile(values, 0.01, axis=0),
        "q99": np.quantile(values, 0.99, axis=0),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_statistics_in_parts_equal_numpy_on_the_whole(dtype, shape):
    values = (np.random.default_rng(1).normal(size=(700, *shape)) * 40 + 60).astype(dtype)
    found = plain_of([values[:1], values[1:300], values[300:]])
    for name, number in expected(values).items():
        np.testing.assert_allclose(found[name], number, rtol=1e-12, atol=1e-9, err_msg=name)
        assert np.shape(found[name]) == (() if name == "count" else shape)


def test_statistics_far_from_zero_keep_their_deviation():
    values = 1e9 + np.random.default_rng(0).normal(size=(1000, 1))
    found = plain_of(np.array_split(values, 7))
    np.testing.assert_allclose(found["std"], values.std(0), rtol=1e-6)


def test_quantiles_of_many_steps_are_close_in_rank():
    values = np.random.default_rng(2).exponential(size=(200_000, 2))
    found = plain_of(np.array_split(values, 97))
    for name, rank in (("q01", 0.01), ("q99", 0.99)):
        position = (values < np.array(found[name])).mean(axis=0)
        np.testing.assert_allclose(position, rank, atol=0.002)
    assert found["min"] == values.min(0).tolist()
    assert found["max"] == values.max(0).tolist()


def test_summary_stays_small_however_many_steps_it_has_seen():
    merged = summarize(np.zeros((1, 1)))
    for seed in range(40):
        merged = merge(merged, summarize(np.random.default_rng(seed).normal(size=(5000, 1))))
    assert sum(len(level) for level in merged.levels) < 2048 * len(merged.levels) + 1
    assert len(merged.levels) < 12
    assert merged.num_steps == 200_001


def test_values_that_are_not_finite_are_left_out_and_unknown_is_none():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.inf]])
    assert plain_of([values[:1], values[1:]]) == {
        "count": 2,
        "finite": [2, 1, 0],
        "mean": [2.0, 5.0, None],
        "std": [1.0, 0.0, None],
        "min": [1.0, 5.0, None],
        "max": [3.0, 5.0, None],
        "q01": [pytest.approx(1.02), 5.0, None],
        "q10": [pytest.approx(1.2), 5.0, None],
        "q50": [2.0, 5.0, None],
        "q90": [pytest.approx(2.8), 5.0, None],
        "q99": [pytest.approx(2.98), 5.0, None],
    }


def test_wide_features_have_moments_and_no_quantiles():
    found = plain_of([np.ones((3, 700, 3), np.float32)])
    assert found["mean"] == np.ones((700, 3)).tolist()
    assert found["q01"] == np.full((700, 3), None).tolist()


def test_same_parts_in_the_same_order_give_the_same_bits():
    parts = [np.random.default_rng(seed).normal(size=(3000, 4)) for seed in range(5)]
    assert plain_of(parts) == plain_of([part.copy() for part in parts])
