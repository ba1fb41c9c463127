"""Every edit as a function, in one place: what ``epistream.edit`` is.

Each is imported on first use: adding brings the layouts of HDF5 files and the packing job, and looking at the history
should not wait for those.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epistream.sharding.edit.adding import add
    from epistream.sharding.edit.compacting import compact
    from epistream.sharding.edit.history_edits import log, undo
    from epistream.sharding.edit.merging import merge
    from epistream.sharding.edit.operations import drop, listed_ranges, remove, rename, split, tasks, trim
    from epistream.sharding.edit.revision import EditReport

_HOME = {
    "EditReport": "revision",
    "add": "adding",
    "compact": "compacting",
    "drop": "operations",
    "listed_ranges": "operations",
    "log": "history_edits",
    "merge": "merging",
    "remove": "operations",
    "rename": "operations",
    "split": "operations",
    "tasks": "operations",
    "trim": "operations",
    "undo": "history_edits",
}

__all__ = [
    "EditReport",
    "add",
    "compact",
    "drop",
    "listed_ranges",
    "log",
    "merge",
    "remove",
    "rename",
    "split",
    "tasks",
    "trim",
    "undo",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'epistream.edit' has no attribute {name!r}")
    value = getattr(import_module(f"epistream.sharding.edit.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
