"""What the messages of the package advise: commands, their options, and arguments, found in its sources."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

import click
from click.testing import CliRunner

import epistream
from epistream.commands import cli
from epistream.loader.exporting.choice import Choice
from epistream.sharding.lerobot_out.options import ExportOptions

TOP = Path(epistream.__file__).parents[1]
ROOMS = "epistream", "cache", "configs", "loader", "sharding"
# A command with what follows it up to the end of its quotes, an option, or an argument.
COMMAND = re.compile(r"epistream ([a-z]+)((?: (?:--)?[A-Za-z{}][^\s'\"`,;)]*)*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
ARGUMENT = re.compile(r"(?<![\w.\-$])([a-z_][a-z_0-9]*)=(?!=)")
# Part of a message that is put together.
ALONE = re.compile(r"[a-z_]{4,}=\{\}$")


@cache
def messages() -> dict[str, list[tuple[int, str]]]:
    """Texts of several words in the sources, by module, with their lines; ``{}`` stands for what is put in."""
    found = {}
    for room in ROOMS:
        for path in sorted((TOP / room).rglob("*.py")):
            texts = _texts(ast.parse(path.read_text()))
            found[str(path.relative_to(TOP))] = [one for one in texts if " " in one[1].strip() or ALONE.match(one[1])]
    return found


def advice(text: str) -> set[str]:
    """What a text advises: 'epistream index', '--overwrite', 'features='."""
    tokens = {f"epistream {name}" for name, _ in commands(text)}
    return tokens | set(OPTION.findall(text)) | {f"{name}=" for name in ARGUMENT.findall(text)}


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Commands of a text, groups with their subcommand, and the options named with each."""
    for name, rest in COMMAND.findall(text):
        command = cli.get_command(click.Context(cli), name)
        words = rest.split()
        if isinstance(command, click.Group) and words and not words[0].startswith("-"):
            yield f"{name} {words[0]}", OPTION.findall(rest)
        elif command is not None or not re.search(rf"epistream {name} (?:\w+ )?(?:it|them)\b", text):
            yield name, OPTION.findall(rest)


@cache
def options_of_commands() -> dict[str, set[str]]:
    """The options of each command, "cache ls" for those of groups."""
    found = {}

    def look(name: str, command: click.Command) -> None:
        found[name] = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help"}
        if isinstance(command, click.Group):
            for each, below in command.commands.items():
                look(f"{name} {each}", below)

    for name in cli.list_commands(click.Context(cli)):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        look(name, command)
    return found


@cache
def arguments() -> set[str]:
    """Names of arguments of whatever is public: classes, their methods, functions and option classes."""
    # What `export_lerobot` takes by name.
    found = {item.name for kind in (Choice, ExportOptions) for item in fields(kind)}
    for name in epistream.__all__:
        thing = getattr(epistream, name)
        members = [thing]
        if inspect.isclass(thing):
            members += [getattr(thing, each) for each in dir(thing) if not each.startswith("_")]
        for each in members:
            if callable(each):
                try:
                    found |= set(inspect.signature(each).parameters)
                except (TypeError, ValueError):
                    continue
    return found


def _texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """String constants and f-strings that are no docstrings."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }

    def walk(node: ast.AST) -> Iterator[tuple[int, str]]:
        if id(node) in docstrings:
            return
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, "".join(map(str, parts))
            for part in node.values:
                if isinstance(part, ast.FormattedValue):
                    yield from walk(part.value)
        else:
            for child in ast.iter_child_nodes(node):
                yield from walk(child)

    return walk(tree)


def taken(module: str, *tokens: str):
    """Say of a test that it takes this advice of this module; `tests/test_advice.py` reads it."""
    assert tokens, module
    return lambda test: test


def follow(message: object, folder: object = None, **names: object) -> None:
    """Run the commands that a message advises, with `folder` for URL and `names` for the other placeholders."""
    found = re.findall(r"'(epistream [^']+)'|: (epistream \S.*?)\.?$", str(message))
    assert found, message
    for quoted, open_ended in found:
        words = shlex.split(quoted or open_ended)[1:]
        if folder is not None:
            names["URL"] = folder
        words = [str(names.get(word, word)) for word in words]
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0, (words, result.output, result.exception)
