"""The section `encoding`: jina-colbert-v2's network with random weights, compared with its floor and padded batches.

    PYTHONPATH=.:scripts python scripts/gpu/encoding.py --out OUT [--budget-s 100]     # --smoke: toy sizes on a CPU

It writes OUT/encoding.json and needs a CUDA device. The GEMM rate comes from ceilings.json in OUT, if it
exists. prove.sh runs all sections.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from peers.random_encoder import Shape, encoder_of, token_table
from shared import Bench, busy_share, joules, run_section
from torch import Tensor
from torch.nn.functional import normalize, pad

LAYER_FLOP = 2 * 12 * 1024 * 1024
"""Per token and layer of jina-colbert-v2: four products of 1024 by 1024, and two of 1024 by 4096."""
LAYERS = 24
DIMS = (128, 96, 64)
BATCH_TOKENS = 32_768


def encoded(encoder: Any, table: Any, *, batch_tokens: int = BATCH_TOKENS) -> Tensor:
    """Encode all texts as a run does, and return the first dim's vectors."""
    from evalkit.run.encode import Encoding, encode

    ids = [str(place) for place in range(len(table))]
    out = encode(ids, table, encoder, Encoding(documents=True, batch_tokens=batch_tokens, storage=torch.float16))
    return next(iter(out.values())).vectors.rows_XD


class Inputs:
    """The texts, the encoders of one network, and reference vectors for some of the texts."""

    def __init__(self, bench: Bench) -> None:
        """Build the network with and without the fused kernels, and encode some texts in padded fp32."""
        from evalkit.models import attention, elementwise

        smoke = bench.smoke
        layers, hidden, vocabulary = (1, 64, 1000) if smoke else (LAYERS, 1024, 250_002)
        shape = Shape(layers=layers, hidden=hidden, vocabulary=vocabulary)
        self.dtype = torch.float32 if smoke else torch.bfloat16
        self.lengths = bench.passage_lengths(3 if smoke else 30_000, seed=11)
        self.table = token_table(self.lengths, vocabulary=vocabulary)
        self.some = self.table[: 1 if smoke else 64]
        reference = encoder_of(bench.device, **shape, dims=DIMS, dtype=torch.float32, attention="sdpa")
        self.wanted_XD = encoded(reference.only(DIMS[:1]), self.some).float()
        config = reference.config
        del reference
        half = dataclasses.replace(config, dtype="float32" if smoke else "bfloat16")
        self.path = attention.choose("varlen" if smoke else "auto", config=half, device=bench.device).path
        fused, problem = elementwise.choose("triton", config=half, device=bench.device)
        bench.record("encoding", "how", {"attention": self.path, "elementwise": problem or "Triton's kernels"})
        self.three, of_torch = (
            encoder_of(bench.device, **shape, dims=DIMS, dtype=self.dtype, attention=self.path, fused=by_triton)
            for by_triton in (bool(fused), False)
        )
        self.ours, self.of_torch = self.three.only(DIMS[:1]), of_torch.only(DIMS[:1])
        attention_flop = 4 * 1024 * LAYERS * float((self.lengths.astype(float) ** 2).sum() / self.lengths.sum())
        self.flop = LAYER_FLOP * LAYERS + attention_flop
        gemm = bench.gemm_rate("bfloat16")
        self.floor = None if smoke or not gemm else gemm * 1e12 / self.flop
        self.rates: dict[str, float] = {}
        padded_XD = encoded(dataclasses.replace(self.of_torch, attention="sdpa"), self.some)
        self.limit = 2 * self.error(padded_XD) + 1e-3
        """Twice the error of torch's own padded pass in the same type."""

    def error(self, found_XD: Tensor) -> float:
        """Return the largest distance of the vectors of some texts from those of padded fp32."""
        return float((found_XD.float() - self.wanted_XD).norm(dim=1).max())


def encoding(bench: Bench) -> None:
    """Compare encoding with its floor, and each kernel with torch's own operations."""
    inputs = Inputs(bench)
    facts = {"passages": len(inputs.table), "mean tokens": round(float(inputs.lengths.mean()), 1)}
    bench.record("encoding", "inputs", {**facts, "MFLOP per token": round(inputs.flop / 1e6, 1)})
    bench.record("encoding", "floor, tokens/s at the GEMM rate", inputs.floor and round(inputs.floor))
    name = f"evalkit, {BATCH_TOKENS} tokens a batch"
    timed(bench, inputs, name, inputs.ours)
    packed = dataclasses.replace(inputs.of_torch, attention="sdpa")
    timed(bench, inputs, "torch's elementwise calls", inputs.of_torch)
    timed(bench, inputs, "sorted, padded", packed, part=3)
    padded_rates(bench, inputs, packed)
    if bench.fits("three dims in one pass", 12):
        took = timed(bench, inputs, "three dims in one pass", inputs.three)
        if took and name in inputs.rates:
            bench.record("encoding", "three dims over one", round(inputs.rates[name] * took / tokens(inputs), 3))
    for batch_tokens in (8,) if bench.smoke else (16_384, 65_536):
        timed(bench, inputs, f"evalkit, {batch_tokens} tokens a batch", inputs.ours, batch_tokens=batch_tokens)
    slices(bench, inputs)
    for other, rate in list(inputs.rates.items()):
        if other != name and name in inputs.rates:
            bench.record("encoding", f"evalkit is times {other}", round(inputs.rates[name] / rate, 3))
    if bench.device.type == "cuda" and bench.fits("GPU busy share", 10):
        with bench.attempt("encoding", "GPU busy share"):
            bench.record("encoding", "GPU busy", busy_share(lambda: encoded(inputs.ours, inputs.table[:8_000])))


