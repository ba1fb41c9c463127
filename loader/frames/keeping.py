"""Whether decoded frames are kept: how much room there is beside others, and what keeping costs and saves."""

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from epistream.cache.node import NodeCache
from epistream.errors import EpistreamError
from epistream.units import distinct_sizes, size_text

logger = logging.getLogger(__name__)

# Jobs come and go, and so does memory. Spread, because two that ask at the same time would both give way.
_ASK_AGAIN_S = 8.0, 12.0
# What "auto" takes of the available memory, and at most, where the user gave no budget: others use the machine too.
_SHARE, _MOST_BYTES = 1 / 8, 4 << 30
# Keeping may take so much of the time of reading where the user wants it, and by default until this part of the frames
# was taken, as in a first epoch; after that it lives on what it saves. Less what counting takes of a batch, in seconds,
# which shows where frames are small.
_EXTRA_WANTED, _EXTRA, _TAKEN, _COUNTING_S = 0.09, 0.14, 0.02, 8e-6
# It may take this part of what it saves, less a share of the reading that looking and counting take where frames are
# small. What taking a frame costs before that is known, in parts of decoding it. And so many seconds may go at once.
_REINVESTED, _LOOKING, _TAKING_UNKNOWN, _MOST_ALLOWED_S = 0.8, 0.05, 0.4, 0.05
# Frames decoded in all, and taken since the last time, after which it is judged whether taking is cheaper; by how much
# it must be; and how often in a row it must be found dearer before nothing is kept any more.
_JUDGED_AFTER, _WORTH, _TIMES_AGAINST = 2000, 0.9, 3


@dataclass(frozen=True)
class DecodedStats:
    """What became of the frames that readers needed. Add them up over the workers of a rank.

    Attributes:
        num_taken: frames copied from those that are kept.
        num_decoded: frames decoded; of a video also those that others depend on, and all of a group that is kept.
        num_kept: those of them that were kept.
        room_bytes: of entries of kept frames that are known to be in the node's cache, full or not; the most that a
            worker knows of.
        all_bytes: of all decoded frames.
        why: why no more are kept, in words; "" while nothing stands in the way.
        pool_bytes: of the pool that decoded blocks are kept in for a while, where the order is by blocks.
        num_again: frames decoded of blocks that were decoded before, and not done with.
        num_unpooled: frames decoded for a single window: of shards that are still being fetched, or because there was
            no pool, or no slot of it, for their block.
    """

    num_taken: int = 0
    num_decoded: int = 0
    num_kept: int = 0
    room_bytes: int = 0
    all_bytes: int = 0
    why: str = ""
    pool_bytes: int = 0
    num_again: int = 0
    num_unpooled: int = 0

    def __add__(self, other: "DecodedStats") -> "DecodedStats":
        return DecodedStats(
            self.num_taken + other.num_taken,
            self.num_decoded + other.num_decoded,
            self.num_kept + other.num_kept,
            max(self.room_bytes, other.room_bytes),
            max(self.all_bytes, other.all_bytes),
            self.why or other.why,
            max(self.pool_bytes, other.pool_bytes),
            self.num_again + other.num_again,
            self.num_unpooled + other.num_unpooled,
        )


@dataclass
class Spent:
    """Seconds and numbers of frames: of one batch, or of several.

    What it costs to take or to decode a frame is timed where all frames that are needed together are taken, or all
    decoded: `num_timed_taken` in `taking_s`, and `num_timed_decoded` in `decoding_s`. Of a group of a video that is
    kept, decoding is what would have been decoded without that, and all else is keeping; so is waiting for others.
    """

    reading_s: float = 0.0
    keeping_s: float = 0.0
    taking_s: float = 0.0
    decoding_s: float = 0.0
    num_taken: int = 0
    num_decoded: int = 0
    num_kept: int = 0
    num_timed_taken: int = 0
    num_timed_decoded: int = 0

    def add(self, other: "Spent") -> None:
        """Add what a batch took."""
        self.reading_s += other.reading_s
        self.keeping_s += other.keeping_s
        self.taking_s += other.taking_s
        self.decoding_s += other.decoding_s
        self.num_taken += other.num_taken
        self.num_decoded += other.num_decoded
        self.num_kept += other.num_kept
        self.num_timed_taken += other.num_timed_taken
        self.num_timed_decoded += other.num_timed_decoded

    @property
    def decoding_a_frame_s(self) -> float:
        """What it costs to decode a frame; 0 if that is not known."""
        return self.decoding_s / self.num_timed_decoded if self.num_timed_decoded else 0.0

    @property
    def taking_a_frame_s(self) -> float:
        """What it costs to take a kept frame; 0 if that is not known."""
        return self.taking_s / self.num_timed_taken if self.num_timed_taken else 0.0


