"""Being killed at a given line of some modules: whoever dies anywhere must leave others nothing torn."""

import os
import signal
import sys


def killed_at(line, files, run):
    """In a child: run something, and be killed at the n-th line that it runs of files whose names end so."""
    left = [line]

    def trace(frame, event, _argument):
        if frame.f_code.co_filename.endswith(files):
            if event == "line":
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace
        return None

    sys.settrace(trace)
    run()
    sys.settrace(None)
