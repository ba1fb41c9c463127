"""Trains on a LeRobot data set where it lies: a folder, hf://datasets/OWNER/NAME@v3.0, s3:// or https://.

python examples/train_lerobot.py examples/data/lerobot/aloha OUT [--steps 60]

Batches are those of `LeRobotDataset` and a `DataLoader`, but for pictures, which are scaled on the device. Killed and
started again, it goes on in the middle of the epoch.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

import epistream as es

CAMERA, STATE, ACTION, CHUNK = "observation.images.top", "observation.state", "action", 8


class Policy(nn.Module):
    """A coarse picture and the state in, a chunk of actions out."""

    def __init__(self, num_states: int, num_actions: int) -> None:
        super().__init__()
        self.picture = nn.Sequential(
            nn.AdaptiveAvgPool2d((12, 16)), nn.Flatten(), nn.Linear(3 * 12 * 16, 32), nn.ReLU()
        )
        self.head = nn.Sequential(
            nn.Linear(32 + num_states, 128),
            nn.ReLU(),
            nn.Linear(128, CHUNK * num_actions),
            nn.Unflatten(1, (CHUNK, -1)),
        )

    def forward(self, batch: dict) -> torch.Tensor:
        seen = self.picture(batch[CAMERA].float() / 255)
        return self.head(torch.cat([seen, batch[STATE]], dim=1))


def make_stream(source: str, batch_size: int) -> es.EpisodeStream:
    """The stream, whose rate says what seconds are."""
    fps = es.open_dataset(source).features[ACTION].fps
    return es.EpisodeStream(
        source,
        batch_size=batch_size,
        features=[CAMERA, STATE, ACTION],  # nothing else is decoded
        sample_format=es.LeRobotFormat(images="uint8"),
        delta_timestamps={ACTION: [step / fps for step in range(CHUNK)]},
        normalize="mean_std",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=10)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    stream = make_stream(options.source, options.batch_size)
    features = stream.job.features
    policy = Policy(features[STATE].shape[0], features[ACTION].shape[0]).to(device)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    checkpoint, step = options.out / "checkpoint.pt", 0
    with es.StreamingLoader(stream, num_workers=2, device=device) as loader:
        if checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            policy.load_state_dict(saved["policy"])
            optimizer.load_state_dict(saved["optimizer"])
            loader.load_state_dict(saved["loader"])
            step = saved["step"]
            print(f"goes on at step {step}, epoch {saved['loader']['epoch']}")
        while step < options.steps:
            for batch in loader:
                error = (policy(batch) - batch[ACTION]).square()
                loss = error[~batch[f"{ACTION}_is_pad"]].mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                if step % 10 == 0:
                    print(f"step {step}, loss {loss.item():.4f}, {batch['task'][0]}")
                if step == options.steps:
                    break
        state = {"policy": policy.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "loader": loader.state_dict(), "step": step}, checkpoint)


if __name__ == "__main__":
    main()
