"""Measured scores in other projects' formats: MTEB's result JSON, Hugging Face's `model-index` and `.eval_results`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from evalkit.scoring.decimals import rounded
from evalkit.scoring.mteb_results import TASKS, metric_of, split_of, task_of
from evalkit.storage import keys
from evalkit.storage.results import CellScores

PLAIN = re.compile(r"[A-Za-z](?:[\w@./-]|:(?=\w)| (?=\w))*", re.ASCII)
"""Texts that YAML reads as themselves without quotes, unless they are in RESERVED."""
RESERVED = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
MTEB_VERSION = "2.0.0"
"""The release of mteb whose result schema is written; its reader needs the version."""
BENCHMARKS = "mteb/"
"""The owner of the Hub repositories that are registered as benchmarks; the tasks are in their eval.yaml."""
MAIN_METRIC = "ndcg@10"
"""The main score of all these tasks, also of MS MARCO, whose main metric on the card is MRR@10."""
LANGUAGES = {
    "ar": "ara-Arab",
    "bn": "ben-Beng",
    "de": "deu-Latn",
    "en": "eng-Latn",
    "es": "spa-Latn",
    "fa": "fas-Arab",
    "fi": "fin-Latn",
    "fr": "fra-Latn",
    "hi": "hin-Deva",
    "id": "ind-Latn",
    "it": "ita-Latn",
    "ja": "jpn-Jpan",
    "ko": "kor-Kore",
    "nl": "nld-Latn",
    "pt": "por-Latn",
    "ru": "rus-Cyrl",
    "sw": "swa-Latn",
    "te": "tel-Telu",
    "th": "tha-Thai",
    "vi": "vie-Latn",
    "yo": "yor-Latn",
    "zh": "zho-Hans",
}
"""MTEB's language tags. Its MIRACLRetrieval has most of them; Italian, Dutch, Portuguese and Vietnamese are from its
other tasks."""
TAGS = {"xquad/ar": "arb-Arab"}
"""The datasets whose MTEB task has another tag for its language."""


def main_metric_of(cell: CellScores) -> str:
    """Return the metric to export as `main_score`: that of MTEB's task, else the dataset's own."""
    own = cell.dataset in TASKS or cell.dataset.partition("/")[0] in ("miracl", "xquad")
    return MAIN_METRIC if own and MAIN_METRIC in cell.metrics else cell.main_metric


def mteb_files(cells: Sequence[CellScores]) -> dict[str, str]:
    """Return MTEB's result files by path, `model/revision/Task.json`, and each model's model_meta.json."""
    grouped: dict[tuple[str, str, str], list[CellScores]] = {}
    for cell in cells:
        grouped.setdefault((model_name(cell), revision(cell), task_of(cell.dataset)[0]), []).append(cell)
    files = {}
    for (model, version, task), members in sorted(grouped.items()):
        scores: dict[str, list[dict[str, Any]]] = {}
        for cell in members:
            scores.setdefault(split_of(cell.dataset, cell.split), []).append(_entry(cell))
        result = {
            "dataset_revision": "+".join(dict.fromkeys(_corpus(cell) for cell in members)),
            "task_name": task,
            "mteb_version": MTEB_VERSION,
            "scores": scores,
            "evaluation_time": round(sum(sum(_seconds(cell.wall_s)) for cell in members), 3),
            "kg_co2_emissions": None,
        }
        files[f"{model}/{version}/{task}.json"] = _json(result)
        meta = {"name": f"evalkit/{model}", "revision": version, "languages": None, "loader": None}
        files[f"{model}/{version}/model_meta.json"] = _json(meta)
    return files


def _entry(cell: CellScores) -> dict[str, Any]:
    _, subset = task_of(cell.dataset)
    metrics = {metric_of(metric): rounded(value, 5) for metric, value in sorted(cell.metrics.items())}
    main = rounded(cell.metrics[main_metric_of(cell)], 5)
    languages = [TAGS.get(cell.dataset) or LANGUAGES.get(cell.language, cell.language)]
    return {**metrics, "main_score": main, "hf_subset": subset, "languages": languages}


def _seconds(wall_s: Mapping[str, float]) -> list[float]:
    return [wall_s[name] for name in ("encode_and_search", "score") if name in wall_s]


def _corpus(cell: CellScores) -> str:
    return f"xxh3:{cell.protocol.get('corpus')}"


def model_name(cell: CellScores) -> str:
    """Return a system's name with its dim, in a form that is valid as a folder name."""
    return keys.system_label(cell.model.replace("/", "__").replace(":", "__"), cell.dim)


def revision(cell: CellScores) -> str:
    """Return the checkpoint's revision, or "no_revision_available"."""
    checkpoint = cell.environment.get("checkpoint")
    known = checkpoint.get("revision") if isinstance(checkpoint, Mapping) else None
    return str(known or "no_revision_available")


