"""What can be run and what has been run, as tables for a terminal."""

from __future__ import annotations

from pathlib import Path

import yaml
from rich.table import Table

from evalkit import results
from evalkit.compose import all_settings
from evalkit.config import configs_dir, group_names
from evalkit.errors import ConfigError, nearest
from evalkit.published import audit
from evalkit.report.table import rows, terminal

LISTINGS = ("models", "datasets", "engines", "experiments", "settings", "runs")


def listing(what: str, *, results_dir: Path) -> Table:
    """Return the list that `evalkit ls WHAT` prints. Raises ConfigError when there is no such list."""
    if what not in LISTINGS:
        msg = f"ls {what!r} unknown; {nearest(what, LISTINGS)}"
        raise ConfigError(msg)
    if what == "runs":
        return terminal(rows(results.read_all(results_dir)))
    if what == "settings":
        return _settings()
    return _group(what.removesuffix("s"))


def _group(group: str) -> Table:
    shown = {
        "model": ("kind", "checkpoints", "dtype", "licence"),
        "dataset": ("language", "split", "main_metric", "counts", "drop_self"),
        "engine": ("device", "batch_tokens"),
        "experiment": (),
    }[group]
    table = Table("name", *(name.replace("checkpoints", "dims") for name in shown), box=None, pad_edge=False)
    for name in group_names(group):
        values = yaml.safe_load((configs_dir() / group / f"{name}.yaml").read_text(encoding="utf-8")) or {}
        table.add_row(name, *(_short(key, values.get(key)) for key in shown))
    return table


def _short(key: str, value: object) -> str:
    if value is None:
        return "–"
    if key == "checkpoints" and isinstance(value, dict):
        return ", ".join(str(dim) for dim in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:,}" for name, number in value.items() if number is not None)
    return str(value)


def audit_table() -> Table:
    """Return the card's stated averages beside their recomputation."""
    columns = ("table", "system", "dim", "rows", "stated", "recomputed", "holds", "comes out without")
    table = Table(*columns, box=None, pad_edge=False)
    for found in audit():
        stated = found.stated
        table.add_row(
            stated.table,
            stated.system,
            "–" if stated.dim is None else str(stated.dim),
            str(len(stated.rows)),
            f"{stated.value:.{stated.digits}f}",
            f"{found.recomputed:.4f}",
            "yes" if found.holds else "NO",
            "; or ".join(" and ".join(dropped) for dropped in found.explained_by_dropping) or "–",
        )
    return table


def _settings() -> Table:
    table = Table("setting", box=None, pad_edge=False)
    for key in all_settings():
        table.add_row(key)
    return table
