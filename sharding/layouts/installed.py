"""Layouts that other installed packages bring: the entry points of the group ``epistream.layouts``.

In the ``pyproject.toml`` of such a package, each names a `Layout`, or something that gives one when it is called:

    [project.entry-points."epistream.layouts"]
    my-arm = "my_robots.layouts:arm"
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import h5py

from epistream.errors import EpistreamError, LayoutError
from epistream.sharding.layouts.base import Choice, Layout, SourceEpisode

GROUP = "epistream.layouts"
_MEMBERS = ("name", "looks_for", "matches", "groups", "episode")

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InstalledLayout:
    """A layout of another package, whose faults become errors that name it.

    Args:
        layout: What the package brings.
        package: Its name and version.
    """

    layout: Layout
    package: str

    @property
    def name(self) -> str:
        """What ``--layout`` calls it."""
        return self.layout.name

    @property
    def looks_for(self) -> str:
        """The marks in words."""
        return self.layout.looks_for

    def matches(self, file: h5py.File) -> bool:
        """Whether `file` is of this layout; a layout that fails is of no file, and is told of once a file."""
        try:
            return bool(self.layout.matches(file))
        except Exception as error:
            _log.warning("layout %s of %s: cannot look at a file (%s)", self.name, self.package, _short(error))
            return False

    def groups(self, file: h5py.File) -> list[str]:
        """The episodes of `file`, in order."""
        return self._guarded("/", lambda: list(self.layout.groups(file)))

    def episode(self, file: h5py.File, group: str, choice: Choice | None = None) -> SourceEpisode:
        """Describe one."""
        found = self._guarded(group, lambda: self.layout.episode(file, group, choice))
        if not isinstance(found, SourceEpisode):
            raise self._fault(group, f"gave a {type(found).__name__}, wanted a SourceEpisode")
        return found

    def _guarded(self, where: str, use: Callable[[], T]) -> T:
        try:
            return use()
        except (EpistreamError, OSError, KeyError, RuntimeError):
            raise  # of the file, as a layout may
        except Exception as error:
            raise self._fault(where, f"failed ({_short(error)})") from error

    def _fault(self, where: str, what: str) -> LayoutError:
        return LayoutError(f"{where}: the layout {self.name} of {self.package} {what}. Tell its makers")


@cache
def installed_layouts(taken: tuple[str, ...]) -> tuple[InstalledLayout, ...]:
    """Those of all packages, by name; what is broken is left out with a warning that names it.

    Args:
        taken: Names of layouts that there are without them.
    """
    found: dict[str, InstalledLayout] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package"
        try:
            layout = _load(entry)
        except Exception as error:
            _log.warning(
                "layout %s of %s: left out, %s = %r cannot be used (%s). Update or remove the package.",
                *(entry.name, package, GROUP, entry.value, _short(error)),
            )
            continue
        if layout.name in (*taken, *found):
            _log.warning("layout %s of %s: left out, there is another of this name.", layout.name, package)
            continue
        found[layout.name] = InstalledLayout(layout, package)
    return tuple(found.values())


def _load(entry: EntryPoint) -> Layout:
    made: Any = entry.load()
    if isinstance(made, type) or (callable(made) and not hasattr(made, "episode")):
        made = made()
    missing = [name for name in _MEMBERS if not hasattr(made, name)]
    if missing:
        raise TypeError(f"{type(made).__name__} without {', '.join(missing)}, wanted a layout")
    if not (isinstance(made.name, str) and made.name and isinstance(made.looks_for, str)):
        raise TypeError(f"name {made.name!r} and looks_for {made.looks_for!r}, wanted texts")
    layout: Layout = made
    return layout


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]
