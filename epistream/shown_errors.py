"""Errors of file systems as people may see them: without what opens a URL, also in the errors that they came of."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, TypeVar

from epistream.access import Access, secret_texts
from epistream.shown_urls import shown_with

T = TypeVar("T")


def clearly(action: Callable[[], T], options: Mapping[str, Any] | None = None, *urls: str) -> T:
    """What `action` gives. What it raises shows no query, user or password of a URL, and no value of `options`.

    `urls` are those that it opens: what opens them is known then, whatever characters it has.

    Errors without any of these are raised as they are; others by stand-ins of the same name, that are what they are
    among Python's own, with their status. So it is with all that they came of, which a traceback shows as well.
    """
    try:
        return action()
    except Exception as error:
        secrets = options.texts if isinstance(options, Access) else set()
        show = partial(shown_with, options=options, secrets=secrets.union(*map(secret_texts, urls)))
        failed = _cleaned(error, show, {})
    raise failed  # here, so that the error as it was is not its context


def _cleaned(error: BaseException, show: Callable[[str], str], known: dict[int, BaseException]) -> BaseException:
    if id(error) in known:
        return known[id(error)]
    seen = f"{error}\n{error!r}"
    clean = error if show(seen) == seen else _stand_in(error, show)
    known[id(error)] = clean
    cause, context, is_suppressed = error.__cause__, error.__context__, error.__suppress_context__
    clean.__context__ = None if context is None else _cleaned(context, show, known)
    clean.__cause__ = None if cause is None else _cleaned(cause, show, known)
    clean.__suppress_context__ = is_suppressed
    return clean


def _stand_in(error: BaseException, show: Callable[[str], str]) -> BaseException:
    if type(error).__module__.startswith("epistream."):
        shown = (show(value) if isinstance(value, str) else value for value in error.args)
        return type(error)(*shown).with_traceback(error.__traceback__)
    base = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    text = show(str(error))
    numbered: tuple[object, ...] = ()
    if isinstance(error, OSError) and error.errno is not None and type(error) is base:
        numbered = error.errno, show(str(error.strerror))
    kind = base if type(error) is base else _kind_of_stand_in(type(error).__name__, type(error).__module__, base)
    try:
        made = kind(*numbered) if numbered else kind(text)
    except TypeError:  # such as UnicodeDecodeError, which wants more than a text
        made = _kind_of_stand_in(type(error).__name__, type(error).__module__, Exception)(text)
    for name in ("status", "errno"):
        if isinstance(getattr(error, name, None), int):
            setattr(made, name, getattr(error, name))
    headers = getattr(error, "headers", None)
    if isinstance(headers, Mapping) and "Retry-After" in headers:
        made.headers = {"Retry-After": headers["Retry-After"]}  # type: ignore[attr-defined]
    return made.with_traceback(error.__traceback__)


@cache
def _kind_of_stand_in(name: str, module: str, base: type[BaseException]) -> type[BaseException]:
    return type(name, (base,), {"__module__": module})
