"""evalkit re-measures a retrieval model card, cell by cell, and says of every cell whether it holds.

From Python: `evalkit.run`, `evalkit.load`, `evalkit.leaderboard`, `evalkit.compare` (see `evalkit.api`), and
`evalkit.mteb`. They are imported on first use, so that `import evalkit` is fast and this module depends on no other.
"""

from importlib import import_module

__version__ = "0.2.0"

_FUNCTIONS = ("compare", "leaderboard", "load")
_MODULES = ("mteb", "run")


def __getattr__(name: str) -> object:
    """Import a function of the API or a module. `evalkit.run` is a package that can be called like a function."""
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _FUNCTIONS:
        return getattr(import_module(f"{__name__}.api"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    """Return all names, including those that are not imported yet."""
    return sorted([*globals(), *_MODULES, *_FUNCTIONS])
