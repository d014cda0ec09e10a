"""The card's own inconsistencies: averages that do not follow from their rows, and likely typing errors."""

from __future__ import annotations

from evalkit.report.grid import Column, Grid, Line
from evalkit.report.rounding import ABSENT, dim, fixed
from evalkit.scoring.published import audit, claims, disagreements, published_scores


def audit_table() -> Grid:
    """Return the card's stated averages and their recomputed values."""
    columns = (
        *(Column("table"), Column("system", "name"), Column("dim", "number"), Column("rows", "number")),
        *(Column("stated", "number"), Column("recomputed", "number"), Column("holds")),
        Column("follows without", moves=1),
    )
    lines = []
    for found in audit():
        stated = found.stated
        without = "; or ".join(" and ".join(dropped) for dropped in found.explained_by_dropping) or ABSENT
        what = (stated.table, stated.system, dim(stated.dim), str(len(stated.rows)))
        numbers = (fixed(stated.value, stated.digits), fixed(found.recomputed, 4), "yes" if found.holds else "NO")
        lines.append(Line((*what, *numbers, without)))
    return Grid(columns, lines)


def audit_lines() -> list[str]:
    """Return lines about likely typing errors of the card, cells that other sources contradict, and other averages."""
    lines = [
        f"likely slip: {score.system} on {score.dataset}: {score.slip}" for score in published_scores() if score.slip
    ]
    lines += [
        f"different elsewhere: {found.card.system} on {found.card.dataset}: {found.card.metric} "
        f"{fixed(found.card.value, found.card.digits)} on the card, {found.other.source} has "
        f"{fixed(found.other.value, found.other.digits)}"
        for found in disagreements()
    ]
    lines += [
        f"stated elsewhere: {claim.system} {fixed(claim.value, claim.digits)} ({claim.stated}): the {claim.table} rows "
        f"with {' and '.join(claim.also)} give {fixed(claim.recomputed, 4)}, it "
        f"{'holds' if claim.holds else 'DOES NOT HOLD'}"
        for claim in claims()
    ]
    return lines
