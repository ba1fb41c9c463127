"""Opening a dataset, wherever its files are and however they were given."""

import os
import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from epistream.access import Access
from epistream.errors import OptionError, SourceError
from epistream.file_systems import advice_on_unsigned, local_path
from epistream.sharding.files.names import LEROBOT_INFO
from epistream.sharding.files.sources import AnySource, Folder, Hdf5Files, LeRobotSet, Part, Tars, resolve_access
from epistream.sharding.files.storage import is_there, join
from epistream.sharding.format.division import Division
from epistream.sharding.format.episode_meta import NO_SPLIT
from epistream.sharding.format.left_out import open_good
from epistream.sharding.manifest.manifest_file import FILE_NAME, find_manifest, read_manifest
from epistream.sharding.manifest.opened_dataset import Dataset, concatenate, dataset_of
from epistream.working_folder import absolute

if TYPE_CHECKING:  # the layouts read h5py, which shards do without
    from epistream.sharding.layouts.mapping import MappingLayout
    from epistream.sharding.lerobot_meta.meta_files import MetaFiles


def open_dataset(
    source: AnySource | Sequence[AnySource],
    storage_options: Mapping[str, Any] | None = None,
    *,
    on_bad: Literal["raise", "skip"] = "raise",
    layout: "str | os.PathLike[str] | MappingLayout | None" = None,
    allow_outside_files: bool = False,
    features: Collection[str] | None = None,
    val_fraction: float | None = None,
    split_seed: int = 0,
) -> Dataset:
    """Open a dataset without reading any of its shards.

    Args:
        source: A folder or URL with a ``dataset.json``, with ``@`` and a fingerprint behind it as it was before it was
            edited (see ``docs/datasets.md``); tars as a brace pattern (``s3://b/shard-{000000..000003}.tar``)
            or, local ones, as a glob; or a list of these, whose episodes follow each other. Tars in the folder of a
            dataset are that part of it. Local tars without one are indexed once, in the user's cache folder. HDF5
            files, folders and globs of them likewise: they are read where they are, see ``docs/hdf5.md``; and so are
            LeRobot data sets, at URLs too, see ``docs/lerobot.md``. URLs may have a query or a user, which are never
            part of a name: one for a folder or pattern, or one for each file of a list, which then has those of the
            manifest, its tables and the indexes as well.
        storage_options: For fsspec: credentials, endpoints; flat, or by protocol (``{"s3": {...}, "http": {...}}``),
            where ``http`` is also for ``https`` and what no URL needs is left alone.
        on_bad: What an HDF5 file does that cannot be read, fits no layout or has other features than most, or in a list
            a dataset of shards that is missing or torn: ``"raise"`` an error, or ``"skip"``: it is left out, with a
            warning, and named in `Dataset.skipped`.
        layout: Of HDF5 files: the name of a known one, or a YAML file of your own, as ``epistream pack --layout-file``
            takes it; found from each file by default. Not for shards alone.
        allow_outside_files: Let HDF5 files read from others outside of their folders, by external links, virtual
            datasets or external storage; those in the folder or below may be read in any case.
        features: Names and patterns (``observation.images.*``) of what all parts of a list, and all HDF5 files, must
            have alike; everything if None. Features that are not alike are left aside then, and so are other cameras of
            LeRobot data sets, which have files of their own.
        val_fraction: Share of the episodes of HDF5 files and LeRobot data sets for the split ``val``, as ``epistream
            pack`` chooses them; from the files' masks, or as the set says, if None. Not for shards, whose splits were
            settled when they were packed.
        split_seed: Which episodes those are.

    Returns:
        The dataset. In a list, a part without a split counts as ``train`` beside parts that have one.

    Raises:
        OptionError: If `source` cannot be understood, `layout` is given and there are only shards, or
            `val_fraction` and there are any.
        SourceError: If there is no dataset; the message says what is there instead.
        VersionError: If it was written in a later format.
        FormatError: If it is torn, or parts of a list have different features (of those that `features` names).
        LayoutError: If an HDF5 file fits no known layout.
    """
    parts, options = resolve_access(source, storage_options)
    division = None if val_fraction is None else Division(val_fraction, split_seed)

    def open_part(part: Part) -> Dataset:
        if isinstance(part, Hdf5Files):
            return _open_hdf5(
                part,
                options,
                skip_bad=on_bad == "skip",
                layout=layout,
                allow_outside=allow_outside_files,
                features=features,
                division=division,
            )
        opened = _FoundSet(part.url) if isinstance(part, LeRobotSet) else _open(part, options)
        if isinstance(opened, _FoundSet):
            return _open_lerobot(opened, options, division, features)
        if division is not None:
            raise OptionError(_cannot_divide(opened))
        return opened

    skipped: dict[str, str] = {}
    if on_bad == "skip" and len(parts) > 1:
        opened, skipped = open_good(parts, open_part, _names, _pieces)
    else:
        opened = [open_part(part) for part in parts]
    dataset = opened[0] if len(opened) == 1 else concatenate(opened, features)
    if layout is not None and not any(isinstance(part, Hdf5Files) for part in parts):
        is_set = any(isinstance(part, LeRobotSet) for part in parts)
        found = "a LeRobot data set, which says itself" if is_set else "shards, whose layout was settled when they were"
        found += " what it holds" if is_set else " packed"
        raise OptionError(
            f"{dataset.url}: {found}; layout is {str(layout)!r}, wanted HDF5 files for it. Leave 'layout' out."
        )
    return replace(dataset, skipped=skipped | dataset.skipped) if skipped else dataset


