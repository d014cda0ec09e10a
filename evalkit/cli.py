"""The verbs, thin: each turns words into values, calls one function, prints, and sets the exit code."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from evalkit.errors import EvalkitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evalkit.analysis.precision import Narrowed
    from evalkit.config.settings import RunConfig
    from evalkit.storage.results import CellScores

app = typer.Typer(
    help="Re-measure a retrieval model card, cell by cell, and say of every cell whether it holds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# A pipe has no width: a table cut to 80 columns would lose digits.
_out = Console(width=None if sys.stdout.isatty() else 240)
_err = Console(stderr=True)

HYDRA_FLAGS = ("-m", "--multirun", "--cfg", "-c", "--info", "-i", "--resolve", "--package", "-p")
"""What makes `run` a sweep or a question about the config, both of which Hydra answers."""


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: evalkit run model=demo,bm25 dataset=demo -m",
)
def run(context: typer.Context) -> None:
    """Run a model on a dataset at one or more dims, and print the scores; what is already done is only printed.

    Words are Hydra overrides (setting=value). With -m, several values run one after the other (model=a,b dataset=x,y);
    with --cfg job, the config is shown and nothing runs. All of them: evalkit ls settings.
    """
    from evalkit.config import compose
    from evalkit.engines import ray as workers

    failed: list[str] = []
    try:
        if any(word in HYDRA_FLAGS for word in context.args):
            outcomes = compose.hand_to_hydra(context.args, _run_one, complain=_complain)
            done = list(dict.fromkeys(path for outcome in outcomes for path in outcome.done))
            failed = [outcome.combination for outcome in outcomes if outcome.error is not None]
        else:
            done = _run_one(compose.compose(context.args))
    finally:
        workers.close()
    if done:
        from evalkit.report import table
        from evalkit.scoring import reruns
        from evalkit.storage import results

        by_folder: dict[Path, list[CellScores]] = {}
        for path in map(Path, done):
            by_folder.setdefault(path.parents[2], []).append(results.read(path))
        cells = [cell for found in by_folder.values() for cell in found]
        deviations = [one for folder, found in by_folder.items() for one in reruns.measure(found, folder)[0]]
        _out.print(table.terminal(table.rows(cells, deviations=deviations)))
    if failed:
        named = f" ({'; '.join(failed)})" if all(failed) else ""
        _complain(f"{len(failed)} of the combinations failed{named}; the same command runs only what is missing")
        raise typer.Exit(1)


def _run_one(config: RunConfig) -> list[str]:
    """Run one config and return the scores.json of its cells. A launcher calls it by its name, in any process."""
    from evalkit.run import jobs, loaded, pipeline
    from evalkit.storage import results
    from evalkit.storage.paths import run_dir

    loaded.keep()
    with jobs.recorded(config):
        done = pipeline.run(config, console=_err)
    folder = config.results_dir.absolute()
    return [str(run_dir(folder, cell.run_id) / results.SCORES) for cell in done]


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: evalkit plan -m model=jina-colbert-v2,bm25 dataset=beir/fiqa,beir/scifact",
)
def plan(context: typer.Context) -> None:
    """Show what a run would do: cells, what is on disk, shards left, bytes, time. Writes nothing, loads no weights.

    The words are those of run; several values per word make a sweep, with -m or without. Fails when a cell cannot run.
    """
    from evalkit.operations import forecast
    from evalkit.report import plans
    from evalkit.storage import results

    words = [word for word in context.args if word not in ("-m", "--multirun")]
    planned: list[forecast.Planned] = []
    problems: list[str] = []
    for combination, config in forecast.combinations(words):
        if isinstance(config, EvalkitError):
            problems.append(f"{' '.join(combination)}: {config}")
        else:
            planned += forecast.look(config, results.readable(config.results_dir)[0])
    if planned:
        _out.print(plans.plan_table(planned))
    for line in plans.plan_lines(planned):
        typer.echo(line)
    problems += plans.plan_problems(planned)
    for problem in problems:
        _complain(problem)
    if problems:
        raise typer.Exit(1)


@app.command(epilog="Example: evalkit status")
def status(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="a selection, as for plan; none: everything. results_dir=, cache_dir=")
    ] = None,
    *,
    forget: Annotated[bool, typer.Option("--forget", help="first forget the runs that failed; shards stay")] = False,
) -> None:
    """Show what is finished, at work (shards done), stopped, failed or damaged; other processes are not disturbed.

    Exits with 1 while something has failed or is damaged. A run has failed until it ends well or is forgotten.
    """
    from evalkit.config import compose
    from evalkit.operations import forecast
    from evalkit.report import plans
    from evalkit.run import jobs
    from evalkit.storage import results

    words = [word for word in overrides or [] if word not in ("-m", "--multirun")]
    everything = all(word.startswith(("results_dir=", "cache_dir=")) for word in words)
    configs = [compose.compose(words)] if everything else [config for _, config in forecast.combinations(words)]
    failed = [str(config) for config in configs if isinstance(config, EvalkitError)]
    chosen = [config for config in configs if not isinstance(config, EvalkitError)]
    caches = list(dict.fromkeys(config.cache_dir for config in chosen))
    if forget:
        forgotten = sum(jobs.forget(jobs.known(folder)) for folder in caches)
        typer.echo(f"forgot {forgotten} runs that failed")
    records = [job for folder in caches for job in jobs.known(folder)]
    finished: list[CellScores] = []
    if everything:
        finished, failed = results.readable(chosen[0].results_dir)
        chosen = [job.config for job in records if job.config is not None]
    cells = forecast.with_jobs([cell for config in chosen for cell in forecast.look(config)], records)
    done = {cell.run_id for cell in finished}
    shown = [(cell, job) for cell, job in cells if cell.run_id is None or cell.run_id not in done]
    _out.print(plans.status_table(finished, shown, [job for job in records if everything and job.config is None]))
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


cache = typer.Typer(
    help="Look into the cache of embeddings, top-k and surveys, verify it, and take out what is not wanted.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Example: evalkit cache ls",
)
app.add_typer(cache, name="cache")
CacheDir = Annotated[Path | None, typer.Option(help="the cache; by default that of the config (EVALKIT_CACHE)")]
ResultsDir = Annotated[Path, typer.Option(help="where finished runs are, which tell what the cache's keys mean")]


@cache.command(name="ls", epilog="Example: evalkit cache ls")
def cache_ls(cache_dir: CacheDir = None, results_dir: ResultsDir = Path("results")) -> None:
    """List what lies in the cache: kind, key, datasets, shards, size, last use, and the runs that use it."""
    from evalkit.operations import inventory
    from evalkit.report import plans

    folder = _cache_dir(cache_dir)
    found = inventory.entries(folder, _cells(results_dir))
    _out.print(plans.cache_table(found))
    typer.echo(f"{folder}: {plans.size(sum(entry.size_bytes for entry in found))}")


@cache.command(name="verify", epilog="Example: evalkit cache verify")
def cache_verify(cache_dir: CacheDir = None) -> None:
    """Read every shard and compare its checksum with its manifest's; fails when one is damaged."""
    from evalkit.operations import inventory
    from evalkit.report import plans

    checked = inventory.verify(inventory.entries(_cache_dir(cache_dir), ()))
    typer.echo(f"{checked.whole} shards whole ({plans.size(checked.bytes_read)}), {checked.unfinished} unfinished")
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
    results_dir: ResultsDir = Path("results"),
) -> None:
    """Remove what is named from the cache, after asking. Results are never touched; runs make anew what they need."""
    from evalkit.errors import ConfigError
    from evalkit.operations import inventory
    from evalkit.report import plans

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
    if not yes and not typer.confirm(f"remove {plans.size(sum(entry.size_bytes for entry in found))}?"):
        raise typer.Exit(1)
    typer.echo(f"removed {plans.size(inventory.remove(found, folder))} from {folder}")


