"""The verbs, thin: each turns words into values, calls one function, prints, and sets the exit code."""

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
from evalkit.storage.paths import default_results_dir
from evalkit.texts import told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from evalkit.analysis.precision import Narrowed
    from evalkit.config.settings import RunConfig
    from evalkit.operations.own import Written
    from evalkit.storage.results import CellScores

CONFIG_DIR = "--config-dir"


class _Group(TyperGroup):
    """The verbs; an option of all of them may stand before the verb or behind it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options of all verbs first, wherever they stand before a `--`."""
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
PLACES = ("results_dir", "cache_dir")
"""The folders of a command, which every verb takes as `results_dir=DIR` and as `--results-dir DIR`."""


class _Verb(TyperCommand):
    """A verb, which takes the folders of a command in either spelling and completes settings and names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spell folders as this verb declares them; a verb that uses none of a kind passes over them."""
        options = {param.name for param in self.params}
        settings = "overrides" in options or ctx.allow_extra_args
        end = args.index("--") if "--" in args else len(args)
        words, kept = iter(args[:end]), []
        for word in words:
            key, equals, value = word.partition("=")
            name = key.removeprefix("--").replace("-", "_")
            if name not in PLACES or not (equals or key.startswith("--")):
                kept.append(word)
                continue
            value = value if equals else next(words, "")
            if not value:
                msg = f"{key} got nothing, wanted a folder"
                raise ConfigError(msg)
            if name in options:
                kept.append(f"--{name.replace('_', '-')}={os.path.expanduser(value)}")  # noqa: PTH111 (a typed ~)
            elif settings:
                kept.append(f"{name}={value}")
        parsed: list[str] = super().parse_args(ctx, [*kept, *args[end:]])
        return parsed

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete the settings of a verb that takes them as further words; options otherwise."""
        if incomplete.startswith("-") or not ctx.allow_extra_args:
            return list(super().shell_complete(ctx, incomplete))
        return [
            SimpleNamespace(value=word, type="plain", help=None) for word in _words(ctx, list(ctx.args), incomplete)
        ]


class _Verbs(typer.Typer):
    """An app whose commands are verbs."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Function], Function]:
        """Declare a verb."""
        return super().command(name, **{"cls": _Verb, **settings})


def _words(_context: typer.Context, args: list[str], incomplete: str) -> list[str]:
    """Complete a setting, or a group's name behind `=`; bash hands over `model=de` as three words."""
    from evalkit.config import compose

    before = list(args)
    if incomplete == "=":
        return compose.completions(f"{before[-1] if before else ''}=", whole=False)
    if before and before[-1] == "=" and len(before) > 1:
        return compose.completions(f"{before[-2]}={incomplete}", whole=False)
    return compose.completions(incomplete)


def _run_names(incomplete: str) -> list[str]:
    """Complete the systems of the finished runs, with their dims."""
    from evalkit.storage import results

    cells, _ = results.readable(default_results_dir())
    names = {f"{cell.model}:{cell.dim}" if cell.dim else cell.model for cell in cells}
    return sorted(name for name in names if name.startswith(incomplete))


