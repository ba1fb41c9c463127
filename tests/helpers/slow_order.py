"""The order of an epoch, written a second time: plain Python lists, every window, straight from the definition.

It shares no code with the package. Its only numpy is the bit generator, whose stability numpy promises.
"""

from math import ceil

import numpy as np

SHARDS, PIECES, WINDOWS, SEGMENT, DEAL = 1, 2, 3, 4, 5
BLOCKS, BLOCKS_OF_SEGMENT, WINDOWS_OF_BLOCKS = 8, 9, 10


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
    episode_windows = [max(ceil(n / max(e, 1)), 1) for n, e in zip(windows_of_shard, episodes_of_shard, strict=True)]
    layouts = lane_layouts(windows_of_shard, epoch, seed, lanes, reshuffle_lanes)
    orders = [lane_windows(each, episode_windows, k, seed, epoch, lane) for lane, each in enumerate(layouts)]
    return [orders[p % lanes][p // lanes] for p in range(total)]


def lane_layouts(windows_of_shard, epoch, seed, lanes, reshuffle_lanes):
    """The windows of each lane, shard after shard."""
    shards = shuffled(list(range(len(windows_of_shard))), SHARDS, seed, epoch if reshuffle_lanes else 0)
    layout = [(shard, window) for shard in shards for window in range(windows_of_shard[shard])]
    total, cut, layouts = len(layout), 0, []
    for lane in range(lanes):
        length = total // lanes + (1 if lane < total % lanes else 0)
        layouts.append(layout[cut : cut + length])
        cut += length
    return layouts


def permuted_pieces(lane_layout, seed, epoch, lane):
    pieces = []
    for shard, window in lane_layout:
        if not pieces or pieces[-1][0][0] != shard:
            pieces.append([])
        pieces[-1].append((shard, window))
    return shuffled(pieces, PIECES, seed, epoch, lane)


def lane_windows(lane_layout, episode_windows, k, seed, epoch, lane):
    pieces = permuted_pieces(lane_layout, seed, epoch, lane)
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
        order += spread(segment, [(shard, window // episode_windows[shard]) for shard, window in segment], keys)
    return order


def spread(things, group_of, keys):
    places = []
    for i, group in enumerate(group_of):
        earlier, size = group_of[:i].count(group), group_of.count(group)
        places.append((earlier * 2**32 + keys[i] // 2**32) // size)
    return [things[i] for i in sorted(range(len(things)), key=lambda i: places[i])]


def epoch_by_blocks(steps_of_shard, epoch, seed, lanes, resident_shards, blocks, reshuffle_lanes=False):
    """As `epoch_windows`, by blocks: the windows, and the set of those that end a block.

    Args:
        steps_of_shard: of each window of each shard (episode, run of neighbouring steps, step).
        blocks: (block_steps, pool_blocks).
    """
    counts = [len(steps) for steps in steps_of_shard]
    total = sum(counts)
    lanes = min(lanes, total)
    k, u = max(2, ceil(resident_shards / lanes)), max(2, blocks[1] // lanes)
    orders, ends = [], set()
    for lane, layout in enumerate(lane_layouts(counts, epoch, seed, lanes, reshuffle_lanes)):
        sequence = lane_blocks(layout, steps_of_shard, blocks[0], k, (seed, epoch, lane))
        orders.append(rolled(sequence, min(u, len(sequence))))
        ends |= {windows[-1][0] for windows in sequence}
    return [orders[p % lanes][p // lanes] for p in range(total)], ends


def lane_blocks(layout, steps_of_shard, block_steps, k, key):
    """The sequence of blocks of a lane, each a list of (window, random fraction) in the order it is drawn in."""
    pieces = permuted_pieces(layout, *key)
    m = len(pieces)
    k = min(m, k)
    segments = [[] for _ in range(m - k + 1)]
    for i, piece in enumerate(pieces):
        found = {}
        for shard, window in piece:
            episode, run, step = steps_of_shard[shard][window]
            found.setdefault((episode, run, step // block_steps), []).append((shard, window))
        order = shuffled(list(found.items()), BLOCKS, *key, piece[0][0])
        stops = [0]
        for _, windows in order:
            stops.append(stops[-1] + len(windows))
        # The number of blocks whose windows are nearest to where the part would end.
        cuts = [min(range(len(stops)), key=lambda b: (abs(stops[b] - len(piece) * j // k), b)) for j in range(k + 1)]
        for j in range(k):
            segments[min(max(i - k + 1 + j, 0), m - k)] += order[cuts[j] : cuts[j + 1]]
    sequence = []
    for g, segment in enumerate(segments):
        keys = raw(len(segment), BLOCKS_OF_SEGMENT, *key, g)
        blocks = spread(segment, [(windows[0][0], name[0]) for name, windows in segment], keys)
        numbers = raw(sum(len(windows) for _, windows in segment), WINDOWS_OF_BLOCKS, *key, g)
        for _, windows in blocks:
            own = [numbers.pop(0) for _ in windows]
            order = sorted(range(len(windows)), key=lambda i: own[i] // 2**32)
            sequence.append([(windows[i], own[at] % 2**32) for at, i in enumerate(order)])
    return sequence


def rolled(sequence, u):
    """The windows of a lane: u blocks of the sequence at a time."""
    last = len(sequence) - u
    steps = [[] for _ in range(last + 1)]
    for i, windows in enumerate(sequence):
        c = len(windows)
        of_step = {}
        for j in range(u):
            for r in range(c * j // u, c * (j + 1) // u):
                of_step.setdefault(min(max(i - u + 1 + j, 0), last), []).append((r, j))
        for step, held in of_step.items():
            for r, j in held:
                window, fraction = windows[r]
                jitter = windows[0][1] - windows[0][1] // 4 + fraction // 4
                if step in (0, last):
                    place = ((r - held[0][0]) * 2**32 + jitter) // len(held)
                else:
                    place = ((r * u - j * c) * 2**32 + u * jitter) // c
                steps[step].append((place, window))
    return [window for step in steps for _, window in sorted(step, key=lambda pair: pair[0])]


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
