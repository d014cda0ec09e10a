"""Check that workers change no byte: compare runs of one process with runs of two workers, also after kills.

    python scripts/cluster/prove.py identity --dataset demo --documents 100000 --out results/cluster
    python scripts/cluster/prove.py identity --dataset nfcorpus --path DIR --nodes namespaces --out results/cluster
    python scripts/cluster/prove.py kills --victim worker --kills 20 --seed 7 --out results/cluster

With `--nodes one` evalkit starts Ray; `two` starts two raylets on this machine; `namespaces` starts each raylet in its
own network namespace, connected by a bridge, so that all traffic between them crosses a network (needs root and `ip`).
Each command adds its figures to OUT/proofs.json and rewrites the table in OUT/README.md. The exit code is 1 if a byte
differs, or if processes or shared memory remain. Needs Linux and evalkit[ray].
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
MARK = "EVALKIT_PROOF"
"""An environment variable that identifies all processes started here; Ray's have sessions of their own."""
PORT = 6379
NETWORK = "10.77.0"
DATASETS = {
    "demo": ["model=demo", "dim=64"],
    "nfcorpus": ["model=all-minilm-l6-v2-late", "dataset=beir/nfcorpus", "dataset.verify=false"],
}
WORKERS = ["engine=ray", "engine.workers=2", "engine.cpus_per_worker=1"]
LIMIT_S = 3600


class Nodes(NamedTuple):
    """The Ray nodes on which runs with workers are started."""

    before: tuple[str, ...] = ()
    """A command prefix that starts the driver on the first node."""
    words: tuple[str, ...] = ()
    """Additional words of the driver's command."""
    pids: tuple[int, ...] = ()
    """The raylets' process ids, by node; empty if evalkit starts Ray itself."""
    wires: tuple[str, ...] = ()
    """The network devices of the bridge, one per node."""


class Kill(NamedTuple):
    """How many more kills are wanted, and within which time after the start."""

    random: random.Random
    left: int
    within_s: float


class Killed(NamedTuple):
    """How often a process was killed, and how many shards the run reported as done again."""

    times: int
    again: int


def main() -> None:
    """Run one check and add its figures to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proof", choices=("identity", "kills"))
    parser.add_argument("--dataset", choices=tuple(DATASETS), default="demo")
    parser.add_argument("--documents", type=int, default=2_000, help="size of the demo's collection")
    parser.add_argument("--path", help="a BEIR folder of nfcorpus")
    parser.add_argument("--shard-tokens", type=int, help="by default about sixteen shards")
    parser.add_argument("--nodes", choices=("one", "two", "namespaces"), default="one")
    parser.add_argument("--victim", choices=("worker", "raylet", "driver"), default="worker")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures")
    chosen = parser.parse_args()
    if chosen.dataset != "demo" and not chosen.path:
        parser.error("got no --path, wanted a folder with corpus.jsonl, queries.jsonl and qrels/")
    mark = uuid.uuid4().hex
    os.environ.update({MARK: mark, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"})
    memory = shared_memory()
    with tempfile.TemporaryDirectory(prefix="evalkit-proof-") as folder:
        figures = (identity if chosen.proof == "identity" else kills)(chosen, Path(folder))
    figures["processes left"] = len(wait_for_the_end(mark))
    figures["shared memory left"] = len(shared_memory() - memory)
    write(chosen.out, figures)
    print(json.dumps(figures, indent=2))
    if not figures["identical"] or figures["processes left"] or figures["shared memory left"]:
        sys.exit("the proof failed")


def identity(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run a cell in one process and with two workers; return the figures and whether the files are identical."""
    figures = facts_of(chosen)
    figures["one process, s"] = timed(chosen, folder / "local", Nodes())
    with nodes(chosen.nodes, folder) as where:
        before = traffic(where)
        figures["two workers, s"] = timed(chosen, folder / "ray", where, *WORKERS)
        figures["MB that crossed the network"] = round((traffic(where) - before) / 1e6, 1) if where.wires else None
    (scores,) = (folder / "ray").rglob("scores.json")
    record = json.loads(scores.read_text(encoding="utf-8"))
    figures |= {"metrics": record["metrics"], "shards": record["counts"]["shards"]}
    figures |= {"workers": record["environment"]["workers"], "nodes seen": record["environment"]["nodes"]}
    return figures | compared(folder / "local", folder / "ray")