app = _Verbs(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Re-measure a retrieval model card, cell by cell, and say of every cell whether it holds.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
terminal.open_standard_streams()  # before anything is opened that could take a closed stream's place
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
    """Take the options of all verbs."""
    if config_dir:
        if context.invoked_subcommand == "new":
            for folder in config_dir:
                folder.expanduser().mkdir(parents=True, exist_ok=True)
        _use_configs(context, *config_dir)


def _use_configs(context: typer.Context, *folders: Path) -> None:
    """Add folders of configs for as long as the command runs."""
    from evalkit.config.settings import CONFIGS

    before = os.environ.get(CONFIGS)
    os.environ[CONFIGS] = os.pathsep.join([*filter(None, [before]), *(str(folder.absolute()) for folder in folders)])

    def restore() -> None:
        if before is None:
            os.environ.pop(CONFIGS, None)
        else:
            os.environ[CONFIGS] = before

    context.call_on_close(restore)


def _named(context: typer.Context, words: Sequence[str]) -> list[str]:
    """Return the words with folders and repositories in place of names (model=./checkpoint) made into configs.

    What was read of each, and what was assumed, is said first.
    """
    if not any("/" in word or word.endswith((".", "~")) for word in words):
        return list(words)
    from evalkit.operations import own

    named, configs = own.with_given(words, say=_complain)
    if configs is not None:
        _use_configs(context, configs)
    return named


Wide = Annotated[bool, typer.Option("--wide", help="show every column; those that do not fit stand below their row")]
ResultsDir = Annotated[
    Path | None, typer.Option(help="where finished runs are; by default evalkit-results (EVALKIT_RESULTS)")
]
Run = Annotated[
    str,
    typer.Argument(help="a run: SYSTEM:DIM, or its id or the beginning of it", autocompletion=_run_names),
]
Runs = Annotated[
    list[str] | None,
    typer.Argument(
        help="runs, the base first: SYSTEM, SYSTEM:DIM, a dim, a dataset, an id; model=, dataset=, dim= narrow the "
        "choice; none: all runs",
        autocompletion=_run_names,
    ),
]
HYDRA_FLAGS = ("-m", "--multirun", "--cfg", "-c", "--info", "-i", "--resolve", "--package", "-p")
"""What makes `run` a sweep or a question about the config, both of which Hydra answers."""


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: evalkit run model=demo,bm25 dataset=demo -m",
)
def run(
    context: typer.Context,
    *,
    force: Annotated[bool, typer.Option("--force", help="run again what finished earlier, over cached shards")] = False,
    wide: Wide = False,
) -> None:
    """Run a model on a dataset and print its scores.

    What finished earlier is read, not run again. Dims whose weights cannot be had do not stop the others.

    Words are Hydra overrides (setting=value). With -m, several values run one after the other (model=a,b dataset=x,y);
    with --cfg job, the config is shown and nothing runs. All of them: evalkit ls settings.
    """
    from evalkit.config import compose
    from evalkit.engines import ray as workers
    from evalkit.storage.paths import make_folder, write_whole

    words = _named(context, context.args)
    job = partial(_run_one, force=force)
    failed: list[str] = []
    try:
        if any(word in HYDRA_FLAGS for word in words):
            outcomes = compose.hand_to_hydra(words, job, complain=_complain, make_folder=make_folder, write=write_whole)
            answers = [outcome.done for outcome in outcomes]
            failed = [outcome.combination for outcome in outcomes if outcome.error is not None]
        else:
            answers = [job(compose.compose(words))]
    finally:
        workers.close()
    done = list(dict.fromkeys(Path(path) for answer in answers for path in answer.get("scores", ())))
    lost = [each for answer in answers for each in answer.get("lacking", ())]
    if done:
        from evalkit.report import indexes, table
        from evalkit.scoring import reruns
        from evalkit.storage import results

        by_folder: dict[Path, list[CellScores]] = {}
        for path in done:
            by_folder.setdefault(path.parents[2], []).append(results.read(path))
        cells = [cell for found in by_folder.values() for cell in found]
        deviations = [one for folder, found in by_folder.items() for one in reruns.measure(found, folder)[0]]
        lacking = [table.Lacking(**each) for each in lost]
        _out.print(table.terminal(table.rows(cells, deviations=deviations), lacking=lacking, wide=wide))
        if (costs := indexes.index_table(cells, wide=wide)) is not None:
            _out.print(costs)
    if failed or lost:
        what = "cells or combinations" if lost else "combinations"
        named = f" ({'; '.join(failed)})" if failed and all(failed) else ""
        _complain(f"{len(failed) + len(lost)} of the {what} failed{named}; the same command runs only what is missing")
        raise typer.Exit(1)


