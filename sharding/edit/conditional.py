"""Writes of S3 that have a condition: an object is replaced only where it is still the one that was read."""

import contextlib
import json
import uuid
from typing import Any

from epistream.errors import EditConflictError, EpistreamError, SourceError
from epistream.file_systems import ask, open_file_system
from epistream.sharding.files.storage import Options, join, remove_quietly
from epistream.sharding.manifest.manifest_file import FILE_NAME

# What stores answer to a write whose condition does not hold, or is being decided for somebody else.
_REFUSED = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "404", "409", "412")
# What those answer that know no conditions.
_UNKNOWN = ("NotImplemented", "InvalidArgument", "MethodNotAllowed", "400", "405", "501")
_NO_TAG = '"00000000000000000000000000000000"'


def see_that_same(found: bytes | None, old: bytes, url: str) -> None:
    """Compare a manifest with the one that an edit began from.

    Raises:
        EditConflictError: If it is another, or gone.
    """
    if found != old:
        raise EditConflictError(
            f"{url}: edited by somebody else since it was read ({_told(found)}), wanted it unchanged. Nothing was "
            "lost; look at 'epistream edit log' and run the edit again."
        )


def _told(document: bytes | None) -> str:
    """What is there now, in a few words."""
    if document is None:
        return "it is gone"
    with contextlib.suppress(ValueError, AttributeError):
        return f"its fingerprint is {json.loads(document).get('fingerprint', 'unknown'):.32}"
    return "it is torn"


def swap_if_same(url: str, old: bytes, new: bytes, options: Options) -> bool:
    """Replace ``dataset.json`` of a folder of S3 if it is what was read.

    Returns:
        False if the store does not keep to conditions; then nothing was written.

    Raises:
        EditConflictError: If it is another by now.
        SourceError: If it cannot be read or written.
    """
    objects = _Objects(url, options)
    # Some stores take conditions and do not look at them: those would let the later of two editors win unseen.
    probe = f".edit-probe-{uuid.uuid4().hex[:12]}"
    try:
        objects.put(probe, b"1")
        keeps_to_them = objects.put(probe, b"2", _NO_TAG) in _REFUSED
    finally:
        remove_quietly(join(url, probe), options)
    if not keeps_to_them:
        return False
    tag, found = objects.get(FILE_NAME)
    see_that_same(found, old, url)
    answer = objects.put(FILE_NAME, new, tag)
    if answer is not None and (found := objects.get(FILE_NAME)[1]) != new:  # else it was an answer to a second try
        see_that_same(found, old, url)
        raise EditConflictError(f"{url}: another edit is taking place ({answer}), wanted none. Run the edit again.")
    return True


class _Objects:
    """The objects of one folder of S3.

    Args:
        url: The folder.
        options: For fsspec.
    """

    def __init__(self, url: str, options: Options) -> None:
        self._url = url
        self._file_system, path = open_file_system(join(url, FILE_NAME), options)
        self._bucket, _, key = path.partition("/")
        self._folder = key.removesuffix(FILE_NAME)

    def put(self, name: str, body: bytes, tag: str = "") -> str | None:
        """Write an object, with a tag only over the one that has it; None, or what the store answered of that."""
        condition: dict[str, Any] = {"IfMatch": tag} if tag else {}
        key = f"{self._folder}{name}"
        try:
            ask(self._file_system, "call_s3", "put_object", Bucket=self._bucket, Key=key, Body=body, **condition)
        except EpistreamError:
            raise
        except Exception as error:
            code = _code_of(error)
            if tag and code in (*_REFUSED, *_UNKNOWN):
                return code
            raise SourceError(
                f"{join(self._url, name)}: {type(error).__name__}: {error}, wanted to write it. Check access."
            ) from error
        finally:
            self._file_system.invalidate_cache()
        return None

    def get(self, name: str) -> tuple[str, bytes | None]:
        """The tag of an object, and its contents; None if it is being replaced.

        Raises:
            SourceError: If it cannot be read.
        """
        key = f"{self._folder}{name}"

        def tag() -> str:
            return str(ask(self._file_system, "call_s3", "head_object", Bucket=self._bucket, Key=key)["ETag"])

        try:
            before = tag()
            data: bytes = ask(self._file_system, "cat_file", f"{self._bucket}/{key}")
            return before, data if tag() == before else None
        except EpistreamError:
            raise
        except Exception as error:
            raise SourceError(
                f"{join(self._url, name)}: {type(error).__name__}: {error}, wanted to read it. Check access."
            ) from error


def _code_of(error: BaseException | None) -> str:
    """The code of a store's answer, of an error or what it came of."""
    while error is not None:
        response: Any = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        if isinstance(error, NotImplementedError):
            return "NotImplemented"
        error = error.__cause__ or error.__context__
    return ""
