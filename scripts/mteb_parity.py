"""Check that mteb computes the same scores as evalkit.

    python scripts/mteb_parity.py model=demo dim=128 dataset=demo      # the words of `evalkit run`, for one cell

The script runs the cell with evalkit. It then gives the same texts and judgements to mteb as a task, lets
`mteb.evaluate` search and score with `evalkit.mteb.encoder`, and prints the scores of both. The exit code is 1 unless
they agree to five digits. Needs evalkit[mteb]; only what the run needs is downloaded. mteb's result files go to
`results_dir`/from-mteb.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import evalkit
from evalkit import datasets
from evalkit.config import compose
from evalkit.config.settings import METRICS
from evalkit.mteb import encoder
from evalkit.report import exports
from evalkit.scoring import mteb_results
from evalkit.types import Dataset as Collection


def task(collection: Collection) -> Any:
    """Return an evalkit dataset as a retrieval task of mteb, under the name that evalkit's exports use."""
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    name, subset = mteb_results.task_of(collection.name)
    split = mteb_results.split_of(collection.name, collection.split)
    tag = exports.LANGUAGES.get(collection.language, "eng-Latn")

    class FromEvalkit(AbsTaskRetrieval):  # type: ignore[misc]  # mteb has no types
        metadata = TaskMetadata(
            name=name,
            description=f"evalkit's {collection.name}",
            reference=None,
            dataset={"path": "none/none", "revision": "local"},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=[split],
            eval_langs=[tag] if subset == "default" else {subset: [tag]},
            main_score="ndcg_at_10",
        )
        ignore_identical_ids = collection.drop_self

        def load_data(self, *_arguments: Any, **_settings: Any) -> None:
            corpus = [{"id": one.id, "title": one.title, "text": one.text} for one in collection.corpus.documents()]
            self.dataset = {
                subset: {
                    split: {
                        "corpus": Dataset.from_list(corpus),
                        "queries": Dataset.from_list([{"id": one.id, "text": one.text} for one in collection.queries]),
                        "relevant_docs": {query: dict(grades) for query, grades in collection.qrels.items()},
                        "top_ranked": None,
                    }
                }
            }
            self.data_loaded = True

    return FromEvalkit()


def main(words: list[str]) -> int:
    """Compare both and print a line per metric; return 1 if any differs in its first five digits."""
    import mteb

    config = compose.compose(words)
    began = time.monotonic()
    (cell,) = evalkit.run(*words)
    ran = time.monotonic()
    model = encoder(*words)
    loaded = time.monotonic()
    cache = mteb.ResultCache(cache_path=Path(config.results_dir) / "from-mteb")
    result = mteb.evaluate(
        model,
        task(datasets.load(config.dataset)),
        cache=cache,
        overwrite_strategy="always",
        co2_tracker=False,
        show_progress_bar=False,
    )
    done = time.monotonic()
    (one,) = result.task_results
    (entry,) = next(iter(one.scores.values()))
    print(f"{cell.run_id}, mteb {one.mteb_version}")
    print(f"evalkit run {ran - began:.1f} s, mteb.evaluate {done - loaded:.1f} s")
    wrong = 0
    for metric in METRICS:
        theirs = mteb_results.metric_of(metric)
        equal = f"{cell.metrics[metric]:.5f}" == f"{entry[theirs]:.5f}"
        wrong += not equal
        print(f"{metric}\t{cell.metrics[metric]:.5f}\t{entry[theirs]:.5f}\t{'equal' if equal else 'DIFFERS'}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