def _run_one(config: RunConfig, *, force: bool) -> dict[str, Any]:
    """Run one config; return its cells' scores.json and the cells that lack weights, as JSON has them.

    A launcher calls it by its name, in any process.
    """
    _begin(config)
    from evalkit.run import jobs, loaded, pipeline
    from evalkit.storage import results
    from evalkit.storage.paths import run_dir

    absent: dict[int, str] = {}
    loaded.keep()
    with jobs.recorded(config):
        done = pipeline.run(config, console=_err, force=force, lacking=absent)
    model, dataset = config.model.name, config.dataset.name
    for dim, reason in absent.items():
        _complain(f"{model} at dim {dim} on {dataset}: {reason}")
    folder = config.results_dir.absolute()
    return {
        "scores": [str(run_dir(folder, cell.run_id) / results.SCORES) for cell in done],
        "lacking": [
            {"model": model, "dim": dim, "dataset": dataset, "reason": reason} for dim, reason in absent.items()
        ],
    }


def _begin(config: RunConfig) -> None:
    """Say at once what is being run: the libraries that do it take seconds to load, and say much of their own."""
    dims = "" if config.dims == (None,) else f" at dim {', '.join(map(str, config.dims))}"
    if not _err.is_terminal:
        _err.print(f"{config.model.name}{dims} on {config.dataset.name}: loading", markup=False, soft_wrap=True)
    for library in ("ir_datasets", "huggingface_hub"):
        logging.getLogger(library).addFilter(lambda record: record.levelno >= logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: evalkit plan -m model=jina-colbert-v2,bm25 dataset=beir/fiqa,beir/scifact",
)
def plan(context: typer.Context, *, wide: Wide = False) -> None:
    """Show what a run would do, its bytes and time.

    Writes nothing and loads no weights: cells, what is on disk, shards left.

    The words are those of run; several values per word make a sweep, with -m or without. Fails when a cell cannot run.
    """
    from evalkit.operations import forecast
    from evalkit.report import plans
    from evalkit.storage import results

    words = _named(context, [word for word in context.args if word not in ("-m", "--multirun")])
    planned: list[forecast.Planned] = []
    problems: list[str] = []
    for combination, config in forecast.combinations(words):
        if isinstance(config, EvalkitError):
            problems.append(f"{' '.join(combination)}: {config}")
        else:
            planned += forecast.look(config, results.readable(config.results_dir)[0])
    if planned:
        _out.print(plans.plan_table(planned, wide=wide))
    for line in plans.plan_lines(planned):
        _say(line)
    problems += plans.plan_problems(planned)
    for problem in problems:
        _complain(problem)
    if problems:
        raise typer.Exit(1)


