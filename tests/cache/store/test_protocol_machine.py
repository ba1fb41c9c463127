"""The protocol against a model: three processes' worth of stores do anything in any order.

Two machines: in one the files are counted at each step, in the other the running total is believed for ever, unless it
is in doubt, and eviction goes by the order of an earlier survey.
"""

import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest
from cache_actors import (
    PAGE,
    content,
    counted_bytes,
    fill_with,
    key_of,
    note_total,
    noted_bytes,
    open_test_store,
    read_all,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.lease import Lease
from epistream.cache.store.store import NoRoomError, Outcome, ShardStore, TooLargeError
from epistream.errors import FetchError

NUM_USERS = 3
USERS = st.integers(0, NUM_USERS - 1)
KEYS = st.integers(0, 6)
CAP_PAGES = 12


# Keys of one group, which users may claim.
GROUP, IN_GROUP = "0000000a", (7, 8, 9)
MADE = st.sampled_from((*range(6), *IN_GROUP))


def key(number: int) -> str:
    return key_of(number + (0xA << 96) if number in IN_GROUP else number)


def number_of(path: Path) -> int:
    return int(path.stem, 16) & 0xFF


def pages_of(number: int) -> int:
    """Sizes differ: 1, 3, 4 pages and more than the budget."""
    return (1, 3, 4, 4, 3, 1, CAP_PAGES + 1, 4, 4, 3)[number]


class Protocol(RuleBasedStateMachine):
    """The model: which keys are there in order of use, who leases what, who has entered.

    `remains` are parts of the dead; `is_wrong` says that the total was made wrong and nobody has counted since; `loose`
    are the users whose leaving order is of a time when others claimed, or did not.
    """

    check_s = 1000.0

    def __init__(self) -> None:
        super().__init__()
        base = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
        self.parent = Path(tempfile.mkdtemp(prefix="cache-test-", dir=base))
        self.path = self.parent / "cache"

    @initialize()
    def begin(self) -> None:
        self.stores: dict[int, ShardStore] = {}
        self.leases: list[tuple[int, int, Lease]] = []  # user, key, lease
        self.present: list[int] = []  # least recently used first
        self.remains: set[int] = set()
        self.is_wrong = False
        self.may_be_over = False  # since a wrong total let too much in, until enough has left again
        self.steps: list[str] = []
        self.claimants: set[int] = set()
        self.loose: set[int] = set()

    def teardown(self) -> None:
        for _, _, lease in self.leases:
            lease.close()
        for store in self.stores.values():
            store.leave()
        open_test_store(self.path).directory.leave()  # the next start cleans up after the dead
        left = [path.name for path in self.parent.iterdir()]
        shutil.rmtree(self.parent)
        assert left == []

    # --- what the model expects ---------------------------------------------------------------------------

    def leased(self) -> set[int]:
        return {number for _, number, _ in self.leases}

    def was_counted(self, user: int) -> bool:
        """Whether a user counted the files since the last call: no remains are left then, and the total is right."""
        counted = "total.counted" in self.steps
        self.steps.clear()
        if counted:
            self.loose.discard(user)
            self.remains = set()
            self.is_wrong = False
        return counted

    def claimed_by_others(self, user: int) -> set[int]:
        """What a user leaves alone as long as it can."""
        return set(IN_GROUP) if self.claimants and user not in self.claimants else set()

    def expect_room_for(self, user: int, number: int, *, is_made: bool = False) -> bool:
        """Whether it fits, after evicting the oldest unleased keys as far as needed, which are dropped here."""
        others = self.claimed_by_others(user)
        order = [each for each in self.present if each not in others]
        if not is_made:
            order += [each for each in self.present if each in others]
        used = sum(pages_of(each) for each in [*self.present, *self.remains])
        wanted = used + pages_of(number) - CAP_PAGES
        victims = []
        for each in order:
            if wanted <= 0:
                break
            if each not in self.leased():
                victims.append(each)
                wanted -= pages_of(each)
        if wanted > 0:
            return False
        self.present = [each for each in self.present if each not in victims]
        return True

    def look_again(self) -> None:
        """Take over what is there, by recency, where the model cannot tell because the total was wrong."""
        files = sorted(self.path.glob("*.shard"), key=lambda path: path.stat().st_mtime_ns)
        self.present = [number_of(path) for path in files]

    def everybody_left(self) -> None:
        if not self.stores:
            self.present, self.remains, self.is_wrong = [], set(), False

    # --- what users do ------------------------------------------------------------------------------------

    @rule(user=USERS)
    def enter(self, user: int) -> None:
        if user not in self.stores:
            sole = not self.stores
            self.steps.clear()
            self.stores[user] = open_test_store(
                self.path,
                CAP_PAGES * PAGE,
                self.steps.append,
                room_timeout_s=0.0,
                note_s=0.0,
                check_s=self.check_s,
            )
            assert self.was_counted(user) or not sole
            self.loose.add(user)

    @rule(user=USERS)
    def leave(self, user: int) -> None:
        if user in self.stores:
            for lease in [each for each in self.leases if each[0] == user]:
                lease[2].close()
                self.leases.remove(lease)
            self.stores.pop(user).leave()
            self.drop_claim(user)
            self.everybody_left()

    def drop_claim(self, user: int) -> None:
        if user in self.claimants:
            self.claimants.remove(user)
            self.loose = set(range(NUM_USERS))

    def one_of(self, user: int) -> int:
        """A user who has entered."""
        return sorted(self.stores)[user % len(self.stores)]

    @precondition(lambda self: self.stores)
    @rule(user=USERS, num_bytes=st.integers(0, 2))
    def claim(self, user: int, num_bytes: int) -> None:
        user = self.one_of(user)
        self.stores[user].claims.claim(GROUP, num_bytes)
        if not num_bytes:
            self.drop_claim(user)
        elif user not in self.claimants:
            self.claimants.add(user)
            self.loose = set(range(NUM_USERS))
        assert self.stores[user].claims.claim("0000000b", 0) in ((1, 2) if self.claimants else (0,))

    @precondition(lambda self: self.stores)
    @rule(user=USERS, number=MADE)
    def make(self, user: int, number: int) -> None:
        """As a job does with what it makes: nothing that others claim leaves for it."""
        user = self.one_of(user)
        store, size, before = self.stores[user], pages_of(number) * PAGE, list(self.present)
        store._refusals.forget()
        was_wrong, was_loose, was_present = self.is_wrong, user in self.loose, number in before
        self.steps.clear()
        lease = store.try_acquire(key(number), size, fill_with(number, size), is_made=True)
        self.was_counted(user)
        spared = set(before) & self.claimed_by_others(user)
        assert spared <= {number_of(path) for path in self.path.glob("*.shard")}
        if was_wrong or was_loose:
            self.look_again()
        elif not was_present:
            assert self.expect_room_for(user, number, is_made=True) == (lease is not None)
        if lease is not None:
            assert read_all(lease) == content(number, size)
            self.present = [each for each in self.present if each != number] + [number]
            self.remains.discard(number)
            lease.close()

    @rule(user=USERS, number=KEYS, keep=st.booleans())
    def acquire(self, user: int, number: int, keep: bool) -> None:
        if user not in self.stores:
            return
        size = pages_of(number) * PAGE
        outcome = Outcome()
        fills: list[int] = []
        was_present, was_wrong, was_loose = number in self.present, self.is_wrong, user in self.loose
        self.steps.clear()
        try:
            lease = self.stores[user].acquire(key(number), size, fill_with(number, size, fills), outcome=outcome)
        except TooLargeError:
            assert self.was_counted(user)
            assert pages_of(number) > CAP_PAGES
            return
        except NoRoomError:
            assert self.was_counted(user), "nobody is refused because of a total that may be wrong"
            assert not self.expect_room_for(user, number)
            return
        self.was_counted(user)
        assert outcome.hit == was_present
        assert fills == ([] if was_present else [number])
        assert read_all(lease) == content(number, size)
        if (was_wrong or was_loose) and not was_present:
            self.look_again()
        else:
            assert was_present or self.expect_room_for(user, number)
            self.present = [each for each in self.present if each != number] + [number]
        self.remains.discard(number)
        if keep:
            self.leases.append((user, number, lease))
        else:
            lease.close()

    @precondition(lambda self: len(self.stores) > 1)
    @rule(user=USERS, number=MADE)
    def claim_and_fill_beside_another(self, user: int, number: int) -> None:
        """What chance seldom brings about: most of the room claimed by one, and wanted by another."""
        self.claim(user, 2)
        for each in IN_GROUP:
            self.make(user, each)
        self.make(user + 1, number)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(range(len(self.leases))))
        self.leases.pop(chosen)[2].close()

    @rule(user=USERS, number=st.integers(0, 5))
    def fail_to_fill(self, user: int, number: int) -> None:
        if user not in self.stores or number in self.present:
            return

        def fail(fd: int) -> None:
            raise FetchError("u: gone. Check it.")

        was_wrong, was_loose = self.is_wrong, user in self.loose
        self.steps.clear()
        with pytest.raises((FetchError, NoRoomError)) as caught:
            self.stores[user].acquire(key(number), pages_of(number) * PAGE, fail)
        self.was_counted(user)
        if was_wrong or was_loose:
            self.look_again()
        else:
            assert self.expect_room_for(user, number) == (caught.type is FetchError)
        if caught.type is FetchError:
            self.remains.discard(number)

    @rule(user=USERS)
    def die(self, user: int) -> None:
        """SIGKILL: descriptors end, nothing is tidied."""
        store = self.stores.pop(user, None)
        if store is None:
            return
        for lease in [each for each in self.leases if each[0] == user]:
            DESCRIPTORS.close(lease[2]._fd)
            lease[2]._fd = -1
            lease[2].close()
            self.leases.remove(lease)
        self.drop_claim(user)
        for lock in (store.directory._users, store.directory._lock, *store.claims._own.values()):
            if lock is not None:
                DESCRIPTORS.close(lock.fd)
                lock.fd = -1
        DESCRIPTORS.close(store.directory.dir_fd)
        store.directory.dir_fd = -1

    @rule(user=USERS, number=st.integers(0, 5), is_noted=st.booleans())
    def die_while_filling(self, user: int, number: int, is_noted: bool) -> None:
        """After the total was written, or just before."""
        if user not in self.stores or number in self.present or self.remains or self.is_wrong:
            return
        held_pages = sum(pages_of(each) for each in self.present)
        if pages_of(number) > CAP_PAGES - held_pages:
            return
        (self.path / f"{key(number)}.fill").write_text("812")
        with (self.path / f"{key(number)}.part").open("wb") as part:
            part.truncate(pages_of(number) * PAGE)
        self.remains.add(number)
        if is_noted:
            note_total(self.path, (held_pages + pages_of(number)) * PAGE)
        else:
            note_total(self.path, held_pages * PAGE)
            with (self.path / ".lock").open("r+b") as lock:
                lock.write(b"dirty")
        self.die(user)

    @precondition(lambda self: self.stores)
    @rule(num_pages=st.integers(0, 3 * CAP_PAGES), chance=st.integers(0, 9))
    def make_the_total_wrong(self, num_pages: int, chance: int) -> None:
        """As when files were removed by hand, or jobs of a release without a total came and went; not often."""
        if chance:
            return
        note_total(self.path, num_pages * PAGE)
        self.is_wrong = self.may_be_over = True

    @precondition(lambda self: self.stores and self.is_wrong)
    @rule(user=USERS)
    def let_the_total_be_due(self, user: int) -> None:
        """A fill finds it then, and brings the directory back below its budget if nobody leases too much."""
        if user not in self.stores or 5 in self.present:
            return
        note_total(self.path, 0, due_in_s=-1.0)
        self.steps.clear()
        with contextlib.suppress(NoRoomError):
            self.stores[user].acquire(key(5), pages_of(5) * PAGE, fill_with(5, pages_of(5) * PAGE)).close()
        assert self.was_counted(user)
        self.look_again()
        assert noted_bytes(self.path) == counted_bytes(self.path)

    @rule(user=USERS)
    def give_back(self, user: int) -> None:
        if user in self.stores:
            self.steps.clear()
            self.stores[user].give_back()
            assert self.was_counted(user)
            self.present = [each for each in self.present if each in self.leased()]

    # --- what always holds --------------------------------------------------------------------------------

    @invariant()
    def files_are_as_the_model_says(self) -> None:
        if not hasattr(self, "stores"):
            return
        if not self.path.exists():
            assert not self.stores
            return
        shards = {number_of(path) for path in self.path.glob("*.shard")}
        parts = {number_of(path) for path in self.path.glob("*.part")}
        assert shards == set(self.present)
        assert parts == self.remains
        held = counted_bytes(self.path)
        if not self.is_wrong:
            assert noted_bytes(self.path) in (None, held)
            self.may_be_over &= held > CAP_PAGES * PAGE
        assert held <= CAP_PAGES * PAGE or self.may_be_over

    @invariant()
    def leased_bytes_are_right(self) -> None:
        for _, number, lease in getattr(self, "leases", []):
            assert read_all(lease) == content(number, pages_of(number) * PAGE)


class ProtocolThatCounts(Protocol):
    """The same, with a survey whenever ``.lock`` is taken to change something."""

    check_s = 0.0


# Descriptors that a "dead" user leaves to the garbage collector are closed already.
TestProtocol, TestProtocolThatCounts = Protocol.TestCase, ProtocolThatCounts.TestCase
TestProtocol.settings = TestProtocolThatCounts.settings = settings(
    max_examples=80, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.soak
@pytest.mark.parametrize("machine", [Protocol, ProtocolThatCounts])
def test_protocol_against_its_model_for_long(machine: type[Protocol]) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=3000, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
