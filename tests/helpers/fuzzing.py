"""What the fuzz runs share: damage to bytes and to JSON, and the question whether an error of ours answers it."""

import contextlib
import copy
import json
import os
import resource

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from epistream.errors import EpistreamError

# What one hostile input may take above what is there already.
MOST_BYTES = 256 << 20
_HEALTH = [
    HealthCheck.too_slow,
    HealthCheck.function_scoped_fixture,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
]

# `make soak` asks for more, and for others each time; what is tried with every change is the same each time.
_EXAMPLES = os.environ.get("FUZZ_EXAMPLES")
fuzzed = settings(
    max_examples=int(_EXAMPLES or 25),
    derandomize=not _EXAMPLES,
    deadline=None,
    suppress_health_check=_HEALTH,
    database=None,
    print_blob=True,
)


@contextlib.contextmanager
def only_named_errors():
    """Whatever the block raises must be an error of ours with a message, and its memory bounded."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(EpistreamError):
        yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < MOST_BYTES, f"{grown >> 20} MiB for one input"


@st.composite
def damaged(draw, data: bytes):
    """`data` with a few bytes turned, cut, doubled or put in."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        what = draw(st.sampled_from(["turn", "cut", "remove", "put", "double", "fill"]))
        size = draw(st.sampled_from([1, 2, 4, 8, 100, 512]))
        if what == "turn" and data:
            data[place] ^= draw(st.integers(1, 255))
        elif what == "cut":
            del data[place:]
        elif what == "remove":
            del data[place : place + size]
        elif what == "put":
            data[place:place] = draw(st.binary(min_size=1, max_size=8)) * draw(st.sampled_from([1, 1, 64]))
        elif what == "double":
            data[place:place] = data[place : place + size]
        else:
            data[place : place + size] = bytes([draw(st.sampled_from([0, 255]))]) * len(data[place : place + size])
    return bytes(data)


def _nested(kind, times):
    value = []
    for _ in range(times):
        value = [value] if kind is list else {"a": value}
    return value


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400]),
    st.sampled_from([0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), -float("inf")]),
    st.sampled_from(["", "\0", "../../etc/passwd", "a" * 5000, "\ud800", "é/ü", "NaN", "1e999", "shard-000000.tar"]),
    st.text(max_size=8),
    st.sampled_from([[], {}, [[]], [None], {"": 1}, {"a": {"b": []}}, list(range(300))]),
    st.builds(_nested, st.sampled_from([list, dict]), st.sampled_from([40, 300])),
)


def _places(value):
    """The paths of all parts, those of what is deeply nested left out."""
    found = [((), value)]
    for path, part in found:
        children = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        found += [((*path, key), child) for key, child in children if len(path) < 8]
    return [path for path, _ in found]


@st.composite
def other_values(draw, value):
    """`value`, of JSON, with a few of its parts replaced by something else, removed, doubled or put elsewhere."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([place for place in _places(value) if place] or [()]))
        if not path:
            return draw(JUNK)
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        what = draw(st.sampled_from(["junk", "junk", "remove", "text", "more"]))
        if what == "junk":
            holder[path[-1]] = copy.deepcopy(draw(JUNK))  # else a later change would be one of what is drawn from
        elif what == "remove":
            del holder[path[-1]]
        elif what == "text":
            holder[path[-1]] = str(holder[path[-1]])
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[path[-1]]))
        else:
            holder[draw(st.text(max_size=5))] = copy.deepcopy(draw(JUNK))
    return value


def as_json(value) -> bytes:
    """As Python writes it, NaN and lone surrogates included."""
    return json.dumps(value).encode()
