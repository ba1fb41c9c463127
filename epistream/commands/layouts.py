"""`epistream layouts`: the known layouts of HDF5 files, what a file was taken for and why, and a draft of a new one."""

import json
import re
import shlex
from pathlib import Path

import click
from rich.markup import escape

from epistream.commands.sources import outside_option, reach_option, storage_options
from epistream.commands.tables import new_list, new_table, print_table
from epistream.errors import LayoutError, OptionError, SourceError
from epistream.shown_urls import shown


@click.group(invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List the layouts of HDF5 files, say which one a file has and why, draft a new one."""
    if context.invoked_subcommand is None:
        context.invoke(show)


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print names and marks as JSON.")
def show(as_json: bool = False) -> None:
    """List every layout with the marks by which a file is recognised, in the order in which they are tried."""
    from epistream.sharding.layouts.registry import known_layouts, maker_of

    rows = [{"name": one.name, "marks": one.looks_for, "package": maker_of(one)} for one in known_layouts()]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = new_table()
    table.add_column("layout", no_wrap=True)
    table.add_column("recognised by", overflow="fold")
    for row in rows:
        table.add_row(escape(row["name"]), escape(row["marks"] + (f" (of {row['package']})" if row["package"] else "")))
    print_table(table)


@command.command()
@click.argument("file")
@reach_option
@outside_option
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def detect(file: str, options_json: str | None, allow_outside_files: bool, as_json: bool) -> None:
    """Say which layout FILE has, and which marks of each other one it lacks.

    Ends with 1 if it has none.
    """
    import h5py

    from epistream.sharding.check.layout_marks import lacking
    from epistream.sharding.hdf5.file import read_hdf5
    from epistream.sharding.layouts.registry import DRAFT_ADVICE, known_layouts

    def look(opened: h5py.File, _: object) -> dict[str, list[str]]:
        return {layout.name: lacking(layout, opened) for layout in known_layouts()}

    missing = read_hdf5(file, storage_options(options_json), look, allow_outside=allow_outside_files)
    found = next((name for name, marks in missing.items() if not marks), None)
    if as_json:
        click.echo(json.dumps({"layout": found, "lacks": missing}, indent=1))
    else:
        table = new_list()
        for name, marks in missing.items():
            text = f"lacks {', '.join(marks)}" if marks else "fits" + ", and is taken" * (name == found)
            table.add_row(escape(name), escape(text))
        print_table(table)
        click.echo(f"{shown(file)}: {found}" if found else f"{shown(file)}: no known layout. {DRAFT_ADVICE}")
    if found is None:
        raise SystemExit(1)


@command.command()
@click.argument("file")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the draft here.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@reach_option
@outside_option
def draft(file: str, output: Path | None, overwrite: bool, options_json: str | None, allow_outside_files: bool) -> None:
    """Write a starting layout file for FILE, with comments, to be corrected and given with --layout-file."""
    text = draft_of(file, options_json, allow_outside_files)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        with output.open("w" if overwrite else "x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError as error:
        raise OptionError(f"{output}: exists already. Give another name with -o, or --overwrite.") from error
    except OSError as error:
        raise SourceError(
            f"{output}: {error.strerror or error}, wanted to write a layout file. Check the path."
        ) from error
    command = f"epistream inspect {shlex.quote(shown(file))} --layout-file {shlex.quote(str(output))}"
    click.echo(f"{output}: a draft. Correct it, then: {command}")


def draft_of(file: str, options_json: str | None = None, allow_outside_files: bool = False) -> str:
    """A layout file for an HDF5 file, local or remote.

    Raises:
        SourceError: If it cannot be read.
        LayoutError: If nothing in it can be an episode.
    """
    import h5py

    from epistream.sharding.check.layout_draft import draft_layout
    from epistream.sharding.hdf5.file import read_hdf5
    from epistream.sharding.layouts.registry import layout_names

    stem = re.sub(r"[^A-Za-z0-9_\-]+", "-", Path(file.partition("?")[0]).stem).strip("-") or "mine"
    name = f"my-{stem}" if stem in layout_names() else stem

    def write(opened: h5py.File, _: object) -> str:
        return draft_layout(opened, name)

    return read_hdf5(file, storage_options(options_json), write, allow_outside=allow_outside_files)


def with_draft(
    error: LayoutError, source: tuple[str, ...], options_json: str | None, allow_outside_files: bool
) -> LayoutError:
    """An error about a file of no known layout, with a draft of one if one can be made of the only source."""
    if "layouts draft" not in str(error) or len(source) != 1 or Path(source[0]).is_dir():
        return error
    try:
        text = draft_of(source[0], options_json, allow_outside_files)
    except (OSError, ValueError):  # of which all errors of ours about files and layouts are
        return error
    return LayoutError(
        f"{error}\nThe draft of it (epistream layouts draft {shlex.quote(source[0])} -o layout.yaml writes it):\n{text}"
    )
