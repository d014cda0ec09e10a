"""The canary: questions to a loaded model. They take a minute; a wrong model would waste hours of encoding.

Shapes: T tokens of a text, D dim. Every failure names its likeliest cause.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from evalkit.config.settings import EncoderConfig, RunConfig
from evalkit.errors import ConfigError, ModelError
from evalkit.kernels.cpu import linear
from evalkit.models import metadata
from evalkit.models.attention import choose
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder, load_encoders, obtainable
from evalkit.models.tokens import Tokens, TokenTable, tokenize
from evalkit.run import auto, published_vectors
from evalkit.run.finding import HELLO, Finding, Reload, packaged_json, reloader, vectors_of, vocabulary_rows

TEXTS = (
    HELLO,
    "hello hello hello",
    "What is late interaction, and why does it keep one vector per token?",
    "Punctuation: (a), [b]; c! d? e. " * 6,
    "早期のがん検診 – прививки и здоровье – تحيات",
    "",
)
"""Fixed texts: short, repetitive, plain, full of punctuation, in several scripts, empty."""
BATCHED_ATOL: Mapping[str, float] = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference of a component between a text encoded alone and the same text padded in a batch."""
DTYPE_COSINE: Mapping[str, float] = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 2e-2}
"""Largest 1 − cosine between a vector in the job's dtype and in fp32."""
NORM_ATOL = 1e-4
"""Largest difference between a normalised vector's length and 1."""


def findings_of(config: RunConfig) -> Iterator[tuple[tuple[int, ...], list[Finding]]]:
    """Yield the dims and findings of each backbone of a model. Raises ConfigError for a model without vectors."""
    model = config.model
    if not isinstance(model, EncoderConfig):
        msg = f"model {model.name!r} has no checkpoint to check; wanted a model with vectors (evalkit ls models)"
        raise ConfigError(msg)
    device = auto.choose_device(config.engine.device)
    found, failed = obtainable(model, [dim for dim in config.dims if dim is not None])
    for dim, error in failed.items():
        yield (dim,), [Finding("checkpoint", "FAILED", str(error), "it is not on disk and cannot be fetched from here")]
    engine = config.engine
    for encoder in load_encoders(
        model, found, device=device, attention=engine.attention, elementwise=engine.elementwise
    ):
        reload = reloader(encoder, found)
        own = _own_settings(model, {dim: found[dim] for dim in encoder.heads})
        findings = [
            own,
            *_variants(model),
            *examine(encoder),
            *packing(encoder),
            *_dtype(encoder, reload=reload),
        ]
        findings += published_vectors.findings(encoder, found)
        yield tuple(encoder.heads), findings


def canary(encoder: Encoder, found: Mapping[int, Checkpoint]) -> frozenset[int]:
    """Ask every question that a long job depends on. Return the dims whose published vectors the encoder reproduced.

    Raises ModelError with the first failure and its likeliest cause. A dim that was added only for the comparison is
    not returned: its vectors prove the backbone, not the head of the requested dim. If vectors are published and the
    dtype is a half precision, the weights are loaded again in fp32 and compared too: within the tolerance of bfloat16,
    RoPE bases are hard to tell apart.
    """
    packed = packing(encoder) if encoder.attention != "sdpa" else ()
    for finding in chain(examine(encoder), packed):
        _refuse_failed(finding, encoder)
    reproduced = True
    for finding in published_vectors.findings(encoder, found):
        _refuse_failed(finding, encoder)
        reproduced = reproduced and finding.verdict == "ok"
    published = published_vectors.of(encoder)
    return frozenset({published.dim} & set(encoder.heads)) if reproduced and published is not None else frozenset()


def _refuse_failed(finding: Finding, encoder: Encoder) -> None:
    if finding.verdict == "FAILED":
        msg = (
            f"model {encoder.config.name!r} fails the canary, {finding.question}: {finding.measured}; "
            f"likeliest cause: {finding.cause} (evalkit check model={encoder.config.name})"
        )
        raise ModelError(msg)


def examine(encoder: Encoder) -> Iterator[Finding]:
    """Yield the findings that need no second copy of the model, the cheapest ones first."""
    yield from _token_ids(encoder)
    yield from _layout(encoder)
    yield from _counts_and_norms(encoder)
    yield from _positions(encoder)
    yield from _expansion(encoder)
    yield from _batching(encoder)


