"""Measure a case: its contenders take turns in rounds; times, rates and the differences of their values."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peers.rounds import Contender, Worker, WorkerError, fitting_size, turns

from stages.figures import conditions

CEILINGS = Contender("ceilings", "torch", {"stage": "ceilings"})
LEFT_OUT = "left out by --leave-out"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Contenders with the same inputs, and the units in which their rounds are counted."""

    name: str
    contenders: tuple[Contender, ...]
    reference: str
    """The contender of evalkit to which `ratios` compares the others."""
    size: int
    """The number of queries or documents of a full round."""
    size_of: str
    unit: str
    work: Callable[[int], float]
    """The work of a round of a size; divided by its seconds it is the rate in `unit`."""
    flops: Callable[[int], float] | None = None
    """Useful floating-point operations of a round, for the share of the GEMM ceiling."""
    probe: int
    """The size of the warm-up round, and of the round from which a smaller size is computed."""
    budget_s: float | None = None
    """The length of a round in seconds: slower contenders get a smaller size. None: all get the full size."""
    exact: Callable[[int], np.ndarray] | None = None
    """Returns the exact values of the first queries; None: values are compared with the reference's."""
    inputs: Mapping[str, Any]


def measured(stage: str, cases: Sequence[Case], chosen: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure a stage's cases and return the content of its JSON file."""
    load = os.getloadavg()
    by_case = {case.name: measure(case, chosen, work / case.name) for case in cases}
    return {"stage": stage, "conditions": conditions(load), "cases": by_case}


def measure(case: Case, chosen: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Start a case's contenders, let them take turns, and return their figures and the ceilings."""
    work.mkdir(parents=True, exist_ok=True)
    missing: dict[str, str] = {}
    taken: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        started: dict[str, Started] = {}
        for contender in (CEILINGS, *case.contenders):
            if left_out(contender, chosen):
                missing[contender.name] = LEFT_OUT
                continue
            try:
                started[contender.name] = start(case, contender, chosen, work, stack)
            except WorkerError as error:
                missing[contender.name] = str(error)
        for turn, order in enumerate(turns(list(started), chosen.rounds), start=1):
            print(f"{case.name}: round {turn} of {chosen.rounds}", flush=True)
            for name in order:
                if name in missing:
                    continue
                try:
                    taken.setdefault(name, []).append(started[name].worker.round(started[name].size))
                except WorkerError as error:
                    missing[name] = str(error)
        last = {name: of.worker.finish() for name, of in started.items() if name not in missing}
    sampled = [answer["ceilings"] for answer in taken.pop(CEILINGS.name, [])]
    ceilings = {name: round(max(one[name] for one in sampled), 1) for name in sampled[0]} if sampled else {}
    contenders = {}
    for contender in case.contenders:
        if (name := contender.name) not in missing:
            seconds = [answer.pop("seconds") for answer in taken[name]]
            contenders[name] = {
                "library": contender.library,
                "environment": started[name].worker.facts,
                **counted(case, contender, started[name].size, seconds, sampled),
                **taken[name][-1],
                **last[name],
                **compared(case, name, work),
            }
    return {
        "inputs": {**case.inputs, case.size_of: case.size},
        "unit": case.unit,
        "reference": case.reference,
        "ceilings": ceilings,
        "ceilings by round": [{name: round(rate, 1) for name, rate in one.items()} for one in sampled],
        "contenders": contenders,
        f"{case.reference} is times": ratios(case, contenders),
        "not measured": missing,
    }


class Started(NamedTuple):
    """A contender's process after warm-up, and the size of its rounds."""

    worker: Worker
    size: int


def start(case: Case, contender: Contender, chosen: argparse.Namespace, work: Path, stack: ExitStack) -> Started:
    """Start a contender, warm it up and find the size of its rounds. Raises WorkerError."""
    worker = Worker(contender, environments_dir=chosen.envs, work=work, limit_s=chosen.limit_s)
    stack.enter_context(worker)
    if contender is CEILINGS:
        return Started(worker, 1)
    print(f"{case.name}: {contender.name} warms up", flush=True)
    worker.round(case.probe, save=work / f"{contender.name}.npy")
    if case.budget_s is None:
        return Started(worker, case.size)
    size = fitting_size(case.size, case.probe, worker.round(case.probe)["seconds"], case.budget_s)
    worker.round(size)  # native libraries prepare for every new shape
    return Started(worker, size)


def counted(
    case: Case, contender: Contender, size: int, seconds: Sequence[float], ceilings: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """Return a contender's times and rates, and its median share of the GEMM rate of the same round and precision."""
    found: dict[str, Any] = {
        "size": size,
        "seconds": [round(value, 4) for value in seconds],
        "min_s": round(min(seconds), 4),
        "median_s": round(statistics.median(seconds), 4),
        "spread": round((max(seconds) - min(seconds)) / statistics.median(seconds), 3),
        "rate": round(case.work(size) / min(seconds), 2),
        "median_rate": round(case.work(size) / statistics.median(seconds), 2),
    }
    gemm = f"{contender.precision} GEMM GFLOP/s"
    if case.flops is not None and ceilings and gemm in ceilings[0]:
        flops = case.flops(size) / 1e9
        shares = [flops / own_s / ceiling[gemm] for own_s, ceiling in zip(seconds, ceilings, strict=True)]
        found["share_of_ceiling"] = round(statistics.median(shares), 3)
    return found


def ratios(case: Case, contenders: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the reference's rate divided by each other contender's: the median over paired rounds."""
    if case.reference not in contenders:
        return {}
    ours = contenders[case.reference]
    return {
        name: round(
            statistics.median(
                case.work(ours["size"]) / own_s / (case.work(other["size"]) / other_s)
                for own_s, other_s in zip(ours["seconds"], other["seconds"], strict=True)
            ),
            3,
        )
        for name, other in contenders.items()
        if name != case.reference
    }


def compared(case: Case, name: str, work: Path) -> dict[str, Any]:
    """Return the largest difference of a contender's values from the exact ones, or the reference's, in the warm-up."""
    own, of = work / f"{name}.npy", work / f"{case.reference}.npy"
    if not own.exists() or not (case.exact or of.exists()):
        return {}
    got = np.load(own)
    wanted = case.exact(len(got)) if case.exact else np.load(of)
    if got.shape != wanted.shape:
        return {"differs": f"shape {list(got.shape)}, wanted {list(wanted.shape)}"}
    found: dict[str, Any] = {"largest_difference": float(f"{np.abs(got - wanted).max():.3g}")}
    if case.exact:
        same = [set(a) == set(b) for a, b in zip(top(got), top(wanted), strict=True)]
        found["queries_with_the_same_top_10"] = f"{sum(same)} of {len(same)}"
    return found


def top(score_QN: np.ndarray) -> list[list[int]]:
    """Return the positions of each query's ten best documents."""
    places: list[list[int]] = np.argsort(-score_QN, axis=1, kind="stable")[:, :10].tolist()
    return places


def left_out(contender: Contender, chosen: argparse.Namespace) -> bool:
    """Return whether --leave-out excludes a contender, such as bf16 on a processor without units for it."""
    return any(word in contender.name for word in filter(None, chosen.leave_out.split(",")))
