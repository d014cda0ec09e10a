"""The verbs of the command line. Each parses its arguments, calls one function, prints, and sets the exit code."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.logging import RichHandler
from typer.core import TyperCommand, TyperGroup

from evalkit.errors import ConfigError, EvalkitError, lines
from evalkit.report import terminal
from evalkit.report.terminal import complain as _complain
from evalkit.report.terminal import say as _say
from evalkit.storage import keys
from evalkit.storage.paths import default_results_dir
from evalkit.texts import counted, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from evalkit.analysis.precision import Narrowed
    from evalkit.config.settings import RunConfig
    from evalkit.operations.own_configs import Written
    from evalkit.operations.probe import Probed
    from evalkit.storage.results import CellScores

CONFIG_DIR = "--config-dir"


class _Group(TyperGroup):
    """The group of all verbs; the options that they share may be given before or after the verb."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the shared options first, wherever they are given before a `--`."""
        end = args.index("--") if "--" in args else len(args)
        front, rest = [], []
        words = iter(args[:end])
        for word in words:
            if word == CONFIG_DIR:
                front += [word, *(following for following in [next(words, None)] if following is not None)]
            elif word.startswith(f"{CONFIG_DIR}="):
                front.append(word)
            else:
                rest.append(word)
        parsed: list[str] = super().parse_args(ctx, [*front, *rest, *args[end:]])
        return parsed


Function = TypeVar("Function", bound="Callable[..., Any]")
FOLDER_SETTINGS = ("results_dir", "cache_dir")
"""The folders that every verb accepts, as `results_dir=DIR` or as `--results-dir DIR`."""


class _Verb(TyperCommand):
    """A verb. It accepts the folders of FOLDER_SETTINGS in both spellings, and completes settings and names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Rewrite folders to the spelling that this verb declares; drop folders that it does not use."""
        options = {param.name for param in self.params}
        settings = "overrides" in options or ctx.allow_extra_args
        end = args.index("--") if "--" in args else len(args)
        words, kept = iter(args[:end]), []
        for word in words:
            key, equals, value = word.partition("=")
            name = key.removeprefix("--").replace("-", "_")
            if name not in FOLDER_SETTINGS or not (equals or key.startswith("--")):
                kept.append(word)
                continue
            value = value if equals else next(words, "")
            if not value:
                msg = f"{key} got nothing, wanted a folder"
                raise ConfigError(msg)
            if name in options:
                kept.append(f"--{name.replace('_', '-')}={os.path.expanduser(value)}")  # noqa: PTH111 (pathlib raises without a home)
            elif settings:
                kept.append(f"{name}={value}")
        parsed: list[str] = super().parse_args(ctx, [*kept, *args[end:]])
        return parsed

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete settings if the verb takes them, otherwise options."""
        if incomplete.startswith("-") or not ctx.allow_extra_args:
            return list(super().shell_complete(ctx, incomplete))
        return [
            SimpleNamespace(value=word, type="plain", help=None)
            for word in _complete_words(ctx, list(ctx.args), incomplete)
        ]


class _Verbs(typer.Typer):
    """An app whose commands are verbs."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Function], Function]:
        """Declare a verb."""
        return super().command(name, **{"cls": _Verb, **settings})


def _complete_words(_context: typer.Context, args: list[str], incomplete: str) -> list[str]:
    """Complete a setting, or a group's name after `=`; bash passes `model=de` as three words."""
    from evalkit.config import compose

    before = list(args)
    if incomplete == "=":
        return compose.completions(f"{before[-1] if before else ''}=", whole=False)
    if before and before[-1] == "=" and len(before) > 1:
        return compose.completions(f"{before[-2]}={incomplete}", whole=False)
    return compose.completions(incomplete)


def _complete_cells(incomplete: str) -> list[str]:
    """Complete the systems of finished cells, with their dims."""
    from evalkit.storage import results

    cells, _ = results.readable(default_results_dir())
    names = {keys.label(cell.model, cell.dim) for cell in cells}
    return sorted(name for name in names if name.startswith(incomplete))


