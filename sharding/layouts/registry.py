"""Every known layout, in the order in which they are tried, and the scan of one source file."""

from dataclasses import dataclass, replace
from pathlib import Path

import h5py

from epistream.errors import EpistreamError, FormatError, LayoutError, OptionError
from epistream.hints import did_you_mean
from epistream.sharding.format.left_out import sentence
from epistream.sharding.layouts.aloha import ALOHA_LAYOUTS
from epistream.sharding.layouts.base import Choice, Layout, SourceEpisode
from epistream.sharding.layouts.installed import InstalledLayout, installed_layouts
from epistream.sharding.layouts.judging import why_no_rows
from epistream.sharding.layouts.known_mappings import OTHER_MAPPINGS, RDT
from epistream.sharding.layouts.libero import LiberoLayout
from epistream.sharding.layouts.mapping import MappingLayout
from epistream.sharding.layouts.minari import MinariLayout
from epistream.sharding.layouts.reading import open_source
from epistream.sharding.layouts.robomimic import RobomimicLayout
from epistream.sharding.layouts.values import first_line, whole_text
from epistream.sharding.opening.foreign_hdf5 import foreign_contents
from epistream.sharding.opening.other_files import OtherFile, other_files
from epistream.sharding.opening.walking import CANNOT_OPEN, patience, tree

# The more particular come first.
LAYOUTS: tuple[Layout, ...] = (LiberoLayout(), RobomimicLayout(), RDT, *ALOHA_LAYOUTS, *OTHER_MAPPINGS, MinariLayout())
_NAMES = tuple(layout.name for layout in LAYOUTS)
_MAX_LISTED = 20
_MAX_GROUPS = 10_000
# How every message about a layout that is not known ends.
DRAFT_ADVICE = (
    "Write a layout file of your own with 'epistream layouts draft FILE -o layout.yaml', and give it with "
    "--layout-file layout.yaml, or layout='layout.yaml' in Python."
)
_OWN_ADVICE = (
    "Correct its paths, say 'optional: true' beside what may be missing, or write it anew with "
    "'epistream layouts draft FILE -o layout.yaml'."
)


@dataclass(frozen=True)
class SourceScan:
    """What one source file holds.

    Args:
        path: The file.
        layout: The layout's name, empty if none fits.
        num_bytes: Size of the file.
        mtime_ns: When it was last changed.
        inode: Which file it is.
        episodes: Those that can be packed.
        faults: One message for each that cannot; one in all if the file itself cannot be read.
        others: Other files that it reads from.
        excluded: The groups that the layout file's `where` leaves out, each with the reason.
    """

    path: str
    layout: str
    num_bytes: int
    mtime_ns: int
    inode: int
    episodes: tuple[SourceEpisode, ...]
    faults: tuple[str, ...]
    others: tuple[OtherFile, ...] = ()
    excluded: tuple[str, ...] = ()


def known_layouts() -> tuple[Layout, ...]:
    """Those above, and then those of other packages, which are imported now."""
    return (*LAYOUTS, *installed_layouts(_NAMES))


def layout_names() -> list[str]:
    """The names of all."""
    return [layout.name for layout in known_layouts()]


def layout_by_name(name: str | MappingLayout) -> Layout:
    """The layout that ``--layout`` asks for; one that the user brings is itself.

    Raises:
        OptionError: If there is none of that name.
    """
    if isinstance(name, MappingLayout):
        return name
    if name in _NAMES:
        return LAYOUTS[_NAMES.index(name)]
    for layout in installed_layouts(_NAMES):
        if layout.name == name:
            return layout
    names = layout_names()
    hint = did_you_mean(str(name), names)
    raise OptionError(
        f"layout {name!r}: unknown, wanted one of {', '.join(names)}.{f' {hint}' if hint else ''} {DRAFT_ADVICE}"
    )


def maker_of(layout: Layout) -> str:
    """The package that brings a layout, with its version; empty for those above and for a user's own."""
    return layout.package if isinstance(layout, InstalledLayout) else ""


def is_still_made_by(name: str, maker: str) -> bool:
    """Whether the layout that a file was read by is still what `maker_of` said."""
    known = {layout.name: layout.package for layout in installed_layouts(_NAMES)} if maker else {}
    return known.get(name, "") == maker


def detect(file: h5py.File) -> Layout:
    """The layout of an open file.

    Raises:
        LayoutError: If it fits none; the message says what was found, and how to describe the file.
    """
    for layout in LAYOUTS:
        if layout.matches(file):
            return layout
    for other in installed_layouts(_NAMES):  # last, so that no package changes what was recognised before
        if other.matches(file):
            return other
    raise LayoutError(f"found {_contents(file)}, which fits no known layout. {foreign_contents(file)}{looked_for()}")


