"""Rates of GPUs and CPUs, for forecasts without a measurement here: measured on that device, or marked as assumed.

Measured rates of a GPU are in results/bench/gpu/CARD/card.json, which scripts/gpu/summary.py writes. Without such a
file, a device has the rates of DEVICES; its `basis` says where they come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from evalkit.errors import ConfigError, StoreError, nearest
from evalkit.storage import untrusted

FORMAT = 1
"""Version of card.json. A file of another version is refused."""

FLOP_PER_TOKEN: Final[Mapping[str, float]] = {
    "jina-colbert-v2": 24 * 12 * 1024**2 * 2,
    "jina-colbert-v1-en": 12 * (4 * 768**2 + 3 * 768 * 3072) * 2,
    "colbertv2": 12 * 12 * 768**2 * 2,
    "mdpr": 12 * 12 * 768**2 * 2,
    "colbert-xm": 12 * (12 * 768**2 + 2 * 768 * 384) * 2,
}
"""Floating-point operations of the linear layers per token: two per weight. At 300 tokens attention adds a few
per cent."""
QUERY_VECTORS: Final = 32
HOST_TOKENS_PER_S: Final = 1.4e6
"""Tokens per second that four host cores tokenise, measured by others. No GPU is assumed to encode faster."""


class Device(NamedTuple):
    """The assumed rates of a device."""

    title: str
    matches: str
    """A part of the name by which torch knows it; empty for a CPU."""
    flop_per_s: float
    """Operations per second of encoding."""
    search_flop_per_s: float
    """Operations per second of exact search."""
    memory_bytes: float
    basis: str
    """Where the rates come from."""


ASSUMED: Final = "not measured by us"
DEVICES: Final[Mapping[str, Device]] = {
    "h200": Device(
        "NVIDIA H200", "H200", 474e12, 150e12, 141e9, f"60 % of 790 TFLOP/s that others measured on it, {ASSUMED}"
    ),
    "h100": Device(
        "NVIDIA H100", "H100", 474e12, 150e12, 80e9, f"60 % of 790 TFLOP/s that others measured on an H200, {ASSUMED}"
    ),
    "a100": Device("NVIDIA A100", "A100", 150e12, 47e12, 80e9, f"48 % of the data sheet's 312 TFLOP/s, {ASSUMED}"),
    "l4": Device("NVIDIA L4", "L4", 58e12, 18e12, 24e9, f"48 % of the data sheet's 121 TFLOP/s, {ASSUMED}"),
    "two-cores": Device(
        "two CPU cores",
        "",
        212e9,
        390e9,
        16e9,
        "212 GFLOP/s in fp32, measured on two cores of a Xeon with random weights (results/bench)",
    ),
}
"""The devices that `evalkit plan --device` accepts. GPUs encode in bf16. Search is exact MaxSim: others measured 117 to
189 TFLOP/s on an H100, and the other GPUs are scaled in proportion."""


def device_named(name: str) -> Device:
    """Return a device by its short name. Raises ConfigError for an unknown name."""
    if name not in DEVICES:
        msg = f"--device {name}: no rates are known for it; {nearest(name, DEVICES)}, or --probe on the device itself"
        raise ConfigError(msg)
    return DEVICES[name]


def assumed_rates(device: Device, *, model: str) -> DeviceRates | None:
    """Return the assumed rates of a device for a model, or None for a model whose FLOP per token are not known."""
    flop = FLOP_PER_TOKEN.get(model)
    if flop is None:
        return None
    tokens_per_s = min(device.flop_per_s / flop, HOST_TOKENS_PER_S)
    return DeviceRates(device.title, tokens_per_s, device.search_flop_per_s, QUERY_VECTORS, device.basis)


class DeviceRates(NamedTuple):
    """The rates of a device for one model, measured or assumed."""

    gpu: str
    tokens_per_s: float
    """Tokens of passages that the model encodes per second."""
    search_flop_per_s: float
    """Operations per second of exact search, counted as 2 · query vectors · document vectors · dim."""
    query_vectors: int
    """Vectors per query in that measurement."""
    source: str
    """The file of the measurement, or what the rates are assumed from."""


def measured_rates(results_dir: Path, *, gpu: str, model: str) -> DeviceRates | None:
    """Return the rates that were measured on a GPU for a model, or None if there are none.

    Raises StoreError for a file that is damaged or has another version.
    """
    for path in sorted((results_dir / "bench" / "gpu").glob("*/card.json")):
        try:
            facts = untrusted.read_json_object(path)
            if facts["format"] != FORMAT:
                msg = (
                    f"{path}: got format {facts['format']!r}, wanted {FORMAT}; write it again (scripts/gpu/summary.py)"
                )
                raise StoreError(msg)
            if facts["gpu"] != gpu or facts["model"] != model:
                continue
            numbers = float(facts["tokens_per_s"]), float(facts["search_flop_per_s"])
            query_vectors = int(facts["query_vectors"])
            if not all(number > 0 for number in (*numbers, query_vectors)):
                got = f"rates {numbers} and {query_vectors} query vectors"
                msg = f"{path}: got {got}, wanted positive numbers; write it again (scripts/gpu/summary.py)"
                raise StoreError(msg)
            return DeviceRates(gpu, *numbers, query_vectors, str(path))
        except (untrusted.UnreadableError, ValueError, KeyError, TypeError) as error:
            msg = (
                f"{path}: not a card's rates ({type(error).__name__}: {error}); write it again (scripts/gpu/summary.py)"
            )
            raise StoreError(msg) from error
    return None
