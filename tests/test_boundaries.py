"""Who may import whom, held by parsing: the table of the design, as a test.

Every module has a line in MAY_IMPORT; a new module needs one. An import anywhere in a
file counts, inside functions and under TYPE_CHECKING too, except where a rule is about
what a module loads when it is imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("imagenet_prep", "trainer")
EVERYTHING = "everything in its package"

MAY_IMPORT: dict[str, str] = {
    # Workshop: values in, values out.
    "imagenet_prep.crop": "crop_settings formats turbo",
    "imagenet_prep.formats": "",
    "imagenet_prep.crop_settings": "",
    "imagenet_prep.scenes": "",
    "imagenet_prep.kernel": "",
    "imagenet_prep.coverage": "artifacts",
    "imagenet_prep.stats": "artifacts coverage kernel",
    # Dock: paths, verification, renaming.
    "imagenet_prep.artifacts": "",
    "imagenet_prep.parallel": "",
    "imagenet_prep.cluster_worker": "turbo",
    "imagenet_prep.cluster": "artifacts parallel cluster_dask cluster_ray cluster_worker urls",
    "imagenet_prep.cluster_dask": "artifacts parallel cluster cluster_worker urls",
    "imagenet_prep.cluster_ray": "artifacts parallel cluster cluster_worker ray_driver urls",
    "imagenet_prep.ray_driver": "cluster_worker",
    "imagenet_prep.shards": "artifacts",
    "imagenet_prep.urls": "",
    "imagenet_prep.remote_faults": "urls",
    "imagenet_prep.remote": "artifacts remote_faults urls",
    "imagenet_prep.locations": "artifacts places remote remote_faults urls",
    "imagenet_prep.windows": "places",
    "imagenet_prep.places": "remote remote_faults urls",
    "imagenet_prep.packed": "",
    "imagenet_prep.source_types": "artifacts locations packed places",
    "imagenet_prep.collection": "artifacts locations places source_types",
    "imagenet_prep.source_classes": "artifacts locations source_types",
    "imagenet_prep.source_folders": "artifacts locations places source_types",
    "imagenet_prep.source_tars": "artifacts locations places windows",
    "imagenet_prep.source_mat": "",
    "imagenet_prep.source_ilsvrc": "artifacts locations places source_mat source_tars source_types",
    "imagenet_prep.source_tiny": "artifacts locations source_types",
    "imagenet_prep.source_flat": "artifacts locations source_folders source_types",
    "imagenet_prep.source_idx": "artifacts locations places source_types",
    "imagenet_prep.source_webdataset": "artifacts locations source_tars source_types",
    "imagenet_prep.source_lists": "artifacts locations places source_types urls",
    "imagenet_prep.sources": (
        "artifacts collection locations remote source_classes source_flat source_folders "
        "source_idx source_ilsvrc source_lists source_tiny source_types source_webdataset"
    ),
    "imagenet_prep.pictures": "artifacts parallel",
    "imagenet_prep.sample": "artifacts parallel scenes",
    "imagenet_prep.beton_format": "artifacts",
    "imagenet_prep.threads": "",
    "imagenet_prep.jpeg": "",
    "imagenet_prep.turbo": "",
    "imagenet_prep.packing": "artifacts beton_format",
    "imagenet_prep.beton_pages": "artifacts parallel threads beton_format jpeg packing turbo",
    "imagenet_prep.beton_plan": "artifacts beton_format beton_pages packing shards",
    "imagenet_prep.beton": (
        "artifacts parallel beton_format beton_pages beton_plan jpeg packing shards turbo"
    ),
    "imagenet_prep.beton_check": "artifacts parallel threads beton_format beton_pages shards",
    "imagenet_prep.journal": "artifacts packed",
    "imagenet_prep.journal_merge": "artifacts journal",
    "imagenet_prep.crop_folder": "artifacts journal locations",
    "imagenet_prep.crop_plan": (
        "artifacts collection crop_folder journal journal_merge packed places source_types urls"
    ),
    "imagenet_prep.crop_merge": "artifacts crop_plan journal journal_merge source_types",
    "imagenet_prep.prefetch": "places remote urls",
    "imagenet_prep.crop_stage": "artifacts journal locations parallel places prefetch sources crop "
    "crop_folder crop_plan crop_settings formats",
    "imagenet_prep.compare": "artifacts",
    "imagenet_prep.reference": "artifacts compare",
    "imagenet_prep.stats_read": "artifacts jpeg parallel stats turbo",
    "imagenet_prep.stats_stage": (
        "artifacts beton_format coverage journal parallel stats stats_read"
    ),
    # Reporting: what the doorway says of it all, and how.
    "imagenet_prep.terminal": "artifacts urls",
    "imagenet_prep.outcome": "artifacts coverage crop_merge crop_stage beton_check shards",
    "imagenet_prep.describe": (
        "artifacts parallel pictures beton crop_folder journal journal_merge outcome beton_format "
        "shards"
    ),
    # Doorway.
    "imagenet_prep.doors": "",
    "imagenet_prep.__main__": "cli doors",
    "imagenet_prep.cli": EVERYTHING,
    "imagenet_prep.cli_common": "cluster crop_settings describe locations parallel terminal urls",
    "imagenet_prep.cli_crop": EVERYTHING,
    "imagenet_prep.cli_stats": EVERYTHING,
    "imagenet_prep.cli_beton": EVERYTHING,
    # Workshop.
    "trainer.schedule": "",
    "trainer.config": "",
    "trainer.preset_kit": "config",
    "trainer.presets": "config preset_kit presets_ours presets_published presets_tutorials",
    "trainer.presets_ours": "preset_kit",
    "trainer.presets_published": "preset_kit",
    "trainer.presets_tutorials": "preset_kit",
    "trainer.compiling": "",
    "trainer.lrn": "compiling lrn_kernels lrn_triton",
    "trainer.lrn_triton": "",
    "trainer.lrn_kernels": "primitives",
    "trainer.memory": "",
    "trainer.model": "lrn",
    "trainer.draws": "",
    "trainer.charts": "",
    # Engine.
    "trainer.primitives": "",
    "trainer.ops": "primitives",
    "trainer.augment": "",
    "trainer.engine": "ops augment draws",
    "trainer.epoch": "beton_tables engine",
    "trainer.order": "draws",
    "trainer.beton_tables": "engine",
    "trainer.pipelines": "beton_tables draws engine",
    "trainer.read_ahead": "",
    "trainer.loader": "beton_tables draws epoch order pipelines read_ahead",
    "trainer.loop": "",
    "trainer.optim": "",
    # Dock.
    "trainer.checkpoint": "",
    "trainer.record": "",
    "trainer.report": "charts gallery",
    "trainer.gallery": "beton_tables loop",
    "trainer.published": "",
    "trainer.interrupt": "",
    "trainer.watch": "",
    "trainer.exchange": "",
    "trainer.launch": "",
    "trainer.meeting": "",
    "trainer.world": "exchange loop meeting order",
    "trainer.session": (
        "checkpoint compiling config loop memory model optim record schedule watch world"
    ),
    "trainer.evaluation": "checkpoint config loader loop model session",
    "trainer.training": "draws evaluation interrupt loader loop order schedule session watch",
    "trainer.doctor": "config loader loop session training world",
    "trainer.run": "charts checkpoint config evaluation gallery interrupt launch loader "
    "published record report schedule session training world",
    "trainer.preparation": "config draws",
    "trainer.predict": "checkpoint evaluation loop preparation session",
    "trainer.export": "checkpoint evaluation lrn model preparation",
    # Doorway.
    "trainer.cli": EVERYTHING,
    "trainer.cli_common": "interrupt",
    "trainer.cli_run": EVERYTHING,
    "trainer.cli_eval": EVERYTHING,
    "trainer.cli_predict": EVERYTHING,
    "trainer.cli_show": EVERYTHING,
    "trainer.cli_doctor": EVERYTHING,
    "trainer.cli_export": EVERYTHING,
    "trainer.__main__": "cli",
}
ACROSS = {
    "imagenet_prep": "",
    "trainer": "imagenet_prep.artifacts imagenet_prep.crop imagenet_prep.crop_settings "
    "imagenet_prep.formats imagenet_prep.shards",
    "trainer.__main__": "imagenet_prep.doors",
    "trainer.cli": "imagenet_prep.terminal",
    "trainer.cli_run": "imagenet_prep.terminal",
    "trainer.cli_eval": "imagenet_prep.terminal",
    "trainer.cli_predict": "imagenet_prep.terminal",
    "trainer.cli_doctor": "imagenet_prep.terminal",
}
"""What a package, and a module besides, may import of the other one."""

SPEAKING = re.compile(r"cli|cli_\w+|terminal")
"""The modules that import click and write on the terminal."""

GALLERY = ("tools", "tests")
"""What no module of the packages imports."""

HEAVY_TEXT = "torch torchvision ffcv numba llvmlite numpy PIL joblib matplotlib tensorboard tqdm"
HEAVY = frozenset(HEAVY_TEXT.split())
LIGHT = ("imagenet_prep.artifacts", "imagenet_prep.shards", "imagenet_prep.cli", "trainer.cli")
"""These load nothing HEAVY when they are imported, also not through what they import."""

WORKSHOP_TEXT = """
    imagenet_prep.crop imagenet_prep.scenes imagenet_prep.stats
    trainer.schedule trainer.config trainer.lrn trainer.model trainer.draws
