"""The command that reproduces a cell, derived from the packaged configs and the cell's own config."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from evalkit.config.files import settings_in
from evalkit.config.settings import configs_dir, group_files
from evalkit.scoring.mteb_results import Wanted
from evalkit.storage.results import CellScores, flat

OWN_FOLDER = "folder"
"""The dataset config that reads the user's own folder."""
FACTS = frozenset({"name", "kind", "licence", "source", "citation", "parameters", "verify", "checksums"})
"""Settings that describe a model or a dataset and change no score."""
SOURCES = frozenset({"sources", "ir_datasets_id", "hub", "counts", "checksum", "mean_characters", "path"})
"""Settings that say where a dataset is read from and what it should contain; another copy has the same scores."""


class Packaged(NamedTuple):
    """The packaged configs as parsed from YAML, by the word that chooses them (`model=WORD`, `dataset=WORD`)."""

    models: Mapping[str, Mapping[str, Any]]
    datasets: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Any]
    """config.yaml: the settings of search and store."""

    def language(self, dataset: str) -> str:
        """Return a dataset's language, or "" if no packaged config has the dataset."""
        return next((str(one.get("language")) for one in self.datasets.values() if one.get("name") == dataset), "")

    def word(self, dataset: str) -> str:
        """Return the word that chooses a dataset by its name."""
        return _word(self.datasets, dataset)

    def wanted(self) -> list[Wanted]:
        """Return the datasets that mteb may have results for: those whose config has all fields of `Wanted`."""
        return [
            Wanted(*(str(one[name]) for name in Wanted._fields))
            for one in self.datasets.values()
            if all(name in one for name in Wanted._fields)
        ]


def packaged() -> Packaged:
    """Read the packaged configs and those in the user's own config folders."""
    return Packaged(_group("model"), _group("dataset"), settings_in(configs_dir() / "config.yaml", "run"))


def _group(group: str) -> dict[str, Mapping[str, Any]]:
    return {name: settings_in(path, group) for name, path in group_files(group).items()}


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
    """Return the command that computes a cell again, with every setting of `saved` that is not the packaged one.

    `saved` is the cell's config.yaml, or None if it cannot be read. Settings of the machine (device, batches) are left
    out because they do not change scores.
    """
    if "run_file" in cell.protocol:
        score = ["evalkit", "score", "run.trec.gz", "--system", cell.model]
        return shlex.join([*score, f"dataset={_word(configs.datasets, cell.dataset)}"])
    if saved is None:
        return command(cell.model, cell.dim, cell.dataset, configs)
    own = cell.dataset not in {one.get("name") for one in configs.datasets.values()}
    word = OWN_FOLDER if _section(saved, "dataset").get("path") else "ir-datasets"
    shortest = command(cell.model, cell.dim, word if own else cell.dataset, configs)
    return " ".join([shortest, *map(shlex.quote, _changed(cell, saved, configs))])


def _word(group: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """Return the word that chooses the config of a name; without such a config, the name itself."""
    return next((word for word, values in group.items() if values.get("name") == name), name)


def _changed(cell: CellScores, saved: Mapping[str, Any], configs: Packaged) -> Iterator[str]:
    """Yield the overrides that turn the packaged configs into a cell's settings."""
    model, dataset = _section(saved, "model"), _section(saved, "dataset")
    of_model = configs.models.get(_word(configs.models, cell.model), {})
    of_dataset = configs.datasets.get(_word(configs.datasets, cell.dataset))
    asked = {name: value for name, value in of_model.items() if name not in {*FACTS, "checkpoints"}}
    for word in _differences("model", flat(_resolved(asked, cell)), flat(model)):
        name, _, value = word.removeprefix("model.").partition("=")
        given = asked.get(name)
        if isinstance(given, Mapping) and value.startswith("["):
            yield f"model.{name}={{{_key(given, cell)}:{value}}}"  # Hydra cannot replace a mapping with a list
        else:
            yield word
    weights = _section(_section(model, "checkpoints"), str(cell.dim))
    if weights.get("path"):
        yield f"model.checkpoints.{cell.dim}.path={weights['path']}"
    if of_dataset is None:
        names = ("name", "path", "ir_datasets_id", "language")
        yield from (f"dataset.{name}={dataset[name]}" for name in names if dataset.get(name) not in (None, "unknown"))
        if dataset.get("split", "test") != "test":
            yield f"dataset.split={dataset['split']}"
    else:
        kept = {name: value for name, value in of_dataset.items() if name not in FACTS | SOURCES}
        yield from _differences("dataset", flat(kept), flat(dataset))
    search = _section(saved, "search")
    if (name := search.get("name", "exact")) != "exact":
        yield f"search={name}"
        yield from _differences("search", settings_in(group_files("search")[str(name)], "search"), search)
    for part in ("search", "store"):
        yield from _differences(part, flat(_section(configs.defaults, part)), flat(_section(saved, part)))


def _resolved(values: Mapping[str, Any], cell: CellScores) -> dict[str, Any]:
    """Return nested settings; those given per dataset or language are replaced by the value for this cell."""
    return {
        name: _resolved(found, cell) if isinstance(found := _for_dataset(value, cell), Mapping) else found
        for name, value in values.items()
    }


def _for_dataset(value: Any, cell: CellScores) -> Any:
    if isinstance(value, Mapping) and ("default" in value or cell.language in value):
        return value[_key(value, cell)]
    return value


def _key(value: Mapping[str, Any], cell: CellScores) -> str:
    """Return the key of this cell in a setting that is given per dataset or language."""
    return next(
        name for name in (cell.dataset, cell.dataset.partition("/")[0], cell.language, "default") if name in value
    )


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _differences(part: str, asked: Mapping[str, Any], got: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        f"{part}.{name}={_as_word(got[name])}" for name, value in asked.items() if got.get(name, value) != value
    )


def _as_word(value: Any) -> str:
    """Return a value in the syntax of the command line.

    >>> _as_word(["text", "title"]), _as_word(False), _as_word(None), _as_word(200)
    ('[text,title]', 'false', 'null', '200')
    """
    if isinstance(value, list):
        return f"[{','.join(map(_as_word, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