@app.command(name="ls", epilog="Example: evalkit ls models")
def list_names(
    what: Annotated[
        str, typer.Argument(help="models, datasets, analyzers, engines, rerankers, experiments, settings or runs")
    ] = "models",
    results_dir: Annotated[Path, typer.Option(help="where finished runs are")] = Path("results"),
) -> None:
    """List what can be run, or what has been."""
    from evalkit.report import listing

    _out.print(listing.listing(what, results_dir=results_dir))


@app.command(epilog="Example, after evalkit run: evalkit report --results-dir results > table.md")
def report(
    results_dir: Annotated[Path, typer.Option(help="where finished runs are")] = Path("results"),
    out: Annotated[Path | None, typer.Option(help="where tables/ and site/ go; by default the results folder")] = None,
    check: Annotated[  # noqa: FBT002 (a flag)
        bool, typer.Option("--check", help="write nothing; fail when a file drifted or a cell is HIGHER or LOWER")
    ] = False,
) -> None:
    """Print a Markdown table of every finished run, and write the card's tables, the exports and the page.

    A run that cannot be read or tabled is named on stderr and fails the command; the rest is made all the same.
    """
    from evalkit.errors import ScoreError
    from evalkit.report import build, table

    made = build.build(results_dir)
    found = [*made.problems, *((*made.unwaived, *build.drifted(made, out or results_dir)) if check else ())]
    if not made.cells:
        msg = f"no finished run under {results_dir}; run one first, for example: evalkit run"
        raise ScoreError("; ".join([*found, msg]))
    typer.echo(table.markdown(made.rows), nl=False)
    if not check:
        build.write(made, out or results_dir)
    for line in found:
        _complain(line)
    if found:
        raise typer.Exit(1)


