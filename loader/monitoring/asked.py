"""Log lines that a user asked for, by an option: seen also where nobody has configured logging."""

import logging
import sys
from collections.abc import Iterator

_FORMAT = logging.Formatter("%(asctime)s %(name)s: %(message)s")


def tell(logger: logging.Logger, text: str) -> None:
    """Log a line at level INFO so that whoever asked for it sees it, once.

    Where logging has handlers, they get it, also below a root logger of level WARNING, which is what
    ``logging.basicConfig()`` and many libraries leave. A level that somebody has given to ``epistream`` or a logger
    below it holds, as ``logging.disable`` does. Where nothing would take the line, it goes to standard error.
    """
    if logger.disabled or logger.manager.disable >= logging.INFO or _level(logger) > logging.INFO:
        return
    record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, "%s", (text,), None)
    if any(not isinstance(each, logging.NullHandler) for each in _handlers(logger)):
        logger.handle(record)
    else:
        handler = logging.StreamHandler(sys.stderr)  # as it is now: notebooks and tests put others in its place
        handler.setFormatter(_FORMAT)
        handler.handle(record)


def _level(logger: logging.Logger) -> int:
    """What was set on the logger or one above it, but the root."""
    named: logging.Logger | None = logger
    while named is not None and named is not logger.root:
        if named.level:
            return named.level
        named = named.parent
    return logging.NOTSET


def _handlers(logger: logging.Logger) -> Iterator[logging.Handler]:
    named: logging.Logger | None = logger
    while named is not None:
        yield from named.handlers
        named = named.parent if named.propagate else None