@app.command(epilog="Example: evalkit status")
def status(
    context: typer.Context,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="a selection, as for plan; none: everything", autocompletion=_words),
    ] = None,
    *,
    forget: Annotated[bool, typer.Option("--forget", help="first forget the runs that failed; shards stay")] = False,
    wide: Wide = False,
) -> None:
    """Show what is finished, at work, stopped or failed.

    Shards that are done are counted, and damaged results named; other processes are not disturbed.

    Exits with 1 while something has failed or is damaged. A run has failed until it ends well or is forgotten.
    """
    from evalkit.config import compose
    from evalkit.operations import forecast
    from evalkit.report import plans
    from evalkit.run import jobs
    from evalkit.storage import results

    words = _named(context, [word for word in overrides or [] if word not in ("-m", "--multirun")])
    everything = all(word.startswith(("results_dir=", "cache_dir=")) for word in words)
    configs = [compose.compose(words)] if everything else [config for _, config in forecast.combinations(words)]
    failed = [str(config) for config in configs if isinstance(config, EvalkitError)]
    chosen = [config for config in configs if not isinstance(config, EvalkitError)]
    caches = list(dict.fromkeys(config.cache_dir for config in chosen))
    if forget:
        forgotten = sum(jobs.forget(jobs.known(folder)) for folder in caches)
        _say(f"forgot {forgotten} runs that failed")
    records = [job for folder in caches for job in jobs.known(folder)]
    if any(word.startswith("results_dir=") for word in words):
        wanted = {config.results_dir.absolute() for config in chosen}
        records = [job for job in records if job.config is None or job.config.results_dir.absolute() in wanted]
    finished: list[CellScores] = []
    if everything:
        finished, failed = results.readable(chosen[0].results_dir)
        chosen = [job.config for job in records if job.config is not None]
    cells = forecast.with_jobs([cell for config in chosen for cell in forecast.look(config)], records)
    done = {cell.run_id for cell in finished}
    shown = [(cell, job) for cell, job in cells if cell.run_id is None or cell.run_id not in done]
    unreadable = [job for job in records if everything and job.config is None]
    _out.print(plans.status_table(finished, shown, unreadable, wide=wide))
    if (workers := plans.workers_table(records)) is not None:
        _out.print(workers)
    failed += [cell.problem for cell, _ in shown if cell.state == "damaged" and cell.problem]
    errors = [job for job in records if job.error and any(job is one for _, one in shown)]
    failed += [f"{job.process}: {job.error}" for job in errors]
    for problem in dict.fromkeys(failed):
        _complain(problem)
    if errors:
        _complain(f"{len(errors)} runs failed: run them again, or take them off this list with evalkit status --forget")
    if failed:
        raise typer.Exit(1)


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
    """List what lies in the cache and the runs that use it."""
    from evalkit.operations import inventory
    from evalkit.report import plans, rounding

    folder = _cache_dir(cache_dir)
    found = inventory.entries(folder, _cells(results_dir or default_results_dir()))
    _out.print(plans.cache_table(found, wide=wide))
    _say(f"{folder}: {rounding.size(sum(entry.size_bytes for entry in found))}")


@cache.command(name="verify", epilog="Example: evalkit cache verify")
def cache_verify(cache_dir: CacheDir = None) -> None:
    """Read every shard and compare its checksum.

    Fails when one is not what its manifest says.
    """
    from evalkit.operations import inventory
    from evalkit.report import rounding

    checked = inventory.verify(inventory.entries(_cache_dir(cache_dir), ()))
    _say(f"{checked.whole} shards whole ({rounding.size(checked.bytes_read)}), {checked.unfinished} unfinished")
    for line in checked.damaged:
        _complain(line)
    if checked.damaged:
        raise typer.Exit(1)


