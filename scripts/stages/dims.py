"""The stage `dims`: three dims in one pass compared with one dim, for the demo and for a full-size model."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from peers.rounds import Contender

from stages.inputs import DEPTH
from stages.measuring import Case

DIMS = (128, 96, 64)


def dims(chosen: argparse.Namespace, _work: Path) -> list[Case]:
    """Return the cases: whole runs of the demo, and shard steps of a model of jina-colbert-v2's size."""
    return [dims_of_the_demo(chosen), dims_of_a_full_size_model(chosen)]


def dims_of_a_full_size_model(chosen: argparse.Namespace) -> Case:
    """Return the case that encodes, stores and searches at all dims or one, at jina-colbert-v2's size."""
    lengths = np.random.default_rng(0).integers(20, 151, chosen.full_size_documents).tolist()
    job = {"stage": "dims-full-size", "lengths": lengths, "queries": 8, "depth": DEPTH, "all_dims": DIMS}
    return Case(
        name="full size",
        contenders=(
            Contender("evalkit, dims 128, 96 and 64", "evalkit", {**job, "dims": DIMS}),
            Contender("evalkit, dim 128", "evalkit", {**job, "dims": DIMS[:1]}),
        ),
        reference="evalkit, dim 128",
        size=len(lengths),
        size_of="documents",
        unit="documents/s",
        work=float,
        probe=len(lengths),
        inputs={"tokens": sum(lengths), "queries": job["queries"], "model": "jina-colbert-v2's shape, random weights"},
    )


def dims_of_the_demo(chosen: argparse.Namespace) -> Case:
    """Return the case of whole runs of the demo, including metrics."""
    queries = min(200, chosen.demo_documents // 5)
    job = {"stage": "dims"}
    words = ["model=demo", "dataset=demo", f"dataset.demo.queries={queries}"]
    selections = {"dims 128, 96 and 64": "[128,96,64]", "dim 128": "128", "dim 96": "96", "dim 64": "64"}
    contenders = tuple(
        Contender(f"evalkit, {name}", "evalkit", {**job, "words": [*words, f"dim={selection}"]})
        for name, selection in selections.items()
    )
    return Case(
        name="demo",
        contenders=contenders,
        reference="evalkit, dim 128",
        size=chosen.demo_documents,
        size_of="documents",
        unit="documents/s",
        work=float,
        probe=chosen.demo_documents,
        inputs={"documents": chosen.demo_documents, "queries": queries},
    )
