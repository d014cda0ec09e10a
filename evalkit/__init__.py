"""evalkit re-measures a retrieval model card, cell by cell, and says of every cell whether it holds.

From Python: `evalkit.run`, `evalkit.load`, `evalkit.leaderboard`, `evalkit.compare` (see `evalkit.api`), and
`evalkit.mteb`. They are imported when they are first asked for, by name: `import evalkit` stays instant, and imports
stay one-way.
"""

from importlib import import_module

__version__ = "0.2.0"

_FUNCTIONS = ("compare", "leaderboard", "load")
_MODULES = ("mteb", "run")


def __getattr__(name: str) -> object:
    """Return a function of the API, a module, or the package that `evalkit.run` is and that can be called."""
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _FUNCTIONS:
        return getattr(import_module(f"{__name__}.api"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    """Return what can be asked for."""
    return sorted([*globals(), *_MODULES, *_FUNCTIONS])
