"""The vectors that others published for a model, and the comparison with them. Shapes: T tokens of a text, D dim.

If the vectors differ, the cause is found by trying variants of the config until one reproduces them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from evalkit.config.settings import EncoderConfig
from evalkit.models import metadata
from evalkit.models.checkpoint import Checkpoint, on_disk, resolve
from evalkit.models.encoder import Encoder, with_head_of
from evalkit.run.finding import HELLO, Finding, Reload, packaged_json, reloader, vectors_of, vocabulary_rows

PUBLISHED_ATOL: Mapping[str, float] = {"float32": 0.0, "float16": 5e-3, "bfloat16": 4e-2}
"""Added to the tolerance of the published vectors, by dtype."""
ROPE_BASES = (10_000.0, 20_000.0)
"""The RoPE bases that are tried: the default of the original code, and that of jina-embeddings-v3."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """Vectors that others published for one model: the leading components of each token's vector of one text."""

    model: str
    dim: int
    vocabulary: int
    text: str
    atol: float
    document: tuple[tuple[float, ...], ...]
    query: tuple[tuple[float, ...], ...]


def packaged() -> tuple[Published, ...]:
    """Return the published vectors of "Hello World" that the package contains, one entry for each model."""
    return tuple(_read_published(name) for name in ("hello_world.json", "hello_world_colbertv2.json"))


def _read_published(name: str) -> Published:
    values = packaged_json(name)
    names = ("model", "dim", "vocabulary", "text", "atol")
    query, document = (tuple(tuple(row) for row in values[side]) for side in ("query", "document"))
    return Published(**{name: values[name] for name in names}, query=query, document=document)


def with_head(encoder: Encoder, found: Mapping[int, Checkpoint]) -> tuple[Encoder, Mapping[int, Checkpoint]]:
    """Add the head that vectors are published for, if it is on disk and belongs to the loaded backbone.

    With it, a job at another dim is compared with the published vectors too, at the price of reading one more file.
    """
    published, config = of(encoder), encoder.config
    if published is None or published.dim in encoder.heads:
        return encoder, found
    source = config.checkpoints.get(str(published.dim))
    if source is None or vocabulary_rows(encoder) != published.vocabulary:
        return encoder, found
    if not on_disk(source):
        return encoder, found
    other = resolve(
        source,
        allow_pickle=config.allow_pickle,
        remote_code=config.trust_remote_code,
        dense=config.head == "dense",
    )
    widened = with_head_of(encoder, found[next(iter(encoder.heads))], other, published.dim)
    return (encoder, found) if widened is None else (widened, {**found, published.dim: other})


def of(encoder: Encoder) -> Published | None:
    """Return the vectors that are published for an encoder's model, or None."""
    return next((published for published in packaged() if published.model == encoder.config.name), None)


def findings(encoder: Encoder, found: Mapping[int, Checkpoint]) -> Iterator[Finding]:
    """Compare an encoder with the published vectors, in the job's dtype and in fp32."""
    published = of(encoder)
    if published is None:
        question = f"published vectors of {HELLO!r} in {encoder.config.dtype}"
        yield Finding(question, "skipped", f"none are published for {encoder.config.name} at {_dims(encoder)}")
        return
    encoder, found = with_head(encoder, found)
    reload = reloader(encoder, found)
    first = compare(encoder, published, reload=reload)
    yield first
    if encoder.config.dtype != "float32" and first.verdict != "skipped":
        yield compare(reload(replace(encoder.config, dtype="float32")), published, reload=reload)


def compare(encoder: Encoder, published: Published, *, reload: Reload) -> Finding:
    """Compare an encoder with the published vectors; if they differ, try which variant of the config gives them."""
    config = encoder.config
    question = f"published vectors of {published.text!r} in {config.dtype}"
    rows = vocabulary_rows(encoder)
    if rows != published.vocabulary:
        reason = f"{rows} rows: a stand-in, not the published model of {published.vocabulary}"
        return Finding(question, "skipped", reason)
    if published.dim not in encoder.heads:
        reason = (
            f"none are published at {_dims(encoder)}; those at {published.dim} settle {_unsettled(encoder)} "
            "where its checkpoint is on disk and has the same backbone: "
            f"evalkit fetch model={config.name} dim={published.dim}"
        )
        return Finding(question, "skipped", reason)
    worst, atol = deviation(encoder, published), published.atol + PUBLISHED_ATOL[config.dtype]
    base = "" if encoder.rope_theta is None else f", RoPE base {encoder.rope_theta}"
    measured = f"max |Δ| {worst:.1e}, at most {atol:.0e}{base}"
    if worst <= atol:
        return Finding(question, "ok", measured)
    for cause, changed in _suspects(encoder):
        if deviation(reload(changed), published) <= atol:
            return Finding(question, "FAILED", measured, f"{cause}, which reproduces the published vectors")
    tried = ", ".join(filter(None, ("" if encoder.rope_theta is None else "RoPE base", "marker", "expansion")))
    cause = f"weights or head: no {tried} or dtype reproduces the published vectors"
    return Finding(question, "FAILED", measured, cause)


def _unsettled(encoder: Encoder) -> str:
    return "backbone and markers" if encoder.rope_theta is None else f"the RoPE base ({encoder.rope_theta})"


def _suspects(encoder: Encoder) -> Iterator[tuple[str, EncoderConfig]]:
    """Yield the variants of a config that commonly go wrong, each with the setting that repairs it."""
    config = encoder.config
    for base in ROPE_BASES:
        if encoder.rope_theta is not None and base != encoder.rope_theta:
            yield f"RoPE base: model.rope_theta={base:.0f}", replace(config, rope_theta=base)
    attends = not config.query.attend_to_expansion
    flipped = replace(config, query=replace(config.query, attend_to_expansion=attends))
    words = f"model.query.attend_to_expansion={str(attends).lower()}"
    known = next((variant.because for variant in metadata.variants(config.name) if variant.words == words), None)
    yield f"expansion attention: {words}{f' ({known})' if known else ''}", flipped
    query, document = config.query.marker, config.document.marker
    swapped = replace(
        config, query=replace(config.query, marker=document), document=replace(config.document, marker=query)
    )
    yield f"marker ids: query {document}, document {query}", swapped
    yield "dtype: model.dtype=float32", replace(config, dtype="float32")


def deviation(encoder: Encoder, published: Published) -> float:
    """Return the largest |Δ| of the published components; infinity if the number of vectors differs.

    Queries are expanded to the published number of vectors, whatever length the dataset uses.
    """
    worst = 0.0
    if encoder.config.query.expansion:
        rules = replace(encoder.config.query, max_tokens=len(published.query))
        encoder = replace(encoder, config=replace(encoder.config, query=rules))
    query, document = encoder.tokenize_queries([published.text]), encoder.tokenize_documents([published.text])
    for texts, documents, rows in ((query, False, published.query), (document, True, published.document)):
        (ours_TD,) = vectors_of(encoder, texts, documents=documents)[published.dim]
        wanted = torch.tensor(rows)
        if len(ours_TD) != len(wanted):
            return math.inf
        worst = max(worst, float((ours_TD[:, : wanted.shape[1]] - wanted).abs().max()))
    return worst


def _dims(encoder: Encoder) -> str:
    return ", ".join(map(str, encoder.heads))
