"""The card's own inconsistencies: averages that do not follow from their rows, and cells that are likely slips."""

from __future__ import annotations

from rich.table import Table

from evalkit.scoring.published import audit, claims, disagreements, published_scores


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


def audit_lines() -> list[str]:
    """Return the card's cells that are likely slips or that others give otherwise, and averages stated elsewhere."""
    lines = [
        f"likely slip: {score.system} on {score.dataset}: {score.slip}" for score in published_scores() if score.slip
    ]
    lines += [
        f"otherwise elsewhere: {found.card.system} on {found.card.dataset}: {found.card.metric} "
        f"{found.card.value:.{found.card.digits}f} on the card, {found.other.source} has "
        f"{found.other.value:.{found.other.digits}f}"
        for found in disagreements()
    ]
    lines += [
        f"stated elsewhere: {claim.system} {claim.value:.{claim.digits}f} ({claim.stated}): the {claim.table} rows "
        f"with {' and '.join(claim.also)} give {claim.recomputed:.4f}, it {'holds' if claim.holds else 'DOES NOT HOLD'}"
        for claim in claims()
    ]
    return lines