"""
WORKSHOP = frozenset(WORKSHOP_TEXT.split())
OUTSIDE_TEXT = "os pathlib tempfile shutil subprocess socket time random click"
OUTSIDE_WORLD = frozenset(OUTSIDE_TEXT.split())
"""What no module of the workshop imports: disk, clock, terminal, global randomness."""


def imported(node: ast.AST, package: str) -> Iterator[str]:
    """The dotted names that an import statement may load; nothing for other nodes."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            base = f"{package}.{base}".rstrip(".")
        if base in PACKAGES:
            # `from package import name`: a module of it, or something of its __init__.
            yield from (f"{base}.{alias.name}" for alias in node.names)
        else:
            yield base


def all_imports(tree: ast.Module, package: str) -> set[str]:
    """Every name that the file imports, anywhere."""
    return {name for node in ast.walk(tree) for name in imported(node, package)}


def loaded_at_once(tree: ast.Module, package: str) -> set[str]:
    """What importing the file loads: not inside functions, not under TYPE_CHECKING."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield from imported(child, package)
            yield from visit(child)

    return set(visit(tree))


def own_module(name: str) -> str:
    """``imagenet_prep.crop.decode`` -> ``imagenet_prep.crop``; "" for foreign names."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in PACKAGES and len(parts) > 1 else ""


