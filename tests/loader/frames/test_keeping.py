"""Whether decoded frames are kept: room beside others, decided again as jobs come and go, and what keeping may cost."""

import logging
import pickle
from dataclasses import dataclass, field

import pytest

from epistream.cache.options import CacheOptions
from epistream.cache.store.budget import Budget
from epistream.errors import DeadlineError
from epistream.loader.frames.keeping import Costs, DecodedPlan, DecodedStats, Room, Spent

MIB, GIB = 1 << 20, 1 << 30


@dataclass
class FakeCache:
    """A node's cache with a budget of its own, and other jobs that claim room in it."""

    options: CacheOptions = field(default_factory=CacheOptions)
    terms: dict[str, int] = field(default_factory=lambda: {"memory": 8 * GIB})
    others: int = 0
    others_at_second_look: int | None = None
    claims: list[int] = field(default_factory=list)
    num_budgets: int = 0
    error: Exception | None = None

    def budget(self):
        self.num_budgets += 1
        if self.error:
            raise self.error
        return Budget(min(self.terms.values()), self.terms) if self.terms else None

    def claim(self, group, num_bytes):
        assert group == "group"
        self.claims.append(num_bytes)
        if self.others_at_second_look is not None and num_bytes:
            return self.others_at_second_look
        return self.others


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def room_of(cache, num_bytes, *, wanted=False, source_bytes=0):
    clock = Clock()
    room = Room(cache, DecodedPlan(wanted, num_bytes, source_bytes, 10), "group", clock)
    return room, clock


@pytest.mark.parametrize(
    ("num_bytes", "options", "terms", "keeps"),
    [
        # 8 GiB is half of what is available: an eighth of that is 2 GiB.
        (2 * GIB, {}, {"memory": 8 * GIB}, True),
        (2 * GIB + 1, {}, {"memory": 8 * GIB}, False),
        (2 * GIB, {}, {"memory": 80 * GIB, "cgroup": 8 * GIB}, True),
        (2 * GIB + 1, {}, {"memory": 80 * GIB, "cgroup": 8 * GIB}, False),
        (4 * GIB, {}, {"memory": 80 * GIB}, True),
        (4 * GIB + 1, {}, {"memory": 80 * GIB}, False),
        (GIB, {}, {"memory": 80 * GIB, "filesystem": GIB}, True),
        (GIB + 1, {}, {"memory": 80 * GIB, "filesystem": GIB}, False),
        # Who gives a budget has consented to it.
        (30 * GIB, {"budget_bytes": "30GiB"}, {"cap": 30 * GIB, "memory": 80 * GIB}, True),
        (30 * GIB + 1, {"budget_bytes": "30GiB"}, {"cap": 30 * GIB, "memory": 80 * GIB}, False),
    ],
)
def test_default_keeps_all_within_an_eighth_of_memory_and_4_gib_or_the_users_budget(num_bytes, options, terms, keeps):
    cache = FakeCache(CacheOptions(**options), terms)
    room, _ = room_of(cache, num_bytes)
    room.look(0)
    assert (room.keeps, room.may_evict, room.most_bytes) == ((True, True, num_bytes) if keeps else (False, False, 0))
    assert cache.claims[-1] == (num_bytes if keeps else 0)
    assert bool(room.why) != keeps


def test_shards_that_go_through_the_cache_must_fit_beside():
    room, _ = room_of(FakeCache(terms={"filesystem": GIB}), GIB - 10, source_bytes=11)
    room.look(0)
    assert not room.keeps


def test_once_keeps_what_fits_beside_others_and_asks_nobody_to_leave(caplog):
    cache = FakeCache(terms={"cap": 100 * MIB}, others=30 * MIB)
    room, _ = room_of(cache, 90 * MIB, wanted=True, source_bytes=10 * MIB)
    with caplog.at_level(logging.WARNING):
        room.look(0)
    assert (room.keeps, room.may_evict, room.most_bytes) == (True, False, 60 * MIB)
    assert cache.claims[-1] == 60 * MIB
    assert "they may take 90.0 MiB, of which other jobs claim 30.0 MiB (the cache's budget of 100.0 MiB" in caplog.text
    assert "budget_bytes" in caplog.text
    assert "10.0 MiB of open shards" in caplog.text