def _cannot_divide(dataset: Dataset) -> str:
    found = ", ".join(dataset.splits)
    if dataset.splits == (NO_SPLIT,):
        found, cure = "shards without splits", "Pack the recordings with --val-fraction"
    else:
        found, cure = f"shards with the splits {found}", "Leave val_fraction out, and name a split"
    return f"{dataset.url}: {found}, settled when they were packed; val_fraction is for others. {cure}."


def _pieces(part: Part) -> list[Part]:
    """Its files one by one, if each can be bad for a reason of its own."""
    if isinstance(part, Hdf5Files):
        return [Hdf5Files(file, (file,)) for file in part.files]
    if isinstance(part, Tars) and local_path(part.url) is not None:
        return [Tars(part.url, (name,)) for name in part.names]
    return [part]  # remote tars share the manifest that they cannot do without


def _names(part: Part) -> list[str]:
    """The paths and URLs that a part has in messages."""
    if isinstance(part, Hdf5Files):
        return [_absolute(file) for file in part.files]
    if isinstance(part, Tars):
        return [join(_absolute(part.url), name) for name in part.names]
    at = f"@{part.fingerprint}" if isinstance(part, Folder) and part.fingerprint else ""
    return [f"{_absolute(part.url)}{at}"]


def _open_hdf5(
    part: Hdf5Files,
    options: Access,
    *,
    skip_bad: bool,
    layout: "str | os.PathLike[str] | MappingLayout | None",
    allow_outside: bool,
    features: Collection[str] | None,
    division: Division | None,
) -> Dataset:
    from epistream.sharding.hdf5.dataset import open_hdf5_files
    from epistream.sharding.layouts.layout_file import chosen_layout

    urls = [_absolute(url) for url in part.files]
    dataset = open_hdf5_files(
        urls,
        options,
        skip_bad=skip_bad,
        layout=chosen_layout(layout),
        allow_outside=allow_outside,
        features=features,
        division=division,
    )
    return replace(dataset, url=part.url)


class _FoundSet(NamedTuple):
    """A LeRobot data set, and what is known of its files if they were looked at."""

    url: str
    files: "MetaFiles | None" = None


def _open_lerobot(
    found: _FoundSet, options: Access, division: Division | None, features: Collection[str] | None
) -> Dataset:
    from epistream.sharding.lerobot.dataset import open_lerobot
    from epistream.sharding.lerobot_meta.hub import pinned

    url = pinned(_absolute(found.url), options)
    return open_lerobot(url, options, division=division, files=found.files, wanted=features)


def _open(part: Folder | Tars, options: Access) -> Dataset | _FoundSet:
    """Shards, or the LeRobot data set that a remote folder turns out to be."""
    url = _absolute(part.url)
    if isinstance(part, Folder):
        found = find_manifest(url, options, part.fingerprint)
        if found is None and local_path(url) is None:
            from epistream.sharding.lerobot_meta.hub import pinned
            from epistream.sharding.lerobot_meta.meta_files import look_on_web

            fixed = pinned(url, options)  # which says it if a hub shows no such repository
            files = look_on_web(fixed, options)
            if is_there(join(fixed, LEROBOT_INFO), options) if files is None else files.versions:
                return _FoundSet(fixed, files)
        return dataset_of(found or read_manifest(url, options), url, options)
    twice = [name for name, times in Counter(part.names).items() if times > 1]
    if twice:  # its episodes would be read twice an epoch
        raise SourceError(f"{join(url, twice[0])}: given twice, wanted each tar once. Correct the pattern.")
    if is_there(join(url, FILE_NAME), options):
        manifest = read_manifest(url, options)
        own = [not group.url for group in manifest.groups]
        groups = manifest.columns.group_of.tolist()
        position = {name: shard for shard, name in enumerate(manifest.columns.names) if own[groups[shard]]}
        missing = [name for name in part.names if name not in position]
        if missing:
            raise SourceError(
                f"{join(url, missing[0])}: not one of the {len(position)} shards that {FILE_NAME} in its folder "
                f"names ({len(missing)} of {len(part.names)} are not). Correct the pattern."
            )
        return dataset_of(manifest.select([position[name] for name in part.names]), url, options)
    if local_path(url) is None:
        unsigned = advice_on_unsigned(join(url, FILE_NAME), options)
        if unsigned is not None:  # a server may say of what it does not show that it is not there
            raise SourceError(f"{join(url, FILE_NAME)}: not found, wanted it beside the tars. {unsigned}")
        raise SourceError(
            f"{join(url, part.names[0])}: a remote tar without {FILE_NAME} beside it, wanted one, since a plan needs "
            f"every episode's length. Run: epistream index {shlex.quote(url)}"
        )
    from epistream.sharding.tar.index_cache import index_local_tars

    manifest, index_urls = index_local_tars([join(url, name) for name in part.names])
    return dataset_of(manifest, url, options, index_urls)


def _absolute(url: str) -> str:
    """Workers may have another working directory, and a cache must see one name for one file."""
    path = local_path(url)
    return url if path is None else str(absolute(path))