def kills(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Kill workers, raylets or drivers at random moments, repeat the command until it ends, and compare the bytes."""
    choose = random.Random(chosen.seed)
    figures = facts_of(chosen) | {"victim": chosen.victim, "kills asked for": chosen.kills, "seed": chosen.seed}
    timed(chosen, folder / "local", Nodes())
    with nodes("two" if chosen.victim == "raylet" else "one", folder) as where:
        whole_s = timed(chosen, folder / "whole", where, *WORKERS)  # kills are drawn from this time
    killed = rounds = again = 0
    same = True
    while killed < chosen.kills:
        rounds += 1
        broken = folder / f"ray-{rounds}"
        while not list(broken.rglob("scores.json")):
            with nodes("two" if chosen.victim == "raylet" else "one", folder) as where:
                found = one_run(chosen, broken, where, Kill(choose, chosen.kills - killed, whole_s))
            killed, again = killed + found.times, again + found.again
            if not found.times and not list(broken.rglob("scores.json")):
                sys.exit("a run did not finish that nothing disturbed")
        same = same and compared(folder / "local", broken)["identical"]
        shutil.rmtree(broken)
    return figures | {
        "kills": killed,
        "runs finished": rounds,
        "identical": same,
        "shards said to be done again": again,
    }


def one_run(chosen: argparse.Namespace, folder: Path, where: Nodes, kill: Kill) -> Killed:
    """Start the command and kill the driver or a raylet once, or workers several times; return the counts."""
    process = start(chosen, folder, where, *WORKERS)
    listener = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
    said: list[str] = []
    listener.start()
    killed = 0
    most = kill.left if chosen.victim == "worker" else min(kill.left, 1)  # a run has one driver, and one spare raylet
    while process.poll() is None:
        until = time.monotonic() + kill.random.uniform(0.5, max(2.0, kill.within_s))
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.05)
        if process.poll() is None and killed < most and (victim := victim_of(chosen.victim, process, where)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                killed += 1
    process.wait(timeout=LIMIT_S)
    listener.join(timeout=60)
    again = [line for line in said if "done again" in line or "tried again" in line]
    return Killed(killed, sum(line.count("documents ") for line in again))


def victim_of(kind: str, driver: subprocess.Popen[str], where: Nodes) -> int | None:
    """Return the process to kill, or None if it does not exist yet."""
    if kind == "driver":
        return driver.pid
    if kind == "raylet":
        return where.pids[-1]
    workers = [pid for pid, name in marked(os.environ[MARK]).items() if name.startswith("ray::Worker")]
    return workers[-1] if workers else None


# ---- runs


def start(chosen: argparse.Namespace, folder: Path, where: Nodes, *words: str) -> subprocess.Popen[str]:
    """Start `evalkit run` on the chosen collection."""
    data = [f"dataset.demo.documents={chosen.documents}", "dataset.demo.queries=50"]
    if chosen.dataset != "demo":
        data = [f"dataset.path={chosen.path}"]
    tokens = chosen.shard_tokens or {"demo": max(2_000, chosen.documents * 15), "nfcorpus": 60_000}[chosen.dataset]
    places = [f"results_dir={folder}/results", f"cache_dir={folder}/cache", "store.keep=topk"]
    command = [*where.before, sys.executable, "-m", "evalkit", "run", *DATASETS[chosen.dataset], *data]
    command += [f"store.shard_tokens={tokens}", "engine.threads=1", *places, *words, *where.words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def timed(chosen: argparse.Namespace, folder: Path, where: Nodes, *words: str) -> float:
    """Run the command to its end; return the seconds."""
    started = time.monotonic()
    process = start(chosen, folder, where, *words)
    said, _ = process.communicate(timeout=LIMIT_S)
    if process.returncode:
        sys.exit(f"a run failed that nothing disturbed:\n{said}")
    return round(time.monotonic() - started, 1)


def compared(one: Path, other: Path) -> dict[str, Any]:
    """Return whether two folders have identical run files and per-query values, and the run's checksum."""
    names = ("run.trec.gz", "per_query.tsv")
    digests = [
        {name: [hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob(name)] for name in names}
        for folder in (one, other)
    ]
    whole = all(len(found) == 1 for found in digests[0].values())
    return {"identical": whole and digests[0] == digests[1], "run's sha256": digests[0]["run.trec.gz"][0]}


# ---- nodes


@contextlib.contextmanager
def nodes(kind: str, folder: Path) -> Iterator[Nodes]:
    """Start two raylets, unless evalkit starts Ray; at the end stop them and remove their namespaces."""
    if kind == "one":
        yield Nodes()
        return
    spaces = [f"evalkit{number}" for number in (1, 2)] if kind == "namespaces" else []
    prefixes: list[tuple[str, ...]] = [("ip", "netns", "exec", space) for space in spaces] or [(), ()]
    addresses = [f"{NETWORK}.{number}" for number in (1, 2)] if spaces else ["127.0.0.1"] * 2
    raylets: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        wires = stack.enter_context(joined(spaces)) if spaces else ()
        stack.callback(end, raylets)
        ray = str(Path(sys.executable).with_name("ray"))
        for number, prefix in enumerate(prefixes):
            first = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}/ray"]
            mode = first if number == 0 else [f"--address={addresses[0]}:{PORT}"]
            command = [
                *prefix,
                ray,
                "start",
                "--block",
                "--num-cpus=1",
                f"--node-ip-address={addresses[number]}",
                *mode,
            ]
            raylets.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            wait_for_nodes(prefixes[0], f"{addresses[0]}:{PORT}", number + 1)
        pids = tuple(pid for pid, name in sorted(marked(os.environ[MARK]).items()) if name.endswith("raylet/raylet"))
        yield Nodes(prefixes[0], (f"engine.address={addresses[0]}:{PORT}",), pids, wires)


