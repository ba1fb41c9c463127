"""Random integers that never change: seeded permutations and draws, the same on every machine and numpy release.

numpy keeps its bit generators stable but not ``Generator.permutation`` or ``Generator.integers``, so
everything here is ``SeedSequence`` -> ``Philox`` -> ``random_raw`` -> a stable sort, and tests hold golden
values.
"""

from enum import IntEnum
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from epistream.options import Range

# A larger one would be cut off without a word.
Seed = Annotated[int, Range(ge=0, lt=2**64), "an integer in [0, 2**64)"]


class Purpose(IntEnum):
    """What a stream of random integers is for: two purposes never share a stream."""

    SHARDS = 1
    PIECES = 2
    WINDOWS = 3
    SEGMENT = 4
    DEAL = 5
    INSTRUCTION = 7
    BLOCKS = 8
    BLOCKS_OF_SEGMENT = 9
    WINDOWS_OF_BLOCKS = 10


def stream(purpose: Purpose, seed: int, epoch: int, first: int = 0, second: int = 0) -> np.random.Philox:
    """The bit generator that belongs to these numbers.

    Every number takes two 32-bit words, so no two tuples give the same entropy: adding numbers, or leaving
    their width to numpy, makes (0, 1) and (2**32,) the same stream.
    """
    words = [int(purpose)]
    for number in (seed, epoch, first, second):
        words += [int(number) & 0xFFFFFFFF, int(number) >> 32]
    return np.random.Philox(np.random.SeedSequence(words))


def permutation(
    count: int, purpose: Purpose, seed: int, epoch: int, first: int = 0, second: int = 0
) -> NDArray[np.int64]:
    """A permutation of range(count), int64 (count,): the stable argsort of `count` raw 64-bit integers."""
    return stable_argsort(stream(purpose, seed, epoch, first, second).random_raw(count))


def stable_argsort(values: NDArray[np.uint64] | NDArray[np.int64]) -> NDArray[np.int64]:
    """What ``np.argsort(values, kind="stable")`` gives, as int64, where few values are equal.

    Numpy's other sort of 64-bit integers is several times as fast (by AVX-512 62 us instead of 313 for 8,000), and all
    that it may do otherwise is the order of equal ones: these are put right afterwards.
    """
    order = np.argsort(values)
    ranked = values[order]
    equal = ranked[1:] == ranked[:-1]
    if equal.any():
        tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
        order[tied] = order[tied][np.lexsort((order[tied], ranked[tied]))]
    return order.astype(np.int64, copy=False)


def draw(bound: int, purpose: Purpose, seed: int, epoch: int, first: int = 0) -> int:
    """One integer in [0, bound); the bias of the modulo is below bound / 2**64."""
    return int(stream(purpose, seed, epoch, first).random_raw()) % bound
