"""The command line: one module a command, imported only when that command runs."""

import sys
from importlib import import_module

import click
from rich.console import Console

from epistream._version import __version__
from epistream.errors import EpistreamError

_HELP = {
    "bench": "Measure windows/s on a dataset, beside the bound of this machine.",
    "cache": "List, clear, resize and warm the node's shard cache.",
    "config": "Show a configuration: every key, its value, and where it comes from.",
    "doctor": "Look for what is wrong with episodes: cameras, values, motion, time, copies.",
    "edit": "Add, remove, correct and divide episodes; join datasets; undo.",
    "export": "Write a dataset as a LeRobot data set.",
    "index": "Write indexes and a manifest for tar shards that have none.",
    "inspect": "Show what a dataset holds.",
    "layouts": "List layouts of HDF5 files, say which a file has, draft a new one.",
    "plan": "Say how well an epoch is shuffled within a budget, and what it fetches.",
    "pack": "Pack HDF5 episodes into tar shards.",
    "tune": "Measure a dataset and this machine, and choose a configuration.",
    "verify": "Check a dataset's bytes, indexes and frames.",
}


class _Commands(click.Group):
    """Finds a command's module by the command's name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_HELP)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _HELP:
            return None
        command: click.Command = import_module(f"epistream.commands.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Help lines are kept here so that `epistream --help` imports neither torch nor h5py.
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_HELP.items()))


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="epistream")
def cli() -> None:
    """Pack robot-learning episodes into tar shards and stream windows from them."""


def main() -> None:
    """Run the command line; an error of ours is one line on stderr and exit code 1."""
    try:
        cli()
    except EpistreamError as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
