"""``python -m epistream`` is the command ``epistream``."""

import runpy
import sys

import pytest

from epistream.commands import _HELP


def run(monkeypatch, module, *words):
    monkeypatch.setattr(sys, "argv", [module, *words])
    monkeypatch.delitem(sys.modules, f"{module}.__main__", raising=False)  # that another test imported
    with pytest.raises(SystemExit) as left:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return left.value.code or 0


@pytest.mark.parametrize("module", ["epistream", "epistream.commands"])
def test_module_runs_the_command_line(monkeypatch, capsys, module, aloha_shards):
    assert run(monkeypatch, module, "--version") == 0
    assert capsys.readouterr().out.startswith("epistream, version ")
    assert run(monkeypatch, module, "inspect", str(aloha_shards)) == 0
    assert "2 of 60 to 80" in capsys.readouterr().out
    assert run(monkeypatch, module, "verify", str(aloha_shards / "none")) == 1
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("command", _HELP)
def test_module_has_each_command(monkeypatch, capsys, command):
    assert run(monkeypatch, "epistream", command, "--help") == 0
    assert f" -m epistream {command} " in capsys.readouterr().out


def test_child_that_imports_the_module_runs_nothing(monkeypatch):
    monkeypatch.delitem(sys.modules, "epistream.__main__", raising=False)
    runpy.run_module("epistream.__main__", run_name="__mp_main__")