def violations(module: str, source: str) -> list[str]:
    """Each broken rule of one module (``package.name``), as a sentence."""
    package, _, name = module.partition(".")
    tree = ast.parse(source)
    names = all_imports(tree, package)
    found = [f"{module} imports {n}" for n in sorted(names) if n.split(".")[0] in GALLERY]
    if not ast.get_docstring(tree):
        found.append(f"{module} has no docstring")
    if name == "__init__":
        return found + [f"{module} imports {n}" for n in sorted(names) if own_module(n)]
    if module not in MAY_IMPORT:
        return [*found, f"{module} has no line in MAY_IMPORT of tests/test_boundaries.py"]
    found += _siblings(module, package, names)
    if not SPEAKING.fullmatch(name):
        if "click" in {n.split(".")[0] for n in names}:
            found.append(f"{module} imports click; only cli does")
        calls = (n.func for n in ast.walk(tree) if isinstance(n, ast.Call))
        spoken = {f.id for f in calls if isinstance(f, ast.Name)} & {"print", "input"}
        found += [f"{module} calls {call}(); only cli speaks" for call in sorted(spoken)]
    if module in WORKSHOP:
        outside = {n.split(".")[0] for n in names} & OUTSIDE_WORLD
        found += [f"{module} is pure and imports {n}" for n in sorted(outside)]
    return found


def _siblings(module: str, package: str, names: set[str]) -> list[str]:
    allowed = MAY_IMPORT[module]
    siblings = {f"{package}.{name}" for name in allowed.split()}
    siblings |= set(f"{ACROSS[package]} {ACROSS.get(module, '')}".split())
    found = []
    for name in sorted({own_module(n) for n in names} - {"", module}):
        if name not in MAY_IMPORT and name.startswith(f"{package}."):
            continue  # not a module: something of the package's __init__
        inside = name.startswith(f"{package}.")
        if name not in siblings and not (inside and allowed == EVERYTHING):
            found.append(f"{module} imports {name}")
    return found


def heavy_chains(module: str, sources: dict[str, str]) -> list[str]:
    """Each way in which importing ``module`` loads something HEAVY: ``a > b > numpy``."""
    found: list[str] = []
    seen: set[str] = {module}
    waiting: list[tuple[str, ...]] = [(module,)]
    while waiting:
        chain = waiting.pop()
        here = chain[-1]
        package = here.split(".")[0]
        for name in sorted(loaded_at_once(ast.parse(sources[here]), package)):
            if name.split(".")[0] in HEAVY:
                found.append(" > ".join((*chain, name)))
            following = own_module(name)
            if following in sources and following not in seen:
                seen.add(following)
                waiting.append((*chain, following))
    return found


