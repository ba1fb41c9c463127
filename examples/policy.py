"""A small behaviour-cloning policy for the example scripts: state and a coarse picture in, a chunk of actions out."""

import torch
from torch import nn

import epistream as es

CHUNK = 8
FEATURES = ["observation.images.top", "observation.state", "action"]


def make_stream(shards: str, batch_size: int = 10, **options) -> es.EpisodeStream:
    """The stream that all examples train on. Every rank makes it with the same arguments."""
    window = es.Window(action=range(CHUNK))
    given = {"batch_size": batch_size, "window": window, "features": FEATURES, "squeeze": True, "seed": 0}
    return es.EpisodeStream(shards, **given, **options)


class Policy(nn.Module):
    """Predicts normalised actions; `loss` leaves out what is padded."""

    def __init__(self, shards: str) -> None:
        super().__init__()
        statistics = es.open_dataset(shards).statistics
        for name, key in (("state", "observation.state"), ("action", "action")):
            self.register_buffer(f"{name}_mean", torch.tensor(statistics[key]["mean"], dtype=torch.float32))
            std = torch.tensor(statistics[key]["std"], dtype=torch.float32)
            self.register_buffer(f"{name}_std", std.clamp_min(1e-3))
        self.num_joints = len(self.action_mean)
        self.picture = nn.Sequential(nn.Flatten(), nn.Linear(15 * 20 * 3, 32), nn.ReLU())
        self.head = nn.Sequential(
            nn.Linear(32 + len(self.state_mean), 128), nn.ReLU(), nn.Linear(128, CHUNK * self.num_joints)
        )

    def forward(self, images: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        coarse = images[:, ::32, ::32].float() / 255  # (B, 480, 640, 3) -> (B, 15, 20, 3)
        features = torch.cat([self.picture(coarse), (state - self.state_mean) / self.state_std], dim=1)
        return self.head(features).view(-1, CHUNK, self.num_joints)

    def error(self, batch: dict, prediction: torch.Tensor) -> torch.Tensor:
        """Mean squared error over the actions that the episode has."""
        return self.squares(batch, prediction)[~batch["action_is_pad"]].mean()

    def errors(self, batch: dict, prediction: torch.Tensor) -> torch.Tensor:
        """The same of each window by itself, (B,)."""
        wanted = ~batch["action_is_pad"]
        return (self.squares(batch, prediction) * wanted).sum(dim=1) / wanted.sum(dim=1)

    def squares(self, batch: dict, prediction: torch.Tensor) -> torch.Tensor:
        """Squared errors of normalised actions, (B, CHUNK)."""
        target = (batch["action"] - self.action_mean) / self.action_std
        return ((prediction - target) ** 2).mean(dim=2)


def inputs(batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """What the policy looks at."""
    return batch["observation.images.top"], batch["observation.state"]


def windows_of(batch: dict) -> list[tuple[int, int]]:
    """(episode, step) of each window, to count what a rank was given."""
    return list(zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True))
