"""What a rank must be given: its batches of epoch after epoch, from a stream in this process, without a trainer."""

import epistream as es


def windows_of_rank(source, world, num_epochs, **options):
    """A list over batches of lists of [episode, step]."""
    stream = es.EpisodeStream(source, world=world, **{"features": ["action"], "seed": 0, **options})
    batches = []
    for epoch in range(num_epochs):
        stream.set_epoch(epoch)
        for batch in stream:
            pairs = zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True)
            batches.append([list(pair) for pair in pairs])
    return batches
