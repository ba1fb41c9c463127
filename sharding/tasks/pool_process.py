"""One process of a job: it runs the tasks that it is sent over a pipe, one after the other."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

from epistream.errors import WorkerError
from epistream.processes import end_with_parent, how_it_ended
from epistream.sharding.tasks.answers import answer, failure, result_of
from epistream.sharding.tasks.pulse import Counters, Pulse

# Pipes and sentinels tell of a death at once, unless a process that was forked later holds copies of them.
_LOOK_S = 1.0
_END_S = 10.0


class Words(NamedTuple):
    """How messages speak of a job.

    Attributes:
        process: One of its processes.
        after_a_death: What stays when one dies.
    """

    process: str = "a packing process"
    after_a_death: str = "'pack --resume' keeps the complete shards."


class PoolProcess:
    """A process that was started to run tasks, for one thread at a time.

    It ends with its parent. Nothing of it has a name: pipes are pairs of sockets.

    Args:
        context: How it is started.
        counters: Of all tasks of the job.
        what: Names the job in messages.
        kept: What its tasks find in `Pulse.kept`.
        words: For messages.
    """

    def __init__(
        self, context: SpawnContext, counters: Counters, what: str, kept: Mapping[str, Any], words: Words
    ) -> None:
        self._what, self._words = what, words
        self._is_given_up = False
        self._pipe, theirs = context.Pipe()
        # Only the process may hold its end, or its death would not end the pipe.
        with theirs:
            self._process = context.Process(
                target=_serve, args=(theirs, counters, dict(kept), words.process), name="epistream-pack", daemon=True
            )
            # What imports its modules has no say yet in what Ctrl-C means, and would tell of it with a traceback.
            resource_tracker.ensure_running()  # who starts it first unblocks signals
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                self._process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def run(self, function: Callable[[Any, Pulse], Any], task: object, row: int) -> Any:
        """Run ``function(task, pulse)`` there, and wait for its result.

        Raises:
            WorkerError: If the process died.
            Exception: What `function` raised; its traceback is that of the cause.
        """
        question = ForkingPickler.dumps((function, task, row))
        try:
            self._pipe.send_bytes(question)
            while not wait([self._pipe, self._process.sentinel], _LOOK_S):
                if self._is_given_up or not self._process.is_alive():
                    break
            if not self._pipe.poll():
                raise EOFError
            data = self._pipe.recv_bytes()
        except (EOFError, OSError):
            raise WorkerError(self._obituary()) from None
        return result_of(data)

    @staticmethod
    def end_all(processes: "Sequence[PoolProcess]") -> None:
        """End them, whatever they do, and wait for that: for all together, no longer than for one."""
        left = [(one, one._process) for one in processes]
        for end in (BaseProcess.terminate, BaseProcess.kill):
            for _, process in left:
                end(process)
            deadline = time.monotonic() + _END_S
            for _, process in left:
                process.join(max(0.0, deadline - time.monotonic()))
            left = [(one, process) for one, process in left if process.is_alive()]
        for one, _ in left:
            one._is_given_up = True  # it hangs in the kernel, as on a network file system that is gone

    def close(self) -> None:
        """Close the pipe to it; no thread may be in `run`."""
        self._pipe.close()

    def _obituary(self) -> str:
        """How its process, which has ended, came to that."""
        self._process.join(_LOOK_S)
        code = self._process.exitcode
        remedy = f"If memory ran out, use fewer --workers; {self._words.after_a_death}"
        if code == 1:
            remedy = 'A script that starts several workers must do it under: if __name__ == "__main__":'
        return f"{self._what}: {self._words.process} {how_it_ended(code, 'was ended')}. {remedy}"


def _serve(pipe: Connection, counters: Counters, kept: dict[str, Any], name: str) -> None:
    """Run in the process: answer one task after the other, until the parent is gone or ends it."""
    end_with_parent()
    with suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(_answer(pipe.recv_bytes(), counters, kept, name))


def _answer(question: bytes, counters: Counters, kept: dict[str, Any], name: str) -> Any:
    """The answer to a question as `PoolProcess.run` sends it."""
    try:
        function, task, row = ForkingPickler.loads(question)
    except Exception as error:  # as of a task whose module cannot be imported here
        return failure(error, name)
    return answer(function, task, Pulse(counters.rows, row, kept), name)
