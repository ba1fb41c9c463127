"""Compares the windows of a stream in a sample format with samples made otherwise."""

import numpy as np
import torch

import epistream as es


def rows_of(value, row):
    """Row `row` of a batch, whatever it is made of."""
    if isinstance(value, dict):
        return {key: rows_of(item, row) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(rows_of(item, row) for item in value)
    return value[row]


def assert_equal(found, expected, where):
    if isinstance(expected, dict):
        assert set(found) == set(expected), where
        for key, value in expected.items():
            assert_equal(found[key], value, f"{where}, {key}")
    elif isinstance(expected, tuple):
        assert len(found) == len(expected)
        for item, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{where}, {item}")
    elif isinstance(expected, np.ndarray | np.generic):
        assert found.numpy().dtype == expected.dtype, where
        if not np.array_equal(found.numpy(), expected):  # an order of magnitude faster than the assertion
            np.testing.assert_array_equal(found.numpy(), expected, err_msg=where)
    elif isinstance(expected, int):
        assert found.dtype == torch.int64, where
        assert int(found) == expected, where
    else:
        assert found == expected, where


def compare(stream, expected):
    """Every window of an unshuffled stream against `expected`, the samples in order."""
    seen = 0
    expected = iter(expected)
    for batch in stream:
        first = batch[0] if isinstance(batch, tuple) else batch["action"]
        for row in range(len(first)):
            assert_equal(rows_of(batch, row), next(expected), f"window {seen}")
            seen += 1
    assert next(expected, None) is None
    return seen


def in_order(source, **options):
    options = {"batch_size": 16, "shuffle": False, "remainder": "uneven", "split": None, **options}
    return es.EpisodeStream(source, **options)