def package_sources() -> dict[str, str]:
    """``package.name`` -> source text of every module of both packages."""
    return {
        f"{package}.{path.stem}": path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in sorted((REPOSITORY / package).glob("*.py"))
    }


@pytest.mark.parametrize("module", sorted(package_sources()))
def test_a_module_keeps_to_its_room(module: str) -> None:
    assert violations(module, package_sources()[module]) == []


def test_the_packages_have_no_folders_that_the_table_does_not_see() -> None:
    below = [
        path.relative_to(REPOSITORY).as_posix()
        for package in PACKAGES
        for path in (REPOSITORY / package).glob("*/**/*.py")
    ]
    assert below == []


@pytest.mark.parametrize("module", LIGHT)
def test_the_doorways_and_the_contract_load_nothing_heavy(module: str) -> None:
    sources = package_sources()
    if module not in sources:
        pytest.fail(f"{module} is missing")
    assert heavy_chains(module, sources) == []


def test_no_tool_imports_the_tests() -> None:
    for path in (REPOSITORY / "tools").glob("*.py"):
        names = all_imports(ast.parse(path.read_text(encoding="utf-8")), "tools")
        assert not [name for name in names if name.split(".")[0] == "tests"], path.name


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("imagenet_prep.crop", "from imagenet_prep.sources import scan", "imports imagenet_prep"),
        ("imagenet_prep.crop", "from imagenet_prep import artifacts", "imports imagenet_prep"),
        ("imagenet_prep.crop", "from . import artifacts", "imports imagenet_prep.artifacts"),
        ("imagenet_prep.crop", "def f():\n    import imagenet_prep.beton", "prep.beton"),
        ("imagenet_prep.crop", "from pathlib import Path", "is pure and imports pathlib"),
        ("imagenet_prep.cli", "import trainer.model", "imports trainer.model"),
        ("imagenet_prep.beton", "from trainer import loader", "imports trainer.loader"),
        ("imagenet_prep.beton", "from tools.demo import main", "imports tools.demo"),
        ("imagenet_prep.beton", "import click", "only cli does"),
        ("imagenet_prep.beton", "print('done')", "only cli speaks"),
        ("trainer.cli", "from imagenet_prep.sources import scan", "imports imagenet_prep.sources"),
        ("trainer.schedule", "from trainer.config import RunConfig", "imports trainer.config"),
        ("trainer.schedule", "import time", "is pure and imports time"),
        ("trainer.newcomer", "import math", "no line in MAY_IMPORT"),
        ("trainer.__init__", "from trainer.model import x", "imports trainer.model"),
    ],
)
def test_a_broken_rule_is_named(module: str, source: str, complaint: str) -> None:
    found = violations(module, f'"""A docstring."""\n{source}\n')
    assert len(found) == 1
    assert complaint in found[0]


def test_a_module_without_docstring_is_named() -> None:
    assert violations("trainer.schedule", "import math\n") == ["trainer.schedule has no docstring"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("imagenet_prep.cli", "from imagenet_prep import __version__, crop\nimport click"),
        ("imagenet_prep.cli", "print('hello')"),
        ("imagenet_prep.sample", "from imagenet_prep.artifacts import publish\nimport os"),
        ("trainer.model", "from trainer import lrn\nimport torch"),
        ("trainer.predict", "from imagenet_prep.crop import crop_pixels"),
        (
            "trainer.loader",
            "from trainer.order import ORDERS\nfrom imagenet_prep.artifacts import Stats",
        ),
    ],
)
def test_what_the_table_allows_is_not_complained_about(module: str, source: str) -> None:
    assert violations(module, f'"""A docstring."""\n{source}\n') == []


def test_a_heavy_import_is_found_through_other_modules() -> None:
    sources = {
        "trainer.cli": "from trainer import record\nfrom trainer.config import x",
        "trainer.record": "try:\n    import numpy\nexcept ImportError:\n    pass",
        "trainer.config": "import math",
    }
    assert heavy_chains("trainer.cli", sources) == ["trainer.cli > trainer.record > numpy"]


def test_imports_in_functions_and_for_types_do_not_count_as_loading() -> None:
    sources = {
        "trainer.cli": (
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    import torch\n"
            "def run():\n    import torch\n    from trainer.model import x\n"
        ),
        "trainer.model": "import torch",
    }
    assert heavy_chains("trainer.cli", sources) == []