def _sides(encoder: Encoder) -> Iterator[tuple[str, Sequence[Tokens], bool]]:
    """Yield for queries and documents the name of the side, the tokenised fixed texts, and whether it is documents."""
    yield "query", encoder.tokenize_queries(TEXTS), False
    yield "document", encoder.tokenize_documents(TEXTS), True


def _own_settings(config: EncoderConfig, found: Mapping[int, Checkpoint]) -> Finding:
    """Report accepted differences between `artifact.metadata` and the config; others were refused on loading."""
    files = list(dict.fromkeys(filter(None, map(metadata.settings_file, found.values()))))
    if not files:
        return Finding("the checkpoint's own settings", "skipped", "it has no artifact.metadata")
    measured = "; ".join(metadata.notes(config, found)) or f"{', '.join(files)} says what the config says"
    return Finding("the checkpoint's own settings", "ok", measured)


def _variants(config: EncoderConfig) -> Iterator[Finding]:
    """Name other known states of the model's repository: vectors published for those differ from this one's."""
    for variant in metadata.variants(config.name):
        value: Any = config
        for part in variant.setting.split("."):
            value = getattr(value, part)
        state = "one of its states" if value == variant.value else f"the other state is {variant.words}"
        yield Finding("states of its repository", "ok", f"{variant.setting} is {str(value).lower()}, {state}")


def _token_ids(encoder: Encoder) -> Iterator[Finding]:
    """Compare the ids of single tokens with those of the published vocabulary."""
    question = "ids of known tokens"
    facts, rows = packaged_json("token_ids.json").get(encoder.config.name), vocabulary_rows(encoder)
    if facts is None or facts["vocabulary"] != rows:
        reason = "none are published" if facts is None else f"they are for a vocabulary of {facts['vocabulary']}"
        yield Finding(question, "skipped", f"{rows} rows; {reason}")
        return
    found = {token: encoder.vocabulary.tokenizer.token_to_id(token) for token in facts["ids"]}
    wrong = [
        f"{token} is {found[token]}, wanted {wanted}"
        for token, wanted in facts["ids"].items()
        if found[token] != wanted
    ]
    measured = "; ".join(wrong) or f"{len(found)} of {len(found)} as published"
    yield _finding(question, not wrong, measured, "marker ids: tokenizer.json is not the checkpoint's own")


def _layout(encoder: Encoder) -> Iterator[Finding]:
    """Check the positions of the first token, markers, last token and mask tokens in the fixed texts."""
    vocabulary = encoder.vocabulary
    for side, texts, _ in _sides(encoder):
        rules = encoder.config.query if side == "query" else encoder.config.document
        front = [*vocabulary.begin[:1], *vocabulary.markers(rules), *vocabulary.begin[1:]]
        end = list(vocabulary.end)
        problems = []
        for text, plain in zip(texts, _unexpanded(encoder, side, TEXTS), strict=True):
            real = len(plain.ids)
            masks = text.ids[real:]
            if vocabulary.begin and text.ids[: len(front)] != front:
                problems.append(f"begins {text.ids[: len(front)]}, wanted {front}")
            if (vocabulary.begin or real > len(front) + len(end)) and text.ids[real - len(end) : real] != end:
                problems.append(f"the last real id is {text.ids[real - 1]}, wanted {vocabulary.last}")
            if rules.expansion and (len(text.ids) != rules.max_tokens or set(masks) - {vocabulary.mask}):
                problems.append(f"{len(text.ids)} ids, wanted {rules.max_tokens} filled with {vocabulary.mask}")
            attended = len(text.ids) if rules.attend_to_expansion else real
            if text.attended != attended:
                problems.append(f"{text.attended} ids attended to, wanted {attended}")
        ids = texts[0].ids
        shown = ids[: len(front) + 4]
        measured = (
            problems[0] if problems else f"{HELLO!r} is {shown}{'…' if len(ids) > len(shown) else ''} ({len(ids)} ids)"
        )
        yield _finding(f"layout of a {side}", not problems, measured, "marker ids or expansion in the model's config")
    query, document = (vocabulary.markers(rules) for rules in (encoder.config.query, encoder.config.document))
    if query and encoder.config.query.marker != encoder.config.document.marker:
        cause = "marker ids: two markers with one id"
        yield _finding("markers of both sides differ", query != document, f"{query} and {document}", cause)


def _unexpanded(encoder: Encoder, side: str, texts: Sequence[str]) -> TokenTable:
    """Tokenise texts without expansion. Counting mask tokens would not do: a decoder expands with its end token."""
    rules = encoder.config.query if side == "query" else encoder.config.document
    return tokenize(texts, replace(rules, expansion=False), encoder.vocabulary)


