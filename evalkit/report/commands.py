"""The command that reproduces a cell, from the packaged configs and from what a run was made with."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from evalkit.config.settings import configs_dir, group_files
from evalkit.storage.results import CellScores, flat

OWN_FOLDER = "folder"
"""The dataset config that reads a folder of the user's own."""
FACTS = frozenset({"name", "kind", "licence", "source", "citation", "parameters", "verify", "checksums"})
"""Settings that describe a model or a dataset and change no score."""
SOURCES = frozenset({"sources", "ir_datasets_id", "hub", "counts", "checksum", "mean_characters", "path"})
"""Where a dataset comes from and what it should hold; another copy of it gives the same scores."""


class Packaged(NamedTuple):
    """The packaged configs by the word that chooses them (`model=WORD`, `dataset=WORD`), as their YAML states them."""

    models: Mapping[str, Mapping[str, Any]]
    datasets: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Any]
    """config.yaml: the settings of search and store."""

    def language(self, dataset: str) -> str:
        """Return a dataset's language, or nothing for one that no packaged config names."""
        return next((str(one.get("language")) for one in self.datasets.values() if one.get("name") == dataset), "")


def packaged() -> Packaged:
    """Read the packaged configs, and those in the user's own folders of configs."""
    return Packaged(_group("model"), _group("dataset"), _yaml(configs_dir() / "config.yaml"))


def _group(group: str) -> dict[str, Mapping[str, Any]]:
    return {name: _yaml(path) for name, path in group_files(group).items()}


def _yaml(path: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return dict(yaml.load(path.read_text(encoding="utf-8"), Loader=loader))  # noqa: S506 (a SafeLoader either way)


def command(system: str, dim: int | None, dataset: str, configs: Packaged) -> str:
    """Return the command that measures a cell with the packaged settings.

    >>> nothing = Packaged({}, {}, {})
    >>> command("bm25", None, "beir/nfcorpus", nothing), command("mine", 64, "demo", nothing)
    ('evalkit run model=bm25 dataset=beir/nfcorpus', 'evalkit run model=mine dim=64 dataset=demo')
    """
    words = ["evalkit", "run", f"model={_word(configs.models, system)}"]
    words += [] if dim is None else [f"dim={dim}"]
    return shlex.join([*words, f"dataset={_word(configs.datasets, dataset)}"])


def run_command(cell: CellScores, saved: Mapping[str, Any] | None, configs: Packaged) -> str:
    """Return the command that repeats a run: that of its cell, and every setting in which `saved` differs from it.

    `saved` is the run's config.yaml, None where that cannot be read. Where the machine's own settings (device, batches)
    differ, the scores do not, so those are not named.
    """
    if "run_file" in cell.protocol:
        score = ["evalkit", "score", "run.trec.gz", "--system", cell.model]
        return shlex.join([*score, f"dataset={_word(configs.datasets, cell.dataset)}"])
    if saved is None:
        return command(cell.model, cell.dim, cell.dataset, configs)
    own = cell.dataset not in {one.get("name") for one in configs.datasets.values()}
    word = OWN_FOLDER if _section(saved, "dataset").get("path") else "ir-datasets"
    words = command(cell.model, cell.dim, word if own else cell.dataset, configs)
    return " ".join([words, *map(shlex.quote, _changed(cell, saved, configs))])


def _word(group: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """Return the word that chooses a config by its name; a name that no config has stands for itself."""
    return next((word for word, values in group.items() if values.get("name") == name), name)


def _changed(cell: CellScores, saved: Mapping[str, Any], configs: Packaged) -> Iterator[str]:
    """Yield the overrides that lead from the packaged configs to a run's settings."""
    model, dataset = _section(saved, "model"), _section(saved, "dataset")
    of_model = configs.models.get(_word(configs.models, cell.model), {})
    of_dataset = configs.datasets.get(_word(configs.datasets, cell.dataset))
    asked = {name: value for name, value in of_model.items() if name not in {*FACTS, "checkpoints"}}
    for word in _differences("model", flat(_resolved(asked, cell)), flat(model)):
        name, _, value = word.removeprefix("model.").partition("=")
        given = asked.get(name)
        if isinstance(given, Mapping) and value.startswith("["):
            yield f"model.{name}={{{_key(given, cell)}:{value}}}"  # Hydra cannot put a list in the place of a mapping
        else:
            yield word
    weights = _section(_section(model, "checkpoints"), str(cell.dim))
    if weights.get("path"):
        yield f"model.checkpoints.{cell.dim}.path={weights['path']}"
    if of_dataset is None:
        names = ("name", "path", "ir_datasets_id", "language")
        yield from (f"dataset.{name}={dataset[name]}" for name in names if dataset.get(name) not in (None, "unknown"))
    else:
        kept = {name: value for name, value in of_dataset.items() if name not in FACTS | SOURCES}
        yield from _differences("dataset", flat(kept), flat(dataset))
    for part in ("search", "store"):
        yield from _differences(part, flat(_section(configs.defaults, part)), flat(_section(saved, part)))


def _resolved(values: Mapping[str, Any], cell: CellScores) -> dict[str, Any]:
    """Return nested settings with each that is given per dataset or language replaced by this cell's."""
    return {
        name: _resolved(found, cell) if isinstance(found := _for_dataset(value, cell), Mapping) else found
        for name, value in values.items()
    }


def _for_dataset(value: Any, cell: CellScores) -> Any:
    if isinstance(value, Mapping) and ("default" in value or cell.language in value):
        return value[_key(value, cell)]
    return value


def _key(value: Mapping[str, Any], cell: CellScores) -> str:
    """Return the name under which settings given per dataset or language have this cell's."""
    return next(
        name for name in (cell.dataset, cell.dataset.partition("/")[0], cell.language, "default") if name in value
    )


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _differences(part: str, asked: Mapping[str, Any], got: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{part}.{name}={_typed(got[name])}" for name, value in asked.items() if got.get(name, value) != value)


def _typed(value: Any) -> str:
    """Return a value as it is typed on the command line.

    >>> _typed(["text", "title"]), _typed(False), _typed(None), _typed(200)
    ('[text,title]', 'false', 'null', '200')
    """
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
