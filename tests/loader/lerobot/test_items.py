"""Items of LeRobot data sets streamed in place equal what LeRobot's own reader returned, all keys of all steps."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import epistream as es

SETS = Path(__file__).parents[2] / "sharding" / "lerobot" / "sets"
NAMES = sorted(path.name for path in SETS.iterdir() if path.is_dir())


def items(root, deltas, **options):
    """Every item of a set by key, in order."""
    stream = es.EpisodeStream(
        root, batch_size=5, shuffle=False, remainder="pad", sample_format="lerobot", delta_timestamps=deltas, **options
    )
    batches = [{key: np.asarray(values) for key, values in batch.items()} for batch in stream]
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    is_repeat = joined.pop("is_repeat", np.zeros(len(joined["index"]), bool))
    return {key: values[~is_repeat] for key, values in joined.items()}


def as_bytes(pictures):
    """(N, ..., C, H, W) floats in [0, 1] as the bytes that they were made of."""
    found = np.round(pictures * 255).astype(np.uint8)
    np.testing.assert_array_equal(found.astype(np.float32) / 255, pictures)
    return found


def check(found, expected):
    keys = [key for key in expected if key != "deltas" and not key.startswith("stats/")]
    assert set(found) == set(keys)
    for key in keys:
        wanted, values = expected[key], found[key]
        if key == "task":
            assert values.tolist() == wanted.tolist()
        elif wanted.dtype.kind == "S" or wanted.dtype == np.uint8:
            pictures = as_bytes(values)
            if wanted.dtype.kind == "S":
                flat = pictures.reshape(-1, *pictures.shape[-3:])
                pictures = np.array([hashlib.sha256(one.tobytes()).hexdigest().encode() for one in flat])
            np.testing.assert_array_equal(pictures.reshape(wanted.shape), wanted, err_msg=key)
        else:
            assert values.dtype == wanted.dtype, key
            np.testing.assert_array_equal(values, wanted, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_every_item_of_a_set_equals_what_its_own_reader_returned(name):
    expected = np.load(SETS / f"{name}_expected.npz")
    fps = json.loads((SETS / name / "meta" / "info.json").read_text())["fps"]
    steps = json.loads(str(expected["deltas"]))
    deltas = {key: [step / fps for step in chosen] for key, chosen in steps.items()}
    check(items(SETS / name, deltas), expected)


@pytest.mark.parametrize("version", ["v3", "v21"])
def test_items_of_recordings_equal_what_its_own_reader_returned(shared_data, version):
    expected = np.load(shared_data / f"lerobot_{version}_expected.npz")
    stream = es.EpisodeStream(
        shared_data / f"lerobot_{version}",
        batch_size=1,
        sample_format="lerobot",
        delta_timestamps={"observation.state": [-0.02, 0.0], "action": [step / 50 for step in range(16)]},
    )
    for row, index in enumerate(expected["index"].tolist()):
        item = stream.read(*divmod(index, 150))
        found = {key: np.asarray(item[key]) for key in item}
        check(found, {key: expected[key][row : row + 1] for key in expected.files})
