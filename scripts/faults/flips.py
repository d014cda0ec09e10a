"""Flip one bit in every kind of file that evalkit writes: it must be reported, repaired, or without effect."""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from trials import COMMANDS, Base, Done, Trials, forked, new_folder


class Kind(NamedTuple):
    """A kind of file, and the command that reads it."""

    pattern: str
    words: tuple[str, ...]
    """The command's words; for `run`, the results are removed first, so that the run reads the cache."""


REPORT = ("report", "--results-dir", "r", "--out", "o")
RUN = ("run",)
KINDS: Mapping[str, Kind] = {
    "scores.json": Kind("r/runs/*/scores.json", REPORT),
    "per_query.tsv": Kind("r/runs/*/per_query.tsv", REPORT),
    "run.trec.gz": Kind("r/runs/*/run.trec.gz", REPORT),
    "qrels.trec.gz": Kind("r/runs/*/qrels.trec.gz", REPORT),
    "config.yaml": Kind("r/runs/*/config.yaml", REPORT),
    "run.trec.gz, replayed": Kind("r/runs/*/run.trec.gz", ("replay", "bm25", "--results-dir", "r")),
    "qrels.trec.gz, explained": Kind("r/runs/*/qrels.trec.gz", ("explain", "bm25", "--results-dir", "r")),
    "local.yaml": Kind("r/runs/*/local.yaml", ("explain", "bm25", "--results-dir", "r")),
    "top-k manifest": Kind("c/topk/*/*.json", RUN),
    "top-k arrays": Kind("c/topk/*/*.safetensors", RUN),
    "survey": Kind("c/surveys/*.json", RUN),
    "embeddings' manifest": Kind("c/stores/*/*.json", RUN),
    "embeddings' arrays": Kind("c/stores/*/*.safetensors", RUN),
    "record of a failed run": Kind("c/jobs/*.json", ("status", "results_dir=r", "cache_dir=c")),
    "record of a fetch": Kind("c/fetched/dataset*.json", ("fetch", "--verify")),
}


def flip(path: Path, draw: random.Random) -> tuple[int, int]:
    """Change one bit of a file; return its byte and its bit."""
    data = bytearray(path.read_bytes())
    place, bit = draw.randrange(len(data)), draw.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return place, bit


def prepared(base: Base, command: str) -> Path:
    """Create a finished run, the record of a failed run and that of a fetch; every trial starts with a copy."""
    folder = new_folder(base.folder, f"flips-{command}")
    words = base.words(command)
    lost = [f"dataset.path={folder}/nowhere" if word.startswith("dataset.path=") else word for word in words]
    for each in (words, ["fetch", *words[1:]], lost):
        forked(each, folder)
    return folder


def bits(base: Base, trials: Trials, draw: random.Random, *, name: str) -> None:
    """Flip a bit of one kind of file, as often as the time allows: it must be reported or have no effect."""
    kind = KINDS[name]
    command = "vectors" if "embeddings" in name else "bm25"
    if command not in COMMANDS:
        trials.note = f"{command} was not among the systems"
        return
    seconds = trials.until - time.monotonic()
    whole = prepared(base, command)
    trials.until = time.monotonic() + seconds  # the preparation above does not count
    if not list(whole.glob(kind.pattern)):
        trials.note = f"no {kind.pattern} is written"
        return
    if command == "vectors":  # embeddings are read only if top-k lists are missing
        shutil.rmtree(whole / "c" / "topk")
    words = words_of(base, kind, command)
    wanted = None if kind.words == RUN else outputs(forked(words, whole), whole)
    while trials.more():
        folder = new_folder(base.folder, "flip")
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        path = draw.choice(sorted(folder.glob(kind.pattern)))
        place, bit = flip(path, draw)
        if kind.words == RUN:
            shutil.rmtree(folder / "r", ignore_errors=True)
        done = forked(words, folder)
        named = path.name in done.err
        what = f"bit {bit} of byte {place} of {name}"
        if "Traceback" in done.err:
            trials.failed(f"{what}: a traceback", done)
        elif done.code != 0 and done.refusal():
            trials.count("refused in one line")
        elif kind.words == RUN:
            count_run(trials, what, done, named=named, compare=partial(base.same, command, folder))
        else:
            count_reader(trials, what, done, named=named, same=outputs(done, folder) == wanted)


def count_reader(trials: Trials, what: str, done: Done, *, named: bool, same: bool) -> None:
    """Count the outcome of a command that reads a damaged file: `named` says whether it named the file.

    `same` says whether it showed and wrote what it does with the undamaged file.
    """
    if named and done.code == 0:
        trials.count("reported by name")
    elif same:
        trials.count("without effect")
    else:
        trials.failed(f"{what}: another answer without a word", done)


def count_run(trials: Trials, what: str, done: Done, *, named: bool, compare: Callable[[], str | None]) -> None:
    """Count the outcome of a run that found a damaged file.

    `named` says whether it named the file; `compare` returns the difference from an undamaged run.
    """
    if done.code != 0:
        trials.failed(what, done)
    elif (other := compare()) is not None:
        trials.failed(f"{what}: {other}", done)
    else:
        trials.count("reported, and computed again" if named else "computed again, the same bytes")


def words_of(base: Base, kind: Kind, command: str) -> list[str]:
    """Return the words of the command that reads a kind of file."""
    if kind.words == RUN:
        return base.words(command)
    return [*kind.words, *base.words(command)[1:]] if kind.words[0] == "fetch" else list(kind.words)


def outputs(done: Done, folder: Path) -> tuple[object, ...]:
    """Return what a command printed and wrote, without times."""
    tables = {
        path.relative_to(folder): path.read_bytes() for path in sorted((folder / "o").rglob("*")) if path.is_file()
    }
    text = re.sub(r"\d{4}-\d\d-\d\d\S*|\d+(\.\d+)? s\b|\d\d:\d\d(:\d\d)?", "", done.out)
    return done.code, text, tuple(tables.items())
