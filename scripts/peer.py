"""Run another late-interaction library on a checkpoint and a dataset, and compare its embeddings with evalkit's.

    python scripts/peer.py install pylate                                 # its own environment with pinned packages
    python scripts/peer.py checkpoint minilm build/peers/minilm           # weights in a layout that every library reads
    python scripts/peer.py run pylate build/peers/minilm DATA             # run.trec.gz, sample.npz, peer.json
    python scripts/peer.py parity build/peers/out/pylate-minilm build/peers/minilm DATA
    python scripts/peer.py effects build/peers/out/pylate-minilm build/peers/minilm dataset=beir/nfcorpus …
    evalkit score build/peers/out/pylate-minilm/run.trec.gz --system pylate:minilm dataset=beir/nfcorpus ...

Libraries: pylate, sentence-transformers, colbert-ai, ragatouille. DATA is a folder in BEIR's format with corpus.jsonl,
queries.jsonl and qrels/test.tsv. `evalkit score` records the run as a system of its own. `install` needs a network;
libraries run offline. nfcorpus with MiniLM takes a library 3 to 7 minutes with one thread.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from peers import environments, retrieve
from peers.environments import PeerError

DEPTH = 101
"""Documents per query: one more than evalkit keeps, because its rules may drop the document with the query's id."""


def main() -> None:
    """Run the chosen verb; a PeerError is printed as one line, with exit code 1."""
    chosen = arguments().parse_args()
    try:
        chosen.do(chosen)
    except PeerError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from error


def arguments() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    verb = verbs.add_parser("install", help="create a library's environment")
    verb.add_argument("library", choices=environments.LIBRARIES)
    verb.add_argument("--environments", type=Path, default=environments.DEFAULT, help="the folder of all environments")
    verb.set_defaults(do=install)
    verb = verbs.add_parser("checkpoint", help="write weights in a layout that every library reads")
    verb.add_argument("which", choices=("minilm", "demo"))
    verb.add_argument("folder", type=Path)
    verb.set_defaults(do=checkpoint)
    verb = verbs.add_parser("subset", help="write a subset of a dataset: the first queries and their judged documents")
    verb.add_argument("data", type=Path)
    verb.add_argument("folder", type=Path)
    verb.add_argument("--queries", type=int, required=True)
    verb.add_argument(
        "--documents", type=int, required=True, help="how many of the corpus' first documents to add to the judged ones"
    )
    verb.set_defaults(do=part)
    verb = verbs.add_parser("run", help="encode and search a dataset with a library")
    verb.add_argument("library", choices=environments.LIBRARIES)
    verb.add_argument("checkpoint", type=Path)
    verb.add_argument("data", type=Path, help="a folder in BEIR's format")
    verb.add_argument("--out", type=Path, help="default: build/peers/out/LIBRARY-CHECKPOINT")
    verb.add_argument("--environments", type=Path, default=environments.DEFAULT)
    verb.add_argument("--search", default="exact", help="exact, or the name of one of the library's indexes")
    verb.add_argument("--depth", type=int, default=DEPTH, help="documents kept per query")
    verb.add_argument("--trust-remote-code", action="store_true", help="run the checkpoint's own code")
    verb.set_defaults(do=run)
    verb = verbs.add_parser("parity", help="compare a library's sample with evalkit's")
    verb.add_argument("out", type=Path, help="the output folder of `run`")
    verb.add_argument("checkpoint", type=Path)
    verb.add_argument("data", type=Path)
    verb.set_defaults(do=parity)
    verb = verbs.add_parser("effects", help="measure the effect of each difference on NDCG@10")
    verb.add_argument("out", type=Path, help="the output folder of `run` and `parity`")
    verb.add_argument("checkpoint", type=Path)
    verb.add_argument("dataset", nargs="+", help="dataset=NAME dataset.path=DATA, as for evalkit run")
    verb.add_argument("--work", type=Path, default=environments.DEFAULT / "effects", help="evalkit's runs and shards")
    verb.set_defaults(do=effects)
    verb = verbs.add_parser("evalkit", help="measure evalkit itself on the same checkpoint and dataset")
    verb.add_argument("checkpoint", type=Path)
    verb.add_argument("dataset", nargs="+", help="dataset=NAME dataset.path=DATA, as for evalkit run")
    verb.add_argument("--work", type=Path, default=environments.DEFAULT / "effects", help="evalkit's runs and shards")
    verb.set_defaults(do=own)
    verb = verbs.add_parser("summary", help="collect the output of several libraries in one file each and a table")
    verb.add_argument("out", type=Path, nargs="+", help="output folders of `run`, `parity` and `effects`")
    verb.add_argument("--results-dir", type=Path, required=True, help="the results folder of evalkit score --system")
    verb.add_argument("--to", type=Path, required=True, help="the folder of the summary")
    verb.set_defaults(do=summary)
    return parser


