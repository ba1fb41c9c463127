"""Every block of the migration guide runs, in order, and prints what the page shows."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "migration.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Runs in a fresh interpreter: blocks share their names, and each one's output is framed.
DRIVER = """
import sys
names = {"__name__": "__main__"}
for number, path in enumerate(sys.argv[1:]):
    print(f"<<{number}>>", flush=True)
    exec(compile(open(path).read(), path, "exec"), names)
"""


def test_migration_blocks_run_and_print_what_the_page_shows(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shown: list[str] = []
    paths: list[Path] = []
    for language, text in BLOCK.findall(PAGE.read_text()):
        if language == "bash":
            command = text.replace("epistream ", f"{sys.executable} -m epistream.commands ", 1)
            subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True, timeout=120, capture_output=True)
        elif language == "python":
            paths.append(tmp_path / f"block_{len(paths)}.py")
            paths[-1].write_text(text)
            shown.append("")
        else:
            assert language == "text"
            shown[-1] = text
    assert len(paths) >= 12
    result = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:epistream", "-c", DRIVER, *map(str, paths)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    printed = re.split(r"<<\d+>>\n", result.stdout)[1:]
    assert printed == shown


def test_migration_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGE.read_text()) if "://" not in link]
    assert links
    for link in links:
        name, _, title = link.partition("#")
        target = PAGE.parent / name if name else PAGE
        assert target.exists(), link
        assert not title or title in titles_of(target), link


def titles_of(page):
    lines = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9_ -]", "", line.lower()).strip().replace(" ", "-") for line in lines}