@app.command(
    epilog="Example, after evalkit run: "
    "evalkit score results/runs/demo.test.demo-64.*/run.trec.gz dataset=demo model=demo dim=64"
)
def score(
    run_file: Annotated[Path, typer.Argument(help="a TREC run file of any system, .gz or not")],
    overrides: Annotated[
        list[str], typer.Argument(help="which dataset: dataset=NAME, dataset.path=DIR, …; whose run: model=NAME, dim=N")
    ],
) -> None:
    """Score a TREC run file of any system against a dataset's judgements, under the same rules as our own runs.

    With model=NAME (and dim=N) the published scores of that system follow, each with its verdict. The run's own
    settings are those that you declare, for example model.query.max_tokens=32: one that differs from what was published
    is the verdict.
    """
    from evalkit import datasets
    from evalkit.config import compose
    from evalkit.errors import ScoreError
    from evalkit.report import verdicts
    from evalkit.run.pipeline import METRICS
    from evalkit.run.search import drop_self, self_hits
    from evalkit.scoring import metrics
    from evalkit.storage import trec

    config = compose.compose(overrides)
    dataset = datasets.load(config.dataset, with_corpus=False)
    found = trec.read_run(run_file)
    missing = sum(query.id not in found for query in dataset.queries)
    if missing == len(dataset.queries):
        got, wanted = next(iter(found)), dataset.queries[0].id
        msg = f"{run_file}: got no query that {dataset.name} ({dataset.split}) judges, but {got!r} and so on"
        raise ScoreError(f"{msg}, wanted {wanted!r} and so on; check dataset and dataset.split")
    dropped, own = 0, self_hits(found)
    if dataset.drop_self:
        found, dropped = drop_self(found, depth=max((len(hits) for hits in found.values()), default=0))
    scored = metrics.score(found, dataset.qrels, METRICS)
    typer.echo(
        f"{dataset.name} ({dataset.split}): {len(dataset.queries)} queries, {missing} of them not in the run (0)"
    )
    if dataset.drop_self:
        typer.echo(f"dropped {dropped} hits whose id is the query's own")
    for name, value in scored.means.items():
        typer.echo(f"{name}\t{value:.5f}")
    named = any(word.startswith("model=") for word in overrides)
    words = [word.lstrip("+").partition("=")[0] for word in overrides]
    declared = [word.removeprefix("model.") for word in words if word.startswith("model.")]
    for line in verdicts.lines(config if named else None, dataset, scored.means, declared=declared, self_hits=own):
        typer.echo(line)


@app.command(
    epilog="Example, which needs a run file of the demo and fetches the re-ranker from the Hub: "
    "evalkit rerank run.trec.gz --out new.trec.gz reranker=jina-reranker-v2-base-multilingual dataset=demo"
)
def rerank(
    run_file: Annotated[Path, typer.Argument(help="a TREC run file of any system, .gz or not")],
    overrides: Annotated[
        list[str], typer.Argument(help="reranker=NAME, dataset=NAME, dataset.path=DIR, engine.device=…")
    ],
    out: Annotated[Path, typer.Option(help="where the re-ranked run goes; gzipped when it ends in .gz")],
    depth: Annotated[int, typer.Option(help="documents per query to score again; the rest are left out", min=1)] = 100,
) -> None:
    """Score the first documents of any run again with a re-ranker, write the new run, and print both runs' metrics."""
    from evalkit import datasets
    from evalkit.config import compose
    from evalkit.errors import ConfigError
    from evalkit.models.reranker import load_reranker
    from evalkit.run import environment
    from evalkit.run import rerank as stage
    from evalkit.run.pipeline import METRICS
    from evalkit.run.progress import documents_bar
    from evalkit.run.search import drop_self
    from evalkit.scoring import metrics
    from evalkit.storage import trec

    config = compose.compose(overrides)
    if config.reranker is None:
        msg = "no re-ranker chosen; wanted reranker=NAME (evalkit ls rerankers)"
        raise ConfigError(msg)
    dataset = datasets.load(config.dataset)
    found = trec.read_run(run_file)
    if dataset.drop_self:
        found, _ = drop_self(found, depth=max((len(hits) for hits in found.values()), default=0))
    device = environment.choose_device(config.engine.device)
    reranker = load_reranker(config.reranker, device=device)
    budget = environment.batch_tokens(config.engine.batch_tokens, device)
    pairs = sum(min(depth, len(found.get(query.id, ()))) for query in dataset.queries)
    with documents_bar(_err, f"{reranker.config.name} on {dataset.name}", total=pairs) as advance:
        new = stage.rerank(found, dataset, reranker, depth=depth, batch_tokens=budget, advance=advance)
    trec.write_run(new, out, tag=reranker.config.name)
    before, after = (metrics.score(scored, dataset.qrels, METRICS).means for scored in (found, new))
    typer.echo(
        f"{dataset.name} ({dataset.split}): {reranker.checkpoint.origin}@{reranker.checkpoint.revision}, depth {depth}"
    )
    for name in METRICS:
        typer.echo(f"{name}\t{before[name]:.5f} → {after[name]:.5f}")


