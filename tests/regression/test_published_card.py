"""The ledger of published scores against the model card itself, cell by cell, where the card is at hand."""

import pytest
from shared_material import SHARED

from evalkit.scoring.published import published_scores, stated_averages

TABLES = (("beir", "ndcg@10"), ("msmarco", "mrr@10"), ("miracl", "ndcg@10"), ("mmarco", "mrr@10"))
TABLES += (("matryoshka", "ndcg@10"), ("matryoshka", "mrr@10"))
"""The card's tables in its order."""
COLUMNS = {
    "jina-colbert-v2": ("jina-colbert-v2", 128),
    "jina-colbert-v1": ("jina-colbert-v1-en", 128),
    "ColBERTv2.0": ("colbertv2", 128),
    "BM25": ("bm25", None),
    "BM-25": ("bm25", None),
    "mDPR (zero shot)": ("mdpr", 768),
    "ColBERT-XM": ("colbert-xm", 128),
    **{f"dim={dim}": ("jina-colbert-v2", dim) for dim in (128, 96, 64)},
}
ROWS = {"webis-touche": "webis-touche2020", "msmarco": "dev-small"}


@pytest.fixture
def card():
    """Return the numbers that the card prints, by table, metric, system, dim and row."""
    path = SHARED / "model-card.md"
    if not path.is_file():
        pytest.skip(f"the model card is not here ({path}); set EVALKIT_SHARED to the folder that holds it")
    found, tables = {}, iter(TABLES)
    for line in path.read_text(encoding="utf-8").splitlines():
        first, *others = (cell.strip(" *") for cell in line.strip("| ").split("|"))
        if line.startswith("|") and first in ("NDCG@10", "MRR@10"):
            table, systems = next(tables), [COLUMNS[name] for name in others]
        elif line.startswith("|") and others[0][:1].isdigit():
            for system, value in zip(systems, others, strict=True):
                found[(*table, *system, ROWS.get(first.lower(), first.lower()))] = float(value)
    return found


def test_every_cell_of_the_card_stands_in_the_ledger_as_printed(card):
    ledger = {
        (score.table, score.metric, score.system, score.dim, score.dataset.split("/")[-1]): score.value
        for score in published_scores()
        if score.source == "card"
    }
    assert ledger == {key: value for key, value in card.items() if key[-1] != "avg"}


def test_every_average_of_the_card_stands_in_the_ledger_as_printed(card):
    ledger = {(one.table, one.metric, one.system, one.dim, "avg"): one.value for one in stated_averages()}
    assert ledger == {key: value for key, value in card.items() if key[-1] == "avg"}
