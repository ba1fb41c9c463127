"""Transforms of whole batches, in every way of running."""

import pytest
import torch

import epistream as es
from epistream.errors import OptionError
from epistream.loader.samples.transforms import ImagesToFloat

KEY = "observation.images.top"


@pytest.mark.parametrize("way", [{"num_workers": 1}, {"num_workers": 0}])
def test_channels_first_is_a_view_of_the_same_pixels(aloha_shards, way):
    options = {"batch_size": 4, "image_size": (24, 32), "decode": "per_read", "window": es.Window(obs=[-1, 0])}
    expected = list(es.EpisodeStream(aloha_shards, **options))
    with es.StreamingLoader(es.EpisodeStream(aloha_shards, **options, channels_first=True), **way) as loader:
        for batch, other in zip(loader, expected, strict=True):
            assert batch[KEY].shape == (4, 2, 3, 24, 32)
            assert batch[KEY].movedim(-3, -1).is_contiguous()  # no copy was made
            assert torch.equal(batch[KEY].movedim(-3, -1), other[KEY])
            assert torch.equal(batch["action"], other["action"])


def test_transform_sees_the_finished_batch_and_its_result_is_yielded(aloha_shards):
    stream = es.EpisodeStream(
        aloha_shards,
        batch_size=4,
        image_size=(24, 32),
        channels_first=True,
        squeeze=True,
        transform=lambda batch: ImagesToFloat()(batch)[KEY],
    )
    plain = es.EpisodeStream(aloha_shards, batch_size=4, image_size=(24, 32), squeeze=True)
    for image, batch in zip(stream, plain, strict=True):
        assert torch.equal(image, batch[KEY].movedim(-1, -3).float() * (1 / 255.0))


def test_channels_first_with_a_sample_format_is_refused(aloha_shards):
    with pytest.raises(OptionError, match="channels_first"):
        es.EpisodeStream(aloha_shards, channels_first=True, sample_format="lerobot")