def layout_of(file: h5py.File, wanted: str | MappingLayout | None) -> Layout:
    """The layout of an open file: the one that is insisted on, or the one that it fits.

    Raises:
        LayoutError: If it does not fit.
        OptionError: If there is no layout of that name.
    """
    if not wanted:
        return detect(file)
    layout = layout_by_name(wanted)
    if not layout.matches(file):
        missing, advice = "", DRAFT_ADVICE
        if isinstance(layout, MappingLayout):
            missing = f" Not there: {', '.join(layout.lacking(file))}."
            advice = _OWN_ADVICE if layout.is_own else DRAFT_ADVICE
        raise LayoutError(f"found {_contents(file)}, wanted {layout.name}: {layout.looks_for}.{missing} {advice}")
    return layout


def looked_for() -> str:
    """What to do about a file that is of none of the layouts."""
    names = ", ".join(layout_names())
    return f"Looked for: {names}; 'epistream layouts detect FILE' says which marks of each it lacks. {DRAFT_ADVICE}"


def scan_source(
    path: str | Path,
    layout_name: str | MappingLayout | None = None,
    choice: Choice | None = None,
    *,
    allow_outside: bool = False,
) -> SourceScan:
    """Describe every episode of a file. Faults of its contents are reported, not raised.

    Args:
        path: An HDF5 file.
        layout_name: Insist on this layout instead of finding it.
        choice: What of each episode is wanted; None is all.
        allow_outside: Whether it may read from files outside of its folder.
    """
    path = Path(path)
    scan = SourceScan(str(path), "", 0, 0, 0, (), ())
    try:
        with open_source(path, allow_outside=allow_outside) as file:
            others = other_files(file, path, str(path), allow_outside=allow_outside)
            status = path.stat()
            num_bytes, mtime_ns, inode = status.st_size, status.st_mtime_ns, status.st_ino
            scan = replace(scan, num_bytes=num_bytes, mtime_ns=mtime_ns, inode=inode, others=others)
            scan = scan_open(file, scan, layout_name, choice)
    except OptionError:
        raise
    except EpistreamError as error:
        scan = replace(scan, faults=(*scan.faults, whole_text(sentence(error))))
    return scan


def scan_open(
    file: h5py.File, scan: SourceScan, layout_name: str | MappingLayout | None = None, choice: Choice | None = None
) -> SourceScan:
    """What `scan` knows of an open file, with its layout, episodes and their faults.

    Raises:
        EpistreamError: If it is of no layout.
    """
    episodes: list[SourceEpisode] = []
    faults: list[str] = []
    layout, groups = episodes_of(file, layout_name)
    excluded = excluded_by(layout, file)
    for group in groups:
        try:
            episodes.append(described(layout, file, group, choice))
        except (LayoutError, FormatError) as error:
            faults.append(whole_text(f"{scan.path}: {sentence(error)}"))
    return replace(
        scan, layout=layout.name, episodes=tuple(episodes), faults=(*scan.faults, *faults), excluded=excluded
    )


def episodes_of(file: h5py.File, wanted: str | MappingLayout | None) -> tuple[Layout, list[str]]:
    """The layout of an open file, as `layout_of`, and the groups of its episodes.

    Raises:
        LayoutError: If it does not fit, or looking for them takes longer than anybody would wait.
        OptionError: If there is no layout of that name.
    """
    with patience():
        layout = layout_of(file, wanted)
        return layout, layout.groups(file)


def described(layout: Layout, file: h5py.File, group: str, choice: Choice | None = None) -> SourceEpisode:
    """One episode, whatever is in its group.

    Raises:
        LayoutError: If it breaks the layout; the message begins with the path inside the file.
    """
    try:
        with patience():
            return layout.episode(file, group, choice)
    except EpistreamError:
        raise
    except (*CANNOT_OPEN, RecursionError) as error:
        raise LayoutError(
            f"{group}: cannot be looked at ({type(error).__name__}: {first_line(error)}), wanted an episode. Record or "
            "copy it again"
        ) from error


def excluded_by(layout: Layout, file: h5py.File) -> tuple[str, ...]:
    """The groups that are no episodes because a layout file says which are wanted, each with the reason."""
    if not isinstance(layout, MappingLayout) or not layout.is_own:
        return ()
    with patience():
        return tuple(layout.excluded(file))


def _contents(file: h5py.File) -> str:
    """The first names in a file, for a message.

    Raises:
        LayoutError: If there is something in it that cannot be opened: then that is what is wrong.
    """
    names: list[str] = []
    num_groups = 0
    for path, node in tree(file):
        if node is None:
            try:
                _ = file[path]
            except CANNOT_OPEN as error:
                reason = first_line(error)
                raise LayoutError(
                    f"holds {path}, which cannot be opened ({reason}), wanted a whole file. Copy or record it again"
                ) from error
        num_groups += isinstance(node, h5py.Group)
        if isinstance(node, h5py.Dataset):
            names.append(f"/{path} {_in_words(node)}")
        if len(names) > _MAX_LISTED or num_groups > _MAX_GROUPS:
            break
    listed = ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")
    more = " and more" * (num_groups > _MAX_GROUPS)
    return (listed or "no datasets") + f" in {num_groups:,} groups{more}" * bool(not listed and num_groups)


def _in_words(found: h5py.Dataset) -> str:
    why = why_no_rows(found)
    return f"({why})" if why in ("empty", "of a type that h5py cannot read") else f"{found.dtype} {found.shape}"
