"""Embedding parity: compare a library's token ids, masks and vectors of the sample with evalkit's.

Both read the same checkpoint folder. If settings of evalkit can imitate a difference, it is recorded with these
settings, so that `scripts/peer.py effects` can measure its effect on a score.

Shapes: T token ids of a text, V of them that give vectors, D dim.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peers import job
from peers.environments import PeerError
from peers.worker import read_documents

CLOSE = 1e-4
"""The largest difference between two vectors, in any component, that rounding in fp32 can explain."""
SHOWN = 4
"""The number of tokens that a line lists."""


class Text(NamedTuple):
    """One text of the sample as the library or evalkit feeds it to the model."""

    ids: np.ndarray
    attended: np.ndarray
    kept: np.ndarray
    vectors: np.ndarray


class Difference(NamedTuple):
    """A difference: its name, the side (query or document), a description, and the settings that imitate it."""

    name: str
    side: str
    account: str
    words: tuple[str, ...] = ()


def compare(out: Path, checkpoint: Path, data: Path) -> list[str]:
    """Write OUT/parity.json; return a line for each difference and one for each side's vectors. Raises PeerError."""
    facts = _facts(out)
    theirs = read_sample(out / job.SAMPLE)
    ours, names, settings = of_evalkit(checkpoint, data)
    wanted, got = ({text.vectors.shape[1] for texts in side.values() for text in texts} for side in (ours, theirs))
    if got != wanted:
        shown = [" and ".join(map(str, sorted(dims))) for dims in (got, wanted)]
        msg = f"{out / job.SAMPLE}: got vectors of dim {shown[0]}, wanted {shown[1]} as {checkpoint.name} has"
        raise PeerError(f"{msg}; give the checkpoint that the library read")
    found: list[Difference] = []
    worst: dict[str, float] = {}
    for side in ("query", "document"):
        if len(ours[side]) != len(theirs[side]):
            msg = f"{out / job.SAMPLE}: got {len(theirs[side])} texts per side, wanted {len(ours[side])}"
            raise PeerError(f"{msg}; run the library again")
        limit = (facts.get("settings") or {}).get(f"{side}_tokens")
        limit = limit if isinstance(limit, int) else None
        found += differences(side, ours[side], theirs[side], names, limit=limit)
        worst[side] = max([0.0, *distances(ours[side], theirs[side])])
    found += scoring(theirs, read_scores(out / job.SAMPLE))
    lines = [f"{one.name} ({one.side}): {one.account}" for one in found] or ["token ids and masks are equal"]
    lines += [
        f"vectors ({side}) of texts with equal ids and masks: largest difference {value:.1e}"
        + ("" if value < CLOSE else ", more than rounding explains")
        for side, value in worst.items()
    ]
    report = {
        "system": facts["system"],
        "library": facts["library"],
        "settings": facts.get("settings"),
        "evalkit": settings,
        "differences": [one._asdict() for one in found],
        "largest_vector_difference": worst,
        "lines": lines,
    }
    (out / "parity.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return lines


def _facts(out: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((out / job.FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{out}: got no whole {job.FACTS} ({error}), wanted what scripts/peer.py run leaves"
        raise PeerError(msg) from error
    return facts


def read_sample(path: Path) -> dict[str, list[Text]]:
    """Return both sides of a sample. Raises PeerError if the file is not a sample."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {}
            for side in ("query", "document"):
                count = sum(name.startswith(f"{side}_ids_") for name in arrays.files)
                found[side] = [
                    Text(*(arrays[f"{side}_{part}_{place}"] for part in ("ids", "attended", "kept", "vectors")))
                    for place in range(count)
                ]
    except (OSError, ValueError, KeyError) as error:
        msg = f"{path}: not a sample ({error}); wanted what scripts/peer.py run leaves"
        raise PeerError(msg) from error
    if not all(found.values()):
        msg = f"{path}: got a sample without texts; run the library again"
        raise PeerError(msg)
    return found


def read_scores(path: Path) -> np.ndarray:
    """Return the library's own scores of the sample's queries and documents [Q, N]; empty if it has none."""
    with np.load(path, allow_pickle=False) as arrays:
        score_QN: np.ndarray = arrays[job.SCORES] if job.SCORES in arrays.files else np.empty((0, 0))
        return score_QN


def scoring(theirs: Mapping[str, Sequence[Text]], score_QN: np.ndarray) -> Iterator[Difference]:
    """Yield a difference if the library's scores are not MaxSim of its own vectors."""
    if not score_QN.size:
        return
    exact_QN = np.array(
        [[(one.vectors @ other.vectors.T).max(1).sum() for other in theirs["document"]] for one in theirs["query"]]
    )
    apart_QN = score_QN - exact_QN
    if np.abs(apart_QN).max() > CLOSE * max(1.0, float(np.abs(exact_QN).max())):
        side = "higher" if apart_QN.min() >= -CLOSE else "lower" if apart_QN.max() <= CLOSE else "off"
        count = int((np.abs(apart_QN) > CLOSE).sum())
        account = f"{count} of {apart_QN.size} scores are {side}, by up to {np.abs(apart_QN).max():.3f}"
        yield Difference("scoring", "pairs", f"{account}, than MaxSim of the library's own vectors")


def of_evalkit(checkpoint: Path, data: Path) -> tuple[dict[str, list[Text]], dict[int, str], dict[str, Any]]:
    """Return evalkit's sample, the tokens by id, and the settings that evalkit infers from the checkpoint."""
    import torch

    from evalkit.config.settings import CheckpointSource, EncoderConfig, from_mapping
    from evalkit.models.encoder import checkpoints, load_encoders
    from evalkit.models.infer import infer

    values = infer(CheckpointSource(path=str(checkpoint.resolve())), name="parity").values()
    config: EncoderConfig = from_mapping(EncoderConfig, values, where="model")
    (encoder,) = load_encoders(config, checkpoints(config, config.dims), device=torch.device("cpu"))
    own = {"query": job.judged_queries(data)[1], "document": read_documents(str(data))[1]}
    found: dict[str, list[Text]] = {}
    for side in ("query", "document"):
        texts = [*job.TEXTS, *own[side][: job.OF_THE_FOLDER]]
        table = encoder.tokenize_queries(texts) if side == "query" else encoder.tokenize_documents(texts)
        found[side] = []
        for place in range(len(table)):
            one = table[place : place + 1]
            vectors, _ = encoder.vectors(encoder.batch(one, skip_punctuation=side == "document"))[config.dims[0]]
            attended = np.arange(len(one.ids_X)) < one.attended_N[0]
            kept = encoder.kept(one, skip_punctuation=side == "document")
            found[side].append(Text(one.ids_X, attended, kept, vectors.numpy()))
    tokenizer = encoder.vocabulary.tokenizer
    ids = {int(token) for texts_of in found.values() for text in texts_of for token in text.ids}
    names = {token: str(tokenizer.id_to_token(token)) for token in ids}
    settings = {
        "query": dataclasses.asdict(config.query),
        "document": dataclasses.asdict(config.document),
        "skiplist": config.skiplist,
        "skipped_ids": sorted(int(token) for token in encoder.skipped),
        "mask_id": encoder.vocabulary.mask,
    }
    return found, names, settings


def differences(
    side: str, ours: Sequence[Text], theirs: Sequence[Text], names: Mapping[int, str], *, limit: int | None = None
) -> Iterator[Difference]:
    """Yield the differences of one side, each kind once, with the settings that make evalkit do the same.

    `limit` is the most token ids that the library says it gives a text; without it, the sample's longest text counts.
    """
    pairs = list(zip(ours, theirs, strict=True))
    longest = [max(len(text.ids) for text in of) for of in (ours, theirs)]
    if longest[0] != longest[1]:
        lengths = [{len(text.ids) for text in of} for of in (ours, theirs)]
        if len(lengths[0]) == 1 < len(lengths[1]):  # expanded by evalkit to one length, by the library to several
            account = f"{min(lengths[1])} to {longest[1]} token ids, by the text, evalkit {longest[0]}"
            yield Difference("length", side, account)
        else:
            most = max(longest[1], limit or 0)
            imitated = (f"model.{side}.max_tokens={most}",)
            yield Difference("length", side, f"{most} token ids at most, evalkit {longest[0]}", imitated)
    markers = [sorted({int(text.ids[1]) for text in of if len(text.ids) > 1}) for of in (ours, theirs)]
    if markers[0] != markers[1]:
        shown = [", ".join(names.get(token, str(token)) for token in of[:SHOWN]) for of in markers]
        yield Difference("marker", side, f"the second id is {shown[1]}, evalkit's {shown[0]}")
    shorter = [place for place, (mine, other) in enumerate(pairs) if len(mine.ids) != len(other.ids)]
    if shorter and longest[0] == longest[1]:
        account = f"{len(shorter)} of {len(pairs)} texts ({_called(shorter)}) have another number of ids"
        words: tuple[str, ...] = ("model.query.expansion=false",) if side == "query" and _unexpanded(pairs) else ()
        yield Difference("expansion" if words else "token ids", side, account, words)
    changed = [
        place
        for place, (mine, other) in enumerate(pairs)
        if len(mine.ids) == len(other.ids) and (mine.ids != other.ids).any()
    ]
    if changed and markers[0] == markers[1]:
        mine, other = pairs[changed[0]]
        place = int(np.flatnonzero(mine.ids != other.ids)[0])
        got, wanted = (names.get(int(text.ids[place]), int(text.ids[place])) for text in (other, mine))
        account = f"{len(changed)} of {len(pairs)} texts ({_called(changed)}), the first at place {place}: {got}"
        account = f"{account}, evalkit {wanted}"
        yield Difference("token ids", side, account)
    same = [(mine, other) for mine, other in pairs if np.array_equal(mine.ids, other.ids)]
    unattended = [(mine, other) for mine, other in same if (mine.attended != other.attended).any()]
    if unattended:
        mine, other = unattended[0]
        more = bool(other.attended.sum() > mine.attended.sum())
        account = f"expansion is {'' if more else 'not '}attended to in {len(unattended)} of {len(same)} texts"
        words = (f"model.{side}.attend_to_expansion={str(more).lower()}",)
        yield Difference("attention", side, f"{account}, evalkit {'does not' if more else 'does'}", words)
    yield from _skiplist(side, same, names)


def _called(places: Sequence[int]) -> str:
    """Return the names of the sample's texts at these positions."""
    names = list(job.SAMPLED)
    return ", ".join(dict.fromkeys(names[place] if place < len(names) else "of the dataset" for place in places))


def _unexpanded(pairs: Sequence[tuple[Text, Text]]) -> bool:
    """Return whether the library's texts are evalkit's without their expansion."""
    return all(np.array_equal(mine.ids[: len(other.ids)], other.ids) for mine, other in pairs)


def _skiplist(side: str, same: Sequence[tuple[Text, Text]], names: Mapping[int, str]) -> Iterator[Difference]:
    """Yield a difference if there are tokens that only one side skips."""
    dropped: dict[str, set[int]] = {"the library": set(), "evalkit": set()}
    for mine, other in same:
        dropped["the library"] |= {int(token) for token in mine.ids[mine.kept & ~other.kept]}
        dropped["evalkit"] |= {int(token) for token in mine.ids[~mine.kept & other.kept]}
    said = [
        f"{who} alone drops {', '.join(repr(names.get(token, token)) for token in sorted(tokens)[: SHOWN * 4])}"
        for who, tokens in dropped.items()
        if tokens
    ]
    if said:
        words = () if side == "query" else ("model.skiplist=pylate",)
        yield Difference("skiplist", side, "; ".join(said), words)


def distances(ours: Sequence[Text], theirs: Sequence[Text]) -> Iterator[float]:
    """Yield the largest difference of two vectors of each text whose ids and attention are equal."""
    for mine, other in zip(ours, theirs, strict=True):
        if np.array_equal(mine.ids, other.ids) and np.array_equal(mine.attended, other.attended):
            both = mine.kept & other.kept
            if both.any():
                yield float(np.abs(mine.vectors[both[mine.kept]] - other.vectors[both[other.kept]]).max())
