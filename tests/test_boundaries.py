"""Imports go downwards between the subpackages, are not circular, and ``--help`` loads little."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.kit.command import REPOSITORY

LEVELS = {
    "imagenet_prep": [
        "core",
        "jpeg",
        "dataset",
        "storage",
        "containers",
        "sources",
        "workers",
        "crop",
        "beton",
        "stats",
        "sample",
        "cli",
        "__main__",
    ],
    "trainer": [
        "numba_ext",
        "hashing",
        "views",
        "config",
        "device",
        "data",
        "interrupt",
        "checkpoint",
        "network",
        "loader",
        "inference",
        "report",
        "distributed",
        "training",
        "doctor",
        "cli",
        "__main__",
    ],
}
"""The rooms of each package (subpackages and single modules), lowest first. A room imports
from itself and from those above it in this list."""

TRAINER_TAKES = ("core", "dataset", "storage", "jpeg", "crop")
"""The rooms of ``imagenet_prep`` that ``trainer`` imports from."""

TERMINAL = {"cli", "__main__"}
TERMINAL_MODULES = {"imagenet_prep.core.console"}
"""Only these import click and print."""

HEAVY_TEXT = "torch torchvision ffcv numba llvmlite numpy PIL joblib matplotlib tensorboard tqdm"
HEAVY = frozenset(f"{HEAVY_TEXT} pyarrow fsspec".split())
LIGHT = ("imagenet_prep.cli.main", "trainer.cli.main", "imagenet_prep.dataset.shards")
"""These load nothing HEAVY when they are imported, also not through what they import."""

PURE = {
    "imagenet_prep.crop.image",
    "imagenet_prep.sample.scenes",
    "imagenet_prep.stats.moments",
    "trainer.config.run_config",
    "trainer.hashing",
    "trainer.views.views",
    "trainer.network.alexnet",
    "trainer.network.lrn",
    "trainer.training.schedule",
}
OUTSIDE_TEXT = "os pathlib tempfile shutil subprocess socket time random click"
OUTSIDE = frozenset(OUTSIDE_TEXT.split())
"""What no PURE module imports: disk, clock, terminal, global randomness."""

Sources = dict[str, str]


def package_sources() -> Sources:
    """Dotted name -> source text of every module of both packages; packages by their name."""
    found = {}
    for package in LEVELS:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def room_of(module: str) -> str:
    """``imagenet_prep.crop.image`` -> ``crop``; "" for a package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imported(node: ast.AST, known: Sources) -> Iterator[str]:
    """The modules that an import statement loads; nothing for other nodes."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        names = [f"{base}.{alias.name}" for alias in node.names]
        inner = [name for name in names if name in known]
        yield from inner
        if len(inner) < len(names):
            yield base


def all_imports(source: str, known: Sources) -> set[str]:
    """Every module that the source imports, anywhere."""
    return {name for node in ast.walk(ast.parse(source)) for name in imported(node, known)}


def loaded_at_once(source: str, known: Sources) -> set[str]:
    """What importing the module loads: not inside functions, not under TYPE_CHECKING."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield from imported(child, known)
            yield from visit(child)

    return set(visit(ast.parse(source)))


def violations(module: str, source: str, known: Sources) -> list[str]:
    """Each broken rule of one module, as ``module imports x: why``."""
    package, room = module.split(".")[0], room_of(module)
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else [f"{module} has no docstring"]
    if room and room not in LEVELS[package]:
        return [*found, f"{module}: {room} has no line in LEVELS"]
    names = all_imports(source, known)
    for name in sorted(names):
        problem = _wrong_import(package, room, name)
        if problem:
            found.append(f"{module} imports {name}: {problem}")
    if any(isinstance(n, ast.ImportFrom) and n.level for n in ast.walk(tree)):
        found.append(f"{module} has a relative import")
    if room not in TERMINAL and module not in TERMINAL_MODULES:
        calls = (n.func for n in ast.walk(tree) if isinstance(n, ast.Call))
        printing = {f.id for f in calls if isinstance(f, ast.Name)} & {"print", "input"}
        found += [f"{module} calls {call}(): only cli prints" for call in sorted(printing)]
        if "click" in names:
            found.append(f"{module} imports click: only cli does")
    if module in PURE:
        outside = {n.split(".")[0] for n in names} & OUTSIDE
        found += [f"{module} is pure and imports {n}" for n in sorted(outside)]
    return found


