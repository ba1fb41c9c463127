"""The order of an epoch, written a second time: plain Python lists, every window, straight from the definition.

It shares no code with the package. Its only numpy is the bit generator, whose stability numpy promises.
"""

from math import ceil

import numpy as np

SHARDS, PIECES, WINDOWS, SEGMENT, DEAL = 1, 2, 3, 4, 5


def raw(count, purpose, *numbers):
    words = [purpose]
    for number in (*numbers, 0, 0)[:4]:
        words += [number % 2**32, number // 2**32]
    return np.random.Philox(np.random.SeedSequence(words)).random_raw(count).tolist()


def shuffled(things, purpose, *numbers):
    keys = raw(len(things), purpose, *numbers)
    return [things[i] for i in sorted(range(len(things)), key=lambda i: keys[i])]


def epoch_windows(windows_of_shard, episodes_of_shard, epoch, seed, lanes, resident_shards, reshuffle_lanes=False):
    """All windows (shard, k) of an epoch, in order."""
    total = sum(windows_of_shard)
    lanes = min(lanes, total)
    k = max(2, ceil(resident_shards / lanes))
    shards = shuffled(list(range(len(windows_of_shard))), SHARDS, seed, epoch if reshuffle_lanes else 0)
    episode_windows = [max(ceil(n / max(e, 1)), 1) for n, e in zip(windows_of_shard, episodes_of_shard, strict=True)]
    layout = [(shard, window) for shard in shards for window in range(windows_of_shard[shard])]
    cut, orders = 0, []
    for lane in range(lanes):
        length = total // lanes + (1 if lane < total % lanes else 0)
        orders.append(lane_windows(layout[cut : cut + length], episode_windows, k, seed, epoch, lane))
        cut += length
    return [orders[p % lanes][p // lanes] for p in range(total)]


def lane_windows(lane_layout, episode_windows, k, seed, epoch, lane):
    pieces = []
    for shard, window in lane_layout:
        if not pieces or pieces[-1][0][0] != shard:
            pieces.append([])
        pieces[-1].append((shard, window))
    pieces = shuffled(pieces, PIECES, seed, epoch, lane)
    m = len(pieces)
    k = min(m, k)
    segments = [[] for _ in range(m - k + 1)]
    for i, piece in enumerate(pieces):
        windows = shuffled(piece, WINDOWS, seed, epoch, lane, piece[0][0])
        n = len(windows)
        for j in range(k):
            segment = min(max(i - k + 1 + j, 0), m - k)
            segments[segment] += windows[n * j // k : n * (j + 1) // k]
    order = []
    for g, segment in enumerate(segments):
        keys = raw(len(segment), SEGMENT, seed, epoch, lane, g)
        episode_of = [(shard, window // episode_windows[shard]) for shard, window in segment]
        places = []
        for i, episode in enumerate(episode_of):
            earlier, size = episode_of[:i].count(episode), episode_of.count(episode)
            places.append((earlier * 2**32 + keys[i] // 2**32) // size)
        order += [segment[i] for i in sorted(range(len(segment)), key=lambda i: places[i])]
    return order


def rank_positions(total, lanes, seed, epoch, start, batch_size, remainder, ranks_per_node, rank_of):
    """Every batch of one rank as a list of (position, is_repeat). `rank_of` is (node, local rank)."""
    size = sum(ranks_per_node)
    node, local = rank_of
    if len(set(ranks_per_node)) > 1:
        node, local, num_nodes, local_size = sum(ranks_per_node[:node]) + local, 0, size, 1
    else:
        num_nodes, local_size = len(ranks_per_node), ranks_per_node[0]
    lanes = min(lanes, total)
    batches = []
    for begin in range(start, total, batch_size * size):
        batch = list(range(begin, begin + batch_size * size))
        if batch[-1] >= total and remainder == "drop":
            break
        if remainder == "uneven":
            batch = [p for p in batch if p < total]
        mine = [p for p in batch if p % num_nodes == node]
        turn = raw(1, DEAL, seed, epoch, begin)[0] % local_size if local_size > 1 else 0
        mine = [p for i, p in enumerate(mine) if (i + turn) % local_size == local]
        batches.append([(repeated(p, total, lanes), p >= total) for p in mine])
    if remainder == "uneven" and batches and not batches[-1]:
        batches.pop()
    return batches


def repeated(p, total, lanes):
    while p >= total:
        p -= lanes
    return p
