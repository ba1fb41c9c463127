"""A thread that works ahead of a reader who tells how far it has come, and that ends when it is told to."""

import os
import threading
from abc import ABC, abstractmethod

_CLOSE_S = 5.0


class AheadThread(ABC):
    """Base of those who keep the next entries of a plan ready, each in its own way.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self.is_closed = False
        self._passed = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; after fork, if the process forks at all."""
        self._thread.start()

    def close(self) -> None:
        """End the thread and what it holds; what it is at for longer than some seconds is left to itself."""
        if self._pid != os.getpid():
            return
        with self._changed:
            self.is_closed = True
            self._changed.notify()
        self._forget()
        if self._thread.ident is not None:
            # Not for ever: a server or a disk may stall, and this is also called at the end of the process.
            self._thread.join(_CLOSE_S)

    def _forget(self) -> None:
        """Give up, in the thread that closes, what others see of this one."""
        return

    # --- in the thread -----------------------------------------------------------------------------------

    @abstractmethod
    def _run(self) -> None: ...

    def _progress(self) -> int | None:
        """How many entries were passed by now; None if this is to end."""
        with self._changed:
            return None if self.is_closed else self._passed

    def _wait(self, passed: int, seconds: float) -> None:
        """Until more was passed, or this is to end; no longer than that."""
        with self._changed:
            if not self.is_closed and self._passed == passed:
                self._changed.wait(seconds)