def _counts_and_norms(encoder: Encoder) -> Iterator[Finding]:
    """Check that every text has the right number of vectors, all of them finite and, if normalised, of length 1."""
    for side, texts, documents in _sides(encoder):
        skipped = set(encoder.skipped.tolist()) if documents else set()
        wanted = [
            sum(token not in skipped for token in text.ids) if encoder.config.pooling == "tokens" else 1
            for text in texts
        ]
        for dim, vectors in vectors_of(encoder, texts, documents=documents).items():
            counts = [len(vectors_TD) for vectors_TD in vectors]
            widths = {vectors_TD.shape[1] for vectors_TD in vectors}
            cause = (
                "head missing or of another dim" if widths != {dim} else "skiplist or expansion in the model's config"
            )
            counted = counts == wanted and widths == {dim}
            measured = f"{counts} of width {sorted(widths)}" + ("" if counted else f", wanted {wanted} of width {dim}")
            yield _finding(f"{side} vectors at {dim}", counted, measured, cause)
            norms = torch.cat(vectors).norm(dim=1)
            if not bool(torch.isfinite(norms).all()):
                yield Finding(f"{side} norms at {dim}", "FAILED", "not finite", _cause_of_non_finite(encoder))
                continue
            low, high = float(norms.min()), float(norms.max())
            unit = abs(low - 1) < NORM_ATOL and abs(high - 1) < NORM_ATOL
            good = unit if encoder.config.normalize else low > 0
            cause = "head missing or zero: a vector has no length" if low == 0 else "normalisation"
            yield _finding(f"{side} norms at {dim}", good, f"{low:.5f} to {high:.5f}", cause)


def _cause_of_non_finite(encoder: Encoder) -> str:
    """Return the likeliest cause of vectors that are not finite. A NaN in a weight means a damaged checkpoint."""
    heads = {f"the head of {dim}": head for dim, head in encoder.heads.items() if isinstance(head, torch.Tensor)}
    for dim, head in encoder.heads.items():
        if isinstance(head, torch.nn.Module):
            heads |= {f"the head of {dim}: {name}": weight for name, weight in head.named_parameters()}
    damaged = [
        name for name, weight in {**dict(linear.weights(encoder.module)), **heads}.items() if weight.isnan().any()
    ]
    if damaged:
        return f"weights: {damaged[0]} holds NaN; fetch the checkpoint again"
    dtype = encoder.config.dtype
    return f"dtype: {dtype} overflows" + ("" if dtype == "float32" else "; model.dtype=float32")


def _positions(encoder: Encoder) -> Iterator[Finding]:
    """Check that a token has different vectors at two positions; otherwise positions do not reach the model."""
    if encoder.config.pooling != "tokens":
        return
    (text,) = encoder.tokenize_documents([TEXTS[1]])
    places = [place for place, token in enumerate(text.ids) if text.ids.count(token) > 1]
    if len(places) < 2:
        return
    all_kept = encoder.batch([text], skip_punctuation=False)
    vectors_TD, _ = next(iter(encoder.vectors(all_kept).values()))
    pair = [place for place in places if text.ids[place] == text.ids[places[0]]]
    moved = float((vectors_TD[pair[0]] - vectors_TD[pair[-1]]).abs().max())
    cause = "RoPE base: positions do not reach the attention" if encoder.rope_theta else "position embeddings or ALiBi"
    yield _finding("one token at two places", moved > 1e-4, f"its vectors differ by {moved:.1e}", cause)


def _expansion(encoder: Encoder) -> Iterator[Finding]:
    """Check that mask tokens have vectors, and change other tokens' vectors only where those attend to them."""
    rules = encoder.config.query
    if not rules.expansion or encoder.config.pooling != "tokens":
        return
    (expanded,) = encoder.tokenize_queries([HELLO])
    real = len(_unexpanded(encoder, "query", [HELLO])[0].ids)
    if real == rules.max_tokens:  # the query leaves no room for mask tokens
        return
    plain = Tokens(expanded.ids[:real], real)
    attended, unattended = Tokens(expanded.ids, len(expanded.ids)), Tokens(expanded.ids, real)
    in_force = "attended to" if rules.attend_to_expansion else "not attended to"
    for dim in encoder.heads:
        one = encoder.only([dim])
        alone, with_masks, seen, unseen = (
            vectors_of(one, [text], documents=False)[dim][0] for text in (plain, expanded, attended, unattended)
        )
        masks = with_masks[real:]
        shortest = float(masks.norm(dim=1).min()) if len(masks) else math.nan
        measured = f"{len(masks)} masks, the shortest vector {shortest:.3f}"
        cause = "expansion: no masks, or masks zeroed as padding"
        yield _finding(f"expansion vectors at {dim}", len(masks) > 0 and shortest > 0, measured, cause)
        by_seen, by_unseen = (float((vectors[:real] - alone).abs().max()) for vectors in (seen, unseen))
        # A ratio, because rounding alone moves a half-precision vector as far as some masks do.
        measured = f"attended to, they move the others by {by_seen:.1e}, else by {by_unseen:.1e}; in force: {in_force}"
        if any(getattr(part, "is_causal", False) for part in encoder.module.modules()):
            question = f"masks and the other tokens at {dim}"
            yield Finding(question, "skipped", "causal attention: no token sees what comes after it")
            continue
        cause = "expansion attention: the attention mask does not reach the model"
        yield _finding(f"masks and the other tokens at {dim}", by_seen > 4 * by_unseen, measured, cause)


