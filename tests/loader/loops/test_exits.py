"""Programs that end with iterators alive: they end, and print nothing of ours."""

import os
import subprocess
import sys

import pytest

BEGIN = """
import os, signal, sys, warnings
import epistream as es

def main():
    global loader, batches, kept
    stream = es.EpisodeStream(sys.argv[1], batch_size=4, features=["action"])
    loader = {made}
    batches = iter(loader)
    kept = [next(batches), next(batches)]
    # Beside the globals, something that the interpreter finds late, and only by looking for cycles.
    class Late: pass
    late = sys.modules["late"] = Late()
    late.itself, late.batches = late, batches
    {end}

if __name__ == "__main__":
    {call}
"""
MADE = {
    "stream": "stream",
    "stock loader": "__import__('torch').utils.data.DataLoader(stream, batch_size=None)",
    "stock loader, workers": "__import__('torch').utils.data.DataLoader(stream, batch_size=None, num_workers=1)",
    "nothing": "es.StreamingLoader(stream, num_workers=0, num_threads=0)",
    "threads": "es.StreamingLoader(stream, num_workers=0)",
    "threads, with a hook": "es.StreamingLoader(stream, num_workers=0, device='cpu', on_device=lambda batch: batch)",
    "processes": "es.StreamingLoader(stream, num_workers=2)",
    "processes, with a hook": "es.StreamingLoader(stream, device='cpu', on_device=lambda batch: batch)",
    "processes, spawned": "es.StreamingLoader(stream, num_workers=1, start_method='spawn')",
    "processes, monitored": "es.StreamingLoader(stream, num_workers=1, monitor=es.MonitorOptions(log_every_s=60))",
    "nodes": "(lambda nodes: nodes.Loader(nodes.Prefetcher(nodes.IterableWrapper(stream), prefetch_factor=2)))"
    "(__import__('torchdata.nodes').nodes)",
    "nodes over a loader": "(lambda nodes: nodes.Loader(nodes.Prefetcher(nodes.IterableWrapper("
    "es.StreamingLoader(stream, num_workers=1)), prefetch_factor=2)))(__import__('torchdata.nodes').nodes)",
}
# The last line of stderr, of one traceback; nothing for an orderly end.
ENDS = {
    "return": ("", ""),
    "sys.exit": ("sys.exit(0)", ""),
    "error": ("raise RuntimeError('of the program')", "RuntimeError: of the program"),
    # As from a keyboard; the shell that runs tests may have it ignored.
    "interrupt": (
        "signal.signal(signal.SIGINT, signal.default_int_handler); os.kill(os.getpid(), signal.SIGINT); signal.pause()",
        "KeyboardInterrupt",
    ),
}
CELLS = [
    *((made, end) for made in ("processes", "threads") for end in ENDS),
    *((made, end) for made in MADE if made not in ("processes", "threads") for end in ("return", "error")),
]


def run(aloha_shards, tmp_path, made, end, call="main()"):
    script = tmp_path / "script.py"
    script.write_text(BEGIN.format(made=MADE[made], end=ENDS[end][0], call=call))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(aloha_shards)]
    job = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    lines = job.stderr.splitlines()
    assert job.stdout == ""
    if not ENDS[end][1]:
        assert (job.returncode, lines) == (0, [])
    else:
        assert job.returncode != 0
        assert lines[-1] == ENDS[end][1], job.stderr
        assert lines[0].startswith("Traceback"), job.stderr
        assert sum(line.startswith("Traceback") for line in lines) == 1, job.stderr


@pytest.mark.parametrize(("made", "end"), CELLS)
def test_program_that_ends_in_mid_epoch_prints_nothing_but_its_own_error(aloha_shards, tmp_path, made, end):
    run(aloha_shards, tmp_path, made, end)


@pytest.mark.parametrize("made", ["processes", "threads", "stream"])
def test_program_that_was_typed_ends_in_mid_epoch_and_prints_nothing(aloha_shards, tmp_path, made):
    run(aloha_shards, tmp_path, made, "return", call="exec(compile('main()', '<stdin>', 'single'))")
