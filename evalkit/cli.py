"""The verbs, thin: each turns words into values, calls one function, prints, and sets the exit code."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from evalkit.errors import EvalkitError

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
    from evalkit import compose
    from evalkit.config import RunConfig
    from evalkit.results import CellScores

    cells: list[CellScores] = []
    failed = 0

    def job(config: RunConfig) -> None:
        from evalkit import pipeline

        cells.extend(pipeline.run(config, console=_err))

    def complain(error: EvalkitError) -> None:
        nonlocal failed
        failed += 1
        _complain(str(error))

    if any(word in HYDRA_FLAGS for word in context.args):
        compose.hand_to_hydra(context.args, job, complain=complain)
    else:
        job(compose.compose(context.args))
    if cells:
        from evalkit.report import table

        _out.print(table.terminal(table.rows(cells)))
    if failed:
        _complain(f"{failed} of the combinations failed; the same command runs only what is missing")
        raise typer.Exit(1)


@app.command(name="ls", epilog="Example: evalkit ls models")
def list_names(
    what: Annotated[str, typer.Argument(help="models, datasets, engines, experiments, settings or runs")] = "models",
    results_dir: Annotated[Path, typer.Option(help="where finished runs are")] = Path("results"),
) -> None:
    """List what can be run, or what has been."""
    from evalkit.report import listing

    _out.print(listing.listing(what, results_dir=results_dir))


@app.command(epilog="Example: evalkit report --results-dir results > table.md")
def report(
    results_dir: Annotated[Path, typer.Option(help="where finished runs are")] = Path("results"),
) -> None:
    """Print a Markdown table of every finished run: published, measured, difference."""
    from evalkit import results
    from evalkit.errors import ScoreError
    from evalkit.report import table

    cells = results.read_all(results_dir)
    if not cells:
        msg = f"no finished run under {results_dir}; run one first, for example: evalkit run"
        raise ScoreError(msg)
    typer.echo(table.markdown(table.rows(cells)), nl=False)


@app.command(epilog="Example: evalkit score run.trec.gz dataset=beir/nfcorpus dataset.path=DIR")
def score(
    run_file: Annotated[Path, typer.Argument(help="a TREC run file of any system, .gz or not")],
    overrides: Annotated[list[str], typer.Argument(help="which dataset: dataset=NAME, dataset.path=DIR, …")],
) -> None:
    """Score a TREC run file of any system against a dataset's judgements, under the same rules as our own runs."""
    from evalkit import compose, datasets, metrics, runs
    from evalkit.pipeline import METRICS
    from evalkit.search import drop_self

    config = compose.compose(overrides)
    dataset = datasets.load(config.dataset)
    found = runs.read_run(run_file)
    dropped = 0
    if dataset.drop_self:
        found, dropped = drop_self(found, depth=max((len(hits) for hits in found.values()), default=0))
    scored = metrics.score(found, dataset.qrels, METRICS)
    missing = sum(query.id not in found for query in dataset.queries)
    typer.echo(
        f"{dataset.name} ({dataset.split}): {len(dataset.queries)} queries, {missing} of them not in the run (0)"
    )
    if dataset.drop_self:
        typer.echo(f"dropped {dropped} hits whose id is the query's own")
    for name, value in scored.means.items():
        typer.echo(f"{name}\t{value:.5f}")


@app.command(epilog="Example: evalkit audit")
def audit() -> None:
    """Recompute every average that the card states; where one does not follow from its rows, say what explains it."""
    from evalkit.report import listing

    _out.print(listing.audit_table())


def _complain(message: str) -> None:
    typer.echo(f"evalkit: {message}", err=True)


def main() -> None:
    """Run a verb; turn the errors that a user can mend into one line and an exit code."""
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=_err, show_path=False)]
    )
    try:
        app(standalone_mode=True)
    except EvalkitError as error:
        _complain(str(error))
        raise SystemExit(error.exit_code) from None
