"""Advice of loaders and streams about loops, taken."""

import pytest
from torch.utils.data import DataLoader

import epistream as es
from epistream.errors import StateError


def windows_of(batches):
    return [w for b in batches for w in zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True)]


def test_warning_of_a_break_names_the_call_that_goes_on(aloha_shards, caplog):
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"])
    loader = es.StreamingLoader(stream, num_workers=0, num_threads=0)
    for name, made in (("loader", loader), ("stream", stream)):
        caplog.clear()
        next(iter(made))
        first = windows_of([next(iter(made))])
        [text] = [record.getMessage() for record in caplog.records if "full pass" in record.getMessage()]
        assert f"Call {name}.resume() before a `for`" in text
        made.resume()
        rest = windows_of(made)
        assert len({*first, *rest}) == len(first + rest) == 140


def test_resume_of_a_stream_that_workers_read_names_the_loader_that_can(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"])
    batches = iter(DataLoader(stream, batch_size=None, num_workers=1))
    next(batches)
    with pytest.raises(StateError, match=r"Take a StreamingLoader, which has resume\(\), too\."):
        stream.resume()
    del batches
    stream.set_epoch(0)
    with es.StreamingLoader(stream, num_workers=1) as loader:
        seen = windows_of([next(iter(loader))])
        loader.resume()
        assert len({*seen, *windows_of(loader)}) == 140