@contextlib.contextmanager
def joined(spaces: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Create network namespaces connected by a bridge; yield the bridge's device for each."""
    bridge, wires = "evalkitbr", tuple(f"{space}w" for space in spaces)
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("link", "set", bridge, "up")
        for number, (space, wire) in enumerate(zip(spaces, wires, strict=True), start=1):
            ip("netns", "add", space)
            ip("link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", wire, "master", bridge, "up")
            ip("-n", space, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
        yield wires
    finally:
        for space in spaces:
            ip("netns", "del", space, check=False)
        ip("link", "del", bridge, check=False)


def ip(*words: str, check: bool = True) -> None:
    """Run `ip` with these words."""
    subprocess.run(["ip", *words], check=check, capture_output=not check)


def traffic(where: Nodes) -> int:
    """Return the bytes that passed the first network device so far, in both directions."""
    folder = Path("/sys/class/net")
    return sum(
        int((folder / wire / "statistics" / f"{way}_bytes").read_text())
        for wire in where.wires[:1]
        for way in ("rx", "tx")
    )


def wait_for_nodes(prefix: Sequence[str], address: str, count: int) -> None:
    """Wait until a cluster has `count` nodes."""
    code = (
        "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='error'); "
        "sys.exit(sum(node['Alive'] for node in ray.nodes()) != int(sys.argv[2]))"
    )
    for _ in range(30):
        command = [*prefix, sys.executable, "-c", code, address, str(count)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return
        time.sleep(1)
    sys.exit(f"{count} nodes did not come up at {address}:\n{done.stderr}")


def end(raylets: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stop raylets, the last one first."""
    for raylet in reversed(raylets):
        raylet.terminate()
        try:
            raylet.wait(timeout=30)
        except subprocess.TimeoutExpired:
            raylet.kill()
            raylet.wait()


# ---- processes and shared memory that remain


def marked(mark: str) -> Mapping[int, str]:
    """Return the names of the processes with this mark in their environment, by id, without this process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if mark.encode() in (path / "environ").read_bytes() and name and int(path.name) != os.getpid():
                found[int(path.name)] = name.split(" ")[0]
    return found


def wait_for_the_end(mark: str, *, patience_s: float = 60) -> Mapping[int, str]:
    """Wait until no marked process is left; return those left after `patience_s`."""
    until = time.monotonic() + patience_s
    while (left := marked(mark)) and time.monotonic() < until:
        time.sleep(0.5)
    return left


def shared_memory() -> set[str]:
    """Return the names of the object stores' files in shared memory."""
    return {path.name for path in Path("/dev/shm").iterdir() if "plasma" in path.name}  # noqa: S108 (Ray keeps its object stores there)


def facts_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the command, its options, and facts about the machine."""
    import ray
    import torch

    import evalkit

    size = f"{chosen.documents:,} documents" if chosen.dataset == "demo" else "3,633 documents"
    return {
        "command": " ".join(["python scripts/cluster/prove.py", *shown(sys.argv[1:])]),
        "date": time.strftime("%Y-%m-%d"),
        "proof": chosen.proof,
        "collection": f"{chosen.dataset}, {size}",
        "nodes": chosen.nodes,
        "versions": {"evalkit": evalkit.__version__, "ray": ray.__version__, "torch": torch.__version__},
        "processors": f"{os.cpu_count()} cores, {platform.machine()}",
        "load average": round(os.getloadavg()[0], 1),
    }


def shown(words: Sequence[str]) -> list[str]:
    """Return a command's words without the paths of this machine."""
    return ["DIR" if word.startswith("/") else word for word in words]


def write(folder: Path, figures: dict[str, Any]) -> None:
    """Add figures to `proofs.json`, replacing an entry of the same command, and write the table of all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "proofs.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    known = [one for one in known if one["command"] != figures["command"]] + [figures]
    path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(table(known), encoding="utf-8")


HEAD = """# Workers change no byte

The results of `scripts/cluster/prove.py`. A row is identical if the run file and the per-query values of two workers
have the bytes of one process. Nodes: `one` is Ray as evalkit starts it; `two` are two raylets on one machine; in
`namespaces` each raylet has its own network namespace, so that traffic between them crosses a network. `proofs.json`
has all figures.

## Two workers and one process

| collection | nodes | shards | one process, s | two workers, s | over the network, MB | identical | left over | date |
| --- | --- | --: | --: | --: | --: | --- | --- | --- |
"""
KILLS = """
## Killed at random moments

The same command is repeated until it ends. Left over: processes and shared memory after the last run.

| victim | collection | nodes | kills | runs | shards done again | identical | left over | date |
| --- | --- | --- | --: | --: | --: | --- | --- | --- |
"""


def table(known: Sequence[Mapping[str, Any]]) -> str:
    """Return README.md: a line for each command.

    >>> table([]).count("| --- |")
    4
    """
    alike, killed = [], []
    for one in known:
        left = f"{one['processes left']}, {one['shared memory left']}"
        same = "yes" if one["identical"] else "NO"
        if one["proof"] == "identity":
            wire = one["MB that crossed the network"]
            seconds = (one["one process, s"], one["two workers, s"], "–" if wire is None else wire)
            cells = (one["collection"], one["nodes"], one["shards"], *seconds, same, left, one["date"])
            alike.append(cells)
        else:
            again = one["shards said to be done again"]
            nodes_of = "two" if one["victim"] == "raylet" else "one"
            counts = (one["kills"], one["runs finished"], again)
            killed.append((one["victim"], one["collection"], nodes_of, *counts, same, left, one["date"]))
    lines = [["| " + " | ".join(map(str, cells)) + " |" for cells in rows] for rows in (alike, killed)]
    commands = [f"    {one['command']}" for one in known]
    text = HEAD + "\n".join([*lines[0], ""]) + KILLS + "\n".join([*lines[1], ""])
    return text + "\n## Commands\n\n" + "\n".join([*commands, ""])


if __name__ == "__main__":
    main()
