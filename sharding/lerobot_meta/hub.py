"""Revisions of data sets on a Hugging Face hub: a branch or tag becomes the commit that it names when it is opened."""

import importlib
import re
import urllib.parse
from typing import Any

from epistream.access import Access
from epistream.bodies import persist, retries_of
from epistream.errors import SourceError
from epistream.file_systems import open_file_system
from epistream.sharding.files.storage import Options
from epistream.shown_errors import clearly

# hf://datasets/OWNER/NAME[@REVISION][/FOLDER]. Of a revision with a slash the hub wants that as %2F, but for two kinds.
# Source: huggingface_hub, "HF URIs".
_SET = re.compile(
    r"hf://(?P<repo>datasets/(?P<id>[^/@]+/[^/@]+))(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?P<rest>/.*)?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LASTING = (400, 401, 403, 404, 410)


def is_pinned(url: str) -> bool:
    """Whether a URL names a commit of a hub, of which no file ever changes."""
    found = _SET.fullmatch(url)
    return bool(found and found["revision"] and _COMMIT.fullmatch(found["revision"]))


def pinned(url: str, options: Options) -> str:
    """The URL with the commit that its revision, or the default branch, names now; as it is if it is not of a hub.

    So a branch that moves changes nothing under a run, and all ranks that were given the result read the same files.

    Raises:
        OptionError: If the package for hf:// is not installed.
        SourceError: If the hub has no such data set or revision, does not show it, or does not answer.
    """
    found = _SET.fullmatch(url)
    if not found or is_pinned(url):
        return url
    file_system, _ = open_file_system(url, options)
    revision = urllib.parse.unquote(found["revision"]) if found["revision"] else None
    access = Access.of(options)

    def ask(limit_s: float) -> Any:
        hub = importlib.import_module("huggingface_hub")
        api = hub.HfApi(endpoint=file_system.endpoint, token=file_system.token)
        try:
            # Nothing but the commit: with the names of all files the answer for 100,000 of them is of megabytes.
            return api.dataset_info(found["id"], revision=revision, timeout=limit_s, expand=["sha"]).sha
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status in _LASTING or isinstance(error, ValueError):
                said = str(error).strip().splitlines()
                raise SourceError(
                    f"{url}: {type(error).__name__}: {said[0] if said else status}, wanted a data set of the hub. "
                    "Check its name and revision; of one that is private or gated, log in with 'hf auth login' or give "
                    "storage_options={'hf': {'token': ...}}."
                ) from error
            raise

    try:
        sha = persist(retries_of(options), lambda limit_s: clearly(lambda: ask(limit_s), access))
    except SourceError:
        raise
    except Exception as error:  # the hub's client has errors of several libraries
        raise SourceError(
            f"{url}: {type(error).__name__}: {error}, wanted the commit of its revision. Check the network, and "
            "HF_ENDPOINT if it is set."
        ) from error
    if not isinstance(sha, str) or not _COMMIT.fullmatch(sha):
        raise SourceError(f"{url}: commit {sha!r:.60}, wanted 40 hexadecimal digits. Check HF_ENDPOINT.")
    return f"hf://{found['repo']}@{sha}{found['rest'] or ''}"
