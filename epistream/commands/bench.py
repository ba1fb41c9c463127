"""`epistream bench`: windows/s of a dataset on this machine, beside the bound."""

import json
from typing import Any

import click
from click.core import ParameterSource
from rich import box
from rich.console import Console
from rich.table import Table

# Options that are keys of a configuration as well.
_KEYS = {"batch_size": "batch_size", "obs": "obs", "action": "action", "cache": "mode"}


def _offsets(text: str) -> range:
    first, _, last = text.partition(":")
    try:
        return range(int(first), int(last))
    except ValueError:
        raise click.BadParameter(f"{text!r}, wanted START:STOP, for example 0:100") from None


@click.command()
@click.argument("url")
@click.option("--batch-size", default=32, show_default=True, help="Windows per batch.")
@click.option("--obs", default="0:1", show_default=True, help="Step offsets of observations, START:STOP.")
@click.option("--action", default="0:100", show_default=True, help="Step offsets of actions, START:STOP.")
@click.option("--parallel", default="2", show_default=True, help="Workers, or several numbers of them: 1,2,4.")
@click.option("--cache", default="auto", show_default=True, type=click.Choice(["auto", "shm", "disk", "off"]))
@click.option("--rounds", default=5, show_default=True, help="Interleaved rounds; medians are shown.")
@click.option("--seconds", default=2.0, show_default=True, help="Length of each measurement.")
@click.option("--once/--no-once", default=True, show_default=True, help="Also with all episodes decoded before.")
@click.option("--json", "as_json", is_flag=True, help="Print figures as JSON.")
@click.option("--config", help="A configuration that says what is streamed; options given here win.")
def command(as_json: bool, config: str | None, **options: Any) -> None:
    """Measure how fast URL streams, beside the bound of this machine.

    Every round measures, one after the other: the bare decode of the dataset's own frames by as many processes
    (nothing else), the loader with worker processes, and the loader with threads; and the same with frames that were
    decoded before, where all of them fit the cache's budget, against bare copying. "Of bound" is the median of the
    rounds' shares. CPU is in seconds per 1,000 windows, the first batch in ms, PSS of all processes in MiB.
    """
    from epistream.loader.measuring.bench import BenchOptions, run_bench

    context = click.get_current_context()
    said = {name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    for name in ("obs", "action"):
        options[name] = _offsets(options[name])
    options["parallel"] = _numbers(options["parallel"])
    url, stream = options.pop("url"), None
    if config is not None:
        from epistream.configs.config import load_config

        changes = {key: options[name] for name, key in _KEYS.items() if name in said}
        stream = load_config(config, **changes).stream(url)
    result = run_bench(url, BenchOptions(**options), stream)
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
