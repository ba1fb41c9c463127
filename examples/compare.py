"""Does another codec or order cost what the policy learns? The same training on each, printed side by side.

python examples/compare.py jpeg/ video/ video/@blocks --epochs 20

Each argument is a dataset, with ``@windows`` or ``@blocks`` behind it for the order (by windows if left out). All have
the same episodes. The policy begins with the same weights, sees every window once an epoch, and is validated on the
pictures of the first dataset: what is compared is what was learned, not the pictures that it is tried on.
"""

import argparse

import torch
from policy import Policy, inputs, make_stream

import epistream as es


def train(shards: str, by: str, judge: str, num_epochs: int, seed: int) -> tuple[list[float], float]:
    """The mean loss of each epoch, and the error on the validation windows (all windows where there are none)."""
    torch.manual_seed(seed)
    policy = Policy(shards)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    losses = []
    stream = make_stream(shards, order=es.OrderOptions(by=by), remainder="pad")
    with es.StreamingLoader(stream, num_workers=1) as loader:
        for _ in range(num_epochs):
            total = 0.0
            for batch in loader:
                loss = policy.error(batch, policy(*inputs(batch)))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
            losses.append(total / stream.num_batches)
    mean = es.WindowMean()
    has_val = "val" in es.open_dataset(judge).splits
    judged = make_stream(judge, validation=True, split="val" if has_val else None)
    with es.StreamingLoader(judged, num_workers=1) as loader, torch.no_grad():
        for batch in loader:
            mean.add(batch, error=policy.errors(batch, policy(*inputs(batch))))
    return losses, mean.over_all_ranks().values["error"]


def main() -> None:
    """Train on each, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", nargs="+", metavar="SHARDS[@ORDER]")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3, help="Trainings of each; what differs less is chance.")
    options = parser.parse_args()
    judge = options.datasets[0].partition("@")[0]
    print(f"{'dataset':<30} {'first epoch':>12} {'last epoch':>12} {'validation':>12}   of each seed")
    for dataset in options.datasets:
        shards, _, by = dataset.partition("@")
        runs = [train(shards, by or "windows", judge, options.epochs, seed) for seed in range(options.seeds)]
        rows = [(losses[0], losses[-1], error) for losses, error in runs]
        first, last, error = (sum(column) / len(runs) for column in zip(*rows, strict=True))
        each = ", ".join(f"{run[1]:.4f}" for run in runs)
        print(f"{dataset:<30} {first:12.4f} {last:12.4f} {error:12.4f}   {each}")


if __name__ == "__main__":
    main()