app = _Verbs(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Re-measure a retrieval model card, cell by cell, and say of every cell whether it holds.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
terminal.open_standard_streams()  # before any other file could get a closed stream's descriptor
_out = terminal.out()
_err = terminal.PlainConsole(stderr=True)


def _version(asked: bool) -> None:  # noqa: FBT001 (a callback of an option)
    if asked:
        import evalkit

        _say(f"evalkit {evalkit.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    config_dir: Annotated[
        list[Path] | None,
        typer.Option(
            CONFIG_DIR,
            metavar="DIR",
            help="a folder of your own configs, model/NAME.yaml and dataset/NAME.yaml (also: EVALKIT_CONFIGS); "
            "before or after the verb",
        ),
    ] = None,
    *,
    version: Annotated[  # noqa: ARG001 (its callback acts)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Handle the options that all verbs share."""
    if config_dir:
        if context.invoked_subcommand == "new":
            for folder in config_dir:
                folder.expanduser().mkdir(parents=True, exist_ok=True)
        _use_configs(context, *config_dir)


def _use_configs(context: typer.Context, *folders: Path) -> None:
    """Add config folders while the command runs."""
    from evalkit.config.settings import CONFIGS

    before = os.environ.get(CONFIGS)
    os.environ[CONFIGS] = os.pathsep.join([*filter(None, [before]), *(str(folder.absolute()) for folder in folders)])

    def restore() -> None:
        if before is None:
            os.environ.pop(CONFIGS, None)
        else:
            os.environ[CONFIGS] = before

    context.call_on_close(restore)


def _with_temporary_configs(context: typer.Context, words: Sequence[str]) -> list[str]:
    """Return the words after writing configs for folders and repositories given as names (model=./checkpoint).

    The settings that were read or assumed are printed first.
    """
    if not any("/" in word or word.endswith((".", "~")) for word in words):
        return list(words)
    from evalkit.operations import own_configs

    named, configs = own_configs.with_temporary_configs(words, say=_complain)
    if configs is not None:
        _use_configs(context, configs)
    return named


Wide = Annotated[bool, typer.Option("--wide", help="show every column; those that do not fit are below their row")]
ResultsDir = Annotated[
    Path | None, typer.Option(help="the folder of finished cells; by default evalkit-results (EVALKIT_RESULTS)")
]
Run = Annotated[
    str,
    typer.Argument(
        help="a finished cell: SYSTEM:DIM, or its run id or the beginning of it", autocompletion=_complete_cells
    ),
]
Runs = Annotated[
    list[str] | None,
    typer.Argument(
        help="finished cells, the base first: SYSTEM, SYSTEM:DIM, a dim, a dataset, a run id; model=, dataset=, dim= "
        "narrow the choice; by default all",
        autocompletion=_complete_cells,
    ),
]
HYDRA_FLAGS = ("-m", "--multirun", "--cfg", "-c", "--info", "-i", "--resolve", "--package", "-p")
"""Options with which `run` is a sweep or shows the config; Hydra handles both."""


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: evalkit run model=demo,bm25 dataset=demo -m",
)
def run(
    context: typer.Context,
    *,
    force: Annotated[bool, typer.Option("--force", help="search finished cells again, with cached shards")] = False,
    wide: Wide = False,
) -> None:
    """Run a model on a dataset and print its scores.

    Finished cells are read, not computed again. A dim whose weights cannot be obtained does not stop the others.

    Words are Hydra overrides (setting=value; evalkit ls settings lists all). With -m, several values are run one after
    the other (model=a,b dataset=x,y). With --cfg job, the config is shown and nothing is run.
    """
    from evalkit.config import compose
    from evalkit.engines import ray as workers
    from evalkit.storage.paths import make_folder, write_atomic

    words = _with_temporary_configs(context, context.args)
    job = partial(_run_one, force=force)
    failed: list[str] = []
    try:
        if any(word in HYDRA_FLAGS for word in words):
            outcomes = compose.hand_to_hydra(
                words, job, complain=_complain, make_folder=make_folder, write=write_atomic
            )
            answers = [outcome.done for outcome in outcomes]
            failed = [outcome.combination for outcome in outcomes if outcome.error is not None]
        else:
            answers = [job(compose.compose(words))]
    finally:
        workers.close()
    done = list(dict.fromkeys(Path(path) for answer in answers for path in answer.get("scores", ())))
    lacking = [each for answer in answers for each in answer.get("lacking", ())]
    if done:
        from evalkit.report import indexes, table
        from evalkit.scoring import reruns
        from evalkit.storage import results

        by_folder: dict[Path, list[CellScores]] = {}
        for path in done:
            by_folder.setdefault(path.parents[2], []).append(results.read(path))
        cells = [cell for found in by_folder.values() for cell in found]
        deviations = [one for folder, found in by_folder.items() for one in reruns.measure(found, folder)[0]]
        not_run = [table.Lacking(**each) for each in lacking]
        shown = table.rows(cells, deviations=deviations)
        _out.print(table.terminal(shown, lacking=not_run, means=table.collection_means(cells), wide=wide))
        _complain_of_deviations(row.cell for row in shown if row.verdict is None)  # a verdict says them itself
        if (costs := indexes.index_table(cells, wide=wide)) is not None:
            _out.print(costs)
    if failed or lacking:
        what = "cells or combinations" if lacking else "combinations"
        named = f" ({'; '.join(failed)})" if failed and all(failed) else ""
        _complain(
            f"{len(failed) + len(lacking)} of the {what} failed{named}; the same command runs only what is missing"
        )
        raise typer.Exit(1)


def _complain_of_deviations(cells: Iterable[CellScores]) -> None:
    """Print the accepted deviations of cells from dataset and checkpoint, each once with the systems that have it."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        for deviation in cell.deviations:
            found.setdefault((cell.dataset, deviation), []).append(keys.label(cell.model, cell.dim))
    for (dataset, deviation), systems in found.items():
        _complain(f"{', '.join(systems)} on {dataset}: {deviation}")


def _run_one(config: RunConfig, *, force: bool) -> dict[str, Any]:
    """Run one config; return the scores.json of its cells, and the cells without weights, as plain JSON values.

    Hydra's launchers import this function by its name, possibly in another process.
    """
    _announce(config)
    from evalkit.run import jobs, loaded, pipeline
    from evalkit.storage import results
    from evalkit.storage.paths import run_dir

    absent: dict[int, str] = {}
    loaded.keep()
    with jobs.recorded(config):
        done = pipeline.run(config, console=_err, force=force, unobtainable=absent)
    model, dataset = config.model.name, config.dataset.name
    for dim, reason in absent.items():
        _complain(f"{keys.label(model, dim)} on {dataset}: {reason}")
    folder = config.results_dir.absolute()
    return {
        "scores": [str(run_dir(folder, cell.run_id) / results.SCORES) for cell in done],
        "lacking": [
            {"system": model, "dim": dim, "dataset": dataset, "reason": reason} for dim, reason in absent.items()
        ],
    }


def _announce(config: RunConfig) -> None:
    """Print what is being run before loading libraries, which takes seconds, and silence the libraries' messages."""
    if not _err.is_terminal:
        _err.print(
            f"{keys.label(config.model.name, *config.dims)} on {config.dataset.name}: loading",
            markup=False,
            soft_wrap=True,
        )
    for library in ("ir_datasets", "huggingface_hub"):
        logging.getLogger(library).addFilter(lambda record: record.levelno >= logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: evalkit plan -m model=jina-colbert-v2,bm25 dataset=beir/fiqa,beir/scifact",
)
def plan(
    context: typer.Context,
    *,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="measure the speed here with about a thousand documents of each dataset"),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="forecast for another device than this one: h200, h100, a100, l4, two-cores")
    ] = None,
    wide: Wide = False,
) -> None:
    """Forecast the time, disk and memory of a job.

    The forecast has tokens, time for 1, 8 and 64 workers, disk and memory, for each dataset and overall.

    Nothing is written, and only --probe loads weights. Up to 24 cells are listed with their state; --wide lists all
    cells and more columns.

    The words are those of run. Several values per word make a sweep, with or without -m. Fails if a cell cannot run or
    does not fit.
    """
    from evalkit.operations import forecast
    from evalkit.operations.device_rates import device_named
    from evalkit.report import plans
    from evalkit.storage import results

    if probe and device is not None:
        msg = f"got --probe and --device {device}; wanted one: a probe measures the device that is here"
        raise ConfigError(msg)
    elsewhere = None if device is None else device_named(device)
    words = _with_temporary_configs(context, [word for word in context.args if word not in ("-m", "--multirun")])
    planned: list[forecast.Planned] = []
    problems: list[str] = []
    measured = _prober(say=_complain) if probe else None
    for combination, config in forecast.combinations(words):
        if isinstance(config, EvalkitError):
            problems.append(f"{' '.join(combination)}: {config}")
        else:
            found = None if measured is None else measured(config)
            known = results.readable(config.results_dir)[0]
            planned += forecast.forecast_cells(config, known, probed=found, named_device=elsewhere)
    if planned:
        if wide or len(planned) <= plans.MOST_CELLS:
            _out.print(plans.plan_table(planned, wide=wide))
            _say("")
        _out.print(plans.outlook_table(planned, device=elsewhere))
    for line in plans.plan_lines(planned, device=elsewhere):
        _say(line)
    problems += plans.plan_problems(planned, device=elsewhere)
    for problem in problems:
        _complain(problem)
    if problems:
        raise typer.Exit(1)


