"""Writing a dataset as a LeRobot data set, into a folder or onto the hub."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epistream.errors import OptionError
from epistream.file_systems import local_path
from epistream.loader.exporting.choice import Choice, source_of
from epistream.options import changed, options_of
from epistream.sharding.dataset import open_dataset
from epistream.sharding.dataset_facts import facts_of
from epistream.sharding.files.sources import AnySource
from epistream.sharding.files.user_cache import default_folder
from epistream.sharding.lerobot_out.export import ExportProgress, ExportReport, conclude_export
from epistream.sharding.lerobot_out.export import export_lerobot as write_set
from epistream.sharding.lerobot_out.hub import HubPlace, check_hub, hub_api, upload_to_hub
from epistream.sharding.lerobot_out.options import ExportOptions
from epistream.working_folder import absolute

if TYPE_CHECKING:
    from epistream.sharding.layouts.mapping import MappingLayout

AnyPath = str | os.PathLike[str]

__all__ = ["ExportProgress", "ExportReport", "export_lerobot"]

_HUB = "hf://"


def export_lerobot(
    source: AnySource | Sequence[AnySource],
    out: AnyPath,
    *,
    layout: "str | AnyPath | MappingLayout | None" = None,
    allow_outside_files: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    folder: AnyPath | None = None,
    progress: Callable[[ExportProgress], None] = lambda now: None,
    **options: Any,
) -> ExportReport:
    """Write shards, HDF5 files or LeRobot data sets as one LeRobot data set, v3.0 or v2.1.

    Videos are copied packet by packet; other cameras are encoded as H.264 by as many processes as there are cores. An
    export that was interrupted goes on where it was; what is not complete cannot be taken for a data set.

    Args:
        source: As `EpisodeStream` takes it.
        out: A folder that is empty, not there, or holds the same export, interrupted; or
            ``hf://datasets/OWNER/NAME[@BRANCH]``, whose repository is made if it is not there.
        layout: Of HDF5 files, as `EpisodeStream` takes it.
        allow_outside_files: Likewise.
        storage_options: For fsspec, of the source.
        folder: Where what goes to the hub is made before it is uploaded; below the user's cache unless given. It stays
            there.
        progress: Called now and then, in the calling thread.
        options: By name, those of `ExportOptions` (``version="2.1"``, ``crf=23``) and `Choice` (``fps=50``).

    Raises:
        OptionError: If options do not fit each other or the source, or a package is missing.
        SourceError, FormatError, LayoutError, FetchError: If the source cannot be read.
        DatasetExistsError: If there is something else at `out`.
        PackError: If it cannot be written.
        WorkerError: If a process died.
    """
    of_choice = {name: options.pop(name) for name in options_of(Choice) if name in options}
    written, choice = changed(ExportOptions(), options, "export_lerobot"), Choice(**of_choice)
    name = os.fspath(out)
    place = HubPlace.of(name) if name.startswith(_HUB) else None
    api = None
    if place is not None:
        api = hub_api()
        check_hub(place, api)
    dataset = open_dataset(
        source,
        storage_options,
        layout=layout,
        allow_outside_files=allow_outside_files,
        features=choice.features,
    )
    facts = facts_of(dataset, layout=layout, allow_outside_files=allow_outside_files)
    found, path = source_of(dataset, choice, written.version, facts), _folder(name, place, folder)
    report = write_set(found, path, written, progress, concludes=place is None)
    if place is not None:
        progress(ExportProgress("uploading", 0, 1))
        upload_to_hub(report.path, place, api)
        conclude_export(report.path)
        progress(ExportProgress("uploading", 1, 1))
    return report


def _folder(out: str, place: HubPlace | None, folder: AnyPath | None) -> Path:
    if place is not None:
        below = default_folder().parent / "exports"
        return absolute(Path(folder)) if folder else below / str(place).removeprefix(_HUB).replace("/", "--")
    path = local_path(out)
    if path is None:
        raise OptionError(
            f"{out}: a URL, wanted a folder of this machine or hf://datasets/OWNER/NAME. Export to a folder first."
        )
    return absolute(path)
