"""URLs as people may see them: without query, user and password; a leaf that everything which speaks may use.

Messages, logs and reports reach colleagues, issue trackers and dashboards. A signed URL opens the data for whoever
reads it there, so what makes it open never leaves the process in words.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Stands where something was taken out. Shown again it stays what it is.
MARK = "***"

# An apostrophe may stand in a query, and ends a quoted one.
_CHARACTER = r"[^\s<>\"'`]|'(?=[\w%&=+/~(*!$@?|-])"
_REST = rf"(?:{_CHARACTER})*"
# Behind a link of a chain comes the next URL.
_LINK = rf"(?:(?!::[A-Za-z][A-Za-z0-9+.-]{{0,30}}(?:://|::))(?:{_CHARACTER}))*"
_URL = re.compile(rf"((?:\b[A-Za-z][A-Za-z0-9+.-]{{0,30}}:)?)//({_LINK})")
# Python and JSON write what holds an apostrophe between these, so that none ends it.
_QUOTED = re.compile(r"(?<=\")((?:[A-Za-z][A-Za-z0-9+.-]{0,30}:)?)//([^\s<>\"]*)")
_ENCODED = re.compile(rf"(\b[A-Za-z][A-Za-z0-9+.-]{{0,30}}%(?:25)*3A%(?:25)*2F%(?:25)*2F)({_REST})", re.IGNORECASE)
_ENCODED_QUERY = re.compile(r"(%(?:25)*3F).*", re.IGNORECASE)
_ENCODED_USER = re.compile(r"\A(?:(?!%(?:25)*2F).)*%(?:25)*40", re.IGNORECASE)
# The rest of a query where blanks stand in a URL, and the target of a request as urllib3 tells it.
_LATER_QUERY = re.compile(rf"((?<!\S)(?![/.~'\"])[^\s?&]*[?&])({_REST}=(?:{_REST}))")
_TARGET = re.compile(rf"(\burl[:=] ?['\"]?/[^\s?'\"]*\?)({_REST})", re.IGNORECASE)
# Names that nothing else has; a folder may well be called sig=3.
_NAMED = re.compile(
    r"(\b(?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AccountKey|SharedAccess(?:Key|Signature))=)"
    r"[^\s&;,'\"<>]+",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"(\b(?:Proxy-)?Authorization['\"]?\)?\s*[:=,]\s*)(?:b?'[^']*'|b?\"[^\"]*\"|(?:(?:Basic|Bearer|Token|AWS4-HMAC-SHA256)"
    r" +)?[^\s'\",;)}>]+)",
    re.IGNORECASE,
)
# Options that are no secrets, and without which nobody understands a message.
_PLACES = frozenset({"endpoint_url", "endpoint", "host", "region_name", "region", "protocol", "cache_type"})
_SUSPECT = re.compile(r"//|%(?:25)*2F|X-Amz-|X-Goog-|AccountKey|SharedAccess|Authorization|\burl[:=]", re.IGNORECASE)

# Where a ? begins a query whatever stands behind it; elsewhere it may be a pattern or part of a name.
WEB = frozenset({"http", "https", "webdav", "webdavs", "ws", "wss", ""})
LOCAL = frozenset({"file", "local"})
# What stands before the @ is a container there, not somebody's name.
CONTAINERS = frozenset({"abfs", "abfss", "az", "adl", "wasb", "wasbs"})
# And a repository with its revision here, without which it is another one.
REPOSITORIES = frozenset({"github", "git", "hf"})
# user:password@ where the password has characters that end a host's name; a port is of digits.
_ODD_USER = re.compile(r"\A[^/?#@:\[]*:(?!\d*(?:[/?#:,;.)\]}]|\Z))[^@]*@(?:[^/?#]*@)?")
_USER = re.compile(r"\A[^/?#]*@")
_NO_PORT = re.compile(r"\A[^/?#@:\[]*:(?!\{|\*\*\*|\d*(?:[/?#:,;.)\]}]|\Z))[^/,;)\]}]*")
_PUNCTUATION = ".,;:!)]}"


def shown(text: str) -> str:
    """A text whose URLs have neither query, fragment, user nor password; ``***`` stands where one was.

    Any scheme, chained URLs, percent-encoded ones and what clients make of them in their own messages. File URLs and
    plain paths stay as they are, whatever characters their names have. ``shown(shown(text)) == shown(text)``.
    """
    if not _SUSPECT.search(text):
        return text
    hidden = _URL.sub(_url, _QUOTED.sub(_url, text))
    if any(found[1].rstrip(":").lower() not in LOCAL for found in _URL.finditer(text)):
        hidden = _LATER_QUERY.sub(lambda found: found[1] + _marked(found[2]), hidden)
    hidden = _ENCODED.sub(_encoded, hidden)
    hidden = _TARGET.sub(lambda found: found[1] + _marked(found[2]), hidden)
    hidden = _NAMED.sub(rf"\g<1>{MARK}", hidden)
    return _HEADER.sub(rf"\g<1>{MARK}", hidden)


def shown_with(text: str, options: Mapping[str, Any] | None, secrets: Iterable[str] = ()) -> str:
    """As `shown`; nor does any value of `options` appear, a file system's ``storage_options``, nor any of `secrets`.

    But for values that say where something is, and texts of less than four characters.
    """
    for value in sorted({*_texts(options or {}), *_texts(list(secrets))}, key=len, reverse=True):
        text = text.replace(value, MARK)
    return shown(text)


def _texts(value: Any) -> Iterator[str]:
    """What in options may be secret."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in _PLACES:
                yield from _texts(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, bytes):
        yield from _texts(value.decode(errors="replace"))
    elif isinstance(value, str) and len(value) >= 4:
        yield value


def _url(found: re.Match[str]) -> str:
    scheme, rest = found[1], found[2]
    name = scheme.rstrip(":").lower()
    if name in LOCAL:
        return found[0]
    if not name and ":" not in rest.partition("/")[0]:  # a path may begin with two slashes
        return found[0]
    return f"{scheme}//{_without_query(_without_user(rest, name), name)}"


def _without_user(rest: str, scheme: str) -> str:
    user = _USER.match(rest) or _ODD_USER.match(rest)
    if user is None:
        # A password without its host, cut off at a blank: no port looks like that.
        port = _NO_PORT.match(rest)
        return rest if port is None else f"{MARK}{rest[port.end() :]}"
    if scheme in REPOSITORIES or (scheme in CONTAINERS and ":" not in user[0]):
        return rest
    return f"{MARK}@{rest[user.end() :]}"


def _without_query(rest: str, scheme: str) -> str:
    begin = re.search(r"[?#]" if scheme in WEB else r"[?#](?=.*=)", rest)
    return rest if begin is None else rest[: begin.end()] + _marked(rest[begin.end() :])


def _encoded(found: re.Match[str]) -> str:
    rest = _ENCODED_USER.sub(f"{MARK}%40", found[2])
    query = _ENCODED_QUERY.search(rest)
    if query is None:
        return found[1] + rest
    return found[1] + rest[: query.end(1)] + _marked(rest[query.end(1) :])


def _marked(secret: str) -> str:
    """The mark, and the punctuation behind a URL at the end of a sentence; nothing for nothing."""
    kept = secret.rstrip(_PUNCTUATION)
    return (MARK if kept else "") + secret[len(kept) :]