def install(chosen: argparse.Namespace) -> None:
    """Create a library's environment and print its interpreter."""
    print(environments.install_pinned(chosen.library, chosen.environments.resolve()))


def checkpoint(chosen: argparse.Namespace) -> None:
    """Write a checkpoint and print its folder."""
    from peers import checkpoints

    checkpoints.LAYOUTS[chosen.which](chosen.folder)
    print(chosen.folder)


def part(chosen: argparse.Namespace) -> None:
    """Write a subset of a dataset and print its size."""
    from peers import subset

    print(subset.write_subset(chosen.data, chosen.folder, queries=chosen.queries, documents=chosen.documents))


def run(chosen: argparse.Namespace) -> None:
    """Run a library; print its seconds and memory, and the command that scores its run."""
    index = "" if chosen.search == "exact" else f"+{chosen.search}"
    system = f"{chosen.library}{index}:{chosen.checkpoint.resolve().name}"
    out = (chosen.out or environments.DEFAULT / "out" / system.replace(":", "-")).resolve()
    words = [str(chosen.checkpoint.resolve()), str(chosen.data.resolve()), str(out), "--system", system]
    words += ["--search", chosen.search, "--depth", str(chosen.depth)]
    words += ["--trust-remote-code"] if chosen.trust_remote_code else []
    python = environments.python(chosen.library, chosen.environments.resolve())
    retrieve.retrieve(chosen.library, words, out, python=python)
    facts = json.loads((out / retrieve.FACTS).read_text(encoding="utf-8"))
    shown = ", ".join(f"{name} {value:.1f} s" for name, value in facts["seconds"].items())
    print(f"{system}: {shown}; peak {facts['peak_mib']:,.0f} MiB")
    print(f"evalkit score {shlex.quote(str(out / 'run.trec.gz'))} --system {system} dataset=NAME dataset.path=DATA")


def parity(chosen: argparse.Namespace) -> None:
    """Print every difference between a library's sample and evalkit's, and write OUT/parity.json."""
    from peers.parity import compare

    for line in compare(chosen.out, chosen.checkpoint, chosen.data):
        print(line)


def effects(chosen: argparse.Namespace) -> None:
    """Print the effect of every difference, and write OUT/effects.json."""
    from peers import effects as measuring

    for line in measuring.measure(chosen.out, chosen.checkpoint, chosen.dataset, chosen.work.resolve()):
        print(line)


def own(chosen: argparse.Namespace) -> None:
    """Measure evalkit on the checkpoint and the dataset, and print a line."""
    from peers import effects as measuring

    print(measuring.measure_evalkit(chosen.checkpoint, chosen.dataset, chosen.work.resolve()))


def summary(chosen: argparse.Namespace) -> None:
    """Write the summary of several libraries and print its table."""
    from peers import summary as gathering

    print(gathering.gather(chosen.out, chosen.results_dir, chosen.to))


if __name__ == "__main__":
    main()
