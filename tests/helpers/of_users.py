"""Functions and subclasses as users write them, also failing ones; here, so that spawned workers find them."""

from pathlib import Path

import torch

import epistream as es
from epistream.loader.episodic.dataset import OptimizedEpisodicDataset


class WantsTwo(ValueError):
    """No text alone makes it."""

    def __init__(self, found, wanted):
        super().__init__(f"{found} instead of {wanted}")


class Silent(ValueError):
    """Says nothing of what it was made with."""

    def __str__(self):
        return "silent"


class HasMessage(ValueError):
    @property
    def message(self):
        return "mine"


class Frozen(ValueError):
    """Allows no attributes."""

    def __setattr__(self, name, value):
        raise AttributeError(name)


def local_class():
    class Local(ValueError):
        pass

    return Local("a class in a function")


def local_exception():
    class LocalException(Exception):
        pass

    return LocalException("a class in a function")


def unpicklable():
    error = ValueError("holds a lock")
    error.lock = __import__("threading").Lock()
    return error


ERRORS = {
    "ValueError": lambda: ValueError("no such gripper"),
    "KeyError": lambda: KeyError("gripper"),
    "UnicodeDecodeError": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "gripper"),
    "StopIteration": StopIteration,
    "AssertionError": AssertionError,
    "WantsTwo": lambda: WantsTwo(3, 4),
    "Silent": lambda: Silent("never seen"),
    "HasMessage": lambda: HasMessage("other"),
    "Frozen": lambda: Frozen("no attributes"),
    "Local": local_class,
    "LocalException": local_exception,
    "unpicklable": unpicklable,
}


class Fails:
    """Fails in the batch that holds a step of an episode."""

    def __init__(self, episode, step, kind="ValueError"):
        self.episode, self.step, self.kind = episode, step, kind

    def __call__(self, batch):
        is_it = (batch["episode_index"] == self.episode) & (batch["step_index"] == self.step)
        if bool(is_it.any()):
            raise ERRORS[self.kind]()  # the line of the user's
        return batch


class FailsAlways(Fails):
    def __init__(self, kind="ValueError"):
        self.kind = kind

    def __call__(self, *_):
        raise ERRORS[self.kind]()  # the line of the user's


class FailingDataset(OptimizedEpisodicDataset):
    """Fails by the hook that it was made for."""

    def get_language_instruction(self, dataset_path):
        if self.ctrl_space == "instruction":
            raise ERRORS["Local"]()  # the line of the user's
        return "x"


class OwnNormalizer(es.Normalizer):
    def __call__(self, batch):
        raise ERRORS["ValueError"]()  # the line of the user's


def rows_of(batch):
    return torch.stack([batch["episode_index"], batch["step_index"]], 1).tolist()


class Told(OptimizedEpisodicDataset):
    """The subclass of the document: an instruction without an argument."""

    def get_language_instruction(self):
        return "complete the task"


class ToldByPath(OptimizedEpisodicDataset):
    def get_language_instruction(self, dataset_path):
        return f"look at {Path(dataset_path).name}"
