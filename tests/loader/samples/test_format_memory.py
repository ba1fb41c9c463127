"""What memory the batches of sample formats lie in: views where nothing is computed, recycled where it is."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from sample_checks import in_order

import epistream as es
from epistream.loader.samples.formats.ilstudio import IlStudioFormat
from epistream.loader.samples.formats.lerobot import LeRobotFormat
from epistream.loader.samples.formats.pictures import stacked
from epistream.loader.samples.formats.recycler import Recycler


def test_ilstudio_and_lerobot_bytes_are_views_of_the_batch_memory(aloha_shards):
    addresses = {}

    def note(batch):
        for name in ("observation.images.angle", "observation.images.top", "observation.state", "action"):
            addresses[name] = batch[name].data_ptr()
        return IlStudioFormat()(batch, stream._collator._context)

    stream = in_order(
        aloha_shards,
        sample_format=note,
        features=["observation.images.angle", "observation.images.top", "observation.state", "action"],
    )
    batch = next(iter(stream))
    assert batch["image"][:, 0].data_ptr() == addresses["observation.images.angle"]
    assert batch["image"][:, 1].data_ptr() == addresses["observation.images.top"]
    assert batch["state"].data_ptr() == addresses["observation.state"]
    assert batch["action"].data_ptr() == addresses["action"]
    stream = in_order(aloha_shards, sample_format=LeRobotFormat(images="uint8"), features=["observation.images.top"])
    picture = next(iter(stream))["observation.images.top"]
    assert picture.shape == (16, 3, 480, 640)
    assert picture.stride()[1] == 1  # channels first in name only


def test_stacked_cameras_hold_on_to_every_batch_of_the_ring(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=8, sample_format="ilstudio")
    direct = list(stream)
    stream.set_epoch(0)
    with es.StreamingLoader(stream, num_workers=1, prefetch=1) as loader:
        kept = [batch["image"] for batch in loader]  # nothing but the stacked view is kept alive
    assert len(kept) == len(direct) == 17
    for one, other in zip(kept, direct, strict=True):
        assert torch.equal(one, other["image"])


@pytest.mark.parametrize("spacing", ["even", "uneven", "descending", "other_dtype"])
def test_stacked_equals_stack_however_the_arrays_lie(spacing):
    block = torch.arange(4096, dtype=torch.int64).to(torch.uint8)
    starts = {"even": (0, 100, 200), "uneven": (0, 100, 300), "descending": (200, 100, 0), "other_dtype": (0, 1, 2)}
    parts = [block[start : start + 36].view(1, 3, 4, 3) for start in starts[spacing]]
    if spacing == "other_dtype":
        parts = [part.to(torch.float32) for part in parts]
    result = stacked(parts)
    assert torch.equal(result, torch.stack(parts, dim=1).movedim(-1, -3))
    assert (result.data_ptr() == block.data_ptr()) == (spacing == "even")


def test_converted_batches_that_are_kept_are_never_overwritten(aloha_shards):
    features = ["observation.images.top", "observation.state", "action"]
    stream = es.EpisodeStream(aloha_shards, batch_size=10, sample_format="act", features=features)
    kept = [image for image, _, _, _ in stream]
    copies = [image.clone() for image, _, _, _ in stream]
    assert len(kept) == 14
    for one, other in zip(kept, copies, strict=True):
        assert torch.equal(one, other)


def test_recycled_memory_is_used_again_only_after_the_last_view_died():
    recycler = Recycler()
    first = recycler.empty((4, 1000))
    address, view = first.data_ptr(), first[1:3].permute(1, 0)
    del first
    second = recycler.empty((4, 1000))
    assert second.data_ptr() != address
    view.fill_(1)
    second.fill_(2)
    assert view.unique().tolist() == [1]
    del view
    assert recycler.empty((4, 1000)).data_ptr() == address


def test_recycler_keeps_few_blocks_and_serves_threads():
    recycler = Recycler()
    many = [recycler.empty((n, 10)) for n in range(1, 30)]
    del many
    assert len(recycler._free) <= 4

    def use(value):
        for _ in range(300):
            block = recycler.empty((64,))
            block.fill_(value)
            assert block.unique().tolist() == [value]
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(8)))
    assert pickle.loads(pickle.dumps(recycler))._free == []
    assert recycler.empty((0, 3)).shape == (0, 3)
