"""`epistream plan`: how well an epoch is shuffled within a budget, and what it fetches."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape

from epistream.commands.parameters import option
from epistream.commands.sources import FEATURE_HELP, division_options, layout_options, open_source, reach_option
from epistream.commands.tables import new_list, print_table
from epistream.loader.measuring.bench_options import BenchOptions
from epistream.loader.order.options import OrderOptions
from epistream.units import count_text, distinct_sizes, parse_size, size_text

if TYPE_CHECKING:
    from epistream.loader.measuring.blocks import JobSize, Pool
    from epistream.loader.order.quality import OrderReport
    from epistream.loader.reading.job import DatasetPart


@click.command()
@click.argument("source", nargs=-1, required=True, metavar="URL")
@click.option(
    "--budget", metavar="SIZE", help="Memory for shards, as 4GiB, or as 10% of the data.  [default: unlimited]"
)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Windows per rank and batch.")
@click.option("--nodes", "num_nodes", type=click.IntRange(1), default=1, show_default=True, help="Nodes of the job.")
@click.option("--ranks-per-node", type=click.IntRange(1), default=1, show_default=True, help="Ranks on each of them.")
@click.option(
    "--num-workers", type=click.IntRange(1), default=4, show_default=True, help="Of each rank, for blocks in flight."
)
@click.option("--split", default="auto", show_default=True, help="A split; auto is train where there is one, else all.")
@option(OrderOptions, "lanes", default=None, show_default="8, fewer if need be")
@option(OrderOptions, "resident_shards", show_default="what the budget or the manifest says")
@option(OrderOptions, "seed")
@click.option(
    "--declare", is_flag=True, help="Declare nodes and global batch, as OrderOptions(nodes=..., global_batch=...) does."
)
@option(OrderOptions, "by", show_default="blocks for video in groups, else windows")
@option(OrderOptions, "block_steps", show_default="whole groups of a video, else 32")
@option(OrderOptions, "pool_blocks", show_default="16 x lanes, within 4 GiB")
@option(OrderOptions, "resident_bytes", metavar="SIZE", show_default="8GiB")
@click.option("--feature", "features", multiple=True, metavar="NAME", help=FEATURE_HELP)
@click.option("--image-size", nargs=2, type=int, metavar="HEIGHT WIDTH", help="Pixels of decoded frames, for blocks.")
@option(BenchOptions, "obs", help="Step offsets of observations, whose frames blocks hold.", show_default="the anchor")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@layout_options
@division_options
@reach_option
def command(source: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Say how well the windows of URL are shuffled within a memory budget, and what an epoch fetches.

    Reads the manifest only. Every step that the dataset allows is an anchor. The last line judges the order for the
    job, and says what to set where batches are not varied enough or nodes fetch more than their share.
    """
    from epistream.loader.frames.block_pool_plan import resolved_order
    from epistream.loader.frames.frames import FrameOptions
    from epistream.loader.measuring.blocks import JobSize, distinct_blocks, memory_advice
    from epistream.loader.order.anchors import Anchors
    from epistream.loader.order.judgement import judge
    from epistream.loader.order.plan import Plan
    from epistream.loader.order.quality import report
    from epistream.loader.order.window import Window
    from epistream.loader.reading.job import DatasetPart
    from epistream.sharding.format.feature_sets import choose_features

    reached = ("options_json", "layout", "layout_file", "allow_outside_files", "val_fraction", "split_seed")
    given = {name: options[name] for name in reached}
    dataset = open_source(source, **given, features=options["features"] or None)
    split = options["split"]
    if split == "auto":
        split = "train" if "train" in dataset.splits else None
    anchors = Anchors(dataset, split, (0, 0), drop_incomplete=False)
    features = choose_features(dataset.features, options["features"] or None)
    global_batch = math.prod(options[name] for name in ("batch_size", "num_nodes", "ranks_per_node"))
    window, frames = Window(obs=options["obs"]), FrameOptions(options["image_size"])
    wanted = resolved_order(_wanted(options, global_batch), dataset.episode_length, features, window, frames)
    used_bytes = int((dataset.shard_bytes + dataset.index_bytes)[anchors.per_shard > 0].sum())
    budget = None if options["budget"] is None else parse_size(options["budget"], "--budget", whole=used_bytes)
    part = DatasetPart(dataset, features, window, anchors, Plan.of(anchors, dataset, wanted), frames=frames)
    size = JobSize(options["batch_size"], options["ranks_per_node"], options["num_nodes"], options["num_workers"])
    part = _fitted(part, size, budget)
    found = report(part.plan, anchors, size.batch_size, size.nodes, size.ranks)
    pool = None if part.plan.blocks is None else size.pool(part, part.plan.options)
    advice = None if budget is None else memory_advice(part, size, budget)
    judgement = judge(part.plan, global_batch, size.nodes)
    blocks = None if part.plan.blocks is None else distinct_blocks(part.plan, anchors, global_batch)
    if as_json:
        about = {"url": dataset.url, "budget_bytes": budget, "advice": advice}
        judged = {"judgement": None if judgement is None else judgement.to_dict()}
        pooled = {
            "pool_slots": None if pool is None else pool.num_slots,
            "pool_bytes": None if pool is None else pool.num_bytes,
            "distinct_blocks": blocks,
        }
        click.echo(json.dumps(about | judged | found.to_dict() | pooled, indent=1))
        return
    on_a_node = None if judgement is None or judgement.num_nodes == 1 else judgement.now.node_bytes
    _show(dataset.url, found, budget, on_a_node, _pool_rows(pool, blocks))
    say = Console(highlight=False, markup=False, soft_wrap=True).print
    if advice is not None:
        say(advice)
    if judgement is not None:
        say(f"{judgement}.")


