"""The nearest name that there is, in one wording."""

import pytest

from epistream.hints import did_you_mean


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("shard_sise", ["shard_size", "quality"], "Did you mean 'shard_size'?"),
        ("top", ["action", "observation.images.top"], "Did you mean 'observation.images.top'?"),
        ("state", ["state2", "observation.state"], "Did you mean 'observation.state'?"),
        ("bath_size", ["stream.batch_size", "stream.split"], "Did you mean 'stream.batch_size'?"),
        ("cache.budgt", ["cache.budget_bytes", "cache.keep"], "Did you mean 'cache.budget_bytes'?"),
        ("zzz", ["action", "state"], "Known: two."),
        ("zzz", [], "Known: two."),
    ],
)
def test_nearest_name_is_asked_for(name, known, expected):
    assert did_you_mean(name, known, "Known: two.") == expected
