"""Write a small results folder: cells of bm25 and jina-colbert-v2 on nfcorpus, also with other settings."""

from pathlib import Path

from evalkit.models import weights
from evalkit.storage import keys, per_query_file, results, trec
from evalkit.storage.results import CellScores
from evalkit.types import Hit

NFCORPUS = "f3bb3cd4f0fa46d91bfc2fc10b69dba8"
ENVIRONMENT = {"evalkit": "0.1.0", "packages": {"ranx": "0.3.21"}, "checkpoint": None}
NAMED = ("dataset", "split", "model", "dim", "protocol")
"""The fields from which a run id is computed."""


def cell(**changes):
    values = {
        "model": "bm25",
        "dim": None,
        "dataset": "beir/nfcorpus",
        "split": "test",
        "language": "en",
        "main_metric": "ndcg@10",
        "metrics": {"ndcg@10": 0.32545, "mrr@10": 0.5, "recall@100": 0.25},
        "groups": {},
        "counts": {"documents": 3633, "queries": 2, "judgements": 2},
        "deviations": (),
        "protocol": {
            "k1": 0.9,
            "b": 0.4,
            "fields": ["text", "title"],
            "analyzer": "english",
            "corpus": NFCORPUS,
            "depth": 100,
            "drop_self": True,
        },
        "wall_s": {"encode_and_search": 1.5, "score": 0.5},
        "environment": ENVIRONMENT,
    }
    values |= changes
    values.setdefault("run_id", keys.run_id(*(values[name] for name in NAMED)))
    return CellScores(**values)


def published_weights(dim):
    """The record of jina-colbert-v2's weights, proven by the Hub's cache; the checksums are invented."""
    source = weights.published_weights("jina-colbert-v2").checkpoints[str(dim)]
    return {
        "folder": None,
        "origin": source.repo,
        "revision": source.revision or "a" * 40,
        "checksums": {"config.json": "c0", "tokenizer.json": "70", "model.safetensors": f"{dim}ab"},
        "parameters": 559_497_216,
        "proof": "repository",
    }


def late(*, dim=128, query_tokens=32, value=0.346, run_id=None, **changes):
    protocol = {
        "checkpoint": published_weights(dim)["checksums"],
        "query": {
            "max_tokens": query_tokens,
            "expansion": True,
            "attend_to_expansion": True,
            "marker": "[QueryMarker]",
        },
        "document": {"max_tokens": 300, "marker": "[DocumentMarker]"},
        "pooling": "tokens",
        "normalize": True,
        "stored_dtype": "float16",
        "corpus": NFCORPUS,
        "drop_self": True,
    }
    return cell(
        **({} if run_id is None else {"run_id": run_id}),
        model="jina-colbert-v2",
        dim=dim,
        metrics={"ndcg@10": value, "mrr@10": 0.5, "recall@100": 0.25},
        counts={"documents": 10, "queries": 2, "judgements": 2, "document_vectors": 1000},
        **{"protocol": protocol, "environment": {**ENVIRONMENT, "checkpoint": published_weights(dim)}, **changes},
    )


def put(folder: Path, scores: CellScores, *, per_query=None, run=None, qrels=None, dropped=None) -> Path:
    """Write a finished cell as the pipeline does."""
    path = folder / "runs" / scores.run_id
    path.mkdir(parents=True, exist_ok=True)
    value = scores.metrics[scores.main_metric]
    values = per_query or {"q1": value, "q2": value}
    table = {query: {**scores.metrics, scores.main_metric: one} for query, one in values.items()}
    (path / "per_query.tsv").write_text(per_query_file.text(table, tuple(scores.metrics)), encoding="utf-8")
    trec.write_run(run or {"q1": [Hit("d1", 1.0)]}, path / "run.trec.gz", tag="t")
    trec.write_qrels(qrels or {"q1": {"d1": 1}, "q2": {"d2": 1}}, path / "qrels.trec.gz")
    if dropped:
        trec.write_run(dropped, path / "dropped.trec.gz", tag="t")
    results.write(scores, folder)
    return path