def _batching(encoder: Encoder) -> Iterator[Finding]:
    """Compare the vectors of each text alone with those of the same text padded in a batch."""
    atol = BATCHED_ATOL[encoder.config.dtype]
    for side, texts, documents in _sides(encoder):
        worst = 0.0
        for dim, together in vectors_of(encoder, texts, documents=documents).items():
            for text, vectors_TD in zip(texts, together, strict=True):
                (alone_TD,) = vectors_of(encoder, [text], documents=documents)[dim]
                if len(alone_TD):
                    scale = max(1.0, float(alone_TD.norm(dim=1).max()))
                    worst = max(worst, float((vectors_TD - alone_TD).abs().max()) / scale)
        measured = f"max |Δ| {worst:.1e}, at most {atol:.0e} in {encoder.config.dtype}"
        yield _finding(
            f"{side} alone and in a batch", worst <= atol, measured, "padding: padded tokens are attended to"
        )


def packing(encoder: Encoder) -> Iterator[Finding]:
    """Compare the vectors of packed and of padded texts, on the attention path that packs on this device."""
    config = encoder.config
    asked = encoder.attention if encoder.attention != "sdpa" else "varlen"
    path = choose(asked, config=config, device=encoder.device).path
    if path == "sdpa":
        yield Finding("packed and padded", "skipped", f"{config.backbone} in {config.dtype} is not packed here")
        return
    packed, padded = replace(encoder, attention=path), replace(encoder, attention="sdpa")
    atol = BATCHED_ATOL[config.dtype]
    for side, texts, documents in _sides(encoder):
        worst = 0.0
        wanted = vectors_of(padded, texts, documents=documents)
        for dim, ours in vectors_of(packed, texts, documents=documents).items():
            together_XD = torch.cat(wanted[dim])
            scale = max(1.0, float(together_XD.norm(dim=1).max()))
            worst = max(worst, float((torch.cat(ours) - together_XD).abs().max()) / scale)
        measured = f"{path}: max |Δ| {worst:.1e}, at most {atol:.0e} in {config.dtype}"
        cause = "packed attention: texts attend to their neighbours, or positions run on (engine.attention=sdpa)"
        yield _finding(f"{side} packed and padded", worst <= atol, measured, cause)


def _dtype(encoder: Encoder, *, reload: Reload) -> Iterator[Finding]:
    """Compare the vectors in the job's dtype with those in fp32."""
    config = encoder.config
    if config.dtype == "float32":
        yield Finding("the job's dtype against fp32", "ok", "the job's dtype is float32")
        return
    exact = reload(replace(config, dtype="float32"))
    for side, texts, documents in _sides(encoder):
        ours = vectors_of(encoder, texts, documents=documents)
        worst = 0.0
        for dim, wanted in vectors_of(exact, texts, documents=documents).items():
            cosines = torch.nn.functional.cosine_similarity(torch.cat(ours[dim]), torch.cat(wanted), dim=1)
            worst = max(worst, float((1 - cosines).max()))
        limit = DTYPE_COSINE[config.dtype]
        measured = f"{config.dtype}: 1 − cosine at most {worst:.1e}, wanted {limit:.0e} or less"
        yield _finding(
            f"{side} in the job's dtype against fp32", worst <= limit, measured, "dtype: model.dtype=float32"
        )


def _finding(question: str, good: bool, measured: str, cause: str) -> Finding:  # noqa: FBT001 (a column of the finding)
    return Finding(question, "ok", measured) if good else Finding(question, "FAILED", measured, cause)
