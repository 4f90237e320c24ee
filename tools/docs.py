"""Writes the generated parts of docs/: cli.md, and the tables of recipes.md.

    python tools/docs.py

cli.md holds the help text of every command and the list of error codes, both collected from the
source. The tables of recipes.md come from the records in tools/records.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
PACKAGES = ("imagenet_prep", "trainer")
_WIDTH = 100
_CODE = re.compile(r"[a-z0-9_<>]+(\.[a-z0-9_<>]+)+")
_GENERATED = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_INTRODUCTION = """\
# Commands, options and error codes

Written by `tools/docs.py` (`make docs`). Do not edit.

Exit status: 0 done; 1 the data or the run failed; 2 wrong usage; 130 interrupted (143 by SIGTERM,
129 by SIGHUP), and the same command continues. Results go to stdout, progress and messages to
stderr. With `--json`, stdout is one JSON object, also for an error:
`{"error": {"code": "...", "message": "..."}}`.
"""


_CODES = """\
Codes of commands, and of images that failed (`image.…`; `imagenet-prep failures` lists those).
What a message fills in is in angle brackets."""


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """A click command and its subcommands -> (name as typed, help text)."""
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            inner = command.commands[name]
            yield from commands(inner, _context(inner, name, context))


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    width = {"terminal_width": _WIDTH, "max_content_width": _WIDTH}
    settings = {**command.context_settings, **width}
    return click.Context(command, info_name=name, parent=parent, **settings)


def error_codes() -> dict[str, str]:
    """Code -> template of its message, for every error in the source that has a code."""
    trees = {
        path: ast.parse(path.read_text(encoding="utf-8"))
        for package in PACKAGES
        for path in sorted((REPOSITORY / package).rglob("*.py"))
    }
    kinds = {"ToolError", "UsageError", "ImageError"}
    classes = [n for tree in trees.values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    for _ in range(3):  # subclasses of subclasses
        kinds |= {c.name for c in classes if any(ast.unparse(base) in kinds for base in c.bases)}
    found: dict[str, str] = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in kinds:
                for code, message in _codes_of(node):
                    found.setdefault(code, message)
    return dict(sorted(found.items()))


def _codes_of(call: ast.Call) -> Iterator[tuple[str, str]]:
    """The codes that the first argument of a call may have, with the message's template."""
    if not call.args:
        return
    message = _template(call.args[1]) if len(call.args) > 1 else ""
    if isinstance(call.args[0], ast.JoinedStr):  # a part of the code is filled in
        code = _template(call.args[0])
        if _CODE.fullmatch(code):
            yield code, message
        return
    for node in ast.walk(call.args[0]):
        if isinstance(node, ast.Constant) and _CODE.fullmatch(str(node.value)):
            yield str(node.value), message


def _template(node: ast.expr) -> str:
    """The expression of a message -> its text, with what is filled in as ``<name>``."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(value) for value in node.values)
    if isinstance(node, ast.FormattedValue):
        names = [n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(node.value)
                 if isinstance(n, ast.Name | ast.Attribute)]  # fmt: skip
        return f"<{names[0].lower().strip('_') if names else 'value'}>"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _template(node.left) + _template(node.right)
    return "…"


def cli_page() -> str:
    """The text of docs/cli.md."""
    from imagenet_prep.cli.main import cli as prepare
    from trainer.cli.main import cli as train

    parts = [_INTRODUCTION]
    for name, group in (("imagenet-prep", prepare), ("trainer", train)):
        for path, text in commands(group, _context(group, name, None)):
            level = "##" if path == name else "###"
            plain = "\n".join(line.rstrip() for line in text.splitlines())
            parts.append(f"{level} {path}\n\n```text\n{plain}\n```\n")
    lines = [f"| `{_cell(code)}` | `{_cell(message)}` |" for code, message in error_codes().items()]
    head = ["## Error codes\n", _CODES, "", "| code | message |", "|---|---|"]
    parts.append("\n".join([*head, *lines, ""]))
    return "\n".join(parts)


def _cell(message: str) -> str:
    return message.replace("|", "\\|").replace("\n", " ")


def recipes_page(text: str) -> str:
    """The text of docs/recipes.md with its tables as the records and presets have them now."""
    from tools.recipes.record import RECORDS
    from tools.recipes.table import by_recipe, commands, table

    records = by_recipe(sorted(RECORDS.glob("recipe-*.jsonl")))
    tables = {"results": table(records), "commands": commands()}
    return _GENERATED.sub(lambda m: f"{m[1]}{tables[m[2]]}\n{m[3]}", text)


def pages() -> dict[Path, str]:
    """Path of each page with generated parts -> what it should contain."""
    recipes = DOCS / "recipes.md"
    return {
        DOCS / "cli.md": cli_page(),
        recipes: recipes_page(recipes.read_text(encoding="utf-8")),
    }


def main() -> int:
    """Writes the pages that are out of date and names them."""
    for path, text in pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(REPOSITORY)}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
