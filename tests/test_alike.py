"""Alike messages become one line with a count and three places; unlike ones, and few, stay as they are."""

import pytest

from epistream.hints import grouped


@pytest.mark.parametrize(
    "form",
    [
        "/data/my runs/ep {n}.hdf5: no action, wanted one.",
        "runs/{n}/episode.hdf5: /data/demo_{n}: {n} rows, wanted 5 as in runs/{n}/episode.hdf5.",
        "s3://bucket/{n}.h5: cannot be opened ('s3://bucket/{n}.h5').",
        "shard-{n:06d}.tar: 2.{n} MiB, wanted 3.",
        "/in/e_{n}.hdf5: /observations/images/top, step {n}: no end marker, wanted a whole JPEG.",
    ],
)
def test_300_alike_messages_are_one_line_with_a_count_and_three_places(form):
    [line] = grouped(form.format(n=n) for n in range(300))
    assert line.startswith("300 alike: ")
    first, *others = (form.format(n=n).partition(": ")[0] for n in range(4))
    assert line.count(first) >= 1
    assert [place in line for place in others] == [True, True, False]


def test_few_messages_and_unlike_ones_stay_whole_and_in_order():
    texts = [f"a/{n}.hdf5: torn." for n in range(3)] + ["a/9.hdf5: no action.", "b: 3 things", "b: other things"]
    assert grouped(texts) == texts


def test_kinds_come_in_the_order_of_their_first_message():
    texts = ["a/0.h5: torn."] + [f"a/{n}.h5: {n} steps." for n in range(4)] + [f"a/{n}.h5: torn." for n in range(5, 9)]
    assert [line.partition(".")[0] for line in grouped(texts)] == ["5 alike: torn", "4 alike: 0 steps"]


def test_messages_without_a_place_are_counted_alone():
    assert grouped(f"{n} steps" for n in range(4)) == ["4 alike: 0 steps."]


def test_messages_of_one_place_name_it_once():
    assert grouped(f"a/b.h5: step {n} is torn" for n in range(9)) == [
        "9 alike: step 0 is torn. The first of them: a/b.h5"
    ]