def _prober(*, say: Callable[[str], None]) -> Callable[[RunConfig], Probed | None]:
    """Return a function that probes a config, or prints why that fails. It keeps the model for the next dataset."""
    from evalkit.operations.probe import Loader, probe

    loader = Loader()

    def probed(config: RunConfig) -> Probed | None:
        try:
            return probe(config, loader)
        except EvalkitError as error:
            say(f"{config.model.name} on {config.dataset.name} is not probed: {error}")
            return None

    return probed


@app.command(epilog="Example: evalkit status")
def status(
    context: typer.Context,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="a selection, as for plan; by default everything", autocompletion=_complete_words),
    ] = None,
    *,
    forget: Annotated[
        bool, typer.Option("--forget", help="first remove the records of failed jobs; their shards stay")
    ] = False,
    wide: Wide = False,
) -> None:
    """Show finished, running, stopped and failed cells.

    Finished shards are counted and damaged results are named. Running jobs are not disturbed.

    Exits with 1 if a job failed or a result is damaged. A failed job is listed until it succeeds or --forget is given.
    """
    from evalkit.config import compose
    from evalkit.operations import forecast
    from evalkit.report import plans
    from evalkit.run import jobs
    from evalkit.storage import results

    words = _with_temporary_configs(context, [word for word in overrides or [] if word not in ("-m", "--multirun")])
    everything = all(word.startswith(("results_dir=", "cache_dir=")) for word in words)
    configs = [compose.compose(words)] if everything else [config for _, config in forecast.combinations(words)]
    failed = [str(config) for config in configs if isinstance(config, EvalkitError)]
    chosen = [config for config in configs if not isinstance(config, EvalkitError)]
    caches = list(dict.fromkeys(config.cache_dir for config in chosen))
    if forget:
        forgotten = sum(jobs.forget(jobs.known(folder)) for folder in caches)
        _say(f"forgot {counted(forgotten, 'failed job')}")
    records = [job for folder in caches for job in jobs.known(folder)]
    if any(word.startswith("results_dir=") for word in words):
        wanted = {config.results_dir.absolute() for config in chosen}
        records = [job for job in records if job.config is None or job.config.results_dir.absolute() in wanted]
    finished: list[CellScores] = []
    if everything:
        finished, failed = results.readable(chosen[0].results_dir)
        chosen = [job.config for job in records if job.config is not None]
    cells = forecast.with_jobs([cell for config in chosen for cell in forecast.forecast_cells(config)], records)
    done = {cell.run_id for cell in finished}
    shown = [(cell, job) for cell, job in cells if cell.run_id is None or cell.run_id not in done]
    unreadable = [job for job in records if everything and job.config is None]
    if finished or shown or unreadable:
        _out.print(plans.status_table(finished, shown, unreadable, wide=wide))
    elif not failed:
        _say(f"no finished, running, stopped or failed cell{_in_results(words)}; evalkit run computes one")
    if (workers := plans.workers_table(records)) is not None:
        _out.print(workers)
    failed += [cell.problem for cell, _ in shown if cell.state == "damaged" and cell.problem]
    errors = [job for job in records if job.error and any(job is one for _, one in shown)]
    failed += [f"{job.process}: {job.error}" for job in errors]
    failed += [job.error for job in unreadable if job.error]
    for problem in dict.fromkeys(failed):
        _complain(problem)
    if errors:
        them = "it" if len(errors) == 1 else "them"
        remedy = f"run {them} again, or remove {them} from this list with evalkit status --forget"
        _complain(f"{counted(len(errors), 'job')} failed: {remedy}")
    if failed:
        raise typer.Exit(1)


def _in_results(words: Sequence[str]) -> str:
    """Say which results folder the words name."""
    named = [word.partition("=")[2] for word in words if word.startswith("results_dir=")]
    return f" in {named[-1] if named else default_results_dir()}"


cache = _Verbs(
    help="List, verify and empty the cache of embeddings and top-k.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Example: evalkit cache ls",
)
app.add_typer(cache, name="cache")
CacheDir = Annotated[Path | None, typer.Option(help="the cache; by default that of the config (EVALKIT_CACHE)")]


