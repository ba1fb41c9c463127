"""Partial entries against a model: three users join, bring, fill, give up, die and evict in any order."""

import shutil
import tempfile
import time
from pathlib import Path

import pytest
from cache_actors import content, counted_bytes, key_of, noted_bytes, open_test_store
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from partial_actors import CHARGE, PLACES, SIZE, bring, fill, have_of, join, parts_of, whole

from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.lease import Lease
from epistream.cache.store.partial import GRANULE_BYTES, Partial
from epistream.cache.store.store import NoRoomError, ShardStore

NUM_ROOM = 3
USERS = st.integers(0, 2)
KEYS = st.integers(0, 4)
PARTS = st.integers(0, 1)


class PartialEntries(RuleBasedStateMachine):
    """The model: what is there of each entry that is not complete, and who holds what."""

    check_s = 1000.0

    def __init__(self) -> None:
        super().__init__()
        base = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
        self.parent = Path(tempfile.mkdtemp(prefix="cache-test-", dir=base))
        self.path = self.parent / "cache"

    @initialize()
    def begin(self) -> None:
        self.stores: dict[int, ShardStore] = {}
        self.held: list[tuple[int, int, Partial | Lease]] = []  # user, key, what
        self.absent: dict[int, list[list[tuple[int, int]]]] = {}  # of partial entries
        self.complete: set[int] = set()

    def teardown(self) -> None:
        for _, _, what in self.held:
            what.close()
        for store in self.stores.values():
            store.directory.leave()
        open_test_store(self.path).directory.leave()
        left = [path.name for path in self.parent.iterdir()]
        shutil.rmtree(self.parent)
        assert left == []

    # --- what the model expects ---------------------------------------------------------------------------

    def in_use(self) -> set[int]:
        """Entries that somebody leases, or brings: who joined one that has become complete holds nothing of it."""
        return {number for _, number, what in self.held if isinstance(what, Lease) or what._have.is_named()}

    def recency(self) -> dict[int, int]:
        """The stamp of each entry; 0 for those whose writer died before he set it."""
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        found = {}
        for file in self.path.iterdir():
            if file.suffix in (".shard", ".part"):
                stamp_ns = file.stat().st_mtime_ns
                found[int(file.stem, 16)] = 0 if stamp_ns > now_ns else stamp_ns
        return found

    def see_who_left(self, before: dict[int, int], wanted: int | None) -> None:
        """Nobody who is in use, no more than had to, and the least recently used."""
        after = self.recency()
        gone = before.keys() - after.keys()
        assert not gone & self.in_use()
        is_new = wanted is not None and wanted not in before and wanted in after
        assert len(gone) == max(0, len(before) + is_new - NUM_ROOM)
        idle = [stamp for number, stamp in before.items() if number in after and number not in self.in_use()]
        assert max((before[number] for number in gone), default=0) <= min(idle, default=time.time_ns())
        for number in gone:
            self.absent.pop(number, None)
            self.complete.discard(number)

    # --- what users do ------------------------------------------------------------------------------------

    @rule(user=USERS)
    def enter(self, user: int) -> None:
        if user not in self.stores:
            more = {"room_timeout_s": 0.0, "note_s": 0.0, "check_s": self.check_s}
            self.stores[user] = open_test_store(self.path, NUM_ROOM * CHARGE, **more)

    @rule(user=USERS)
    def leave(self, user: int) -> None:
        if user in self.stores:
            for each in [each for each in self.held if each[0] == user]:
                each[2].close()
                self.held.remove(each)
            self.stores.pop(user).directory.leave()
            if not self.stores:
                self.absent, self.complete = {}, set()

    @rule(user=USERS, number=KEYS)
    def join_entry(self, user: int, number: int) -> None:
        if user not in self.stores:
            return
        before = self.recency()
        self.stores[user]._refusals.forget()
        found = join(self.stores[user], number)
        self.see_who_left(before, number)
        if found is None:
            assert number not in before
            assert len(self.in_use()) == NUM_ROOM
            return
        assert isinstance(found, Lease) == (number in self.complete)
        self.held.append((user, number, found))
        if isinstance(found, Partial):
            self.absent.setdefault(number, [[(0, PLACES[0][1])], [(0, PLACES[1][1])]])
            assert have_of(found) == self.absent[number]

    @rule(chosen=st.integers(0, 9), part=PARTS, granule=st.integers(0, 3))
    def bring_a_granule(self, chosen: int, part: int, granule: int) -> None:
        partials = [(number, what) for _, number, what in self.held if isinstance(what, Partial)]
        if not partials:
            return
        number, partial = partials[chosen % len(partials)]
        start = granule * GRANULE_BYTES if part == 0 else 0
        stop = min(start + GRANULE_BYTES, PLACES[part][1])
        with partial.parts[part].turn(start, stop, GRANULE_BYTES, 0.0) as runs:
            is_alone = not partial._have.is_named()
            assert (runs is None) == (is_alone and bool(partial.parts[part].absent(start, stop)))
            for run in runs or ():
                partial.parts[part].write(run[0], whole(number)[part][run[0] : run[1]])
        if not is_alone:
            self.absent[number] = have_of(partial)
            assert not partial.parts[part].absent(start, stop)

    @rule(chosen=st.integers(0, 9))
    def let_go(self, chosen: int) -> None:
        if self.held:
            self.held.pop(chosen % len(self.held))[2].close()

    @rule(user=USERS, number=KEYS, keep=st.booleans())
    def fill_entry(self, user: int, number: int, keep: bool) -> None:
        if user not in self.stores:
            return
        before = self.recency()
        brought: list[int] = []
        try:
            lease = fill(self.stores[user], number, brought)
        except NoRoomError:
            self.see_who_left(before, None)
            assert number not in before
            assert len(self.in_use()) == NUM_ROOM
            return
        self.see_who_left(before, number)
        if number in self.complete:
            assert brought == []
        else:
            everything = [[(0, size)] for _, size in PLACES]
            absent = self.absent.pop(number, everything)
            assert brought == [sum(stop - start for runs in absent for start, stop in runs)]
        self.complete.add(number)
        assert parts_of(lease) == whole(number)
        if keep:
            self.held.append((user, number, lease))
        else:
            lease.close()

    @rule(user=USERS, number=KEYS, part=PARTS)
    def die_while_filling(self, user: int, number: int, part: int) -> None:
        """A part of the entry is there by then; nothing is tidied up."""
        if user not in self.stores or number in self.complete or len({*self.recency(), number}) > NUM_ROOM:
            return

        class Died(BaseException):
            pass

        def fill_it(fd: int) -> None:
            partial = self.stores[user].joining.share(key_of(number), PLACES)
            bring(partial, number, only_part=part)
            self.absent[number] = have_of(partial)
            self.held.append((user, number, partial))
            raise Died

        filling = self.stores[user]._filling
        filling.abandon = lambda key: None  # type: ignore[method-assign]
        with pytest.raises(Died):
            self.stores[user].acquire(key_of(number), SIZE, fill_it)
        self.die(user)

    @rule(user=USERS)
    def die(self, user: int) -> None:
        """SIGKILL: descriptors end, nothing is tidied."""
        store = self.stores.pop(user, None)
        if store is None:
            return
        for each in [each for each in self.held if each[0] == user]:
            what = each[2]
            if isinstance(what, Lease):
                DESCRIPTORS.close(what._fd)
                what._fd = -1
                what.close()
            else:
                DESCRIPTORS.close(what.part_fd)
                DESCRIPTORS.close(what._have.fd)
                what.part_fd = what._have.fd = -1
            self.held.remove(each)
        for lock in (store.directory._users, store.directory._lock):
            if lock is not None:
                DESCRIPTORS.close(lock.fd)
                lock.fd = -1
        DESCRIPTORS.close(store.directory.dir_fd)
        store.directory.dir_fd = -1

    @rule(user=USERS)
    def give_back(self, user: int) -> None:
        if user in self.stores:
            self.stores[user].give_back()
            self.complete &= self.in_use()
            self.absent = {number: runs for number, runs in self.absent.items() if number in self.in_use()}

    # --- what always holds --------------------------------------------------------------------------------

    @invariant()
    def files_are_as_the_model_says(self) -> None:
        if not hasattr(self, "stores") or not self.path.exists():
            return
        kinds = {
            kind: {int(path.stem, 16) for path in self.path.glob(f"*{kind}")} for kind in (".shard", ".part", ".have")
        }
        assert kinds[".shard"] == self.complete
        assert kinds[".part"] == kinds[".have"] == self.absent.keys()
        assert counted_bytes(self.path) <= NUM_ROOM * CHARGE
        assert noted_bytes(self.path) in (None, counted_bytes(self.path))

    @invariant()
    def nobody_sees_a_wrong_byte(self) -> None:
        for _, number, what in getattr(self, "held", []):
            if isinstance(what, Lease):
                assert parts_of(what) == whole(number)
                continue
            for place, shared in zip(PLACES, what.parts, strict=True):
                there = content(number, SIZE)[place[0] : sum(place)]
                for start in range(0, place[1], GRANULE_BYTES):
                    stop = min(start + GRANULE_BYTES, place[1])
                    assert shared.absent(start, stop) or shared.read(start, stop) == there[start:stop]


class PartialEntriesThatAreCounted(PartialEntries):
    """The same, with a survey whenever ``.lock`` is taken to change something."""

    check_s = 0.0


TestPartialEntries = PartialEntries.TestCase
TestPartialEntriesThatAreCounted = PartialEntriesThatAreCounted.TestCase
TestPartialEntries.settings = TestPartialEntriesThatAreCounted.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.soak
@pytest.mark.parametrize("machine", [PartialEntries, PartialEntriesThatAreCounted])
def test_partial_entries_against_their_model_for_long(machine: type[PartialEntries]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=400, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
