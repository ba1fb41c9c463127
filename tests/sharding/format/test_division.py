"""Splits that stay: an episode's own name says where it belongs, whatever others there are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epistream.sharding.format.division import Division, identity_of, lerobot_identity


def names_of(count, **options):
    return [identity_of(f"day/episode_{i}.hdf5", "/", 100, 5000) for i in range(count)], Division(**options)


def test_split_of_known_episodes_is_the_same_on_every_machine():
    identities, division = names_of(12, val_fraction=0.25, split_seed=2)
    chosen = [number for number, name in enumerate(division.names(identities)) if name == "val"]
    assert chosen == [0, 2, 4, 6, 7, 10]


@given(st.sets(st.integers(0, 200), min_size=2), st.floats(0.01, 0.99), st.integers(0, 5))
def test_adding_episodes_moves_none_once_both_splits_have_some(numbers, fraction, seed):
    identities, division = names_of(201, val_fraction=fraction, split_seed=seed)
    some = [identities[number] for number in sorted(numbers)]
    before, after = (dict(zip(ones, division.names(ones), strict=True)) for ones in (some, identities))
    moved = [one for one in some if before[one] != after[one]]
    # One alone may have been put aside, where the hashes put all into one split.
    assert len(moved) <= 1
    if moved:
        assert list(before.values()).count(before[moved[0]]) == 1


@pytest.mark.parametrize(("fraction", "alone"), [(1e-9, "val"), (1 - 1e-9, "train")])
def test_each_split_has_at_least_one(fraction, alone):
    identities, division = names_of(7, val_fraction=fraction)
    assert division.names(identities).count(alone) == 1
    assert division.names(identities[:1]) == ["train"]
    assert division.names([]) == []


def test_share_of_many_episodes_is_about_the_wanted_one():
    identities, division = names_of(10_000, val_fraction=0.1)
    assert abs(division.names(identities).count("val") - 1000) < 100


def test_identity_knows_no_folder_and_no_more_of_files_that_may_grow():
    one = identity_of("/data/day1/episode_3.hdf5", "/", 400, 5000)
    assert identity_of("episode_3.hdf5", "/", 400, 5000) == one
    assert identity_of("https://host/sets/day2/episode_3.hdf5", "", 400, 5000) == one
    assert identity_of("day1/episode_3.hdf5", "/", 400, 5001) != one
    assert identity_of("day1/episode_3.hdf5", "/", 401, 5000) != one
    many = identity_of("demos.hdf5", "/data/demo_3", 400, 5000)
    assert identity_of("demos.hdf5", "data/demo_3", 400, 9000) == many
    assert identity_of("demos.hdf5", "/data/demo_4", 400, 5000) != many
    assert identity_of("data/chunk-000/file-007.parquet", "episode 12", 30, 99) == lerobot_identity(12, 30)


def test_names_that_are_no_unicode_have_a_split():
    odd = b"\xff\xfe.hdf5".decode(errors="surrogateescape")
    assert len(Division(0.5).names([odd, "other"])) == 2


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({"train": 90, "val": 10}, None),
        ({"train": 84, "val": 16}, None),
        ({"train": 60, "val": 40}, "40 (40%) are val: each is chosen by its own name. Another split_seed"),
        ({"train": 99, "val": 1}, "1 (1%) are val, as each split has at least one"),
        ({"train": 100}, "all that are left are train"),
        ({"train": 1}, "one cannot be divided"),
    ],
)
def test_share_that_is_far_off_is_told(splits, said):
    note = Division(0.1).note(splits)
    assert note is None if said is None else said in note
