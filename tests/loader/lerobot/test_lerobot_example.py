"""The example that trains on a LeRobot data set where it lies: it learns, and goes on as if nothing had happened."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("train_lerobot", EXAMPLES / "train_lerobot.py")
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_lerobot", example)
    spec.loader.exec_module(example)

    def losses(out, num_steps):
        arguments = [str(EXAMPLES / "data" / "lerobot" / "aloha"), str(out), "--steps", str(num_steps)]
        monkeypatch.setattr(sys, "argv", ["train_lerobot.py", *arguments])
        example.main()
        return {
            int(step): float(loss) for step, loss in re.findall(r"step (\d+), loss ([\d.]+)", capsys.readouterr().out)
        }

    return losses


def test_lerobot_example_interrupted_within_an_epoch_trains_as_one_that_was_not(run, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = run(tmp_path / "whole", 40)
    parts = run(tmp_path / "parts", 20) | run(tmp_path / "parts", 40)
    assert list(whole) == list(parts) == [10, 20, 30, 40]
    assert parts == pytest.approx(whole, abs=2e-4)
    assert whole[40] < 0.5 * whole[10]
