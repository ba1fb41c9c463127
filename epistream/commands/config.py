"""`epistream config`: what a configuration says, and where each value comes from."""

import json
from typing import Any

import click
import yaml
from rich.markup import escape

from epistream.commands.tables import new_table, print_table
from epistream.shown_urls import shown


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
    table = new_table()
    table.add_column("key", no_wrap=True)
    table.add_column("value (from)", overflow="fold", max_width=30)
    table.add_column("meaning", overflow="fold", min_width=20)
    for key, value, origin, meaning in config.rows():
        is_default = origin == "default"
        said = json.dumps(value) if is_default else f"{json.dumps(value)} ({origin})"
        table.add_row(*map(escape, (key, said, meaning)), style="dim" if is_default else "bold")
    print_table(table)


def parse_change(change: str) -> tuple[str, Any]:
    """A key and its value from ``KEY=VALUE``; the value is YAML."""
    from epistream.yaml_text import parse_yaml

    key, equals, value = change.partition("=")
    if not equals:
        raise click.BadParameter(f"{shown(change)!r}, wanted KEY=VALUE, for example stream.batch_size=8")
    try:
        return key.strip(), parse_yaml(value)
    except yaml.YAMLError:
        # The value may be a secret.
        raise click.BadParameter(f"{key.strip()}: the value is no YAML, wanted for example {key.strip()}=8") from None
