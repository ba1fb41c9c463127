"""A LeRobot data set in a folder, uploaded to the Hugging Face Hub so that LeRobot finds it there.

``meta/info.json`` goes last but for the tag with the format's version, which LeRobot asks for: whoever looks before has
no data set. An upload that was interrupted goes on where it was when the same is called again.
"""

import importlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epistream.errors import DatasetExistsError, EpistreamError, OptionError, SourceError
from epistream.sharding.lerobot_out.work_folder import INFO

_URL = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([^@/\s][^@\s]*))?/?")
_CARD = "README.md"
# The folders of a data set: what of them is on the hub and not in the folder would be read as part of it.
_OURS = ("data/", "meta/", "videos/")
_IGNORED = [".export/**", ".cache/**", ".git/**", INFO]
_DATASET = "dataset"


@dataclass(frozen=True)
class HubPlace:
    """A repository of data sets on the hub.

    Args:
        name: owner/name.
        revision: A branch; None is the main one.
    """

    name: str
    revision: str | None = None

    @classmethod
    def of(cls, url: str) -> "HubPlace":
        """That of ``hf://datasets/owner/name[@branch]``.

        Raises:
            OptionError: If the URL is none.
        """
        match = _URL.fullmatch(url)
        if match is None:
            raise OptionError(f"{url}: no place for a data set on the hub, wanted hf://datasets/OWNER/NAME[@BRANCH].")
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"hf://datasets/{self.name}" + (f"@{self.revision}" if self.revision else "")


def hub_api() -> Any:
    """What talks to the hub, with the token that its own tools use.

    Raises:
        OptionError: If the package is not installed.
    """
    try:
        return importlib.import_module("huggingface_hub").HfApi()
    except ImportError as error:
        raise OptionError(
            f"hf: {error}, wanted huggingface_hub, which talks to the hub. Run: pip install 'epistream[lerobot]'."
        ) from error


def check_hub(place: HubPlace, api: Any) -> None:
    """Ask the hub whether it knows us, before hours go into what is to be uploaded.

    Raises:
        SourceError: If it does not.
    """
    with _errors_of(place):
        api.whoami()


def upload_to_hub(folder: Path, place: HubPlace, api: Any, *, private: bool | None = None) -> None:
    """Upload a complete data set, and tag it with its version.

    Args:
        folder: Of the data set.
        place: Made if it is not there. If it is, it may hold nothing but what the folder holds, of whatever contents.
        api: `huggingface_hub.HfApi`, or what does the same.
        private: Whether a repository that is made can be seen by its owner only; as the owner's settings say if None.

    Raises:
        SourceError: If the hub refuses, or cannot be reached; what was uploaded stays for the next time.
        DatasetExistsError: If there are files of another data set.
    """
    version = _version_of(folder)
    here = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    with _errors_of(place):
        api.create_repo(place.name, repo_type=_DATASET, private=private, exist_ok=True)
        if place.revision:
            api.create_branch(place.name, branch=place.revision, repo_type=_DATASET, exist_ok=True)
        there = api.list_repo_files(place.name, repo_type=_DATASET, revision=place.revision)
        other = sorted(name for name in there if name.startswith(_OURS) and name not in here)
        if other:
            raise DatasetExistsError(
                f"{place}: holds {other[0]}, which is not of this data set and would be read with it, wanted another "
                "or an empty repository. Choose another name, or remove that file there."
            )
        where = {"repo_id": place.name, "repo_type": _DATASET, "revision": place.revision}
        # Releases whose `upload_folder` does not go on where it was have another function that does.
        upload = getattr(api, "upload_large_folder", None) or api.upload_folder
        upload(folder_path=str(folder), ignore_patterns=_IGNORED, **where)
        if _CARD not in here and _CARD not in there:
            api.upload_file(path_or_fileobj=_card(version).encode(), path_in_repo=_CARD, **where)
        api.upload_file(path_or_fileobj=str(folder / INFO), path_in_repo=INFO, **where)
        tags = [tag.name for tag in api.list_repo_refs(place.name, repo_type=_DATASET).tags]
        if version in tags:
            api.delete_tag(place.name, tag=version, repo_type=_DATASET)
        api.create_tag(place.name, tag=version, revision=place.revision, repo_type=_DATASET)


def _version_of(folder: Path) -> str:
    try:
        version = json.loads((folder / INFO).read_bytes())["codebase_version"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SourceError(
            f"{folder}: no complete LeRobot data set ({type(error).__name__}: {error}), wanted {INFO}. Export it first."
        ) from error
    return str(version)


def _card(version: str) -> str:
    """What the hub shows, and by what it finds the data set among those of LeRobot."""
    return (
        "---\ntask_categories:\n- robotics\ntags:\n- LeRobot\nconfigs:\n- config_name: default\n"
        "  data_files: data/*/*.parquet\n---\n\n"
        f"Robot episodes in LeRobot's format {version}, exported by [epistream](https://github.com/epistream/epistream)."
        "\n"
    )


@contextmanager
def _errors_of(place: HubPlace) -> Iterator[None]:
    """Whatever the hub's package raises, as an error of ours with the next step."""
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        yield
    except EpistreamError:
        raise
    except Exception as error:  # its HTTP client has errors of its own, and another one with each release
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.LocalTokenNotFoundError) or status == 401:
            advice = "Log in with 'hf auth login', or put a token that may write into HF_TOKEN."
        elif status in (403, 404):
            advice = f"Check that the token may write to {place.name}."
        elif isinstance(error, errors.HFValidationError):
            advice = "Choose another name."
        else:
            advice = "Check the network, and run the same again: what was uploaded stays."
        first = next(iter(str(error).strip().splitlines()), "")
        raise SourceError(f"{place}: {type(error).__name__}: {first}, wanted to upload to it. {advice}") from error