def model_index(cells: Sequence[CellScores]) -> dict[str, str]:
    """Return a `model-index` block per system, as YAML for the head of its model card."""
    grouped: dict[str, list[CellScores]] = {}
    for cell in cells:
        grouped.setdefault(model_name(cell), []).append(cell)
    files = {}
    for name, members in sorted(grouped.items()):
        block = {"model-index": [{"name": name, "results": [_result(cell) for cell in members]}]}
        files[f"{name}.yaml"] = "\n".join(_yaml_lines(block, "")) + "\n"
    return files


def benchmark_of(dataset: str, hub: Mapping[str, Any] | None) -> str | None:
    """Return the Hub repository of a dataset's benchmark, or None if MTEB has none; `hub` is from the dataset's config.

    >>> benchmark_of("beir/fiqa", {"repo": "mteb/fiqa"}), benchmark_of("demo", None)
    ('mteb/fiqa', None)
    """
    if dataset.startswith("nanobeir/") and dataset in TASKS:  # the config reads a copy in another repository
        return f"{BENCHMARKS}{TASKS[dataset]}"
    repo = str((hub or {}).get("repo", ""))
    return repo if repo.startswith(BENCHMARKS) else None


def eval_results(cells: Sequence[CellScores], hubs: Mapping[str, Mapping[str, Any] | None]) -> dict[str, str]:
    """Return Hugging Face's evaluation results by path, `MODEL/TASK.yaml`, for a model repository's `.eval_results/`.

    There is one for each system with weights and each dataset that is registered on the Hub as a benchmark of MTEB.
    Task ids and the scale from 0 to 100 are MTEB's. `hubs` has the Hub copy of each dataset, from its config. The
    revision is included if the cell was computed from that copy.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    grouped: dict[tuple[str, str], list[EvalResultEntry]] = {}
    for cell in cells:
        hub = hubs.get(cell.dataset)
        if cell.dim is None or (benchmark := benchmark_of(cell.dataset, hub)) is None:
            continue
        task, subset = task_of(cell.dataset)
        pinned, metric = str((hub or {}).get("revision")), main_metric_of(cell)
        source = str(cell.environment.get("dataset_source", ""))
        entry = EvalResultEntry(
            dataset_id=benchmark,
            task_id=f"{task}_{subset}_{split_of(cell.dataset, cell.split)}",
            value=rounded(100 * cell.metrics[metric], 3),
            dataset_revision=pinned if benchmark in source and pinned in source else None,
            date=str(cell.environment["finished"])[:10] if "finished" in cell.environment else None,
            notes=f"{metric} by evalkit {cell.environment.get('evalkit')}, dim {cell.dim}, corpus {_corpus(cell)}",
        )
        grouped.setdefault((model_name(cell), task), []).append(entry)
    return {
        f"{model}/{task}.yaml": "\n".join(_yaml_lines(eval_result_entries_to_yaml(entries), "")) + "\n"
        for (model, task), entries in sorted(grouped.items())
    }


def _yaml_lines(value: Any, indent: str) -> Iterator[str]:
    """Yield a mapping or list as lines of YAML. PyYAML would take two seconds for the whole card.

    >>> "|".join(_yaml_lines({"a": [{"b": "x: y", "c": 0.1}]}, ""))
    'a:|- b: "x: y"|  c: 0.1'
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            if isinstance(item, Mapping):
                yield f"{indent}{_scalar(name)}:"
                yield from _yaml_lines(item, f"{indent}  ")
            elif isinstance(item, list):
                yield f"{indent}{_scalar(name)}:"
                yield from _yaml_lines(item, indent)
            else:
                yield f"{indent}{_scalar(name)}: {_scalar(item)}"
        return
    for item in value:
        first, *rest = _yaml_lines(item, f"{indent}  ")
        yield f"{indent}- {first[len(indent) + 2 :]}"
        yield from rest


def _scalar(value: Any) -> str:
    """Return a scalar as YAML. A text that YAML could read as another type is quoted as in JSON.

    A number is written without an exponent, because YAML 1.1 reads `5e-05`, which has no decimal point, as a text.

    >>> [_scalar(value) for value in ("ndcg@10", "no", "1e3", 0.5, "xxh3:0", 0.00005)]
    ['ndcg@10', '"no"', '"1e3"', '0.5', 'xxh3:0', '0.00005']
    """
    if isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in RESERVED:
        return value
    if isinstance(value, float):
        return f"{Decimal(repr(value)):f}"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _result(cell: CellScores) -> dict[str, Any]:
    task, subset = task_of(cell.dataset)
    dataset = {"type": cell.dataset, "name": task, "config": subset, "split": cell.split, "revision": _corpus(cell)}
    metrics = [
        {"type": metric_of(metric), "value": rounded(value, 5), "name": metric}
        for metric, value in sorted(cell.metrics.items(), key=lambda item: (item[0] != cell.main_metric, item[0]))
    ]
    return {"task": {"type": "retrieval", "name": "Retrieval"}, "dataset": dataset, "metrics": metrics}


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