@cache.command(name="ls", epilog="Example: evalkit cache ls")
def cache_ls(cache_dir: CacheDir = None, results_dir: ResultsDir = None, *, wide: Wide = False) -> None:
    """List the content of the cache and the cells that use it."""
    from evalkit.operations import inventory
    from evalkit.report import plans, rounding

    folder = _cache_dir(cache_dir)
    found = inventory.entries(folder, _readable_cells(results_dir or default_results_dir()))
    _out.print(plans.cache_table(found, wide=wide))
    _say(f"{folder}: {rounding.size(sum(entry.size_bytes for entry in found))}")


@cache.command(name="verify", epilog="Example: evalkit cache verify")
def cache_verify(cache_dir: CacheDir = None) -> None:
    """Read every shard and compare its checksum.

    Fails if a shard differs from its manifest.
    """
    from evalkit.operations import inventory
    from evalkit.report import rounding

    checked = inventory.verify(inventory.entries(_cache_dir(cache_dir), ()))
    intact = f"{counted(checked.intact, 'shard')} intact"
    _say(f"{intact} ({rounding.size(checked.bytes_read)}), {checked.unfinished} unfinished")
    for line in checked.damaged:
        _complain(line)
    if checked.damaged:
        raise typer.Exit(1)


@cache.command(name="rm", epilog="Example, after evalkit run: evalkit cache rm demo --yes")
def cache_rm(
    names: Annotated[list[str] | None, typer.Argument(help="keys, their beginnings, or datasets")] = None,
    *,
    unused: Annotated[
        bool, typer.Option("--unused", help="also remove what no finished, running or stopped cell uses")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    cache_dir: CacheDir = None,
    results_dir: ResultsDir = None,
) -> None:
    """Remove entries from the cache, after asking.

    Results are never removed. Later jobs compute again what they need.
    """
    from evalkit.errors import ConfigError
    from evalkit.operations import inventory
    from evalkit.report import plans, rounding

    results_dir = results_dir or default_results_dir()
    folder, finished = _cache_dir(cache_dir), _readable_cells(results_dir)
    if not names and not unused:
        msg = "got nothing to remove, wanted keys, datasets or --unused (evalkit cache ls)"
        raise ConfigError(msg)
    if unused and not finished:
        msg = f"no finished cell under {results_dir}, so all would count as unused; name the results with --results-dir"
        raise ConfigError(msg)
    found = inventory.chosen(inventory.entries(folder, finished), names or [], unused=unused)
    _out.print(plans.cache_table(found))
    if not found:
        return
    if not yes and not typer.confirm(f"remove {rounding.size(sum(entry.size_bytes for entry in found))}?"):
        raise typer.Exit(1)
    _say(f"removed {rounding.size(inventory.remove(found, folder))} from {folder}")


@app.command(name="ls", epilog="Example: evalkit ls models")
def list_names(
    what: Annotated[
        str, typer.Argument(help="models, datasets, analyzers, engines, rerankers, experiments, settings or runs")
    ] = "models",
    results_dir: ResultsDir = None,
    *,
    wide: Wide = False,
) -> None:
    """List models, datasets, settings or finished cells (runs)."""
    from evalkit.report import listing

    results_dir = results_dir or default_results_dir()
    if what == "runs" and not _readable_cells(results_dir):
        _complain(_no_cells_message(results_dir))
    _out.print(listing.listing(what, results_dir=results_dir, wide=wide))


@app.command(epilog="Example, after evalkit run: evalkit report > table.md")
def report(
    results_dir: ResultsDir = None,
    out: Annotated[
        Path | None, typer.Option(help="the folder for tables/ and site/; by default the results folder")
    ] = None,
    *,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="write nothing; fail if a file differs from the results, or a cell is HIGHER or LOWER"
        ),
    ] = False,
    wide: Wide = False,
) -> None:
    """Write the card's tables, the exports and the page.

    Prints a table of every finished cell; to a file or a pipe it goes as Markdown, with every column.

    A cell that cannot be read is named on stderr, and the command fails after writing the rest.
    """
    from evalkit.errors import ScoreError
    from evalkit.report import build, table

    results_dir = results_dir or default_results_dir()
    made = build.build(results_dir)
    if not made.rows:
        raise ScoreError("; ".join([*made.problems, _no_cells_message(results_dir)]))
    found = [*made.problems, *((*made.unwaived, *build.out_of_date(made, out or results_dir)) if check else ())]
    if sys.stdout.isatty():
        _out.print(table.terminal(made.rows, wide=wide))
    else:
        terminal.write(table.markdown(made.rows))
    _complain_of_deviations(row.cell for row in made.rows if row.verdict is None)  # a verdict says them itself
    if not check:
        build.write(made, out or results_dir)
    for line in found:
        _complain(line)
    if found:
        raise typer.Exit(1)