def tokens(inputs: Inputs) -> int:
    """Return the number of tokens of all texts."""
    return int(inputs.lengths.sum())


def timed(
    bench: Bench, inputs: Inputs, name: str, encoder: Any, *, batch_tokens: int = BATCH_TOKENS, part: int = 1
) -> float | None:
    """Check some vectors, warm up at this batch size, and time all texts, or the first 1/`part` of them."""
    if not bench.fits(name, 8):
        return None
    took: float | None = None
    with bench.attempt("encoding", name):
        error = inputs.error(encoded(encoder, inputs.some, batch_tokens=batch_tokens))
        bench.check("encoding", name, error=error, limit=inputs.limit)
        texts = inputs.table[: len(inputs.table) // part]
        encoded(encoder, texts[: max(1, len(texts) // 10)], batch_tokens=batch_tokens)
        before_j, start = joules(bench.device), time.perf_counter()
        encoded(encoder, texts, batch_tokens=batch_tokens)
        bench.synchronize()
        took = time.perf_counter() - start
        after_j = joules(bench.device)
        spent = None if before_j is None or after_j is None else round((after_j - before_j) / took)
        report(bench, inputs, name, took, int(texts.lengths_N.sum()), watts=spent)
    return took


def report(bench: Bench, inputs: Inputs, name: str, took: float, count: int, *, watts: int | None = None) -> None:
    """Record a rate and its share of the floor."""
    rate = inputs.rates[name] = count / took
    share = round(rate / inputs.floor, 3) if inputs.floor else None
    facts = {"tokens/s": round(rate), "share of floor": share, "s": round(took, 3)}
    bench.record("encoding", name, facts if watts is None else {**facts, "W": watts})


def slices(bench: Bench, inputs: Inputs) -> None:
    """Time the feed-forward in slices of several sizes, and in one piece."""
    from evalkit.models import elementwise

    usual = elementwise.SLICE_BYTES
    for mebibytes in (1,) if bench.smoke else (8, 16, 64, 1 << 20):
        name = "feed-forward whole" if mebibytes == 1 << 20 else f"feed-forward in slices of {mebibytes} MiB"
        elementwise.SLICE_BYTES = mebibytes << 20
        try:
            timed(bench, inputs, name, inputs.ours)
        finally:
            elementwise.SLICE_BYTES = usual


def padded_rates(bench: Bench, inputs: Inputs, encoder: Any) -> None:
    """Time batches in arrival order, padded, in half precision, as peers' defaults form them."""
    few = inputs.table[: 3 if bench.smoke else 3200]

    def run(texts: Any) -> Callable[[], object]:
        return lambda: arrival_order(encoder, texts)

    if bench.fits("padded arrival order", 10):
        with bench.attempt("encoding", "padded arrival order"):
            run(few)()
            bench.synchronize()
            start = time.perf_counter()
            run(few)()
            bench.synchronize()
            report(bench, inputs, "padded arrival order", time.perf_counter() - start, int(few.lengths_N.sum()))


@torch.inference_mode()
def arrival_order(encoder: Any, table: Any) -> list[Tensor]:
    """Encode as PyLate does by default, without tokenising: 32 texts in arrival order, padded, copied one by one."""
    (head_DH,) = list(encoder.heads.values())[:1]
    out = []
    for begin in range(0, len(table), 32):
        texts = table[begin : begin + 32]
        width = int(texts.lengths_N.max())
        rows = [pad(torch.tensor(text.ids), (0, width - len(text.ids)), value=1) for text in texts]
        ids_BT = torch.stack(rows).to(encoder.device)
        mask_BT = torch.arange(width, device=encoder.device) < torch.from_numpy(texts.lengths_N).to(
            encoder.device
        ).unsqueeze(1)
        hidden_BTH = encoder.module(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        vectors_BTD = normalize((hidden_BTH @ head_DH.T).float(), dim=-1)
        out += [vectors_TD[kept_T].cpu() for vectors_TD, kept_T in zip(vectors_BTD, mask_BT, strict=True)]
    return out


if __name__ == "__main__":
    run_section("encoding", encoding)