@cache.command(name="rm", epilog="Example, after evalkit run: evalkit cache rm demo --yes")
def cache_rm(
    names: Annotated[list[str] | None, typer.Argument(help="keys, their beginnings, or datasets")] = None,
    *,
    unused: Annotated[
        bool, typer.Option("--unused", help="also what no finished, stopped or working run uses")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    cache_dir: CacheDir = None,
    results_dir: ResultsDir = None,
) -> None:
    """Remove what is named from the cache, after asking.

    Results are never touched; runs make anew what they need.
    """
    from evalkit.errors import ConfigError
    from evalkit.operations import inventory
    from evalkit.report import plans, rounding

    results_dir = results_dir or default_results_dir()
    folder, finished = _cache_dir(cache_dir), _cells(results_dir)
    if not names and not unused:
        msg = "got nothing to remove, wanted keys, datasets or --unused (evalkit cache ls)"
        raise ConfigError(msg)
    if unused and not finished:
        msg = f"no finished run under {results_dir}, so all would count as unused; name the results with --results-dir"
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
    """List models, datasets, settings or finished runs."""
    from evalkit.report import listing

    results_dir = results_dir or default_results_dir()
    if what == "runs" and not _cells(results_dir):
        _complain(_nothing(results_dir))
    _out.print(listing.listing(what, results_dir=results_dir, wide=wide))


@app.command(epilog="Example, after evalkit run: evalkit report > table.md")
def report(
    results_dir: ResultsDir = None,
    out: Annotated[Path | None, typer.Option(help="where tables/ and site/ go; by default the results folder")] = None,
    check: Annotated[  # noqa: FBT002 (a flag)
        bool, typer.Option("--check", help="write nothing; fail when a file drifted or a cell is HIGHER or LOWER")
    ] = False,
) -> None:
    """Write the card's tables, the exports and the page.

    Prints a Markdown table of every finished run.

    A run that cannot be read or tabled is named on stderr and fails the command; the rest is made all the same.
    """
    from evalkit.errors import ScoreError
    from evalkit.report import build, table

    results_dir = results_dir or default_results_dir()
    made = build.build(results_dir)
    found = [*made.problems, *((*made.unwaived, *build.drifted(made, out or results_dir)) if check else ())]
    if not made.cells:
        raise ScoreError("; ".join([*found, _nothing(results_dir)]))
    terminal.write(table.markdown(made.rows))
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
        list[str],
        typer.Argument(
            help="which dataset: dataset=NAME, dataset.path=DIR, …; whose run: model=NAME, dim=N", autocompletion=_words
        ),
    ],
) -> None:
    """Score a TREC run file of any system.

    A dataset's judgements are used under the same rules as for our own runs.

    With model=NAME (and dim=N) the published scores of that system follow, each with its verdict. The run's own
    settings are those that you declare, for example model.query.max_tokens=32: one that differs from what was published
    is the verdict.
    """
    from evalkit import datasets
    from evalkit.config import compose
    from evalkit.errors import ScoreError
    from evalkit.ranking import drop_self, self_hits
    from evalkit.report import rounding, verdicts
    from evalkit.scoring import metrics
    from evalkit.storage import results, trec

    overrides = _named(context, overrides)
    config = compose.compose(overrides)
    dataset = datasets.load(config.dataset, with_corpus=False)
    found = results.read_run(run_file)
    missing = sum(query.id not in found for query in dataset.queries)
    if found and missing == len(dataset.queries):
        got, wanted = next(iter(found)), dataset.queries[0].id
        msg = f"{run_file}: got no query that {dataset.name} ({dataset.split}) judges, but {got!r} and so on"
        raise ScoreError(f"{msg}, wanted {wanted!r} and so on; check dataset and dataset.split")
    dropped, own = 0, self_hits(found)
    if dataset.drop_self:
        found, dropped = drop_self(found, depth=max((len(hits) for hits in found.values()), default=0))
    if warning := trec.unmatched(found, dataset.qrels):
        _complain(f"{run_file}: {warning}")
    scored = metrics.score(found, dataset.qrels, config.metrics)
    _say(f"{dataset.name} ({dataset.split}): {len(dataset.queries)} queries, {missing} of them not in the run (0)")
    if dataset.drop_self:
        _say(f"dropped {dropped} hits whose id is the query's own")
    for name, value in scored.means.items():
        _say(f"{name}\t{rounding.fixed(value, 5)}")
    named = any(word.startswith("model=") for word in overrides)
    words = [word.lstrip("+").partition("=")[0] for word in overrides]
    declared = [word.removeprefix("model.") for word in words if word.startswith("model.")]
    for line in verdicts.lines(config if named else None, dataset, scored.means, declared=declared, self_hits=own):
        _say(line)


