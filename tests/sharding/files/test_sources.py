"""What a user means by a source, when that is very many names: the work is that of each name, once."""

import sys

import pytest

from epistream.errors import OptionError
from epistream.sharding.files.sources import Tars, resolve


def calls_to_resolve(source):
    """How many functions of Python are called meanwhile."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        resolve(source)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("form", ["braces", "list", "list of patterns"])
def test_work_to_resolve_grows_with_the_number_of_tars(form):
    def source(number):
        if form == "braces":
            return f"/data/shard-{{000000..{number - 1:06d}}}.tar"
        if form == "list":
            return [f"s3://data/shard-{shard:06d}.tar" for shard in range(number)]
        return [f"/data/part{part}/shard-{{00..09}}.tar" for part in range(number // 10)]

    once, twice, four_times = (calls_to_resolve(source(number)) for number in (1000, 2000, 4000))
    assert four_times - twice <= 2.1 * (twice - once)


def test_a_hundred_thousand_tars_are_one_part():
    (part,) = resolve("s3://bucket/run/shard-{000000..099999}.tar")
    assert isinstance(part, Tars)
    assert part.url == "s3://bucket/run"
    assert (len(part.names), part.names[0], part.names[-1]) == (100_000, "shard-000000.tar", "shard-099999.tar")


def test_more_than_a_million_names_are_refused():
    with pytest.raises(OptionError, match="more than 1,000,000 names"):
        resolve("s3://bucket/shard-{0000000..1000000}.tar")
