"""Records of episodes that were made in different ways: equal, but for the order in which numbers were added."""

from dataclasses import fields

import numpy as np

from epistream.sharding.manifest.episode_records import EpisodeRecords


def assert_same_records(found: EpisodeRecords, wanted: EpisodeRecords) -> None:
    """Everything is the same exactly, means and sums of squares to rounding."""
    assert found.num_steps.tolist() == wanted.num_steps.tolist()
    assert found.num_points.tolist() == wanted.num_points.tolist()
    assert list(found.described) == list(wanted.described)
    assert found.features.keys() == wanted.features.keys()
    for name, one in wanted.features.items():
        other = found.features[name]
        assert other.shape == one.shape
        for key in (column.name for column in fields(one) if column.name != "shape"):
            a, b = getattr(other, key), getattr(one, key)
            if a is None or b is None:
                assert a is b, (name, key)
            elif key in ("mean", "squares"):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=f"{name} {key}")
            else:
                assert a.dtype == b.dtype, (name, key)
                np.testing.assert_array_equal(a, b, err_msg=f"{name} {key}")