@app.command(
    epilog="Example, which needs a run file of the demo and fetches the re-ranker from the Hub: "
    "evalkit rerank run.trec.gz --out new.trec.gz reranker=jina-reranker-v2-base-multilingual dataset=demo"
)
def rerank(
    context: typer.Context,
    run_file: Annotated[Path, typer.Argument(help="a TREC run file of any system, .gz or not")],
    overrides: Annotated[
        list[str],
        typer.Argument(help="reranker=NAME, dataset=NAME, dataset.path=DIR, engine.device=…", autocompletion=_words),
    ],
    out: Annotated[Path, typer.Option(help="where the re-ranked run goes; gzipped when it ends in .gz")],
    depth: Annotated[int, typer.Option(help="documents per query to score again; the rest are left out", min=1)] = 100,
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
    from evalkit.run import environment
    from evalkit.run import rerank as stage
    from evalkit.run.progress import documents_bar
    from evalkit.scoring import metrics
    from evalkit.storage import results, trec

    config = compose.compose(_named(context, overrides))
    if config.reranker is None:
        msg = "no re-ranker chosen; wanted reranker=NAME (evalkit ls rerankers)"
        raise ConfigError(msg)
    dataset = datasets.load(config.dataset)
    found = results.read_run(run_file)
    if dataset.drop_self:
        found, _ = drop_self(found, depth=max((len(hits) for hits in found.values()), default=0))
    device = environment.choose_device(config.engine.device)
    reranker = load_reranker(config.reranker, device=device)
    budget = environment.batch_tokens(config.engine.batch_tokens, device)
    pairs = sum(min(depth, len(found.get(query.id, ()))) for query in dataset.queries)
    with documents_bar(_err, f"{reranker.config.name} on {dataset.name}", total=pairs) as advance:
        new = stage.rerank(found, dataset, reranker, depth=depth, batch_tokens=budget, advance=advance)
    trec.write_run(new, out, tag=reranker.config.name)
    before, after = (metrics.score(scored, dataset.qrels, config.metrics).means for scored in (found, new))
    _say(
        f"{dataset.name} ({dataset.split}): {reranker.checkpoint.origin}@{reranker.checkpoint.revision}, depth {depth}"
    )
    for name in config.metrics:
        _say(f"{name}\t{rounding.fixed(before[name], 5)} → {rounding.fixed(after[name], 5)}")


@app.command(epilog="Example: evalkit check model=demo dim=128")
def check(
    context: typer.Context,
    overrides: Annotated[
        list[str],
        typer.Argument(help="which model: model=NAME, dim=…, model.dtype=…, engine.device=…", autocompletion=_words),
    ],
) -> None:
    """Ask a model what could spoil hours of encoding.

    Ids, markers, masks, norms, padding, dtype, published vectors.

    Every question prints what came out; a failed one names its likeliest cause, and the command exits with 1.
    """
    from evalkit.config import compose
    from evalkit.run import canary

    failed = 0
    for dims, findings in canary.check(compose.compose(_named(context, overrides))):
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
    verify: Annotated[bool, typer.Option("--verify", help="fetch nothing; read it all with the network off")] = False,
    bundle: Annotated[Path | None, typer.Option(help="also write everything into this tar file, to be moved")] = None,
    unpack: Annotated[
        Path | None, typer.Option(help="first put a bundle's files into HF_HOME, IR_DATASETS_HOME")
    ] = None,
) -> None:
    """Bring models and datasets to disk ahead of time.

    Words are those of run, several values each: model=a,b dataset=x,y.

    A download that was cut off is resumed. --verify proves that the selection can run with the network off, compares
    checksums with those of the fetch, and reports twins, empty texts and ids that mean two things.
    """
    from evalkit.operations import fetch as fetching

    if unpack is not None:
        _say(f"{unpack}: {fetching.unpack_bundle(unpack)} files are in their places")
        if not context.args and not verify:
            return
    configs = fetching.selection(_named(context, context.args))
    found = fetching.verify(configs, console=_err) if verify else fetching.fetch(configs, console=_err)
    for each in found:
        _say(f"{each.name}: {'read whole, network off' if verify else 'on disk'}, from {each.source}")
        for line in (*(f"{part:<33} {checksum}" for part, checksum in each.checksums.items()), *each.notes):
            _say(f"  {line}")
    if bundle is not None:
        _say(f"{bundle}: {fetching.write_bundle(found, bundle):,} bytes")