@app.command(epilog="Example: evalkit check model=demo dim=128")
def check(
    overrides: Annotated[
        list[str], typer.Argument(help="which model: model=NAME, dim=…, model.dtype=…, engine.device=…")
    ],
) -> None:
    """Ask a model what would spoil hours of encoding: ids, markers, masks, norms, padding, dtype, published vectors.

    Every question prints what came out; a failed one names its likeliest cause, and the command exits with 1.
    """
    from evalkit.config import compose
    from evalkit.run import canary

    failed = 0
    for dims, findings in canary.check(compose.compose(overrides)):
        typer.echo(f"dim {', '.join(map(str, dims))}, one backbone")
        for finding in findings:
            typer.echo(f"  {finding.verdict:<10}  {finding.question}: {finding.measured}")
            if finding.verdict == "FAILED":
                failed += 1
                typer.echo(f"              likeliest cause: {finding.cause}")
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
    """Bring models and datasets to disk ahead of time: model=a,b dataset=x,y, words as for run, several values each.

    A download that was cut off is resumed. --verify proves that the selection can run with the network off, compares
    checksums with those of the fetch, and reports twins, empty texts and ids that mean two things.
    """
    from evalkit.operations import fetch as fetching

    if unpack is not None:
        typer.echo(f"{unpack}: {fetching.unpack_bundle(unpack)} files are in their places")
        if not context.args and not verify:
            return
    configs = fetching.selection(context.args)
    found = fetching.verify(configs, console=_err) if verify else fetching.fetch(configs, console=_err)
    for each in found:
        typer.echo(f"{each.name}: {'read whole, network off' if verify else 'on disk'}, from {each.source}")
        for line in (*(f"{part:<33} {checksum}" for part, checksum in each.checksums.items()), *each.notes):
            typer.echo(f"  {line}")
    if bundle is not None:
        typer.echo(f"{bundle}: {fetching.write_bundle(found, bundle):,} bytes")


@app.command(epilog="Example, after evalkit run: evalkit replay demo-64")
def replay(
    run: Annotated[str, typer.Argument(help="a run: its id or the beginning of it, or its system where that is clear")],
    results_dir: Annotated[Path, typer.Option(help="where finished runs are")] = Path("results"),
    metric: Annotated[str | None, typer.Option(help="for example mrr@10; by default the dataset's main metric")] = None,
    dataset_path: Annotated[Path | None, typer.Option(help="where the dataset is now, if it moved")] = None,
) -> None:
    """Score a saved run under the other rules that people publish under, and name those that land on each number.

    The dataset's other splits are tried too where it is on disk, as far as they judge the run's queries.
    """
    from evalkit.analysis import compare, replay
    from evalkit.datasets import splits
    from evalkit.report import verbs
    from evalkit.scoring import reruns
    from evalkit.storage import results

    cells = _cells(results_dir)
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
    typer.echo(cell.run_id)
    _out.print(verbs.replayed_table(replayed, name))
    deviation = reruns.of(cell, name, reruns.measure([cell], results_dir)[0])
    for line in (
        *replay.disjoint(material, others),
        *verbs.landing_lines(replay.landings(material, replayed, name, deviation=deviation)),
    ):
        typer.echo(line)
    for line in unread:
        _complain(line)


