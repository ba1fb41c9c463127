"""Imports go one way, folders stay small, and the wheel holds every module."""

import ast
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import epistream

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("epistream", "sharding", "cache", "loader", "configs")
LEAVES = {
    *("epistream._version", "epistream.access", "epistream.bodies", "epistream.cgroups"),
    *("epistream.errors", "epistream.file_systems", "epistream.hints", "epistream.lazy", "epistream.lru"),
    *("epistream.options", "epistream.plain_files", "epistream.processes", "epistream.shown_errors"),
    *("epistream.shown_urls", "epistream.units", "epistream.whole_files", "epistream.working_folder"),
    "epistream.yaml_text",
}

# What the modules of each sub-package may import besides their own and the leaves.
SHARDING = {
    "sharding.files": set(),
    "sharding.pictures": set(),
    "sharding.format": {"sharding.files", "sharding.pictures"},
    "sharding.manifest": {"sharding.files", "sharding.format", "sharding.pictures"},
    "sharding.episodes": {"sharding.files", "sharding.format", "sharding.manifest"},
    "sharding.opening": set(),
    "sharding.selecting": {"sharding.files"},
    "sharding.layouts": {"sharding.files", "sharding.format", "sharding.opening", "sharding.pictures"},
    "sharding.tar": {
        "sharding.episodes",
        "sharding.files",
        "sharding.format",
        "sharding.manifest",
        "sharding.pictures",
    },
    "sharding.tasks": set(),
    "sharding.pack": {
        "sharding.files",
        "sharding.format",
        "sharding.manifest",
        "sharding.layouts",
        "sharding.opening",
        "sharding.pictures",
    }
    | {"sharding.hdf5", "sharding.lerobot", "sharding.lerobot_meta", "sharding.selecting", "sharding.tar"}
    | {"sharding.tasks"},
    "sharding.hdf5": {
        "sharding.files",
        "sharding.format",
        "sharding.manifest",
        "sharding.layouts",
        "sharding.opening",
        "sharding.pictures",
        "sharding.selecting",
    },
    "sharding.lerobot_meta": {
        "sharding.files",
        "sharding.format",
        "sharding.manifest",
        "sharding.layouts",
        "sharding.pictures",
    },
    "sharding.lerobot": {
        "sharding.files",
        "sharding.format",
        "sharding.manifest",
        "sharding.lerobot_meta",
        "sharding.pictures",
    },
    "sharding.lerobot_out": {"sharding.files", "sharding.pictures", "sharding.tasks"},
    "sharding": {
        "sharding.episodes",
        "sharding.files",
        "sharding.format",
        "sharding.manifest",
        "sharding.layouts",
        "sharding.pictures",
        "sharding.tar",
    }
    | {"sharding.hdf5", "sharding.lerobot", "sharding.lerobot_meta", "sharding.selecting"},
    "sharding.edit": {"sharding.files", "sharding.format", "sharding.manifest", "sharding.pack", "sharding.selecting"}
    | {"sharding", "sharding.episodes", "sharding.tar", "sharding.tasks"},
    "sharding.check": {
        "sharding.episodes",
        "sharding.files",
        "sharding.format",
        "sharding.manifest",
        "sharding.layouts",
        "sharding.lerobot",
        "sharding.opening",
        "sharding.pictures",
        "sharding.tar",
        "sharding.tasks",
    },
}
CACHE = {
    "cache.source": set(),
    "cache.store": set(),
    "cache": {"cache.source", "cache.store"},
}
LOADER = {
    "loader.order": {"sharding.format", "sharding.manifest"},
    "loader.shards": {"cache", "cache.source", *SHARDING} - {"sharding.pack", "sharding.check"},
    "loader.frames": {
        "loader.order",
        "loader.shards",
        "cache",
        "cache.source",
        "sharding.format",
        "sharding.manifest",
        "sharding.pictures",
    },
    "loader.reading": {
        "loader.order",
        "loader.shards",
        "loader.frames",
        "cache",
        "cache.source",
        "sharding.format",
        "sharding.manifest",
    },
    "loader.workers": {"loader.order", "loader.shards", "loader.frames", "loader.reading", "cache"},
    "loader.exporting": {"loader.frames", "loader.reading", "loader.shards", "cache", "cache.source", *SHARDING},
    "loader.doctor.facts": {"sharding.format", "sharding.manifest"},
    "loader.doctor.checks": {"loader.doctor.facts", "sharding.format", "sharding.manifest"},
    "loader.doctor": {"loader.doctor.checks", "loader.doctor.facts", "loader.exporting", "loader.frames"}
    | {"loader.shards", "cache", "cache.source", *SHARDING},
    "loader.samples.formats": {"loader.order", "sharding.format", "sharding.manifest"},
    "loader.samples": {
        "loader.order",
        "loader.frames",
        "loader.reading",
        "loader.samples.formats",
        "sharding.format",
        "sharding.manifest",
    },
    "loader.monitoring": {"loader.frames", "loader.workers", "cache", "cache.store"},
    "loader": {"loader.order", "loader.frames", "loader.reading", "loader.workers", "loader.samples", "cache"}
    | {"loader.monitoring", "sharding", "sharding.format", "sharding.manifest", "sharding.selecting"},
    "loader.episodic": {"loader.order", "loader.frames", "loader.reading", "loader.samples", "loader.samples.formats"}
    | {
        "loader",
        "cache",
        "loader.monitoring",
        "sharding",
        "sharding.files",
        "sharding.format",
        "sharding.manifest",
        "sharding.hdf5",
    },
    "loader.measuring": {"loader.order", "loader.shards", "loader.frames", "loader.reading", "loader.monitoring"}
    | {"loader", "cache", "cache.source"}
    | {"sharding.format", "sharding.manifest", "sharding.pictures"},
}
ROOMS_BELOW_CONFIGS = {*SHARDING, *CACHE, *LOADER}
MAY_IMPORT = {
    **SHARDING,
    **CACHE,
    **LOADER,
    "integrations": {"loader", "loader.samples"},
    "configs": ROOMS_BELOW_CONFIGS,
    "commands": {*ROOMS_BELOW_CONFIGS, "configs", ""},
    "": {*ROOMS_BELOW_CONFIGS, "configs"},  # the front door: public names only
}
FOREIGN = {
    "cache": {"torch", "h5py", "webdataset"},
    "sharding": {"torch"},
    "loader.order": {"torch"},
    "loader.shards": {"torch"},
    "loader.frames": {"torch"},
    "loader.doctor": {"torch"},
    "loader.reading": {"torch"},
    "loader.workers": {"torch"},
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    named = {}
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            parts = parts if parts[0] == "epistream" else ("epistream", *parts)
            named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return named


MODULES = modules()
PACKAGES = {name for name, file in MODULES.items() if file.name == "__init__.py"}


def imported_names(file: Path) -> set[str]:
    """What a module imports anywhere in it, also late or for types only."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in inner}
    return names


def room_of(module: str) -> str:
    """The sub-package of a module, without the leading name: 'cache.store' of 'epistream.cache.store.store.locks'."""
    package = module if module in PACKAGES else module.rpartition(".")[0]
    return package.partition(".")[2]


IMPORTS = {name: {other for other in imported_names(file) if other in MODULES} for name, file in MODULES.items()}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts of more than one node: Tarjan, SIAM J. Comput. 1 (1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(graph):
        if node not in number:
            visit(node)
    return found


def test_every_sub_package_has_a_row():
    assert {room_of(name) for name in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_lies_below_them(room):
    wrong = []
    for module in MODULES:
        if room_of(module) != room:
            continue
        for other in IMPORTS[module] - LEAVES - PACKAGES:
            if room_of(other) not in {room, *MAY_IMPORT[room]}:
                wrong.append(f"{module}: {other}")
    assert wrong == []


@pytest.mark.parametrize("room", FOREIGN)
def test_rooms_do_not_import_foreign_packages(room):
    wrong = []
    for module, file in MODULES.items():
        if f"{room_of(module)}.".startswith(f"{room}."):
            wrong += [f"{module}: {name}" for name in imported_names(file) if name.split(".")[0] in FOREIGN[room]]
    assert wrong == []


def test_leaves_import_only_each_other():
    assert {leaf: IMPORTS[leaf] - LEAVES for leaf in LEAVES} == {leaf: set() for leaf in LEAVES}
    assert imported_names(MODULES["epistream.errors"]) == {"epistream.shown_urls"}


def test_no_modules_import_each_other_in_a_circle():
    assert circles({name: others - PACKAGES for name, others in IMPORTS.items()}) == []


def test_no_sub_packages_import_each_other_in_a_circle():
    assert circles(MAY_IMPORT) == []


@pytest.mark.parametrize(("room", "most"), [("sharding", 7), ("cache", 5), ("loader", 8)])
def test_chain_of_sub_packages_in_a_room_is_no_longer_than(room, most):
    def depth(name: str) -> int:
        below = [other for other in MAY_IMPORT[name] if f"{other}.".startswith(f"{room}.")]
        return 1 + max((depth(other) for other in below), default=0)

    assert max(depth(name) for name in MAY_IMPORT if f"{name}.".startswith(f"{room}.")) <= most


def test_no_module_is_longer_than_360_lines():
    assert [name for name, file in MODULES.items() if len(file.read_text().splitlines()) > 360] == []


def test_no_folder_holds_more_than_20_files():
    files = defaultdict(int)
    for top in (*ROOMS, "tests"):
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and path.suffix in {".py", ".yaml"} and "__pycache__" not in path.parts:
                files[path.parent.relative_to(ROOT)] += 1
    assert {str(folder): count for folder, count in files.items() if count > 20} == {}


def test_wheel_installed_elsewhere_imports_every_module(tmp_path):
    # An editable install finds a sub-package that pyproject.toml forgot; a wheel does not hold it.
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", *ROOMS):
        subprocess.run(["cp", "-r", ROOT / name, source], check=True, timeout=60)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", tmp_path / "site", source], check=True, timeout=150, env=environment)
    code = (
        "import importlib, sys, epistream; "
        f"assert epistream.__file__.startswith({str(tmp_path)!r}), epistream.__file__; "
        f"[importlib.import_module(name) for name in {sorted(set(MODULES) - {'epistream.commands.__main__'})!r}]"
    )
    environment["PYTHONPATH"] = str(tmp_path / "site")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment, cwd=tmp_path)
    data = {file.name for file in (ROOT / "configs").glob("*.yaml")}
    assert data == {file.name for file in (tmp_path / "site" / "epistream" / "configs").glob("*.yaml")}
    assert (tmp_path / "site" / "epistream" / "py.typed").exists()


def test_every_sub_package_is_listed_for_the_wheel():
    tools = pytest.importorskip("tomllib")
    listed = tools.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(PACKAGES)


def test_exported_names_are_these():
    assert sorted(epistream.__all__) == [
        "ActFormat",
        "ActionDelta",
        "CacheOptions",
        "Config",
        "Dataset",
        "DatasetOptimizer",
        "DiffusionPolicyFormat",
        "EpisodeStream",
        "EpistreamError",
        "IlStudioFormat",
        "LeRobotFormat",
        "Mixture",
        "MonitorOptions",
        "Normalizer",
        "OptimizedEpisodicDataset",
        "OrderOptions",
        "Padding",
        "StreamOptions",
        "StreamingLoader",
        "Window",
        "WindowMean",
        "World",
        "__version__",
        "auto_optimize_dataset",
        "create_optimized_dataloader",
        "delta_statistics",
        "doctor",
        "edit",
        "export_lerobot",
        "load_config",
        "open_dataset",
        "pack",
        "window_in_seconds",
    ]
    for name in epistream.__all__:
        assert getattr(epistream, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        epistream.nonsense  # noqa: B018


def test_packing_and_worker_modules_import_without_torch():
    # Packing processes and spawned workers would each pay 200 MB for it.
    code = (
        "import sys, epistream.sharding.pack.pack, epistream.loader.workers.worker, epistream.commands.pack; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