def _wrong_import(package: str, room: str, name: str) -> str:
    target, inner = name.split(".")[0], room_of(name)
    if target in ("tools", "tests"):
        return "products do not import tools or tests"
    if target not in LEVELS or not inner or not room:
        return ""
    if target != package:
        if package == "imagenet_prep":
            return "imagenet_prep does not import trainer"
        return "" if inner in TRAINER_TAKES else "trainer takes nothing from there"
    rooms = LEVELS[package]
    if inner in rooms and rooms.index(inner) > rooms.index(room):
        return "imports go downwards"
    return ""


def heavy_chains(module: str, sources: Sources) -> list[str]:
    """Each way in which importing ``module`` loads something HEAVY: ``a > b > numpy``."""
    found: list[str] = []
    seen: set[str] = {module}
    waiting: list[tuple[str, ...]] = [(module,)]
    while waiting:
        chain = waiting.pop()
        for name in sorted(loaded_at_once(sources[chain[-1]], sources)):
            if name.split(".")[0] in HEAVY:
                found.append(" > ".join((*chain, name)))
            parents = name.split(".")
            for step in (".".join(parents[: n + 1]) for n in range(len(parents))):
                if step in sources and step not in seen:
                    seen.add(step)
                    waiting.append((*chain, step))
    return found


def circles(sources: Sources) -> list[str]:
    """The modules that load each other while they are loaded."""
    edges = {
        name: {n for n in loaded_at_once(text, sources) if n in sources}
        for name, text in sources.items()
    }
    done: set[str] = set()
    found: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            found.append(" > ".join((*path[path.index(name) :], name)))
        elif name not in done:
            for following in sorted(edges[name]):
                visit(following, (*path, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())
    return found


SOURCES = package_sources()


def test_every_module_keeps_to_its_room() -> None:
    found = [v for name, text in SOURCES.items() for v in violations(name, text, SOURCES)]
    assert found == []


def test_no_modules_import_each_other() -> None:
    assert circles(SOURCES) == []


@pytest.mark.parametrize("module", LIGHT)
def test_the_command_lines_load_nothing_heavy(module: str) -> None:
    assert heavy_chains(module, SOURCES) == []


def test_no_tool_imports_the_tests() -> None:
    for path in (REPOSITORY / "tools").rglob("*.py"):
        names = all_imports(path.read_text(encoding="utf-8"), SOURCES)
        assert not [name for name in names if name.split(".")[0] == "tests"], path.name


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("imagenet_prep.core.files", "import imagenet_prep.beton.build", "go downwards"),
        ("imagenet_prep.crop.image", "from pathlib import Path", "is pure and imports pathlib"),
        ("imagenet_prep.crop.run", "from imagenet_prep.beton import build", "go downwards"),
        ("imagenet_prep.crop.run", "def f():\n    import imagenet_prep.stats.run", "downwards"),
        ("imagenet_prep.crop.run", "from . import image", "relative import"),
        ("imagenet_prep.cli.main", "import trainer.network.alexnet", "does not import trainer"),
        ("imagenet_prep.beton.build", "from tools.demo import main", "do not import tools"),
        ("imagenet_prep.beton.build", "import click", "only cli does"),
        ("imagenet_prep.beton.build", "print('done')", "only cli prints"),
        ("trainer.cli.run", "from imagenet_prep.sources import scan", "takes nothing"),
        ("trainer.newcomer", "import math", "no line in LEVELS"),
    ],
)
def test_a_broken_rule_is_named(module: str, source: str, complaint: str) -> None:
    (found,) = violations(module, f'"""A docstring."""\n{source}\n', SOURCES)
    assert complaint in found


def test_a_module_without_docstring_is_named() -> None:
    assert violations("trainer.hashing", "import math\n", {}) == [
        "trainer.hashing has no docstring"
    ]


def test_heavy_imports_and_cycles_are_found_through_modules() -> None:
    sources = {
        "trainer.cli": "from trainer import data",
        "trainer.data": "try:\n    import numpy\nexcept ImportError:\n    pass\nimport trainer.cli",
    }
    assert heavy_chains("trainer.cli", sources) == ["trainer.cli > trainer.data > numpy"]
    assert circles(sources) == ["trainer.cli > trainer.data > trainer.cli"]


def test_imports_in_functions_and_for_types_do_not_load() -> None:
    sources = {
        "trainer.cli": (
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    import torch\n"
            "def run():\n    import torch\n"
        ),
    }
    assert heavy_chains("trainer.cli", sources) == []