class Costs:
    """What reading, decoding, keeping and taking frames cost this process, and what became of them.

    The readers of a process share it, from epoch to epoch; threads may. In another process, by fork or by pickling, it
    starts afresh. Keeping a frame takes fresh memory, up to half as long as decoding it. So it may take a share of the
    time of reading only, most of it in a first epoch, and a part of what the frames that were kept already save: later
    epochs cost less than without keeping.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._all = Spent()
        self._room_bytes, self._why = 0, ""
        self._allowance_s = 0.0
        self.is_told = False  # that not all are kept
        self._judged, self._num_against, self._verdict = Spent(), 0, ""

    @property
    def allowance_s(self) -> float:
        """How long more frames may be kept; not at all below 0."""
        return self._allowance_s

    def add(self, spent: Spent, room_bytes: int, why: str, *, wanted: bool) -> None:
        """A batch was read.

        Args:
            spent: on it.
            room_bytes: of the entries of kept frames that are known.
            why: why there are no more.
            wanted: see `DecodedPlan`.
        """
        if self._pid != os.getpid():
            self._begin()
        with self._mutex:
            self._all.add(spent)
            self._judged.add(spent)
            self._room_bytes, self._why = room_bytes, why
            decoding_s = self._all.decoding_a_frame_s
            saved_s = spent.num_taken * (decoding_s - (self._all.taking_a_frame_s or _TAKING_UNKNOWN * decoding_s))
            is_first = self._all.num_taken < _TAKEN * (self._all.num_taken + self._all.num_decoded)
            extra = _EXTRA_WANTED if wanted else _EXTRA if is_first else 0.0
            gained_s = max(0.0, saved_s - _LOOKING * spent.reading_s)
            earned_s = max(0.0, extra * spent.reading_s - _COUNTING_S) + _REINVESTED * gained_s
            self._allowance_s = min(_MOST_ALLOWED_S, self._allowance_s + earned_s - spent.keeping_s)

    def stats(self, all_bytes: int) -> DecodedStats:
        """Counts so far, of frames that have `all_bytes` in all."""
        if self._pid != os.getpid():
            return DecodedStats(all_bytes=all_bytes)
        done = self._all
        return DecodedStats(done.num_taken, done.num_decoded, done.num_kept, self._room_bytes, all_bytes, self._why)

    def judge(self) -> str:
        """Whether taking frames is no cheaper than decoding them: in words, for good; "" while it is cheaper."""
        with self._mutex:
            few = min(self._all.num_timed_decoded, self._judged.num_timed_taken) < _JUDGED_AFTER
            if self._verdict or few:
                return self._verdict
            taking_s, decoding_s = self._judged.taking_a_frame_s, self._all.decoding_a_frame_s
            self._judged = Spent()
            # Once could be a disturbance.
            self._num_against = self._num_against + 1 if taking_s > _WORTH * decoding_s else 0
            if self._num_against == _TIMES_AGAINST:
                self._verdict = (
                    f"to take a kept frame costs {1e6 * taking_s:.0f} us, to decode it {1e6 * decoding_s:.0f} us"
                )
            return self._verdict

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin()


@dataclass(frozen=True)
class DecodedPlan:
    """What is known of the decoded frames before any is read, from the manifest alone.

    Attributes:
        wanted: keep them as far as they fit ("once"), or only if all fit ("auto").
        num_bytes: of all decoded frames of the shards that the order draws from.
        source_bytes: of the shards that are open at a time, which must fit beside them.
        chunk_rows: steps whose frames are one entry of the cache.
        group: names the dataset, the same for all who read it.
        costs: of the readers of this process, from epoch to epoch.
    """

    wanted: bool
    num_bytes: int
    source_bytes: int
    chunk_rows: int
    group: str = ""
    costs: Costs = field(default_factory=Costs, compare=False, repr=False)


class Room:
    """How many bytes of decoded frames this node's cache may hold, asked again every ten seconds.

    "auto" keeps all or nothing: all must fit the budget, which without a wish of the user is an eighth of the
    available memory and 4 GiB at most, beside what other jobs of the node claim. "once" keeps what fits. A job that
    found room claims it. If it loses that (others came, memory went), it goes on with what it has, and asks nobody to
    leave for more.

    Args:
        cache: where they are kept.
        plan: sizes of the whole.
        group: of the entries, see `Entry`.
        clock: seconds.

    Attributes:
        keeps: whether kept frames are looked for at all.
        may_evict: whether entries that nobody uses may have to leave for more.
        most_bytes: of entries of kept frames; no more are made beyond it.
        why: why not all are kept, in words; "" if they are.
    """

    def __init__(
        self, cache: NodeCache, plan: DecodedPlan, group: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cache = cache
        self._plan = plan
        self._group = group
        self._clock = clock
        self._look_at = 0.0
        self._claimed = 0
        self._is_given_up = False
        self.keeps = self.may_evict = False
        self.most_bytes = 0
        self.why = ""

    def look(self, room_bytes: int) -> None:
        """Decide, if it is time to.

        Args:
            room_bytes: of the entries of kept frames that are known to be in the cache.
        """
        now = self._clock()
        if self._is_given_up or now < self._look_at:
            return
        self._look_at = now + random.uniform(*_ASK_AGAIN_S)
        try:
            self._decide(room_bytes)
        except EpistreamError as error:
            self.keeps, self.may_evict, self.most_bytes = room_bytes > 0, False, 0
            self._tell(str(error), logging.INFO)

    def give_up(self, why: str) -> None:
        """Keep nothing, and look no more."""
        if self._is_given_up:
            return
        self._is_given_up = True
        self.keeps, self.may_evict, self.most_bytes = False, False, 0
        self._tell(why, logging.INFO)
        try:
            self._claim(0)
        except EpistreamError as error:
            logger.info("Decoded frames: %s", error)

    def _decide(self, room_bytes: int) -> None:
        plan = self._plan
        budget = self._cache.budget()
        if budget is None:
            self._is_given_up = True
            self._tell("the cache is off", logging.WARNING if plan.wanted else logging.INFO)
            return
        most, reason = self._limit(budget.bytes, budget.terms, f"the cache's budget of {budget}", budget.cure)
        others = self._claim(self._claimed)
        if plan.num_bytes <= most - others:
            others = self._claim(plan.num_bytes)  # others may have claimed the same room just now
        self.may_evict = plan.num_bytes <= most - others
        if self.may_evict:
            self.keeps, self.most_bytes = True, plan.num_bytes
            self.why, plan.costs.is_told = "", False
            return
        if room_bytes >= plan.num_bytes:  # others came close, but all are kept
            self.keeps, self.most_bytes, self.why = True, room_bytes, ""
            self._claim(plan.num_bytes)
            return
        left = max(0, most - others)
        self.most_bytes = left if plan.wanted else 0
        self.keeps = plan.wanted or room_bytes > 0
        self._claim(min(plan.num_bytes, left) if plan.wanted else room_bytes)
        needed, allowed, claimed = distinct_sizes(plan.num_bytes, most, others)
        beside = f", of which other jobs claim {claimed}" if others else ""
        level = logging.WARNING if plan.wanted else logging.INFO
        self._tell(f"they may take {allowed}{beside} ({reason})", level, needed)

    def _limit(self, budget_bytes: int, terms: Mapping[str, int], name: str, cure: str) -> tuple[int, str]:
        """Most bytes of decoded frames with nobody else there, and why, with what would make it more."""
        plan, options = self._plan, self._cache.options
        most = max(0, budget_bytes - plan.source_bytes)
        beside = f", less {size_text(plan.source_bytes)} of open shards" if plan.source_bytes else ""
        reason = f"{name}{beside}; {cure}, or ask for a smaller image_size"
        if plan.wanted or options.budget("disk" if options.mode == "disk" else "shm") is not None:
            return most, reason
        measured = [terms[each] for each in ("memory", "cgroup") if each in terms]
        share = min([_MOST_BYTES, *(int(term / options.memory_fraction * _SHARE) for term in measured)])
        if share >= most:
            return most, reason
        return share, (
            f"an eighth of the available memory, at most {size_text(_MOST_BYTES)}; allow more with budget_bytes or "
            "decode='once', or ask for a smaller image_size"
        )

    def _claim(self, num_bytes: int) -> int:
        self._claimed = num_bytes
        return self._cache.claim(self._group, num_bytes)

    def _tell(self, why: str, level: int, needed: str = "") -> None:
        """Note why not all are kept; in the log once, however many readers and epochs there are."""
        if not self._plan.costs.is_told:
            self._plan.costs.is_told = True
            found = f"{needed or size_text(self._plan.num_bytes)} of decoded frames"
            start = "Not all frames are" if self.keeps else "No frames are"
            logger.log(level, "%s kept decoded: %s, %s.", start, found, why)
        self.why = why
