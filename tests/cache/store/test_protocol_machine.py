"""The protocol against a model: three processes' worth of stores do anything in any order."""

import shutil
import tempfile
from pathlib import Path

import pytest
from cache_actors import PAGE, content, fill_with, key_of, open_test_store, read_all
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
    """The model: which keys are there in order of use, who leases what, who has entered."""

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

    def expect_room_for(self, number: int) -> bool:
        """Whether it fits, after evicting the oldest unleased keys as far as needed, which are dropped here."""
        used = sum(pages_of(each) for each in self.present)
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

    def everybody_left(self) -> None:
        if not self.stores:
            self.present, self.remains = [], set()

    # --- what users do ------------------------------------------------------------------------------------

    @rule(user=USERS)
    def enter(self, user: int) -> None:
        if user not in self.stores:
            sole = not self.stores
            self.stores[user] = open_test_store(self.path, CAP_PAGES * PAGE, room_timeout_s=0.0, note_s=0.0)
            if sole:
                self.remains = set()

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
        was_present = number in self.present
        if not was_present:
            self.remains = set()  # whoever accounts removes them
        fits = was_present or self.expect_room_for(number)
        try:
            lease = self.stores[user].acquire(key_of(number), size, fill_with(number, size, fills), outcome=outcome)
        except TooLargeError:
            assert pages_of(number) > CAP_PAGES
            return
        except NoRoomError:
            assert not fits
            return
        assert fits
        assert outcome.hit == was_present
        assert fills == ([] if was_present else [number])
        assert read_all(lease) == content(number, size)
        self.present = [each for each in self.present if each != number] + [number]
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
        self.remains = set()
        fits = self.expect_room_for(number)

        def fail(fd: int) -> None:
            raise FetchError("u: gone. Check it.")

        with pytest.raises(FetchError if fits else NoRoomError):
            self.stores[user].acquire(key_of(number), pages_of(number) * PAGE, fail)

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
        DESCRIPTORS.close(store.directory._users.fd)
        DESCRIPTORS.close(store.directory.dir_fd)
        store.directory.dir_fd = store.directory._users.fd = -1

    @rule(user=USERS, number=st.integers(0, 5))
    def die_while_filling(self, user: int, number: int) -> None:
        if user not in self.stores or number in self.present or self.remains:
            return
        free_pages = CAP_PAGES - sum(pages_of(each) for each in self.present)
        if pages_of(number) > free_pages:
            return
        (self.path / f"{key_of(number)}.fill").write_text("812")
        with (self.path / f"{key_of(number)}.part").open("wb") as part:
            part.truncate(pages_of(number) * PAGE)
        self.remains.add(number)
        self.die(user)

    @rule(user=USERS)
    def give_back(self, user: int) -> None:
        if user in self.stores:
            self.remains = set()
            self.stores[user].give_back()
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
        total = sum(path.stat().st_size for pattern in ("*.shard", "*.part") for path in self.path.glob(pattern))
        assert total <= CAP_PAGES * PAGE

    @invariant()
    def leased_bytes_are_right(self) -> None:
        for _, number, lease in getattr(self, "leases", []):
            assert read_all(lease) == content(number, pages_of(number) * PAGE)


# Descriptors that a "dead" user leaves to the garbage collector are closed already.
TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.soak
def test_protocol_against_its_model_for_long() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Protocol,
        settings=settings(
            max_examples=3000, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
