"""Handing batches to a device: on a CPU for real, and the rules of streams and events with a device that is made up."""

from contextlib import contextmanager

import pytest
import torch

import epistream as es
from epistream.errors import OptionError
from epistream.loader.device import DeviceFeed, check_device
from epistream.loader.samples.transforms import ImagesToFloat, map_tensors
from epistream.loader.workers.ring import Ring


class LateEvent:
    """Comes only when somebody waits for it, or when told to; then the copies before it are made."""

    def __init__(self, copies):
        self.copies, self.done = copies, False

    def query(self):
        return self.done

    def synchronize(self):
        for source, target in self.copies:
            target.copy_(source)
        self.copies, self.done = [], True


class LateMover:
    """A device whose copies read the host's memory as late as they may."""

    def __init__(self):
        self.pending, self.log = [], []

    @contextmanager
    def aside(self):
        self.log.append("aside")
        yield
        self.log.append("back")

    def copy(self, tensor):
        assert self.log[-1] == "aside"
        target = torch.full_like(tensor, -1)
        self.pending.append((tensor, target))
        return target

    def mark(self):
        event, self.pending = LateEvent(self.pending), []
        return event

    def adopt(self, event, batch):
        self.log.append("adopt")
        event.synchronize()  # the loop's stream goes on only behind the event


def host_batches(ring, free, count):
    """Batches in slots that are taken again as soon as nothing refers to them; a slot given back is overwritten."""

    def give_back(slot):
        ring.slot(slot)[:] = 255
        free.append(slot)

    for number in range(count):
        slot = free.pop(0)  # IndexError if the feed holds on to too many
        ring.slot(slot)[:] = number
        yield {"x": torch.from_numpy(ring.hand_out(slot, give_back)), "task": ["a"]}


def test_device_feed_gives_every_batch_although_copies_come_late_and_slots_are_taken_again():
    ring, free = Ring(3, 4096), [0, 1, 2]
    batches = [
        (int(batch["x"][0]), int(batch["x"][-1]), batch["task"])
        for batch in DeviceFeed(host_batches(ring, free, 50), LateMover())
    ]
    assert batches == [(number, number, ["a"]) for number in range(50)]
    assert sorted(free) == [0, 1, 2]
    ring.close()


def test_device_feed_begins_the_next_copy_before_it_hands_out_a_batch():
    begun = []

    def source():
        for number in range(4):
            begun.append(number)
            yield {"x": torch.tensor([number])}

    feed = DeviceFeed(source(), LateMover())
    assert int(next(feed)["x"]) == 0
    assert begun == [0, 1]
    assert [int(batch["x"]) for batch in feed] == [1, 2, 3]
    with pytest.raises(StopIteration):
        next(feed)


def test_device_feed_closed_in_the_middle_waits_for_its_copies():
    ring, free = Ring(3, 4096), [0, 1, 2]
    feed = DeviceFeed(host_batches(ring, free, 9), LateMover())
    next(feed)
    pending = [event for _, event in feed._in_copy]
    feed.close()
    assert all(event.done for event in pending)
    assert sorted(free) == [0, 1, 2]
    ring.close()


def test_device_feed_calls_the_hook_on_the_device_after_the_move():
    mover, seen = LateMover(), []

    def hook(batch):
        seen.append(mover.log[-1])
        return int(batch["x"][0])

    assert list(DeviceFeed(iter([{"x": torch.tensor([7])}]), mover, hook)) == [7]
    assert seen == ["adopt"]


def test_ring_pages_are_locked_once_and_unlocked_at_close():
    calls = []
    ring = Ring(2, 5000)
    for _ in range(2):
        assert ring.lock_pages(lambda address, size: calls.append((address, size)) or 0, lambda a: calls.append(a) or 0)
    ring.close()
    ring.close()
    address = calls[0][0]
    assert calls == [(address, 2 * 8192), address]


def test_ring_whose_pages_cannot_be_locked_goes_on():
    ring = Ring(1, 10)
    assert not ring.lock_pages(lambda address, size: 2, lambda address: 0)
    ring.close()


def test_device_that_is_not_there_is_refused_at_construction(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"])
    for device in ("cpu", torch.device("cpu"), None):
        es.StreamingLoader(stream, device=device)
    for device in ("cuda:97", "xla", "mps", "nonsense"):
        with pytest.raises(OptionError, match="device"):
            es.StreamingLoader(stream, device=device)
    assert check_device(None) is None


@pytest.mark.parametrize("way", [{"num_workers": 2}, {"num_workers": 0}, {"num_workers": 0, "num_threads": 0}])
def test_device_cpu_gives_the_same_batches_through_the_hook_and_the_same_state(aloha_shards, way):
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"])
    expected = [batch["action"].clone() for batch in stream]
    with es.StreamingLoader(stream, device="cpu", on_device=lambda batch: batch["action"] * 2, **way) as loader:
        positions = []
        for number, action in enumerate(loader):
            assert torch.equal(action, expected[number] * 2)
            positions.append(loader.state_dict()["position"])
        assert positions == [*range(10, 140, 10), 0]
        assert number == 13


def test_map_tensors_keeps_the_structure():
    Pair = __import__("collections").namedtuple("Pair", "a b")
    value = {"x": [torch.zeros(1), "t"], "y": (torch.ones(1), Pair(torch.ones(1), 3))}
    moved = map_tensors(value, lambda tensor: tensor + 1)
    assert moved == {"x": [torch.ones(1), "t"], "y": (torch.full((1,), 2.0), Pair(torch.full((1,), 2.0), 3))}
    assert isinstance(moved["y"][1], Pair)


def test_images_to_float_changes_pictures_only():
    batch = {"image": torch.full((2, 1, 4, 4, 3), 255, dtype=torch.uint8), "mask": torch.ones(2, dtype=torch.uint8)}
    out = ImagesToFloat(torch.float16, scale=2.0)(batch)
    assert out["image"].dtype == torch.float16
    assert torch.equal(out["image"], torch.full((2, 1, 4, 4, 3), 2.0, dtype=torch.float16))
    assert out["mask"] is batch["mask"]
