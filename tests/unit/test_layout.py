"""Imports point one way through the rooms of the package, and heavy libraries stay in theirs."""

import ast
from pathlib import Path

import layout

TREE = Path(__file__).parents[2]


def test_every_import_between_rooms_points_down_the_order():
    assert layout.forbidden(TREE) == []


def test_an_import_that_points_up_and_a_room_without_a_place_are_named(tmp_path):
    package = tmp_path / "evalkit"
    for name in ("run", "storage", "attic"):
        (package / name).mkdir(parents=True)
    (package / "run" / "pipeline.py").write_text("from evalkit.storage import paths\n")
    (package / "storage" / "paths.py").write_text("def f():\n    from evalkit.run import pipeline\n")
    (package / "attic" / "old.py").write_text("")
    assert layout.forbidden(tmp_path) == [
        "room attic has no place in the order",
        "evalkit/storage/paths.py imports evalkit.run.pipeline",
    ]


def test_heavy_libraries_are_imported_in_one_place():
    homes = {
        "hydra": {"config", "cli"},
        "omegaconf": {"config"},
        "transformers": {"models"},
        "ranx": {"scoring"},
        "ray": {"engines"},
        "mteb": {"mteb"},
        "triton": {"kernels", "maxsim"},
        "numba": {"kernels"},
        "llvmlite": {"kernels"},
    }
    found = {
        (library, layout.room(module))
        for module, path in layout.modules(TREE).items()
        for library in libraries(path)
        if library in homes
    }
    assert sorted((library, room) for library, room in found if room not in homes[library]) == []


def libraries(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]
