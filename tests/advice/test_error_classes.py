"""Every exception class of the package is one of ours, and a builtin, and crosses process borders whole."""

import ast
import builtins
import importlib
import inspect
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest

import epistream.errors
from epistream.errors import EpistreamError

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("epistream", "sharding", "cache", "loader", "configs")
FILES = [file for room in ROOMS for file in (ROOT / room).rglob("*.py")]


def module_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in ("epistream", *parts) if part != "__init__").replace(
        "epistream.epistream", "epistream"
    )


# Integrations import trainers of others, which takes seconds; they are looked at as text.
MODULES = [name for name in map(module_of, FILES) if "integrations" not in name]

# Made by arguments of their own; all others by their message.
ARGUMENTS = {"ChangedError": ("/data/a.hdf5", ValueError("cut off"))}


def found_classes():
    """What each module holds, or a class of it."""
    found = {}
    for name in MODULES:
        module = importlib.import_module(name)
        holders = [module, *(each for each in vars(module).values() if inspect.isclass(each))]
        for holder in holders:
            if getattr(holder, "__module__", name).startswith("epistream"):
                for each in vars(holder).values():
                    if inspect.isclass(each) and issubclass(each, BaseException) and each.__module__ in MODULES:
                        found[f"{each.__module__}.{each.__qualname__}"] = each
    return found


CLASSES = found_classes()


def test_walk_finds_the_classes_that_are_known():
    names = {each.__name__ for each in CLASSES.values()}
    assert {"EpistreamError", "StateError", "WholeBodyError", "TooLongError", "PresentError", "ChangedError"} <= names
    assert {each for each in vars(epistream.errors).values() if inspect.isclass(each)} <= set(CLASSES.values())


def test_no_exception_class_hides_where_the_walk_does_not_come():
    """In a function, or in a module that is not imported here."""
    known = {each.__name__ for each in CLASSES.values()}
    kinds = known | {
        name for name, each in vars(builtins).items() if inspect.isclass(each) and issubclass(each, BaseException)
    }
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and kinds & {ast.unparse(base).rpartition(".")[2] for base in node.bases}:
                assert node.name in known, f"{file}: {node.name}"


@pytest.mark.parametrize("name", CLASSES)
def test_exception_class_is_ours_and_a_builtin(name):
    cls = CLASSES[name]
    assert issubclass(cls, EpistreamError)
    base = next(each for each in cls.__mro__ if each.__module__ == "builtins")
    assert cls is EpistreamError or base is not Exception
    assert getattr(builtins, base.__name__) is base
    assert inspect.getdoc(cls)


@pytest.mark.parametrize("pickler", [pickle, ForkingPickler])
@pytest.mark.parametrize("name", CLASSES)
def test_exception_comes_out_of_a_pickle_as_it_went_in(name, pickler):
    cls = CLASSES[name]
    error = cls(*ARGUMENTS.get(cls.__name__, ("a.tar: 3 bytes, wanted 4. Fetch it again.",)))
    error.__notes__ = ["in batch 3"]
    again = pickler.loads(bytes(pickler.dumps(error)))
    assert type(again) is cls
    assert (str(again), again.args) == (str(error), error.args)
    assert again.__notes__ == ["in batch 3"]
    assert {key: repr(value) for key, value in vars(again).items()} == {
        key: repr(value) for key, value in vars(error).items()
    }
    assert "a.hdf5" in str(again) or "3 bytes, wanted 4" in str(again)