@app.command(
    epilog="Example, after evalkit run: "
    "evalkit score evalkit-results/runs/demo.test.demo-64.*/run.trec.gz dataset=demo model=demo dim=64"
)
def score(
    context: typer.Context,
    run_file: Annotated[Path, typer.Argument(help="a TREC run file of any system, .gz or not")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="the dataset: dataset=NAME, dataset.path=DIR, …; the system: model=NAME, dim=N",
            autocompletion=_complete_words,
        ),
    ] = None,
    *,
    system: Annotated[
        str | None,
        typer.Option(help="keep the run as a system of this name (pylate:jina-colbert-v2), for compare and report"),
    ] = None,
    mteb: Annotated[
        bool, typer.Option("--mteb", help="the file is a result that mteb wrote: MODEL/REVISION/TASK.json")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="with --mteb: keep it in the results folder, for evalkit report")
    ] = False,
) -> None:
    """Score a TREC run file, or read what mteb measured.

    The dataset's judgements and rules are applied as for evalkit's own runs.

    With --system NAME the scores become a finished cell in the results folder, as if evalkit had run that system. The
    facts that scripts/peer.py wrote next to the run file (versions, settings, seconds) are kept with it.

    With model=NAME (and dim=N) the published scores of that system follow, each with its verdict. Declare the settings
    of the run as words, for example model.query.max_tokens=32. If one differs from the published setting, the verdict
    is PROTOCOL-DIFFERS.
    """
    from evalkit.analysis.run_file import score_file
    from evalkit.config import compose
    from evalkit.errors import ConfigError
    from evalkit.report import rounding, verdicts

    overrides = _with_temporary_configs(context, overrides or [])
    if mteb:
        if system is not None:
            msg = f"got --system {system} with --mteb, wanted one of them: a result of mteb names its own system"
            raise ConfigError(f"{msg}; --mteb --keep keeps it")
        _read_mteb(run_file, overrides, keep=keep)
        return
    if not overrides or keep:
        msg = "--keep is for --mteb; a run file needs" if keep else "got no dataset, wanted"
        raise ConfigError(f"{msg} dataset=NAME, dataset.path=DIR, … (evalkit ls datasets)")
    config = compose.compose(overrides)
    if system is not None:
        _file_run(run_file, system, config, overrides)
        return
    scored = score_file(run_file, config)
    dataset = scored.dataset
    if scored.warning:
        _complain(f"{run_file}: {scored.warning}")
    for line in scored.deviations:
        _complain(line)
    _say(f"{dataset.name} ({dataset.split}): {scored.queries} queries, {scored.missing} of them not in the run (0)")
    if scored.dropped is not None:
        _say(f"dropped {scored.dropped} hits whose id is the query's own")
    for name, value in scored.means.items():
        _say(f"{name}\t{rounding.fixed(value, 5)}")
    named, declared = _declared_settings(overrides)
    for line in verdicts.lines(
        config if named else None,
        dataset,
        scored.means,
        declared=declared,
        self_hits=scored.self_hits,
        deviations=scored.deviations,
    ):
        _say(line)


def _declared_settings(overrides: Sequence[str]) -> tuple[bool, list[str]]:
    """Return whether the words name the run's system, and the settings of it that they declare."""
    words = [word.lstrip("+").partition("=")[0] for word in overrides]
    return "model" in words, [word.removeprefix("model.") for word in words if word.startswith("model.")]


def _read_mteb(path: Path, overrides: Sequence[str], *, keep: bool) -> None:
    """Print the scores that mteb measured, its release, and, if the system is named, the verdicts."""
    from evalkit.config import compose
    from evalkit.report import commands, rounding, verdicts
    from evalkit.scoring import mteb_results

    found = mteb_results.read(path)
    one = next((word for word in overrides if word.startswith("dataset")), None)
    asked = compose.compose(overrides)
    chosen = mteb_results.chosen(
        found, commands.packaged().wanted(), dataset=None if one is None else mteb_results.wanted(asked.dataset)
    )
    cells = [mteb_results.cell(found, dataset) for dataset in chosen]
    named, declared = _declared_settings(overrides)
    _say(f"{found.model} at {found.revision}, task {found.task}: measured by {found.version}")
    for cell in cells:
        subset = cell.environment.get(mteb_results.SUBSET)
        _say(f"{cell.dataset} ({cell.split}{'' if subset is None else f', subset {subset}'})")
        for name, value in cell.metrics.items():
            _say(f"{name}\t{rounding.fixed(value, 5)}")
        words = overrides if one is not None else [*overrides, f"dataset={commands.packaged().word(cell.dataset)}"]
        config = compose.compose(words)
        for line in verdicts.lines(config if named else None, config.dataset, cell.metrics, declared=declared):
            _say(line)
    if keep:
        for kept in mteb_results.keep(cells, asked.results_dir):
            _say(f"{kept}: kept; evalkit report tables it as {cells[0].model}")


def _file_run(run_file: Path, system: str, config: RunConfig, overrides: Sequence[str]) -> None:
    """File a run as a system of its own and print its scores. Raises ConfigError if the words also name a model."""
    from evalkit.report import rounding
    from evalkit.run import external_run

    if named := next((word for word in overrides if word.lstrip("+").startswith(("model=", "model.", "dim="))), None):
        msg = f"got {named} with --system {system}, wanted one of them: --system files the run under a name of its own"
        raise ConfigError(msg)
    cell = external_run.import_run(run_file, system, config, console=_err)
    for name, value in cell.metrics.items():
        _say(f"{name}\t{rounding.fixed(value, 5)}")
    _complain_of_deviations([cell])
    _say(f"filed as {cell.run_id} in {config.results_dir}")


@app.command(
    epilog="Example, which needs a run file of the demo and fetches the re-ranker from the Hub: "
    "evalkit rerank run.trec.gz --out new.trec.gz reranker=jina-reranker-v2-base-multilingual dataset=demo"
)
def rerank(
    context: typer.Context,
    run_file: Annotated[Path, typer.Argument(help="a TREC run file of any system, .gz or not")],
    overrides: Annotated[
        list[str],
        typer.Argument(
            help="reranker=NAME, dataset=NAME, dataset.path=DIR, engine.device=…", autocompletion=_complete_words
        ),
    ],
    out: Annotated[Path, typer.Option(help="the file for the re-ranked run; gzipped if its name ends in .gz")],
    depth: Annotated[int, typer.Option(help="documents per query to score again; others are left out", min=1)] = 100,
) -> None:
    """Score the first documents of a run with a re-ranker.

    Writes the new run, and prints the metrics of both.
    """
    from evalkit import datasets
    from evalkit.config import compose
    from evalkit.errors import ConfigError
    from evalkit.models.reranker import load_reranker
    from evalkit.ranking import drop_self
    from evalkit.report import rounding
    from evalkit.run import auto
    from evalkit.run import rerank as stage
    from evalkit.run.progress import documents_bar
    from evalkit.scoring import metrics
    from evalkit.storage import results, trec

    config = compose.compose(_with_temporary_configs(context, overrides))
    if config.reranker is None:
        msg = "no re-ranker chosen; wanted reranker=NAME (evalkit ls rerankers)"
        raise ConfigError(msg)
    dataset = datasets.load(config.dataset)
    for line in datasets.deviations(dataset, None, config.dataset):
        _complain(line)
    found = results.read_run(run_file)
    missing = trec.unanswered(run_file, found, dataset, [query.id for query in dataset.queries])
    if dataset.drop_self:
        found, _ = drop_self(found, depth=max((len(hits) for hits in found.values()), default=0))
    device = auto.choose_device(config.engine.device)
    reranker = load_reranker(config.reranker, device=device)
    budget = auto.batch_tokens(config.engine.batch_tokens, device)
    pairs = sum(min(depth, len(found.get(query.id, ()))) for query in dataset.queries)
    with documents_bar(_err, f"{reranker.config.name} on {dataset.name}", total=pairs) as advance:
        new = stage.rerank(
            found,
            dataset,
            reranker,
            depth=depth,
            batch_tokens=budget,
            advance=advance,
            corpus=results.corpus_of(run_file),
        )
    trec.write_run(new, out, tag=reranker.config.name)
    if warning := trec.unmatched(found, dataset.qrels):
        _complain(f"{run_file}: {warning}")
    before, after = (metrics.score(scored, dataset.qrels, config.metrics).means for scored in (found, new))
    _say(
        f"{dataset.name} ({dataset.split}): {reranker.checkpoint.origin}@{reranker.checkpoint.revision}, depth {depth}"
    )
    _say(f"{len(dataset.queries)} queries, {missing} of them not in the run (0)")
    for name in config.metrics:
        _say(f"{name}\t{rounding.fixed(before[name], 5)} → {rounding.fixed(after[name], 5)}")