def test_room_is_decided_again_when_others_come_and_go_and_not_between():
    cache = FakeCache(terms={"memory": 8 * GIB})
    room, clock = room_of(cache, GIB)
    room.look(0)
    assert room.may_evict
    cache.others = 3 * GIB // 2
    for _ in range(1000):
        clock.now += 0.007  # 7 s in all
        room.look(GIB // 2)
    assert room.may_evict
    assert cache.num_budgets == 1
    clock.now += 5.1
    room.look(GIB // 2)
    # It goes on with what it has, and makes no more.
    assert (room.keeps, room.may_evict, room.most_bytes) == (True, False, 0)
    assert cache.claims[-1] == GIB // 2
    assert "other jobs claim 1.5 GiB" in room.why
    cache.others = 0
    clock.now += 12.1
    room.look(GIB // 2)
    assert (room.keeps, room.may_evict, room.most_bytes, room.why) == (True, True, GIB, "")
    assert cache.claims[-1] == GIB


@pytest.mark.parametrize("wanted", [True, False])
def test_job_that_has_all_its_frames_is_not_told_that_it_has_not_when_another_takes_the_rest(wanted, caplog):
    cache = FakeCache(CacheOptions(budget_bytes=100 * MIB), terms={"cap": 100 * MIB})
    room, clock = room_of(cache, 60 * MIB, wanted=wanted, source_bytes=3 * MIB)
    room.look(0)
    # The other one left this job its frames, but not its open shards.
    cache.others = 38 * MIB
    clock.now += 12.1
    room.look(60 * MIB)
    assert (room.keeps, room.may_evict, room.why, caplog.text) == (True, False, "", "")
    assert cache.claims[-1] == 60 * MIB


def test_two_that_claim_the_last_room_at_the_same_time_both_give_way():
    cache = FakeCache(terms={"memory": 8 * GIB}, others_at_second_look=2 * GIB)
    room, _ = room_of(cache, GIB)
    room.look(0)
    assert not room.keeps
    assert cache.claims == [0, GIB, 0]


def test_cache_that_is_off_or_cannot_be_asked_keeps_nothing_and_is_no_error(caplog):
    room, clock = room_of(FakeCache(terms={}), GIB)
    room.look(0)
    clock.now += 100
    room.look(0)
    assert not room.keeps
    cache = FakeCache(error=DeadlineError("/dev/shm/x/.lock: held"))
    room, clock = room_of(cache, GIB)
    room.look(0)
    assert not room.keeps
    assert "held" in room.why
    cache.error = None
    clock.now += 12.1
    room.look(0)
    assert room.keeps


def test_reason_is_logged_once_however_often_it_is_found(caplog):
    room, clock = room_of(FakeCache(terms={"memory": GIB}), GIB)
    with caplog.at_level(logging.INFO):
        for _ in range(10):
            clock.now += 20
            room.look(0)
        Room(room._cache, room._plan, "group").look(0)  # of the next epoch
    assert len(caplog.records) == 1


def batch(*, reading=0.0, keeping=0.0, taken=0, decoded=0, taking_us=10.0, decoding_us=100.0):
    return Spent(
        reading_s=reading,
        keeping_s=keeping,
        num_taken=taken,
        num_timed_taken=taken,
        taking_s=taken * taking_us / 1e6,
        num_decoded=decoded,
        num_timed_decoded=decoded,
        decoding_s=decoded * decoding_us / 1e6,
    )


def test_keeping_takes_a_share_of_the_reading_and_a_debt_is_paid_first():
    costs = Costs()
    assert costs.allowance_s == 0.0
    costs.add(batch(reading=0.5), 0, "", wanted=True)
    assert costs.allowance_s == pytest.approx(0.045 - 8e-6)
    costs.add(batch(reading=0.1, keeping=0.2), 0, "", wanted=True)
    assert costs.allowance_s == pytest.approx(0.045 + 0.009 - 16e-6 - 0.2)
    for _ in range(100):
        costs.add(batch(reading=1.0), 0, "", wanted=True)
    assert costs.allowance_s == pytest.approx(0.05)  # a time without keeping is no licence to spend all of it at once


@pytest.mark.parametrize(("wanted", "share"), [(True, 0.09), (False, 0.14)])
def test_part_of_what_was_saved_is_invested_and_by_default_nothing_else_once_frames_are_taken(wanted, share):
    costs = Costs()
    costs.add(batch(reading=0.01, decoded=100), 0, "", wanted=wanted)
    assert costs.allowance_s == pytest.approx(share * 0.01 - 8e-6)
    before = costs.allowance_s
    costs.add(batch(reading=0.01, taken=40), 0, "", wanted=wanted)  # saves 40 times 90 us
    extra_s = share * 0.01 - 8e-6 if wanted else 0.0
    assert costs.allowance_s - before == pytest.approx(extra_s + 0.8 * (0.0036 - 0.05 * 0.01))


def test_keeping_that_does_not_pay_is_ended_after_three_findings_in_a_row_and_not_by_a_disturbance():
    costs = Costs()

    def add(taking_us):
        costs.add(batch(taken=2000, taking_us=taking_us), 0, "", wanted=False)
        return costs.judge()

    costs.add(batch(decoded=2000), 0, "", wanted=False)  # 100 us each
    assert [add(us) for us in (95, 95, 10, 95, 95, 89, 5000, 10)] == [""] * 8
    assert add(95) == add(95) == ""
    assert "95 us" in add(95)
    assert add(10) == add(10) == add(95)  # for good
    few = Costs()
    for _ in range(10):
        few.add(batch(taken=10_000, decoded=199, taking_us=1000), 0, "", wanted=False)
        assert few.judge() == ""


def test_costs_are_counted_by_the_process_that_has_them():
    costs = Costs()
    costs.add(batch(taken=3, decoded=4), 5, "full", wanted=True)
    assert costs.stats(9) == DecodedStats(3, 4, 0, 5, 9, "full")
    assert pickle.loads(pickle.dumps(costs)).stats(9) == DecodedStats(all_bytes=9)
    costs._pid = -1  # as a forked child finds it
    assert costs.stats(9) == DecodedStats(all_bytes=9)
    costs.add(batch(taken=1), 2, "", wanted=True)
    assert costs.stats(9) == DecodedStats(1, 0, 0, 2, 9, "")


def test_stats_of_workers_add_up_frames_and_know_the_same_bytes():
    summed = DecodedStats(1, 2, 3, 50, 100) + DecodedStats(10, 20, 30, 70, 100, "full")
    assert summed == DecodedStats(11, 22, 33, 70, 100, "full")
