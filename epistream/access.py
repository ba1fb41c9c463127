"""What opens URLs, apart from what names them: ``storage_options`` by protocol, and queries, users and passwords.

A URL that was signed again names the same file. So what opens it is taken off where a source is given, and put back by
the one function that opens file systems: names, keys, states and messages in between never knew it.
"""

import re
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fsspec import available_protocols
from fsspec.registry import known_implementations

from epistream.errors import OptionError
from epistream.shown_urls import CONTAINERS, LOCAL, MARK, REPOSITORIES, WEB

_LINK = re.compile(r"([A-Za-z][A-Za-z0-9+._-]*)://(.*)", re.DOTALL)
# An address of IPv6 has two colons as well, but no protocol behind them.
_CHAIN = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+._-]*(?:://|::))")
_NO_USERS = REPOSITORIES | {"memory", "dir"}


@dataclass(frozen=True)
class Secret:
    """What one URL has besides its name: ``user:password``, and its query; as they were written."""

    user: str = field(default="", repr=False)
    query: str = field(default="", repr=False)


NO_SECRET = Secret()


@dataclass(frozen=True)
class RetryOptions:
    """How hard to try.

    Args:
        attempts: Tries of one request.
        request_timeout_s: Limit of one request, where the file system can be interrupted.
        timeout_s: Limit of a whole entry, retries and pauses included.
        first_pause_s: Mean scale of the first pause; doubled each time, with full jitter.
        longest_pause_s: Limit of a pause.
    """

    attempts: int = 6
    request_timeout_s: float = 60.0
    timeout_s: float = 600.0
    first_pause_s: float = 0.2
    longest_pause_s: float = 10.0


class Access(dict[str, Any]):
    """``storage_options`` as given, and the secrets that were taken out of URLs. Neither is shown.

    Attributes:
        secrets: by URL without secrets, of a file or of a folder whose files it opens; one that ends in ``/`` is that
            of the files right in the folder.
        retries: how hard to try to open and read anything; None where nobody said.
    """

    def __init__(
        self,
        options: Mapping[str, Any] | None = None,
        secrets: Mapping[str, Secret] | None = None,
        retries: RetryOptions | None = None,
    ) -> None:
        super().__init__(options or {})
        self.secrets = dict(secrets or {})
        self.retries = retries

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> "Access":
        """These options, which may be access already.

        Raises:
            OptionError: If they are no mapping with texts as keys. The message does not show them.
        """
        if isinstance(options, cls):
            return options
        if options is None:
            return cls()
        if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
            raise OptionError(
                f"storage_options: {type(options).__name__}, wanted a mapping of names to values, as fsspec takes it, "
                'or by protocol: {"s3": {...}, "http": {...}}.'
            )
        return cls(options)

    def having(self, secrets: Mapping[str, Secret]) -> "Access":
        """The same with more secrets."""
        return Access(self, {**self.secrets, **secrets}, self.retries) if secrets else self

    def trying(self, retries: RetryOptions) -> "Access":
        """The same, with so many tries and so much time for whatever is opened or read."""
        return Access(self, self.secrets, retries)

    def by_protocol(self, urls: Iterable[str]) -> "Access":
        """The same, with flat options under the protocol of the URLs that they are for.

        Raises:
            OptionError: If they could be for several.
        """
        flat = {key: value for key, value in self.items() if not _is_of_protocol(key, value)}
        if not flat:
            return self
        found: dict[str, str] = {}
        for protocol in dict.fromkeys(protocols_of(url)[0] for url in urls):
            found.setdefault(_implementation(protocol), protocol)
        found.pop(_implementation("file"), None)
        if not found:
            return self
        if len(found) > 1:
            names = ", ".join(f'"{name}": {{...}}' for name in found.values())
            raise OptionError(
                f"storage_options: {', '.join(flat)} for URLs of {' and '.join(found.values())}, wanted to know for "
                f"which. Give them by protocol: {{{names}}}."
            )
        [protocol] = found.values()
        rest = {key: value for key, value in self.items() if key not in flat}
        return Access({**rest, protocol: {**flat, **rest.get(protocol, {})}}, self.secrets, self.retries)

    def options_for(self, url: str) -> dict[str, Any]:
        """The options that ``fsspec`` wants for this URL: those of its protocols, and flat ones for its first link."""
        flat = {key: _copied(value) for key, value in self.items() if not _is_of_protocol(key, value)}
        links = protocols_of(url)
        own = {protocol: self._own(protocol) for protocol in links}
        if len(links) == 1:
            return {**own[links[0]], **flat}
        return {**{protocol: options for protocol, options in own.items() if options}, **flat}

    def _own(self, protocol: str) -> dict[str, Any]:
        """Those of one protocol, or of another name of it: ``http`` is also for ``https``."""
        names = [protocol, *(key for key in self if _implementation(key) == _implementation(protocol))]
        own: Mapping[str, Any] = next((self[name] for name in names if _is_of_protocol(name, self.get(name))), {})
        return {key: _copied(value) for key, value in own.items()}

    def secret_of(self, link: str) -> Secret | None:
        """What opens one link of a URL; None if nothing was said of it."""
        if not self.secrets:
            return None
        found = self.secrets.get(link)
        folder = link
        while found is None and "/" in folder.partition("://")[2]:
            folder = folder.rpartition("/")[0]
            if folder == link.rpartition("/")[0]:
                found = self.secrets.get(f"{folder}/")
            found = found or self.secrets.get(folder)
        return found

    def opened(self, url: str) -> str:
        """The URL as it opens: with what was taken out of it."""
        return "::".join(_with_secret(link, self.secret_of(link)) for link in chain_of(url)) if self.secrets else url

    @property
    def texts(self) -> set[str]:
        """What was taken out of URLs, as it was written and as it is sent."""
        texts = {text for secret in self.secrets.values() for text in (secret.user, secret.query)}
        return texts | {as_sent(text) for text in texts}

    def is_signed(self, url: str) -> bool:
        """Whether it has a query of its own."""
        return any((self.secret_of(link) or NO_SECRET).query for link in chain_of(url))

    def __repr__(self) -> str:
        shown = ", ".join(f"{key!r}: {MARK}" for key in self)
        return f"{type(self).__name__}({{{shown}}})"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return dict.__eq__(self, other) and self.secrets == getattr(other, "secrets", {})

    __hash__ = None

    def __reduce__(self) -> Any:
        return Access, (dict(self), self.secrets, self.retries)


def chain_of(url: str) -> list[str]:
    """The links of a URL: one, or those of ``simplecache::s3://bucket/x``."""
    return _CHAIN.split(url)


def protocols_of(url: str) -> list[str]:
    """The protocol of each link; ``file`` for a path."""
    links = chain_of(url)
    if len(links) == 1 and "://" not in url:
        return ["file"]
    return [link.partition("://")[0] for link in links]


def placed_link(url: str) -> tuple[str, str, str]:
    """The link of a URL that says where a file lies, what stands before it, and what stands behind it."""
    links = chain_of(url)
    position = next((number for number, link in enumerate(links) if "://" in link), 0)
    return "::".join([*links[:position], ""]), links[position], "::".join(["", *links[position + 1 :]])


def split_secrets(url: str) -> tuple[str, tuple[Secret, ...]]:
    """A URL without what opens it, and that, of each link. Queries of HTTP URLs are taken, and users of remote ones.

    Of other protocols a ``?`` may be part of a name or, as ``s3://bucket/key?versionId=...``, say which file is meant.
    """
    split = [_split_link(link) for link in chain_of(url)]
    return "::".join(plain for plain, _ in split), tuple(secret for _, secret in split)


def secret_texts(url: str) -> set[str]:
    """What opens a URL, piece by piece."""
    return {text for secret in split_secrets(url)[1] for text in (secret.user, secret.query) if text}


def as_sent(query: str) -> str:
    """A query as it goes over the wire: as it stands, but for what may never be in a request."""
    return re.sub(r"[^!-~]", lambda sign: urllib.parse.quote(sign[0]), query)


def without_secrets(url: str) -> str:
    """A URL without query, user and password."""
    return split_secrets(url)[0]


def _split_link(link: str) -> tuple[str, Secret]:
    found = _LINK.fullmatch(link)
    scheme = found[1].lower() if found else "file"
    if found is None or scheme in LOCAL:
        return link, NO_SECRET
    rest, query = found[2], ""
    if scheme in WEB:
        rest, _, query = rest.partition("?")
    host, slash, path = rest.partition("/")
    user, _, bare = host.rpartition("@")
    if scheme in _NO_USERS or (scheme in CONTAINERS and ":" not in user):
        user, bare = "", host
    return f"{found[1]}://{bare}{slash}{path}", Secret(user, query)


def _with_secret(link: str, secret: Secret | None) -> str:
    if secret is None or secret == NO_SECRET:
        return link
    scheme, mark, rest = link.partition("://")
    user = f"{secret.user}@" if secret.user else ""
    return f"{scheme}{mark}{user}{rest}{'?' if secret.query else ''}{secret.query}"


def _is_of_protocol(key: str, value: Any) -> bool:
    return isinstance(value, Mapping) and key in available_protocols()


def _implementation(protocol: str) -> str:
    """The same for names of one thing, such as s3 and s3a."""
    return str(known_implementations.get(protocol, {}).get("class", protocol))


def _copied(value: Any) -> Any:
    """A mapping of its own: fsspec writes into those that it is given."""
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, dict) else value
