"""Tells once what nobody would see: what the order is worth to the job that runs, and what a loop left unread."""

import logging
from math import gcd

from epistream.loader.order.judgement import MANY_FETCHES, judge
from epistream.loader.order.options import OrderOptions
from epistream.loader.order.plan import fitting_lanes
from epistream.loader.order.world import World
from epistream.loader.reading.job import ReadJob
from epistream.loader.state import Place

logger = logging.getLogger(__name__)


def log_order(job: ReadJob) -> None:
    """Log the judgement of a job's order, on rank 0: a warning for poor batches, or nodes that fetch in vain.

    How varied the batches of a mixture are depends on its weights too; of it, only what nodes fetch is told.
    """
    if job.world.rank != 0:
        return
    # Ranks of which nobody says where they run are dealt to as if each had a node of its own, and may share one.
    world = job.world
    nodes = 1 if world.uneven and world.num_nodes == world.size else world.num_groups
    if job.mixture is not None:
        advice = _lanes_advice(job, nodes)
        if advice is not None:
            logger.warning("%s: %s", job.url, advice)
        return
    judgement = judge(job.part.plan, job.batch_size * job.world.size, nodes)
    if judgement is not None:
        level = logging.WARNING if judgement.is_worth_a_warning else logging.INFO
        logger.log(level, "%s: %s.", job.url, judgement)


def log_untold_rank(url: str, world: World) -> None:
    """Warn in a process of several, as far as one can see, that reads everything because nobody told its rank."""
    if world.is_untold:
        logger.warning(
            "%s: this process was started by another one, and neither a process group nor the environment tells its "
            "rank: it reads all windows, as would its sisters. Call torch.distributed.init_process_group before the "
            "first iteration, or pass world=World.of(rank, size); world=World() if it is alone.",
            url,
        )


def log_break(job: ReadJob, left: Place, begun: Place, name: str) -> None:
    """Warn, on rank 0, that a loop begins somewhere else than where the loop before it stopped.

    Args:
        job: what is read.
        left: where the loop before stopped.
        begun: where this one begins.
        name: of what is looped over, as users call it.
    """
    if job.world.rank != 0:
        return
    num_left = job.schedule(left.epoch, left.position).num_batches
    given = f"with {num_left:,}" if left.num_given is None else f"after {left.num_given:,} of"
    of = "" if left.num_given is None else f" {left.num_given + num_left:,}"
    logger.warning(
        "%s: epoch %d was left %s%s batches%s; this loop begins epoch %d%s, as each `for` is a full pass. Call "
        "%s.resume() before a `for` that is to go on where the last one stopped.",
        *(job.url, left.epoch, given, of, " to go" if not of else "", begun.epoch),
        *(f" at window {begun.position:,}" if begun.position else "", name),
    )


def _lanes_advice(job: ReadJob, nodes: int) -> str | None:
    lanes = job.order.num_lanes
    times = nodes // gcd(nodes, lanes)
    if times < MANY_FETCHES or not job.parts[0].plan.options.shuffle:
        return None
    fitting = fitting_lanes(OrderOptions().lanes, nodes, min(plan.num_shards for plan in job.plans))
    return (
        f"each of {nodes} nodes fetches {times} times its share, as lanes={lanes} is no multiple of {nodes}. Give all "
        f"streams OrderOptions(lanes={fitting}). It is another order: states saved under this one do not fit it."
    )
