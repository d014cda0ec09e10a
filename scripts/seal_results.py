"""Convert finished cells from schema 1, which has no checksums, to schema 2, after scoring each of them again.

    python scripts/seal_results.py results

A cell is converted only if its run and judgements give exactly the same values per query and means; only `files`,
`schema_version` and `xxh3_128` of its scores.json change. All others are left as they are and listed, with exit code 1.
If a cell's folder has no judgements, they are read from the folder that --judgements NAME=DIR gives for its dataset.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from evalkit.datasets import folder
from evalkit.errors import EvalkitError, ScoreError
from evalkit.scoring import metrics
from evalkit.storage import per_query_file, results, trec
from evalkit.storage.results import CellScores
from evalkit.types import Qrels

OLD_SCHEMA = 1


def read_old(path: Path) -> CellScores:
    """Return the scores in a file of schema 1. Raises ScoreError for any other schema."""
    values = json.loads(path.read_text(encoding="utf-8"))
    fields = {each.name for each in dataclasses.fields(CellScores)} - {"files"}
    if values.get("schema_version") != OLD_SCHEMA or set(values) != fields:
        msg = f"{path}: got schema {values.get('schema_version')!r}, wanted a whole file of schema {OLD_SCHEMA}"
        raise ScoreError(msg)
    values |= {"schema_version": results.SCHEMA, "deviations": tuple(values["deviations"])}
    return CellScores(**values)


def differing(path: Path, scores: CellScores, qrels: Qrels) -> list[str]:
    """Return the metrics for which a run and its judgements give other values than those stored."""
    table = per_query_file.read(path.parent / results.PER_QUERY)
    again = metrics.score(trec.read_run(path.parent / results.RUN), qrels, table.metrics)
    found = [] if set(again.per_query) == set(table.queries) else ["the judged queries"]
    for metric in table.metrics:
        values = {query: again.per_query[query][metric] for query in table.queries}
        if list(values.values()) != table.column(metric).tolist():
            found.append(f"{metric} by query")
        if again.means[metric] != scores.metrics[metric]:
            found.append(f"{metric}, {again.means[metric]!r} for {scores.metrics[metric]!r}")
    return found


def main() -> None:
    """Convert the cells that can be reproduced and list the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results_dir", type=Path, help="a results folder, the one that holds runs/")
    parser.add_argument("--judgements", action="append", default=[], metavar="NAME=DIR", help="a BEIR-format folder")
    asked = parser.parse_args()
    folders = dict(word.split("=", 1) for word in asked.judgements)
    failed = 0
    for path in sorted((asked.results_dir / "runs").glob(f"*/{results.SCORES}")):
        try:
            scores = read_old(path)
            beside = path.parent / results.QRELS
            if beside.is_file():
                qrels: Qrels = trec.read_qrels(beside)
            else:
                qrels = folder.read_qrels(folder.qrels_file(Path(folders[scores.dataset]), scores.split))
            wrong = differing(path, scores, qrels)
        except (EvalkitError, KeyError, TypeError) as error:
            wrong = [f"{type(error).__name__}: {error}"]
        if wrong:
            failed += 1
            sys.stdout.write(f"{path}: left as it is: {'; '.join(wrong)}\n")
        else:
            results.write(scores, asked.results_dir)
            sys.stdout.write(f"{scores.run_id}: {len(qrels)} queries scored again, every value the same; sealed\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