@app.command(epilog="Example: evalkit check model=demo dim=128")
def check(
    context: typer.Context,
    overrides: Annotated[
        list[str],
        typer.Argument(
            help="the model: model=NAME, dim=…, model.dtype=…, engine.device=…", autocompletion=_complete_words
        ),
    ],
) -> None:
    """Check that a loaded model behaves as it should.

    The questions are about token ids, markers, masks, norms, padding, dtype and published vectors. A wrong model would
    waste hours of encoding.

    The answer to every question is printed. If one fails, its likeliest cause is named, and the command exits with 1.
    """
    from evalkit.config import compose
    from evalkit.run import canary

    failed = 0
    for dims, findings in canary.findings_of(compose.compose(_with_temporary_configs(context, overrides))):
        _say(f"dim {', '.join(map(str, dims))}, one backbone")
        for finding in findings:
            _say(f"  {finding.verdict:<10}  {finding.question}: {finding.measured}")
            if finding.verdict == "FAILED":
                failed += 1
                _say(f"              likeliest cause: {finding.cause}")
    if failed:
        _complain(f"{failed} of the questions failed; nothing should be encoded with this model yet")
        raise typer.Exit(1)


@app.command(
    context_settings={"allow_extra_args": True},
    epilog="Example, which needs the network: "
    "evalkit fetch model=jina-colbert-v2 dim=128 dataset=beir/fiqa,beir/scifact --bundle fiqa.tar",
)
def fetch(
    context: typer.Context,
    *,
    verify: Annotated[
        bool, typer.Option("--verify", help="fetch nothing; read everything with the network off")
    ] = False,
    bundle: Annotated[
        Path | None, typer.Option(help="also write everything to this tar file, for another machine")
    ] = None,
    unpack: Annotated[
        Path | None, typer.Option(help="first extract this bundle into HF_HOME and IR_DATASETS_HOME")
    ] = None,
) -> None:
    """Download models and datasets ahead of time.

    The words are those of run. Each may have several values: model=a,b dataset=x,y.

    Interrupted downloads are resumed. --verify proves that the selection runs with the network off, compares checksums
    with those of the fetch, and reports duplicate texts, empty texts, and ids that both a query and a document have.
    """
    from evalkit.operations import fetch as fetching

    configs = fetching.selection(_with_temporary_configs(context, context.args))
    if unpack is not None:
        done = fetching.unpack_bundle(unpack, cache_dir=configs[0].cache_dir)
        _say(f"{unpack}: {done} files were extracted or are there already")
        if not context.args and not verify:
            return
    found = fetching.verify(configs, console=_err) if verify else fetching.fetch(configs, console=_err)
    for each in found:
        _say(f"{each.name}: {'read completely, network off' if verify else 'on disk'}, from {each.source}")
        for line in (*(f"{part:<33} {checksum}" for part, checksum in each.checksums.items()), *each.notes):
            _say(f"  {line}")
    if bundle is not None:
        _say(f"{bundle}: {fetching.write_bundle(found, bundle, cache_dir=configs[0].cache_dir):,} bytes")


@app.command(epilog="Example, after evalkit run: evalkit replay demo-64")
def replay(
    run: Run,
    results_dir: ResultsDir = None,
    metric: Annotated[str | None, typer.Option(help="for example mrr@10; by default the dataset's main metric")] = None,
    dataset_path: Annotated[Path | None, typer.Option(help="where the dataset is now, if it moved")] = None,
) -> None:
    """Score a saved run again under other scoring rules.

    The rules that reproduce a published number are named.

    If the dataset is on disk, its other splits are tried too, for the queries that they judge.
    """
    from evalkit.analysis import compare, replay
    from evalkit.datasets import splits
    from evalkit.report import verbs
    from evalkit.scoring import reruns
    from evalkit.storage import cell_config

    results_dir = results_dir or default_results_dir()
    cells = _require_cells(results_dir)
    cell = compare.one(cells, run)
    name = compare.measured(cell, metric)
    material = replay.load(results_dir, cell, dataset_path=dataset_path)
    replayed = replay.replay(material, name)
    others: list[splits.OtherSplit] = []
    try:
        config = cell_config.saved(results_dir, cell, dataset_path=dataset_path)
        others, unread = replay.other_splits(material, config.dataset)
    except EvalkitError as error:
        unread = [f"other splits are not tried: {error}"]
    replayed += replay.replay_splits(material, others, name)
    _say(cell.run_id)
    _out.print(verbs.replayed_table(replayed, name))
    deviation = reruns.of(cell, name, reruns.measure([cell], results_dir)[0])
    for line in (
        *replay.disjoint(material, others),
        *verbs.reproduction_lines(replay.reproductions(material, replayed, name, deviation=deviation)),
        *verbs.state_lines(replay.other_states(cell, cells), name),
    ):
        _say(line)
    for line in unread:
        _complain(line)