@app.command(epilog="Example, after evalkit run: evalkit replay demo-64")
def replay(
    run: Run,
    results_dir: ResultsDir = None,
    metric: Annotated[str | None, typer.Option(help="for example mrr@10; by default the dataset's main metric")] = None,
    dataset_path: Annotated[Path | None, typer.Option(help="where the dataset is now, if it moved")] = None,
) -> None:
    """Score a saved run again under other scoring rules.

    Names the rules under which a published number is met.

    The dataset's other splits are tried too where it is on disk, as far as they judge the run's queries.
    """
    from evalkit.analysis import compare, replay
    from evalkit.datasets import splits
    from evalkit.report import verbs
    from evalkit.scoring import reruns
    from evalkit.storage import results

    results_dir = results_dir or default_results_dir()
    cells = _finished(results_dir)
    cell = compare.one(cells, run)
    name = compare.measured(cell, metric)
    material = replay.load(results_dir, cell, dataset_path=dataset_path)
    replayed = replay.replay(material, name)
    others: list[splits.OtherSplit] = []
    try:
        config = results.saved_config(results_dir, cell, dataset_path=dataset_path)
        others, unread = splits.others(config.dataset, replay.asked(material))
    except EvalkitError as error:
        unread = [f"other splits are not tried: {error}"]
    replayed += replay.replay_splits(material, others, name)
    _say(cell.run_id)
    _out.print(verbs.replayed_table(replayed, name))
    deviation = reruns.of(cell, name, reruns.measure([cell], results_dir)[0])
    for line in (
        *replay.disjoint(material, others),
        *verbs.landing_lines(replay.landings(material, replayed, name, deviation=deviation)),
        *verbs.state_lines(replay.other_states(cell, cells), name),
    ):
        _say(line)
    for line in unread:
        _complain(line)


@app.command(epilog="Example, after evalkit run: evalkit explain demo:64 --against demo:128")
def explain(  # noqa: PLR0913, PLR0917 (each argument is an option of the command)
    run: Run,
    results_dir: ResultsDir = None,
    against: Annotated[str | None, typer.Option(help="another run; by default the published mean")] = None,
    top: Annotated[int, typer.Option(min=1, help="queries to show")] = 10,
    query: Annotated[str | None, typer.Option(help="with --document: show this pair token by token")] = None,
    document: Annotated[str | None, typer.Option(help="with --query: show this pair token by token")] = None,
    dataset_path: Annotated[Path | None, typer.Option(help="where the dataset is now, if it moved")] = None,
    texts: Annotated[bool, typer.Option(help="read the texts too, to find what was truncated")] = True,  # noqa: FBT002 (a flag)
) -> None:
    """Show which queries make a difference, and what is odd.

    With --against the queries are ranked by their part in the difference of two runs. Against a published mean, which
    says nothing of a single query, their distribution is shown, and those that score 0. With --query and --document:
    the MaxSim of that pair, token by token.
    """
    from evalkit.analysis import compare
    from evalkit.report import verbs

    results_dir = results_dir or default_results_dir()
    cells = _finished(results_dir)
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
    """Compare runs: paired tests, storage and time.

    The first run of each dataset is the base. p comes from a paired t-test, corrected by Holm's method over all
    comparisons of the table; the interval from a paired bootstrap over queries.
    """
    from evalkit.analysis import compare
    from evalkit.report import indexes, pareto, verbs

    results_dir = results_dir or default_results_dir()
    chosen = compare.choose(_finished(results_dir), run or [])
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
    """Measure the stored embeddings of some runs in smaller forms, print a table per dataset, return them by run id."""
    from evalkit.analysis import precision
    from evalkit.report import verbs
    from evalkit.storage import results

    wanted = precision.chosen_forms(*forms[:2], normalized=forms[2])
    by_dataset: dict[tuple[str, str], list[CellScores]] = {}
    for cell in chosen:
        if cell.dim is not None and cell.search == "exact":
            by_dataset.setdefault((cell.dataset, cell.split), []).append(cell)
    narrowed: dict[str, Sequence[Narrowed]] = {}
    for cells in by_dataset.values():
        measured = [
            precision.measure(
                results.saved_config(results_dir, cell), cell, results_dir, console=_err, base=cells[0], forms=wanted
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
    name: Annotated[str, typer.Argument(help="what model= shall call it")],
    source: Annotated[str, typer.Option("--from", help="the checkpoint's folder, or OWNER/NAME[@COMMIT] on the hub")],
    to: NewDir = None,
) -> None:
    """Write model/NAME.yaml with what a checkpoint's files say: architecture, dim, head, lengths, markers, pooling.

    Reads Stanford ColBERT's, PyLate's and sentence-transformers' layouts. What no file says is marked as assumed.
    """
    from evalkit.operations import own

    _told(own.new_model(name, source, _configs_to(to)), f"evalkit check model={name}")


@new.command(name="dataset", epilog="Example: evalkit new dataset tickets --from ./my_data --language es")
def new_dataset(  # noqa: PLR0913, PLR0917 (each argument is an option of the command)
    name: Annotated[str, typer.Argument(help="what dataset= shall call it")],
    source: Annotated[str, typer.Option("--from", help="a BEIR-format folder")],
    language: Annotated[
        str | None, typer.Option(help="its language's code, as en, es or zh, which BM25's analyzer follows")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="which qrels/SPLIT.tsv; by default test, dev or what is there")
    ] = None,
    to: NewDir = None,
    cache_dir: CacheDir = None,
) -> None:
    """Write dataset/NAME.yaml after a pass over the data: counts, checksum, lengths, split and ids.

    The language is asked for on a terminal; elsewhere, and without --language, it stays unknown, and that is said.
    """
    from evalkit.operations import own

    if language is None and sys.stdin.isatty():
        language = typer.prompt("language of the documents, as en, es or zh (multilingual where mixed)")
    made = own.new_dataset(
        name, source, _configs_to(to), language=language, split=split, cache_dir=_cache_dir(cache_dir)
    )
    _told(made, f"evalkit run model=bm25 dataset={name}")
    if language is None:
        _complain(
            "language unknown: BM25 will analyse the texts as English; "
            f"write their language's code into {made.path}, or give --language CODE"
        )


