"""`epistream bench`: windows/s of a dataset on this machine, beside the bound."""

import json
from typing import Any

import click
from click.core import ParameterSource
from rich import box
from rich.console import Console
from rich.table import Table

from epistream.commands.parameters import option
from epistream.commands.sources import FEATURE_HELP, layout_options, reach_option, storage_options, wanted_layout
from epistream.loader.measuring.bench_options import BenchOptions

# Options that are keys of a configuration as well.
_KEYS = {
    "batch_size": "batch_size",
    "obs": "obs",
    "action": "action",
    "cache": "mode",
    "layout": "stream.layout",
    "allow_outside_files": "stream.allow_outside_files",
}


@click.command()
@click.argument("url")
@click.option("--feature", "features", multiple=True, metavar="NAME", help=FEATURE_HELP)
@option(BenchOptions, "batch_size")
@option(BenchOptions, "obs")
@option(BenchOptions, "action")
@option(BenchOptions, "parallel", type=str, metavar="N,N,...")
@option(BenchOptions, "cache")
@option(BenchOptions, "rounds")
@option(BenchOptions, "seconds")
@option(BenchOptions, "once", "--once/--no-once")
@layout_options
@click.option("--json", "as_json", is_flag=True, help="Print figures as JSON.")
@reach_option
@click.option("--config", help="A configuration that says what is streamed; options given here win.")
def command(as_json: bool, config: str | None, **options: Any) -> None:
    """Measure how fast URL streams, beside the bound of this machine.

    Every round measures, one after the other: the bare decode of the dataset's own frames by as many processes
    (nothing else), the loader with worker processes, and the loader with threads; and the same with frames that were
    decoded before, where all of them fit the cache's budget, against bare copying. Videos are decoded at random, the
    groups that the stream's own batches need, and in order, as keeping decoded frames does. "Of bound" is the median of
    the rounds' shares. CPU is in seconds per 1,000 windows, the first batch in ms, PSS of all processes in MiB.
    """
    from epistream.loader.measuring.bench import run_bench

    context = click.get_current_context()
    said = {name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    options["parallel"] = _numbers(options["parallel"])
    url, access, stream = options.pop("url"), storage_options(options.pop("options_json")), None
    layout_file = options.pop("layout_file")
    wanted_layout(options["layout"], layout_file)
    options["layout"] = layout_file or options["layout"]
    said |= {"layout"} if options["layout"] else set()
    if config is not None:
        from epistream.configs.config import load_config

        changes = {key: options[name] for name, key in _KEYS.items() if name in said}
        if access:
            changes["storage_options"] = access
        if options["features"]:
            changes["stream.features"] = list(options["features"])
        stream = load_config(config, **changes).stream(url)
    result = run_bench(url, BenchOptions(**options), stream, access)
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
        return
    table = Table(title=result.title, caption=result.machine, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("", "windows/s", "min-max", "of bound", "CPU s", "first", "PSS"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=bool(heading))
    for row in result.rows:
        table.add_row(*row.cells(result.bound_of(row)))
    Console().print(table)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r}, wanted numbers such as 2 or 1,2,4") from None
