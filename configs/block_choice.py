"""Whether windows are drawn by blocks, whose frames are decoded once: measured beside windows by themselves."""

from collections.abc import Callable
from dataclasses import dataclass

from epistream.configs.config import Config
from epistream.configs.survey import Survey, by_windows, measured_in, scaled
from epistream.loader.measuring.blocks import JobSize, Pool, measuring_order, shows_several
from epistream.loader.order.options import By, OrderOptions
from epistream.loader.stream import EpisodeStream
from epistream.sharding.format.feature_sets import longest_group
from epistream.units import count_text, distinct_sizes, size_text

# A pool takes memory, and batches are a little less varied: only for this much more speed.
_WORTH = 1.1


@dataclass(frozen=True)
class BlockChoice:
    """What was chosen.

    Attributes:
        by: what is permuted.
        reason: why.
        pool: the blocks, and their memory; None of an order by windows.
        survey: what was measured, as it is in that order.
        note: what else the user should know.
    """

    by: By
    reason: str
    pool: Pool | None
    survey: Survey
    note: str | None = None

    @property
    def values(self) -> dict[str, tuple[object, str]]:
        """Values and reasons by key of the configuration."""
        chosen: dict[str, tuple[object, str]] = {"order.by": (self.by, self.reason)}
        if self.pool is not None:
            options = self.pool.options
            chosen["stream.decode"] = "auto", "blocks are decoded once, into the pool"
            chosen["order.block_steps"] = options.block_steps, "neighbouring steps, which are decoded together"
            chosen["order.pool_blocks"] = (
                options.pool_blocks,
                f"drawn from at a time; the decoded frames of {count_text(self.pool.num_slots, 'block')}, those in "
                f"flight included, take {size_text(self.pool.num_bytes)} of a node",
            )
        return chosen


@dataclass(frozen=True)
class BlockChooser:
    """Measures a sample in the other order.

    Args:
        base: what is streamed.
        whole: all of it.
        sample: a part of it.
        size: of the job that streams it.
        seconds: of a measurement.
        say: told what is done next.
    """

    base: Config
    whole: EpisodeStream
    sample: EpisodeStream
    size: JobSize
    seconds: float
    say: Callable[[str], None] = lambda text: None

    def choose(self, found: Survey, options: OrderOptions, room: int) -> BlockChoice | None:
        """Choose for windows whose frames are decoded whenever they are read.

        Args:
            found: what was measured; by blocks where cameras are video that is streamed so by default.
            options: the order by windows.
            room: bytes of a node's memory for decoded frames, beside its shards.

        Returns:
            None where there is nothing to choose: the user said it, nothing is decoded, or each frame is once anyway.
        """
        job = self.whole.job
        group_steps, is_video = longest_group(job.features.values()), job.part.plan.blocks is not None
        says = any(f"order.{name}" in self.base.given for name in ("by", "block_steps", "pool_blocks"))
        if says or not job.part.plan.options.shuffle or not (is_video or shows_several(job)):
            return None
        wanted = OrderOptions(lanes=options.lanes, resident_shards=options.resident_shards, by="blocks")
        wanted = wanted.resolved(group_steps)
        pool = self.size.fitting_pool(job.part, wanted, room)
        if pool is None:
            return None
        needed, had = distinct_sizes(pool.num_bytes, room)
        too_large = f"by blocks, {pool.num_slots} of them would take {needed}, and {had} of memory are left"
        if pool.num_bytes > room and not is_video:
            return BlockChoice("windows", too_large, None, found)
        self.say("reading by windows" if is_video else "reading by blocks")
        tried = (
            by_windows(self.base)
            if is_video
            else measuring_order(self.sample.job.dataset.episode_length, wanted.block_steps, group_steps)
        )
        other = measured_in(tried, self.base, self.sample, found.num_cores, self.seconds)
        here = found.together["processes"].windows_per_s
        ratio = other * found.more_frames / here
        gain = 1 / ratio if is_video else ratio
        if pool.num_bytes <= room and gain >= _WORTH:
            why = f"{gain:.1f} times as fast as by windows: a frame is decoded once for all windows that show it"
            return BlockChoice("blocks", why, pool, found if is_video else scaled(found, other / here, more_frames=1.0))
        why = too_large if pool.num_bytes > room else f"by blocks only {gain:.2f} times as fast"
        if not is_video:
            return BlockChoice("windows", why, None, found)
        note = (
            f"video in groups of {group_steps} is read by windows, for each of which up to {group_steps} frames are "
            f"decoded: {other:,.0f} windows/s, and {here:,.0f} by blocks"
        )
        return BlockChoice("windows", why, None, scaled(found, other / here), note)
