"""The stages `encode`, `host` and `checkpoint`: encoding, encoding without the model, and the cost of checkpoints."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peers.rounds import Contender

from stages.inputs import COMPARED, HIDDEN, MODEL, backbone_flops, collection, count, peer_model, token_lengths
from stages.measuring import Case


def encode(chosen: argparse.Namespace, work: Path) -> list[Case]:
    """Return the case that encodes texts with MiniLM's weights."""
    inputs = collection(chosen, work, default=500)
    job = {"stage": "encode", "inputs": str(inputs)}
    contenders = (
        evalkit_encoder("evalkit fp32", job, "float32"),
        evalkit_encoder("evalkit bf16", job, "bfloat16"),
        *(
            Contender(f"{library} {name}", library, {**job, **peer_model(), "variant": dtype}, name)
            for library in ("sentence-transformers", "pylate")
            for name, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
        ),
    )
    return [encoding_case("encode", contenders, inputs, reference="evalkit fp32", flops=True)]


def host(chosen: argparse.Namespace, work: Path) -> list[Case]:
    """Return the case that encodes with a model that computes nothing: only the host's work remains."""
    inputs = collection(chosen, work, default=2000)
    job = {"stage": "host", "inputs": str(inputs), "hidden_size": HIDDEN}
    contenders = (
        evalkit_encoder("evalkit", job, "float32"),
        evalkit_encoder("evalkit, stored on disk", job, "float32", variant="stored"),
        *(
            Contender(library, library, {**job, **peer_model(), "variant": "float32"})
            for library in ("sentence-transformers", "pylate")
        ),
    )
    return [encoding_case("host", contenders, inputs, reference="evalkit", flops=False)]


def checkpoint(chosen: argparse.Namespace, work: Path) -> list[Case]:
    """Return the case that encodes and searches while storing embeddings, only the top-k, or nothing."""
    inputs = collection(chosen, work, default=500)
    job = {"stage": "checkpoint", "inputs": str(inputs), "words": [f"model={MODEL}"]}
    names = {"nothing": "evalkit, nothing written", "topk": "evalkit, top-k", "embeddings": "evalkit, embeddings"}
    contenders = tuple(Contender(name, "evalkit", {**job, "variant": variant}) for variant, name in names.items())
    documents = count(inputs)
    return [
        Case(
            name="checkpoint",
            contenders=contenders,
            reference=names["nothing"],
            size=documents,
            size_of="documents",
            unit="documents/s",
            work=float,
            probe=documents,
            inputs={"documents": documents},
        )
    ]


def evalkit_encoder(name: str, job: Mapping[str, Any], dtype: str, *, variant: str = "") -> Contender:
    """Return evalkit as a contender that encodes at a precision."""
    words = [f"model={MODEL}", f"model.dtype={dtype}"]
    precision = "bf16" if dtype == "bfloat16" else "fp32"
    return Contender(name, "evalkit", {**job, "words": words, "variant": variant, "compared": COMPARED}, precision)


def encoding_case(name: str, contenders: tuple[Contender, ...], inputs: Path, *, reference: str, flops: bool) -> Case:
    """Return a case whose rate is in documents per second; `flops` adds the share of the GEMM ceiling."""
    lengths_N = token_lengths(inputs)
    documents = len(lengths_N)
    return Case(
        name=name,
        contenders=contenders,
        reference=reference,
        size=documents,
        size_of="documents",
        unit="documents/s",
        work=float,
        flops=(lambda size: backbone_flops(lengths_N[:size])) if flops else None,
        probe=min(32, documents),
        inputs={"documents": documents, "tokens": int(lengths_N.sum()), "model": MODEL},
    )
