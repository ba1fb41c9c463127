"""Imports go one way: epistream -> configs -> loader -> {cache, sharding}."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import epistream

ROOT = Path(__file__).resolve().parent.parent
LEAVES = {"epistream.errors", "epistream._version", "epistream.file_systems"}
MAY_IMPORT = {
    "cache": {"cache"},
    "sharding": {"sharding"},
    "loader": {"loader", "cache", "sharding"},
    "configs": {"configs", "loader", "cache", "sharding"},
}
FOREIGN = {"cache": {"torch", "h5py", "webdataset"}, "sharding": {"torch"}}


def imported_names(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module)
    return names


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_lies_below_them(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    wrong = []
    for file in files:
        for name in imported_names(file):
            if name in LEAVES:
                continue
            parts = name.split(".")
            if parts[0] == "epistream" and (len(parts) < 2 or parts[1] not in MAY_IMPORT[room]):
                wrong.append(f"{file.relative_to(ROOT)}: {name}")
            if parts[0] in FOREIGN.get(room, ()):
                wrong.append(f"{file.relative_to(ROOT)}: {name}")
    assert wrong == []


def test_errors_import_nothing():
    assert imported_names(ROOT / "epistream" / "errors.py") == set()


def test_no_module_is_longer_than_400_lines():
    files = [file for room in ("epistream", *MAY_IMPORT) for file in (ROOT / room).rglob("*.py")]
    assert [str(file) for file in files if len(file.read_text().splitlines()) > 400] == []


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
        "World",
        "__version__",
        "auto_optimize_dataset",
        "create_optimized_dataloader",
        "delta_statistics",
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
        "import sys, epistream.sharding.pack, epistream.loader.worker, epistream.commands.pack; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
