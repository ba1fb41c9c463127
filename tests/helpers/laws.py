"""The four laws of the order, as functions over what ranks received.

A run is a list over ranks; a rank is a list of its batches; a batch is a list of windows; a window is any hashable and
sortable thing, such as (shard, k) or (episode, step). Nothing here imports the package, so that the same laws serve
the plan's arithmetic, loaders in one process, and the logs of real processes.
"""

from collections import Counter
from itertools import chain, zip_longest


def global_batches(run):
    """Batch t over all ranks, sorted, for each t."""
    return [sorted(chain.from_iterable(batches)) for batches in zip_longest(*run, fillvalue=[])]


def merge_workers(workers):
    """What a round robin over workers yields: worker w of W holds batches w, w + W, ... of its rank."""
    merged = [batch for batches in zip_longest(*workers) for batch in batches if batch is not None]
    assert len(merged) == sum(map(len, workers))
    return merged


def assert_partitions_exactly(run, epoch_windows, remainder, global_batch, repeats=()):
    """The ranks together got every window of the epoch once, but for what `remainder` says.

    `epoch_windows` is the epoch in its order; `repeats` are the windows that came flagged as repeats under "pad".
    """
    received = sorted(chain.from_iterable(chain.from_iterable(run)))
    total = len(epoch_windows)
    if remainder == "drop":
        assert received == sorted(epoch_windows[: total - total % global_batch])
    elif remainder == "uneven":
        assert received == sorted(epoch_windows)
        assert not repeats
    else:
        assert received == sorted([*epoch_windows, *repeats])
        assert len(repeats) == -total % global_batch


def assert_same_batches_everywhere(runs, epoch_windows, global_batch):
    """Global batch t holds the same windows in every run, and they are the epoch's next ones."""
    for run in runs:
        for t, batch in enumerate(global_batches(run)):
            expected = epoch_windows[t * global_batch : (t + 1) * global_batch]
            if len(expected) == len(batch):
                assert batch == sorted(expected)
            else:  # the padded batch: what is left, and repeats
                assert len(batch) == global_batch
                assert not Counter(expected) - Counter(batch)
    whole = [global_batches(run) for run in runs]
    assert all(batches == whole[0] for batches in whole)


def assert_equal_batches(run, batch_size):
    """Every rank got as many batches as any other, all of the same size."""
    assert len({len(batches) for batches in run}) == 1
    assert {len(batch) for batches in run for batch in batches} <= {batch_size}


def assert_resumes_anywhere(play, topologies, num_steps, stops=None):
    """Stopped after any batch and resumed on another topology, and stopped and resumed again, nothing changes.

    ``play(topology, state, num_steps)`` gives the next global batches, each sorted, and the state after each, going
    into the next epochs by itself; state None is the beginning. All topologies must have equal global batches.
    """
    expected, states = play(topologies[0], None, num_steps)
    assert len(expected) == len(states) == num_steps
    for stop in range(1, num_steps) if stops is None else stops:
        first = topologies[stop % len(topologies)]
        second = topologies[(stop // 2 + 1) % len(topologies)]
        middle = stop + (num_steps - stop + 1) // 2
        before, states_before = play(first, states[stop - 1], middle - stop)
        after, _ = play(second, states_before[-1], num_steps - middle)
        assert before + after == expected[stop:]
        assert states_before == states[stop:middle]
