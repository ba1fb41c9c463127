"""What commands share that look at data: the layout of HDF5 files, and how files are reached."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from epistream.commands.parameters import option
from epistream.errors import OptionError
from epistream.sharding.layouts.layout_file import read_layout_file
from epistream.sharding.layouts.registry import LAYOUTS, layout_by_name
from epistream.sharding.pack.options import PackOptions

if TYPE_CHECKING:
    from epistream.sharding.layouts.mapping import MappingLayout
    from epistream.sharding.manifest.opened_dataset import Dataset

FEATURE_HELP = (
    "Only this feature, or those of a pattern such as 'action*'. Repeatable; of unlike sources, what they share."
)

_NAMES = [layout.name for layout in LAYOUTS]


def layout_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--layout`` and ``--layout-file``, of which `wanted_layout` makes one, and `outside_option`."""
    by_name = click.option(
        "--layout",
        metavar="NAME",
        help=f"Of HDF5 files, instead of finding it: {', '.join(_NAMES)}, or one of another package.",
    )
    by_file = click.option(
        "--layout-file",
        type=click.Path(exists=True, dir_okay=False),
        help="Your own layout of HDF5 files, as YAML; 'epistream layouts draft FILE' writes one.",
    )
    return by_name(by_file(outside_option(function)))


def outside_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The flag ``--allow-outside-files``."""
    return click.option(
        "--allow-outside-files",
        is_flag=True,
        help="Let HDF5 files that you trust read from others outside of their folders (links, virtual datasets).",
    )(function)


def division_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--val-fraction`` and ``--split-seed``, as of ``epistream pack``."""
    divided: Callable[..., Any] = option(PackOptions, "val_fraction")(option(PackOptions, "split_seed")(function))
    return divided


def wanted_layout(layout: str | None, layout_file: str | None) -> "str | MappingLayout | None":
    """The layout that the options ask for, None if it is to be found.

    Raises:
        OptionError: If both are given, there is none of that name, or the file describes none.
    """
    if layout and layout_file:
        raise OptionError("--layout and --layout-file: both given, wanted one.")
    if layout_file:
        return read_layout_file(layout_file)
    return layout_by_name(layout).name if layout else None


def reach_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--storage-options``, from which `storage_options` makes a mapping."""
    return click.option(
        "--storage-options",
        "options_json",
        metavar="JSON",
        help='Options for fsspec: {"anon": true}, or by protocol {"s3": {...}, "http": {...}}; @FILE reads them there.',
    )(function)


def storage_options(text: str | None) -> dict[str, Any]:
    """Options for fsspec, from the command line: JSON, or ``@`` and the name of a file with JSON.

    Raises:
        OptionError: If it is no JSON map, or the file cannot be read. No message shows what is there.
    """
    where = "--storage-options"
    if text and text.startswith("@"):
        where = f"--storage-options {text}"
        try:
            path = Path(os.path.expanduser(text[1:]))  # noqa: PTH111, an unknown ~name is a name
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
            raise OptionError(f"{where}: {why}, wanted a file with JSON, readable by you.") from None
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        problem = f"{error.msg}, line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "no JSON"
        # The error as it was has the whole text.
        raise OptionError(f"{where}: {problem}, wanted JSON such as '{{\"anon\": true}}', or @FILE.") from None
    if not isinstance(value, dict):
        raise OptionError(f"{where}: a {type(value).__name__}, wanted a JSON map such as '{{\"anon\": true}}'.")
    return value


def open_source(
    source: Sequence[str],
    options_json: str | None,
    layout: str | None = None,
    layout_file: str | None = None,
    allow_outside_files: bool = False,
    features: Sequence[str] | None = None,
    val_fraction: float | None = None,
    split_seed: int = 0,
) -> "Dataset":
    """The dataset that a command's argument and options name.

    Raises:
        EpistreamError: As `open_dataset`, `storage_options` and `wanted_layout`.
    """
    from epistream.sharding.dataset import open_dataset

    wanted = wanted_layout(layout, layout_file)
    return open_dataset(
        source[0] if len(source) == 1 else list(source),
        storage_options(options_json),
        layout=wanted,
        allow_outside_files=allow_outside_files,
        features=features,
        val_fraction=val_fraction,
        split_seed=split_seed,
    )
