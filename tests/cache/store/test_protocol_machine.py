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


def pages_of(number: int) -> int:
    """Sizes differ: 1, 3, 4 pages and more than the budget."""
    return (1, 3, 4, 4, 3, 1, CAP_PAGES + 1)[number]


class Protocol(RuleBasedStateMachine):
    """The model: which keys are there in order of use, who leases what, who has entered.

    `remains` are parts of the dead; `is_wrong` says that the total was made wrong and nobody has counted since.
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

    def teardown(self) -> None:
        for _, _, lease in self.leases:
            lease.close()
        for store in self.stores.values():
            store.directory.leave()
        open_test_store(self.path).directory.leave()  # the next start cleans up after the dead
        left = [path.name for path in self.parent.iterdir()]
        shutil.rmtree(self.parent)
        assert left == []

    # --- what the model expects ---------------------------------------------------------------------------

    def leased(self) -> set[int]:
        return {number for _, number, _ in self.leases}

    def was_counted(self) -> bool:
        """Whether the files were counted since the last call: then no remains are left, and the total is right."""
        counted = "total.counted" in self.steps
        self.steps.clear()
        if counted:
            self.remains = set()
            self.is_wrong = False
        return counted

    def expect_room_for(self, number: int) -> bool:
        """Whether it fits, after evicting the oldest unleased keys as far as needed, which are dropped here."""
        used = sum(pages_of(each) for each in [*self.present, *self.remains])
        wanted = used + pages_of(number) - CAP_PAGES
        victims = []
        for each in self.present:
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
        self.present = [int(path.stem, 16) for path in files]

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
            assert self.was_counted() or not sole

    @rule(user=USERS)
    def leave(self, user: int) -> None:
        if user in self.stores:
            for lease in [each for each in self.leases if each[0] == user]:
                lease[2].close()
                self.leases.remove(lease)
            self.stores.pop(user).directory.leave()
            self.everybody_left()

    @rule(user=USERS, number=KEYS, keep=st.booleans())
    def acquire(self, user: int, number: int, keep: bool) -> None:
        if user not in self.stores:
            return
        size = pages_of(number) * PAGE
        outcome = Outcome()
        fills: list[int] = []
        was_present, was_wrong = number in self.present, self.is_wrong
        self.steps.clear()
        try:
            lease = self.stores[user].acquire(key_of(number), size, fill_with(number, size, fills), outcome=outcome)
        except TooLargeError:
            assert self.was_counted()
            assert pages_of(number) > CAP_PAGES
            return
        except NoRoomError:
            assert self.was_counted(), "nobody is refused because of a total that may be wrong"
            assert not self.expect_room_for(number)
            return
        self.was_counted()
        assert outcome.hit == was_present
        assert fills == ([] if was_present else [number])
        assert read_all(lease) == content(number, size)
        if was_wrong and not was_present:
            self.look_again()
        else:
            assert was_present or self.expect_room_for(number)
            self.present = [each for each in self.present if each != number] + [number]
        self.remains.discard(number)
        if keep:
            self.leases.append((user, number, lease))
        else:
            lease.close()

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

        was_wrong = self.is_wrong
        self.steps.clear()
        with pytest.raises((FetchError, NoRoomError)) as caught:
            self.stores[user].acquire(key_of(number), pages_of(number) * PAGE, fail)
        self.was_counted()
        if was_wrong:
            self.look_again()
        else:
            assert self.expect_room_for(number) == (caught.type is FetchError)
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
        for lock in (store.directory._users, store.directory._lock):
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
        (self.path / f"{key_of(number)}.fill").write_text("812")
        with (self.path / f"{key_of(number)}.part").open("wb") as part:
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
            self.stores[user].acquire(key_of(5), pages_of(5) * PAGE, fill_with(5, pages_of(5) * PAGE)).close()
        assert self.was_counted()
        self.look_again()
        assert noted_bytes(self.path) == counted_bytes(self.path)

    @rule(user=USERS)
    def give_back(self, user: int) -> None:
        if user in self.stores:
            self.steps.clear()
            self.stores[user].give_back()
            assert self.was_counted()
            self.present = [each for each in self.present if each in self.leased()]

    # --- what always holds --------------------------------------------------------------------------------

    @invariant()
    def files_are_as_the_model_says(self) -> None:
        if not hasattr(self, "stores"):
            return
        if not self.path.exists():
            assert not self.stores
            return
        shards = {int(path.stem, 16) for path in self.path.glob("*.shard")}
        parts = {int(path.stem, 16) for path in self.path.glob("*.part")}
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
