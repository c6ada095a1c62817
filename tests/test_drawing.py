"""Who may import whom: the code against the drawing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("cityward", "collectors", "detectors", "playbooks", "siem")
MAY_IMPORT = {
    "cityward": {"cityward"},
    "collectors": {"cityward", "collectors"},
    "detectors": {"cityward", "detectors"},
    "playbooks": {"cityward", "playbooks"},
    "siem": set(ROOMS),
}
"""The rooms do not know each other, nor siem; siem is where they meet."""

OUTSIDE: dict[str, str | tuple[str, ...]] = {
    "duckdb": "siem/store/",
    "sqlite3": "siem/store/",
    "luqum": "siem/store/",
    "opensearchpy": "siem/store/opensearch.py",
    "elasticsearch": "siem/store/elasticsearch",
    "river": "detectors/anomaly/",
    "sklearn": "detectors/anomaly/",
    "datasketches": "detectors/anomaly/",
    "sigma": "detectors/sigma/",
    "re2": "detectors/sigma/",
    "fastapi": "siem/console/",
    "jinja2": "siem/console/",
    "argon2": "siem/console/",
    "itsdangerous": "siem/console/",
    "google": "collectors/transport/",
    "cyclopts": ("siem/cli", "siem/commands/"),
    "structlog": "siem/cli",
    "celery": "playbooks/tasks.py",
    "redis": "playbooks/tasks.py",
}
"""Each outside library meets cityward in one folder, the command's in two."""

VOCABULARY = {"cityward", "msgspec", "yaml"}
COPYLEFT = {
    "scapy": "collectors.packets.scapy_worker",
    "pyshark": "collectors.packets.pyshark_worker",
}
"""What is GPL, or runs what is, to the program of its own that may import it."""
PROGRAMS = {*COPYLEFT.values(), "collectors.packets.confined"}
"""Started, never imported."""


@cache
def _modules() -> tuple[tuple[str, Path], ...]:
    return tuple(
        (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path)
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
    )


@cache
def _imports(path: Path) -> tuple[str, ...]:
    """Modules that a file imports, wherever in it."""
    return tuple(_imported(ast.parse(path.read_text(encoding="utf-8"))))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_drawing_allows(room: str) -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, path in _modules()
        if name.split(".")[0] == room
        for imported in _imports(path)
        if (top := imported.split(".")[0]) in ROOMS and top not in MAY_IMPORT[room]
    ]

    assert wrong == []


def test_the_vocabulary_needs_the_standard_library_and_msgspec_only() -> None:
    import sys

    wrong = [
        f"{name} imports {imported}"
        for name, path in _modules()
        if name.startswith("cityward")
        for imported in _imports(path)
        if (top := imported.split(".")[0]) not in VOCABULARY and top not in sys.stdlib_module_names
    ]

    assert wrong == []


def test_an_outside_library_is_met_in_one_folder() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {imported}"
        for _, path in _modules()
        for imported in _imports(path)
        if (home := OUTSIDE.get(imported.split(".")[0]))
        and not str(path.relative_to(ROOT)).startswith(home)
    ]

    assert wrong == []


def test_a_copyleft_library_is_imported_by_its_own_program_only() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, path in _modules()
        for imported in _imports(path)
        if COPYLEFT.get(imported.split(".")[0], name) != name
    ]

    assert wrong == []


def test_a_program_of_its_own_is_imported_by_nothing_and_imports_nothing_of_ours() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, path in _modules()
        for imported in _imports(path)
        if imported in PROGRAMS or (name in PROGRAMS and imported.split(".")[0] in ROOMS)
    ]
    gpl = (ROOT / "collectors/packets/scapy_worker.py").read_text(encoding="utf-8")

    assert wrong == []
    assert gpl.startswith("# SPDX-License-Identifier: GPL-2.0-only\n")


def test_no_module_is_in_a_circle() -> None:
    modules = dict(_modules())
    edges = {
        name: {one for one in _imports(path) if one in modules and one != name}
        for name, path in modules.items()
    }

    assert _circle(edges) == []


def test_no_folder_is_in_a_circle() -> None:
    modules = dict(_modules())

    def folder(name: str) -> str:
        return name if modules[name].name == "__init__.py" else name.rpartition(".")[0]

    edges: dict[str, set[str]] = {}
    for name, path in modules.items():
        targets = {folder(one) for one in _imports(path) if one in modules}
        edges.setdefault(folder(name), set()).update(targets - {folder(name)})

    assert _circle(edges) == []


def _circle(edges: dict[str, set[str]]) -> list[str]:
    """Some circle of a graph, or nothing."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for following in sorted(edges.get(node, ())):
            if found := walk(following, [*path, node]):
                return found
        done.add(node)
        return []

    for node in sorted(edges):
        if found := walk(node, []):
            return found
    return []
