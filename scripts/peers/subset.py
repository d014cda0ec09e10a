"""Write a subset of a BEIR folder, if the whole takes too long; its scores differ from those of the whole."""

from __future__ import annotations

import json
from pathlib import Path

from peers.environments import PeerError


def write_subset(data: Path, out: Path, *, queries: int, documents: int) -> str:
    """Write the first judged queries with their judgements, all documents judged for them and the first documents.

    The order is kept. Returns a line with the subset's size. Raises PeerError for a folder without judged queries.
    """
    head, *rows = (data / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()
    judged = {row.split("\t")[0] for row in rows if row}
    lines = (data / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    asked = {json.loads(line)["_id"]: line for line in lines}
    chosen = [query for query in asked if query in judged][:queries]
    if not chosen:
        msg = f"{data}: got no query that qrels/test.tsv judges, wanted one or more"
        raise PeerError(msg)
    kept = [row for row in rows if row and row.split("\t")[0] in chosen]
    wanted = {row.split("\t")[1] for row in kept}
    corpus = (data / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [line for place, line in enumerate(corpus) if place < documents or json.loads(line)["_id"] in wanted]
    (out / "qrels").mkdir(parents=True, exist_ok=True)
    (out / "qrels" / "test.tsv").write_text("\n".join([head, *kept]) + "\n", encoding="utf-8")
    (out / "queries.jsonl").write_text("\n".join(asked[query] for query in chosen) + "\n", encoding="utf-8")
    (out / "corpus.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return f"{out}: {len(texts):,} of {len(corpus):,} documents, {len(chosen)} of {len(judged)} queries"
