"""Bounded memories: what stays, what leaves and in which order, and that what leaves is closed."""

import threading

import numpy as np
import pytest

from epistream.lru import Lru, SharedLru


def kept_of(lru):
    return list(lru.values())


def test_lru_keeps_the_values_used_last():
    lru = Lru(2)
    lru.put("a", 1)
    lru.put("b", 2)
    assert lru.get("a") == 1
    lru.put("c", 3)
    assert (lru.get("a"), lru.get("b"), lru.get("c")) == (1, None, 3)


def test_lru_closes_each_value_that_leaves_and_no_other():
    closed = []
    lru = Lru(3, closed.append)
    for number in range(5):
        lru.put(number, f"value {number}")
    assert closed == ["value 0", "value 1"]
    lru.drop_if(lambda value: value == "value 3")
    assert closed == ["value 0", "value 1", "value 3"]
    assert kept_of(lru) == ["value 2", "value 4"]
    lru.clear()
    assert closed == ["value 0", "value 1", "value 3", "value 4", "value 2"]
    assert kept_of(lru) == []


def test_lru_value_put_again_takes_the_place_of_the_one_before():
    closed = []
    lru = Lru(2, closed.append)
    lru.put("a", "old")
    lru.put("b", "other")
    lru.put("a", "new")
    assert closed == ["old"]
    assert kept_of(lru) == ["other", "new"]


@pytest.mark.parametrize("max_items", [1, 3])
def test_lru_with_room_made_holds_one_less_than_it_may(max_items):
    closed = []
    lru = Lru(max_items, closed.append)
    for number in range(max_items):
        lru.make_room()
        assert closed == []
        lru.put(number, number)
    lru.make_room()
    assert closed == [0]
    assert len(kept_of(lru)) == max_items - 1


def test_shared_lru_builds_what_it_does_not_remember():
    lru, built = SharedLru(2), []

    def value(number):
        def build():
            built.append(number)
            return np.full(3, number)

        return lru.get(number, build)

    for number in (0, 1, 0, 2, 0, 1):
        assert value(number).tolist() == [number] * 3
    assert built == [0, 1, 2, 1]  # 1 was used longest ago when 2 came


def test_shared_lru_gives_threads_that_build_the_same_value_at_once_that_value():
    lru, start, results = SharedLru(1), threading.Barrier(4), []

    def build():
        start.wait(60)  # until all four are here, so all four build
        return np.arange(5)

    threads = [threading.Thread(target=lambda: results.append(lru.get("key", build))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [result.tolist() for result in results] == [[0, 1, 2, 3, 4]] * 4
    assert lru.get("key", lambda: np.zeros(1)).tolist() == [0, 1, 2, 3, 4]