@app.command(epilog="Example, after evalkit run: evalkit explain demo-64 --against demo-128 --results-dir results")
def explain(  # noqa: PLR0913, PLR0917 (each argument is an option of the command)
    run: Annotated[str, typer.Argument(help="a run: its id or the beginning of it, or its system where that is clear")],
    results_dir: Annotated[Path, typer.Option(help="where finished runs are")] = Path("results"),
    against: Annotated[str | None, typer.Option(help="another run; by default the published score")] = None,
    top: Annotated[int, typer.Option(min=1, help="queries to show")] = 10,
    query: Annotated[str | None, typer.Option(help="with --document: show this pair token by token")] = None,
    document: Annotated[str | None, typer.Option(help="with --query: show this pair token by token")] = None,
    dataset_path: Annotated[Path | None, typer.Option(help="where the dataset is now, if it moved")] = None,
    texts: Annotated[bool, typer.Option(help="read the texts too, to find what was truncated")] = True,  # noqa: FBT002 (a flag)
) -> None:
    """Rank queries by what they contribute to a difference, and say what is odd about each.

    The difference is that to the published score, or to another run. With --query and --document: the MaxSim of that
    pair, token by token.
    """
    from evalkit.analysis import compare
    from evalkit.report import verbs

    cells = _cells(results_dir)
    cell = compare.one(cells, run)
    other = None if against is None else compare.one(cells, against)
    verbs.explain(
        verbs.Question(cell, other, top, query, document, dataset_path, texts), results_dir, _out, complain=_complain
    )


@app.command(epilog="Example, after evalkit run: evalkit compare demo-128 demo-96 demo-64 --plot dims.svg")
def compare(
    run: Annotated[list[str] | None, typer.Argument(help="runs or systems, the base first; none: all runs")] = None,
    results_dir: Annotated[Path, typer.Option(help="where finished runs are")] = Path("results"),
    metric: Annotated[str | None, typer.Option(help="for example mrr@10; by default the dataset's main metric")] = None,
    plot: Annotated[Path | None, typer.Option(help="write quality against storage here: .svg, .png or .pdf")] = None,
    precision: Annotated[  # noqa: FBT002 (a flag)
        bool,
        typer.Option("--precision", help="search the stored embeddings again as fp16 and int8 (drawn by --plot too)"),
    ] = False,
) -> None:
    """Put runs side by side: differences with paired tests, and what each stores and takes.

    The first run of each dataset is the base. p comes from a paired t-test, corrected by Holm's method over all
    comparisons of the table; the interval from a paired bootstrap over queries.
    """
    from evalkit.analysis import compare
    from evalkit.report import pareto, verbs

    chosen = compare.choose(_cells(results_dir), run or [])
    if not (precision and len(chosen) == 1):
        comparisons = compare.compare(chosen, results_dir, metric=metric)
        _out.print(verbs.comparison_table(comparisons))
        typer.echo(verbs.family_line(comparisons))
    _out.print(verbs.costs_table(chosen))
    narrowed: dict[str, Sequence[Narrowed]] = {}
    if precision:
        from evalkit.analysis import precision as widths
        from evalkit.storage import results

        for cell in chosen:
            if cell.dim is not None:
                config = results.saved_config(results_dir, cell)
                narrowed[cell.run_id] = widths.measure(config, cell, results_dir, console=_err)
                _out.print(verbs.precision_table(cell, narrowed[cell.run_id]))
    if plot is not None:
        pareto.draw(chosen, plot, intervals=compare.intervals(chosen, results_dir), narrowed=narrowed)


@app.command(epilog="Example: evalkit audit")
def audit() -> None:
    """Recompute every average that the card states; where one does not follow from its rows, say what explains it."""
    from evalkit.report import audit

    _out.print(audit.audit_table())
    for line in audit.audit_lines():
        typer.echo(line)


def _cells(results_dir: Path) -> list[CellScores]:
    """Return the runs that can be read, and name those that cannot."""
    from evalkit.storage import results

    cells, problems = results.readable(results_dir)
    for problem in problems:
        _complain(problem)
    return cells


def _cache_dir(asked: Path | None) -> Path:
    """Return the cache that is asked for, else that of the config."""
    from evalkit.config import compose

    return asked.expanduser() if asked is not None else compose.compose([]).cache_dir


def _complain(message: str) -> None:
    typer.echo(f"evalkit: {message}", err=True)


def main() -> None:
    """Run a verb; turn the errors that a user can mend into one line and an exit code."""
    # Rich wraps at the width of a terminal: in a log file a warning stays one line, and a path in it whole.
    handler = RichHandler(console=_err, show_path=False) if _err.is_terminal else logging.StreamHandler()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own: each line came twice
    try:
        app(standalone_mode=True)
    except EvalkitError as error:
        _complain(str(error))
        raise SystemExit(error.exit_code) from None