def _wanted(options: Mapping[str, Any], global_batch: int) -> OrderOptions:
    """The order that the options name."""
    lanes, resident_shards = options["lanes"], options["resident_shards"]
    if lanes is None:
        numbers = (resident_shards, options["pool_blocks"])
        lanes = max(1, min([8, *(number // 2 for number in numbers if number is not None)]))
    names = ("seed", "resident_bytes", "by", "block_steps", "pool_blocks")
    wanted = OrderOptions(lanes=lanes, resident_shards=resident_shards, **{name: options[name] for name in names})
    return replace(wanted, nodes=options["num_nodes"], global_batch=global_batch) if options["declare"] else wanted


def _fitted(part: "DatasetPart", size: "JobSize", budget: int | None) -> "DatasetPart":
    """Where the options and the declared job leave K open, the largest that fits the budget beside decoded blocks."""
    from epistream.loader.order.working_set import largest_fit

    plan, options = part.plan, part.plan.options
    if budget is None or options.resident_shards is not None or options.global_batch is not None:
        return part
    pool = None if plan.blocks is None else size.pool(part, options)
    left = budget - (0 if pool is None else pool.num_bytes)
    fit = largest_fit(plan, left, size.batch_size * size.ranks * size.nodes)
    if fit is None:
        return part
    changed = replace(options, lanes=fit.lanes, resident_shards=fit.resident_shards)
    return replace(part, plan=plan.with_options(changed))


def _pool_rows(pool: "Pool | None", blocks: tuple[float, float, float] | None) -> dict[str, str]:
    """What a table says of an order by blocks."""
    if blocks is None:
        return {}
    held = "no camera must be decoded"
    if pool is not None:
        held = (
            f"up to {count_text(pool.num_slots, 'block')} at once, those in flight included:\n"
            f"{size_text(pool.num_bytes)} of decoded frames on a node"
        )
    counted = ", ".join(f"{value:.1f}" for value in blocks)
    return {"pool": held, "blocks": f"{counted} distinct in a batch: first, middle, last"}


def _show(
    url: str, found: "OrderReport", budget: int | None, bytes_on_a_node: int | None, pool: Mapping[str, str]
) -> None:
    table = new_list()
    open_bytes, on_a_node, allowed = distinct_sizes(
        found.open_bytes,
        found.open_bytes if bytes_on_a_node is None else bytes_on_a_node,
        found.open_bytes if budget is None else budget,
    )
    ratios = [f"{value / found.distinct_permuted:.3f}" for value in found.distinct]
    rows = {
        "dataset": escape(url),
        "holds": f"{count_text(found.num_windows, 'window')} of {count_text(found.num_episodes, 'episode')} in "
        f"{count_text(found.num_shards, 'shard')}, {size_text(found.num_bytes)}",
        "order": f"{count_text(found.lanes, 'lane')}, resident shards K = {found.resident_shards}"
        + ("" if found.pool_blocks is None else f", {found.pool_blocks} blocks of {found.block_steps} steps at a time"),
        "in memory": f"up to {count_text(found.open_shards, 'shard')} at once, {open_bytes}"
        + ("" if bytes_on_a_node is None else f" over all nodes, {on_a_node} on one")
        + ("" if budget is None else f"; budget {allowed}"),
        **{name: text for name, text in pool.items() if name == "pool"},
        "episodes": f"{', '.join(f'{value:.1f}' for value in found.distinct)} distinct in a batch of "
        f"{found.global_batch:,}: first hundred, middle, last hundred\n"
        f"{', '.join(ratios)} of a full random permutation, which has {found.distinct_permuted:.1f}",
        **{name: text for name, text in pool.items() if name == "blocks"},
        "fetched": f"{size_text(found.fetch_bytes)} an epoch, "
        f"{size_text(max(found.fetch_bytes_per_node))} by one node\n"
        "nothing again while it stays in memory",
        "first batch": f"{size_text(max(found.first_batch_bytes))} by one node, in whole shards",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    print_table(table)
