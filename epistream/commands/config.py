"""`epistream config`: what a configuration says, and where each value comes from."""

import json
from typing import Any

import click
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table


@click.group()
def command() -> None:
    """Configurations: defaults < preset < file < arguments."""


@command.command()
@click.argument("file", required=False)
@click.option("--preset", help="small (under 1 GB), medium (to 10 GB), large (to 100 GB) or xlarge.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a key; may be repeated.")
@click.option("--yaml", "as_yaml", is_flag=True, help="Print YAML that can be edited and given to load_config.")
@click.option("--json", "as_json", is_flag=True, help="Print keys, values and origins as JSON.")
def show(file: str | None, preset: str | None, changes: tuple[str, ...], as_yaml: bool, as_json: bool) -> None:
    """Check FILE (a YAML file, or a preset's name) and show every key with its value and origin."""
    from epistream.configs.config import load_config

    config = load_config(file, preset=preset, **dict(parse_change(change) for change in changes))
    if as_yaml:
        print(config.to_yaml(everything=True), end="")
        return
    if as_json:
        rows = [dict(zip(("key", "value", "from", "meaning"), row, strict=True)) for row in config.rows()]
        print(json.dumps(rows, indent=2))
        return
    table = Table()
    for heading in ("key", "value", "from", "meaning"):
        table.add_column(heading, overflow="fold")
    for key, value, origin, meaning in config.rows():
        style = "dim" if origin == "default" else "bold"
        table.add_row(*map(escape, (key, json.dumps(value), origin, meaning)), style=style)
    Console().print(table)


def parse_change(change: str) -> tuple[str, Any]:
    """A key and its value from ``KEY=VALUE``; the value is YAML."""
    from epistream.configs.yaml_text import parse_yaml

    key, equals, value = change.partition("=")
    if not equals:
        raise click.BadParameter(f"{change!r}, wanted KEY=VALUE, for example stream.batch_size=8")
    try:
        return key.strip(), parse_yaml(value)
    except yaml.YAMLError:
        raise click.BadParameter(f"{change!r}: the value is no YAML") from None
