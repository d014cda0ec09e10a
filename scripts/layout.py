"""Print the import graph of the package.

    python scripts/layout.py [TREE]      # TREE is the root of a checkout; default: this one

A room is a folder of `evalkit/` or a module directly in it. Imports must point down the ORDER below; a room may not
import another one of its own line. The output lists the rooms by level, with their number of files, and the imports
that break the order. All imports of one room by another count as one arrow. A circle is a pair of rooms that import
each other.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = "evalkit"
ORDER = (
    ("__main__",),
    ("cli", "api", "mteb"),
    ("report",),
    ("analysis", "operations"),
    ("run",),
    ("engines",),
    ("models", "bm25", "datasets", "scoring"),
    ("maxsim", "storage"),
    ("kernels", "config"),
    ("ranking", "ragged"),
    ("errors",),
    ("types", "texts", "__init__"),
)
"""Who may import whom: a room imports only rooms on the lines below its own."""


def modules(tree: Path) -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    found = {}
    for path in sorted((tree / PACKAGE).rglob("*.py")):
        parts = path.relative_to(tree).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the package's modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            for name in node.names:
                full = f"{node.module}.{name.name}"
                yield full if full in known else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == PACKAGE)


def room(module: str) -> str:
    """Return the room that a module is in.

    >>> room("evalkit.run.pipeline"), room("evalkit.cli"), room("evalkit")
    ('run', 'cli', '__init__')
    """
    return [*module.split("."), "__init__"][1]


def arrows(tree: Path) -> dict[tuple[str, str], list[str]]:
    """Return the imports between rooms: for each pair (importing, imported), a line per import."""
    known = modules(tree)
    found: dict[tuple[str, str], list[str]] = {}
    for module, path in known.items():
        for target in imports(path, known):
            ends = (room(module), room(target))
            if ends[0] != ends[1]:
                found.setdefault(ends, []).append(f"{path.relative_to(tree)} imports {target}")
    return found


def forbidden(tree: Path) -> list[str]:
    """Return every import that does not point down the ORDER, and every room that the ORDER lacks."""
    line = {name: number for number, names in enumerate(ORDER) for name in names}
    missing = [f"room {name} has no place in the order" for name in sorted({*map(room, modules(tree))} - {*line})]
    wrong = [
        importing
        for (here, there), files in arrows(tree).items()
        for importing in files
        if here in line and there in line and line[there] <= line[here]
    ]
    return [*missing, *wrong]


def levels(tree: Path) -> dict[str, int]:
    """Return each room's level: one more than the highest room that it imports; rooms in a circle share theirs."""
    edges = {(here, there) for here, there in arrows(tree)}
    found = dict.fromkeys(map(room, modules(tree)), 1)
    for _ in found:  # a longest path has at most as many steps as there are rooms
        for here, there in edges:
            if (there, here) not in edges:
                found[here] = max(found[here], found[there] + 1)
    return found


def main() -> None:
    """Print rooms by level, the counts, and the imports that break the order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", nargs="?", type=Path, default=Path(__file__).resolve().parents[1], metavar="TREE")
    tree = parser.parse_args().tree
    if not modules(tree):
        parser.error(f"{tree}: got no {PACKAGE}/*.py, wanted the root of a checkout")
    by_level = levels(tree)
    between = arrows(tree)
    files = [room(module) for module in modules(tree)]
    for level in sorted(set(by_level.values()), reverse=True):
        rooms = sorted(name for name in by_level if by_level[name] == level)
        print(f"level {level:2}  " + "  ".join(f"{name} ({files.count(name)})" for name in rooms))
    circles = sorted({tuple(sorted(pair)) for pair in between if pair[::-1] in between})
    print(f"{len(by_level)} rooms, {max(by_level.values())} levels, {len(between)} arrows, {len(circles)} circles")
    for line in forbidden(tree):
        print(f"not in order: {line}")


if __name__ == "__main__":
    main()