@app.command(epilog="Example, after evalkit run: evalkit explain demo:64 --against demo:128")
def explain(  # noqa: PLR0913 (each argument is an option of the command)
    run: Run,
    *,
    results_dir: ResultsDir = None,
    against: Annotated[str | None, typer.Option(help="another finished cell; by default the published mean")] = None,
    top: Annotated[int, typer.Option(min=1, help="queries to show")] = 10,
    query: Annotated[str | None, typer.Option(help="with --document: show this pair token by token")] = None,
    document: Annotated[str | None, typer.Option(help="with --query: show this pair token by token")] = None,
    dataset_path: Annotated[Path | None, typer.Option(help="where the dataset is now, if it moved")] = None,
    texts: Annotated[bool, typer.Option(help="read the texts too, to find what was truncated")] = True,
) -> None:
    """Show which queries cause a difference.

    With --against, queries are ranked by their contribution to the difference of two cells. Without it, the
    distribution of scores is shown, and the queries that score 0, because a published mean says nothing about single
    queries. Remarks name truncated texts and missing documents. --query and --document show MaxSim of that pair, token
    by token.
    """
    from evalkit.analysis import compare
    from evalkit.report import verbs

    results_dir = results_dir or default_results_dir()
    cells = _require_cells(results_dir)
    cell = compare.one(cells, run)
    other = None if against is None else compare.one(cells, against)
    verbs.explain(
        verbs.Question(cell, other, top, query, document, dataset_path, texts), results_dir, _out, complain=_complain
    )


@app.command(epilog="Example, after evalkit run: evalkit compare demo-128 demo-96 demo-64 --plot dims.svg")
def compare(  # noqa: PLR0913 (each argument is an option of the command)
    run: Runs = None,
    *,
    results_dir: ResultsDir = None,
    metric: Annotated[str | None, typer.Option(help="for example mrr@10; by default the dataset's main metric")] = None,
    plot: Annotated[Path | None, typer.Option(help="write quality against storage here: .svg, .png or .pdf")] = None,
    precision: Annotated[
        bool,
        typer.Option("--precision", help="search the stored embeddings again in smaller forms (drawn by --plot too)"),
    ] = False,
    stored_as: Annotated[
        str | None, typer.Option(help="with --precision: some of float32,float16,int8,int4,binary; by default all")
    ] = None,
    pool: Annotated[
        str | None, typer.Option(help="with --precision: token pooling factors; by default 1,2,3,4, where 1 is none")
    ] = None,
    normalize_pooled: Annotated[
        bool,
        typer.Option(
            "--normalize-pooled", help="give pooled vectors norm 1, as sentence-transformers; PyLate does not"
        ),
    ] = False,
    wide: Wide = False,
) -> None:
    """Compare finished cells: paired tests, storage and time.

    The first cell of each dataset is the base. p is that of a paired t-test, corrected by Holm's method over all
    comparisons of the table; the interval is from a paired bootstrap over queries.
    """
    from evalkit.analysis import compare
    from evalkit.report import indexes, pareto, verbs

    results_dir = results_dir or default_results_dir()
    chosen = compare.choose(_require_cells(results_dir), run or [])
    if not (precision and len(chosen) == 1):
        comparisons = compare.compare(chosen, results_dir, metric=metric)
        _out.print(verbs.comparison_table(comparisons, wide=wide))
        _say(verbs.family_line(comparisons))
    _out.print(verbs.costs_table(chosen))
    if (costs := indexes.index_table(chosen, wide=wide)) is not None:
        _out.print(costs)
    narrowed: dict[str, Sequence[Narrowed]] = {}
    if precision:
        narrowed = _frontier(chosen, results_dir, (stored_as, pool, normalize_pooled), wide=wide)
    if plot is not None:
        pareto.draw(chosen, plot, intervals=compare.intervals(chosen, results_dir), narrowed=narrowed)


def _frontier(
    chosen: Sequence[CellScores], results_dir: Path, forms: tuple[str | None, str | None, bool], *, wide: bool
) -> dict[str, Sequence[Narrowed]]:
    """Measure cells' stored embeddings in smaller forms, print a table per dataset, and return the forms by run id."""
    from evalkit.analysis import precision
    from evalkit.report import verbs
    from evalkit.storage import cell_config

    wanted = precision.chosen_forms(*forms[:2], normalized=forms[2])
    by_dataset: dict[tuple[str, str, str], list[CellScores]] = {}
    for cell in chosen:
        if cell.dim is not None and cell.search == "exact":
            by_dataset.setdefault((cell.dataset, cell.split, cell.main_metric), []).append(cell)
    narrowed: dict[str, Sequence[Narrowed]] = {}
    for cells in by_dataset.values():
        measured = [
            precision.measure(
                cell_config.saved(results_dir, cell), cell, results_dir, console=_err, base=cells[0], forms=wanted
            )
            for cell in cells
        ]
        here = dict(zip((cell.run_id for cell in cells), precision.corrected(measured), strict=True))
        for line in verbs.frontier_lines(cells[0], normalized=wanted.normalized):
            _say(line)
        _out.print(verbs.frontier_table(cells, here, wide=wide))
        narrowed |= here
    return narrowed


new = typer.Typer(
    help="Write a config of your own.\n\nIts facts are read from a checkpoint or from data.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Example: evalkit new model house-colbert --from ./checkpoint",
)
app.add_typer(new, name="new")
NewDir = Annotated[
    Path | None, typer.Option("--to", help="the folder of configs to write into; by default --config-dir, else configs")
]


