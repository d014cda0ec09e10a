"""Compare the speed of evalkit with its peers', stage by stage; measure the machine's own ceilings in the same rounds.

    python scripts/bench.py --install                                  # each peer into its own environment
    python scripts/bench.py --out results/bench --corpus DIR           # all but `engines`; DIR: nfcorpus, BEIR format
    python scripts/bench.py --out results/bench --stages maxsim,dims   # these need no corpus

Every contender runs in its own process with its own defaults and gets the same inputs. In each round every contender
has one turn while the others wait; the order rotates. Ratios and shares of a ceiling are medians over paired rounds;
rates are those of the fastest round. A slow contender gets fewer queries (`size` says how many), never fewer documents.
Contenders without an environment are listed as not measured.

Each stage writes OUT/STAGE.json, and all of them OUT/bench.png. On two cores the committed rounds took 36 minutes for
`end-to-end`, 15 for `engines` and .5 to 4 for each other stage; starting and warming up the contenders comes on top.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import bench_engines
from peers import environments, plot
from stages.dims import dims
from stages.encoding import checkpoint, encode, host
from stages.end_to_end import end_to_end
from stages.figures import conditions, save
from stages.maxsim import maxsim
from stages.measuring import Case, measured


def main() -> None:
    """Measure the chosen stages; print, save and draw their figures."""
    chosen = arguments().parse_args()
    if chosen.install is not None:
        for name in chosen.install or environments.peers():
            print(f"installing {name} into {chosen.envs / name}", flush=True)
            environments.install(name, chosen.envs)
        return
    stages = chosen.stages.split(",")
    if unknown := [stage for stage in stages if stage not in STAGES]:
        sys.exit(f"stage {unknown[0]!r} unknown; wanted some of {','.join(STAGES)}")
    if chosen.corpus is None and (needing := [stage for stage in stages if stage not in ("maxsim", "dims")]):
        sys.exit(f"stage {needing[0]} wants --corpus DIR, a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv")
    chosen.out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        with tempfile.TemporaryDirectory(prefix="bench-") as work:
            if stage == "end-to-end":
                end_to_end(chosen, Path(work))
            elif stage == "engines":
                for found in bench_engines.measure(chosen, Path(work), conditions(os.getloadavg())):
                    (chosen.out / "engines.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
                print(json.dumps(found, indent=2))
            else:
                save(
                    chosen.out / f"{stage}.json", measured(stage, STAGES[stage](chosen, Path(work)), chosen, Path(work))
                )
        plot.draw(chosen.out, list(STAGES), chosen.out / "bench.png")


def arguments() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    default = ",".join(stage for stage in STAGES if stage != "engines")  # it needs an otherwise idle machine
    parser.add_argument("--stages", default=default, help="comma-separated; all but engines by default")
    parser.add_argument("--envs", type=Path, default=Path.home() / ".cache/evalkit/bench", help="peers' environments")
    parser.add_argument("--install", nargs="*", metavar="PEER", help="make the peers' environments and stop")
    parser.add_argument("--corpus", type=Path, help="a BEIR-format folder: nfcorpus in the committed figures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--documents", type=int, help="evenly spaced documents of the corpus; the default depends on the stage"
    )
    parser.add_argument("--maxsim-queries", type=int, default=100)
    parser.add_argument("--maxsim-documents", type=int, default=2000)
    parser.add_argument("--demo-documents", type=int, default=1000)
    parser.add_argument("--full-size-documents", type=int, default=40)
    parser.add_argument("--budget-s", type=float, default=1.2, help="length of a contender's round in the stage maxsim")
    parser.add_argument("--limit-s", type=float, default=3600, help="how long a contender may take to answer")
    parser.add_argument("--leave-out", default="", help="contenders with these words in their names, comma-separated")
    parser.add_argument("--force", action="store_true", help="end-to-end: measure contenders that have figures again")
    return parser


STAGES: Mapping[str, Callable[[argparse.Namespace, Path], list[Case]]] = {
    "maxsim": maxsim,
    "encode": encode,
    "host": host,
    "end-to-end": lambda *_: [],
    "checkpoint": checkpoint,
    "dims": dims,
    "engines": lambda *_: [],
}


if __name__ == "__main__":
    main()