def _configs_to(asked: Path | None) -> Path:
    """Return where a new config goes: as asked, else the first of the user's own folders, else ./configs."""
    from evalkit.config.settings import own_configs_dirs

    return asked or next(iter(own_configs_dirs()), Path("configs"))


def _told(made: Written, then: str) -> None:
    """Print what was written, what was read and assumed for it, and the command that tries it."""
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

    Where one does not follow from its rows, say what explains it.
    """
    from evalkit.report import audit

    _out.print(audit.audit_table())
    for line in audit.audit_lines():
        _say(line)


def _nothing(results_dir: Path) -> str:
    """Say that a folder has no finished run, and what to do."""
    own = "; for the project's own published runs: --results-dir results"
    there = results_dir != Path("results") and Path("results", "published").is_dir()
    return f"no finished run under {results_dir}; run one first, for example: evalkit run{own if there else ''}"


def _cells(results_dir: Path) -> list[CellScores]:
    """Return the runs that can be read, and name those that cannot."""
    from evalkit.storage import results

    cells, problems = results.readable(results_dir)
    for problem in problems:
        _complain(problem)
    return cells


def _finished(results_dir: Path) -> list[CellScores]:
    """Return the runs that can be read. Raises ScoreError when there is none."""
    from evalkit.errors import ScoreError

    if not (cells := _cells(results_dir)):
        raise ScoreError(_nothing(results_dir))
    return cells


def _cache_dir(asked: Path | None) -> Path:
    """Return the cache that is asked for, else that of the config."""
    from evalkit.config import compose
    from evalkit.config.settings import at_home

    return Path(at_home("--cache-dir", str(asked))) if asked is not None else compose.compose([]).cache_dir


def _record(*arguments: Any, **settings: Any) -> logging.LogRecord:
    """Return a log record as one printable line without secrets, whichever library wrote it."""
    record = logging.LogRecord(*arguments, **settings)
    with suppress(TypeError, ValueError):  # a library's own mistake in its format
        record.msg, record.args = told(record.getMessage()), ()
    return record


def main() -> None:
    """Run a verb; turn the errors that a user can mend into one line and an exit code. A bug keeps its traceback."""
    # Rich wraps at the width of a terminal: in a log file a warning stays one line, and a path in it whole.
    handler = RichHandler(console=_err, show_path=False) if _err.is_terminal else logging.StreamHandler()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own: each line came twice
    logging.setLogRecordFactory(_record)
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