@new.command(name="model", epilog="Example: evalkit new model house-colbert --from ./checkpoint")
def new_model(
    name: Annotated[str, typer.Argument(help="the name to use with model=")],
    source: Annotated[str, typer.Option("--from", help="the checkpoint's folder, or OWNER/NAME[@COMMIT] on the hub")],
    to: NewDir = None,
) -> None:
    """Write model/NAME.yaml from a checkpoint's files: architecture, dim, head, lengths, markers, pooling.

    Reads the layouts of Stanford ColBERT, PyLate and sentence-transformers. Other settings are marked as assumed.
    """
    from evalkit.operations import own_configs

    _say_written(own_configs.new_model(name, source, _configs_to(to)), f"evalkit check model={name}")


@new.command(name="dataset", epilog="Example: evalkit new dataset tickets --from ./my_data --language es")
def new_dataset(
    name: Annotated[str, typer.Argument(help="the name to use with dataset=")],
    source: Annotated[str, typer.Option("--from", help="a BEIR-format folder")],
    language: Annotated[
        str | None, typer.Option(help="its language's code, as en, es or zh, which chooses BM25's analyzer")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="the split of qrels/SPLIT.tsv; by default test, else dev, else an existing one")
    ] = None,
    to: NewDir = None,
    cache_dir: CacheDir = None,
) -> None:
    """Write dataset/NAME.yaml after a pass over the data: counts, checksum, lengths, split and ids.

    Without --language, the language is asked for on a terminal. Otherwise it stays unknown, and a message says so.
    """
    from evalkit.operations import own_configs

    if language is None and sys.stdin.isatty():
        language = typer.prompt("language of the documents, as en, es or zh (multilingual where mixed)")
    made = own_configs.new_dataset(
        name, source, _configs_to(to), language=language, split=split, cache_dir=_cache_dir(cache_dir)
    )
    _say_written(made, f"evalkit run model=bm25 dataset={name}")
    if language is None:
        _complain(
            "language unknown: BM25 will analyse the texts as English; "
            f"write their language's code into {made.path}, or give --language CODE"
        )


def _configs_to(asked: Path | None) -> Path:
    """Return the folder for a new config: the given one, else the first of the user's own folders, else ./configs."""
    from evalkit.config.settings import own_configs_dirs

    return asked or next(iter(own_configs_dirs()), Path("configs"))


def _say_written(made: Written, then: str) -> None:
    """Print the written file, the settings that were read or assumed, and the command that tries it."""
    from evalkit.config.settings import configs_dir, own_configs_dirs

    _say(f"{made.path}")
    for line in made.lines:
        _say(f"  {line}")
    folders = {folder.resolve() for folder in (configs_dir(), *own_configs_dirs())}
    known = any(made.path.resolve().is_relative_to(folder) for folder in folders)
    root = next(parent.parent for parent in made.path.parents if parent.name in ("model", "dataset"))
    _say(f"next: {then}{'' if known else f' --config-dir {root}'}")


@app.command(epilog="Example: evalkit audit")
def audit() -> None:
    """Recompute the averages that the card states.

    If one does not follow from its rows, the rows whose omission would explain it are named.
    """
    from evalkit.report import audit

    _out.print(audit.audit_table())
    for line in audit.audit_lines():
        _say(line)


def _no_cells_message(results_dir: Path) -> str:
    """Return the message that a folder has no finished cell, and what to do."""
    own = "; for the project's own published results: --results-dir results"
    there = results_dir != Path("results") and Path("results", "published").is_dir()
    return f"no finished cell under {results_dir}; run one first, for example: evalkit run{own if there else ''}"


def _readable_cells(results_dir: Path) -> list[CellScores]:
    """Return the finished cells; name those that cannot be read."""
    from evalkit.storage import results

    cells, problems = results.readable(results_dir)
    for problem in problems:
        _complain(problem)
    return cells


def _require_cells(results_dir: Path) -> list[CellScores]:
    """Return the finished cells that can be read. Raises ScoreError if there is none."""
    from evalkit.errors import ScoreError

    if not (cells := _readable_cells(results_dir)):
        raise ScoreError(_no_cells_message(results_dir))
    return cells


def _cache_dir(asked: Path | None) -> Path:
    """Return the given cache folder, else that of the config."""
    from evalkit.config import compose
    from evalkit.config.settings import at_home

    return Path(at_home("--cache-dir", str(asked))) if asked is not None else compose.compose([]).cache_dir


def _log_record(*arguments: Any, **settings: Any) -> logging.LogRecord:
    """Return a log record of any library as one printable line without secrets."""
    record = logging.LogRecord(*arguments, **settings)
    with suppress(TypeError, ValueError):  # an error in the library's format string
        record.msg, record.args = one_line(record.getMessage()), ()
    return record


class _Once(logging.Filter):
    """Pass each message once: several steps of a job can find the same damaged file."""

    def __init__(self) -> None:
        super().__init__()
        self._messages: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record's message is new."""
        message = record.getMessage()
        new = message not in self._messages
        self._messages.add(message)
        return new


def main() -> None:
    """Run a verb. Errors that a user can fix become one line and an exit code; a bug keeps its traceback."""
    # Rich would wrap at the width of a terminal; in a log file a warning should be one line with whole paths.
    handler = RichHandler(console=_err, show_path=False) if _err.is_terminal else logging.StreamHandler()
    handler.addFilter(_Once())
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("huggingface_hub").propagate = False  # its own handler would print each line twice
    logging.setLogRecordFactory(_log_record)
    try:
        Path.cwd()
    except OSError as error:
        _complain(f"the working folder cannot be used ({error.strerror}); change to one that is there: cd")
        raise SystemExit(1) from None
    try:
        with terminal.output_may_break():
            app(standalone_mode=True)
    except EvalkitError as error:
        for line in lines(error):
            _complain(line)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if error.filename is None:
            raise
        _complain(f"{os.fsdecode(error.filename)}: {error.strerror}; check the path, its permissions and the disk")
        raise SystemExit(1) from None
