"""`epistream plan`: how well an epoch is shuffled within a budget, and what it fetches."""

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape

from epistream.commands.parameters import option
from epistream.commands.sources import FEATURE_HELP, division_options, layout_options, open_source, reach_option
from epistream.commands.tables import new_list, print_table
from epistream.loader.order.plan import OrderOptions
from epistream.units import count_text, distinct_sizes, parse_size, size_text

if TYPE_CHECKING:
    from epistream.loader.order.anchors import Anchors
    from epistream.loader.order.plan import Plan
    from epistream.loader.order.quality import OrderReport


@click.command()
@click.argument("source", nargs=-1, required=True, metavar="URL")
@click.option(
    "--budget", metavar="SIZE", help="Memory for shards, as 4GiB, or as 10% of the data.  [default: unlimited]"
)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Windows per rank and batch.")
@click.option("--nodes", "num_nodes", type=click.IntRange(1), default=1, show_default=True, help="Nodes of the job.")
@click.option("--ranks-per-node", type=click.IntRange(1), default=1, show_default=True, help="Ranks on each of them.")
@click.option("--split", default="auto", show_default=True, help="A split; auto is train where there is one, else all.")
@option(OrderOptions, "lanes", default=None, show_default="8, fewer if need be")
@option(OrderOptions, "resident_shards", show_default="what the budget or the manifest says")
@option(OrderOptions, "seed")
@click.option(
    "--declare", is_flag=True, help="Declare nodes and global batch, as OrderOptions(nodes=..., global_batch=...) does."
)
@option(OrderOptions, "resident_bytes", metavar="SIZE", show_default="8GiB")
@click.option("--feature", "features", multiple=True, metavar="NAME", help=FEATURE_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@layout_options
@division_options
@reach_option
def command(source: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Say how well the windows of URL are shuffled within a memory budget, and what an epoch fetches.

    Reads the manifest only. Every step that the dataset allows is an anchor. The last line judges the order for the
    job, and says what to set where batches are not varied enough or nodes fetch more than their share.
    """
    from epistream.loader.order.anchors import Anchors
    from epistream.loader.order.judgement import judge
    from epistream.loader.order.quality import report
    from epistream.loader.order.working_set import budget_advice

    reached = ("options_json", "layout", "layout_file", "allow_outside_files", "val_fraction", "split_seed")
    given = {name: options[name] for name in reached}
    dataset = open_source(source, **given, features=options["features"] or None)
    split = options["split"]
    if split == "auto":
        split = "train" if "train" in dataset.splits else None
    anchors = Anchors(dataset, split, (0, 0), drop_incomplete=False)
    job = options["batch_size"], options["num_nodes"], options["ranks_per_node"]
    global_batch = math.prod(job)
    lanes, resident_shards = options["lanes"], options["resident_shards"]
    if lanes is None:
        lanes = 8 if resident_shards is None else max(1, min(8, resident_shards // 2))
    room = options["resident_bytes"]
    wanted = OrderOptions(seed=options["seed"], lanes=lanes, resident_shards=resident_shards, resident_bytes=room)
    if options["declare"]:
        wanted = replace(wanted, nodes=options["num_nodes"], global_batch=global_batch)
    used_bytes = int((dataset.shard_bytes + dataset.index_bytes)[anchors.per_shard > 0].sum())
    budget = None if options["budget"] is None else parse_size(options["budget"], "--budget", whole=used_bytes)
    plan = _plan(dataset, anchors, wanted, budget, global_batch)
    found = report(plan, anchors, *job)
    advice = None if budget is None else budget_advice(plan, budget, global_batch)
    judgement = judge(plan, global_batch, options["num_nodes"])
    if as_json:
        about = {"url": dataset.url, "budget_bytes": budget, "advice": advice}
        judged = {"judgement": None if judgement is None else judgement.to_dict()}
        click.echo(json.dumps(about | judged | found.to_dict(), indent=1))
        return
    on_a_node = None if judgement is None or judgement.num_nodes == 1 else judgement.now.node_bytes
    _show(dataset.url, found, budget, on_a_node)
    say = Console(highlight=False, markup=False, soft_wrap=True).print
    if advice is not None:
        say(advice)
    if judgement is not None:
        say(f"{judgement}.")


def _plan(dataset: Any, anchors: "Anchors", wanted: OrderOptions, budget: int | None, global_batch: int) -> "Plan":
    """The plan of the options; where they and the declared job leave K open, with the largest that fits the budget."""
    from epistream.loader.order.plan import Plan
    from epistream.loader.order.working_set import largest_fit

    plan = Plan.of(anchors, dataset, wanted)
    if budget is None or wanted.resident_shards is not None or wanted.global_batch is not None:
        return plan
    fit = largest_fit(plan, budget, global_batch)
    if fit is None:
        return plan
    return Plan.of(anchors, dataset, replace(wanted, lanes=fit.lanes, resident_shards=fit.resident_shards))


def _show(url: str, found: "OrderReport", budget: int | None, bytes_on_a_node: int | None) -> None:
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
        "order": f"{count_text(found.lanes, 'lane')}, resident shards K = {found.resident_shards}",
        "in memory": f"up to {count_text(found.open_shards, 'shard')} at once, {open_bytes}"
        + ("" if bytes_on_a_node is None else f" over all nodes, {on_a_node} on one")
        + ("" if budget is None else f"; budget {allowed}"),
        "episodes": f"{', '.join(f'{value:.1f}' for value in found.distinct)} distinct in a batch of "
        f"{found.global_batch:,}: first hundred, middle, last hundred\n"
        f"{', '.join(ratios)} of a full random permutation, which has {found.distinct_permuted:.1f}",
        "fetched": f"{size_text(found.fetch_bytes)} an epoch, "
        f"{size_text(max(found.fetch_bytes_per_node))} by one node\n"
        "nothing again while it stays in memory",
        "first batch": f"{size_text(max(found.first_batch_bytes))} by one node, in whole shards",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    print_table(table)
