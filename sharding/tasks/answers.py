"""What comes of a task in another process: its result, or its error as whoever waits for it is to raise it."""

import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from typing import Any

from epistream.errors import WorkerError
from epistream.sharding.tasks.pulse import Pulse


def answer(function: Callable[[Any, Pulse], Any], task: object, pulse: Pulse, name: str) -> Any:
    """Run a task, in the process that `name` is said of, and pickle its result; else its error with its traceback.

    Interrupts are no errors: they pass.
    """
    try:
        return ForkingPickler.dumps((function(task, pulse), None, ""))
    except Exception as error:  # whatever it is, the job must hear of it
        return failure(error, name)


def failure(error: Exception, name: str) -> Any:
    """The pickled answer of a task that raised `error`, which is being handled."""
    return ForkingPickler.dumps((None, _sendable(error), f"in {name}: {traceback.format_exc()}"))


def result_of(data: bytes) -> Any:
    """The result in an answer.

    Raises:
        Exception: What the task raised; its traceback is that of the cause.
    """
    result, error, told = ForkingPickler.loads(data)
    if error is not None:
        raise error from WorkerError(told)
    return result


def _sendable(error: Exception) -> Exception:
    """An error as it is, if it survives the way to another process; any other in words."""
    with suppress(Exception):
        ForkingPickler.loads(ForkingPickler.dumps(error))
        return error
    return WorkerError(f"{type(error).__name__}: {error}")
