"""Code that the sections of the GPU bench share: the file of figures, the time budget, timing, and inputs.

Each section runs in its own process and writes its own file, because a CUDA error makes the rest of a process unusable.
A configuration that fails is recorded and the section continues. The scores or vectors of each configuration are
compared with a reference before it is timed. Figures are saved as they are measured.

Only useful operations count: 2 · query vectors · document vectors · dim for a search, without a contender's padding.
Weights and vectors are random, since the speed does not depend on their values.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_interpreter
from torch import Tensor
from torch.nn.functional import normalize

QUERY_VECTORS = 32


@dataclass
class Bench:
    """A section's device, sizes and time budget, and its figures, which are saved after every new one."""

    section: str
    device: torch.device
    smoke: bool
    out: Path
    budget_s: float
    started: float = field(default_factory=time.monotonic)
    figures: dict[str, Any] = field(default_factory=dict)
    failed: bool = False

    def left_s(self) -> float:
        """Return the seconds left of the budget."""
        return self.budget_s - (time.monotonic() - self.started)

    def record(self, group: str, name: str, value: object) -> None:
        """Add a figure, print it and save all figures."""
        self.figures.setdefault(group, {})[name] = value
        print(f"[{time.monotonic() - self.started:5.0f} s] {group}: {name}: {json.dumps(value)}", flush=True)
        self.save()

    def save(self) -> None:
        """Write the section's file atomically."""
        self.out.mkdir(parents=True, exist_ok=True)
        temporary = self.out / f".{self.section}.json.tmp"
        temporary.write_text(json.dumps(self.figures, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.out / f"{self.section}.json")

    def fits(self, what: str, needs_s: float) -> bool:
        """Return whether the budget allows a measurement of `needs_s` seconds; otherwise list it as left out."""
        if self.left_s() >= needs_s:
            return True
        self.figures.setdefault("left out", []).append(what)
        self.save()
        return False

    @contextmanager
    def attempt(self, group: str, name: str, *, ours: bool = True) -> Iterator[None]:
        """Record an error of a configuration and continue; a CUDA error is raised, because it ends the process's use.

        A failure of `ours` makes the section fail at its end; a failure of another library is only recorded.
        """
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.failed |= ours
            self.record(group, f"{name}, failed", f"{type(error).__name__}: {str(error)[:400]}")
            if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
                raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def check(self, group: str, name: str, *, error: float, limit: float) -> None:
        """Record a configuration's error against its reference; above the limit, or for NaN, the section fails."""
        facts = {"error": float(f"{error:.3g}"), "limit": float(f"{limit:.3g}"), "sound": bool(error <= limit)}
        self.record(group, f"{name}, error", facts)
        self.failed |= not facts["sound"]

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def median_s(self, run: Callable[[], object], *, least_s: float = 0.3, most: int = 50) -> float:
        """Return the median seconds of a call: after one warm-up, 3 to `most` calls, until they took `least_s`."""
        run()
        self.synchronize()
        times: list[float] = []
        while not times or (not self.smoke and (len(times) < 3 or (sum(times) < least_s and len(times) < most))):
            start = time.perf_counter()
            run()
            self.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def passage_lengths(self, count: int, *, seed: int) -> np.ndarray:
        """Return the lengths of passages; at toy sizes, divided by twelve, because kernels are interpreted."""
        lengths_N = passage_lengths(count, seed=seed)
        return lengths_N // 12 if self.smoke else lengths_N

    def gemm_rate(self, dtype: str) -> float | None:
        """Return the card's GEMM rate in TFLOP/s, or None if the section `ceilings` has not measured it."""
        try:
            ceilings = json.loads((self.out / "ceilings.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        rate = ceilings.get("ceilings", {}).get(f"{dtype} GEMM TFLOP/s")
        return None if rate is None else float(rate)


def vectors(count: int, dim: int, device: torch.device, *, seed: int = 0, dtype: torch.dtype = torch.float16) -> Tensor:
    """Return random unit vectors [count, dim]."""
    generator = torch.Generator(device).manual_seed(seed)
    parts = [
        normalize(torch.randn(min(1 << 20, count - begin), dim, device=device, generator=generator), dim=1).to(dtype)
        for begin in range(0, count, 1 << 20)
    ]
    return torch.cat(parts)


def passage_lengths(count: int, *, seed: int = 0) -> np.ndarray:
    """Return lengths like those of web passages: about 85 tokens on average, from 12 to 300."""
    drawn = np.random.default_rng(seed).lognormal(mean=4.35, sigma=0.42, size=count)
    return np.clip(drawn, 12, 300).astype(np.int64)


def document_lengths(kind: str, total: int) -> Tensor:
    """Return document lengths with about `total` vectors: of one length, or 'ragged' as in `passage_lengths`."""
    if kind == "ragged":
        return torch.from_numpy(passage_lengths(max(1, total // 85)))
    return torch.full((max(1, total // int(kind)),), int(kind), dtype=torch.int64)


def busy_share(run: Callable[[], object]) -> dict[str, Any]:
    """Return the share of time, from the first to the last kernel, in which a kernel runs; copies do not count."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    spans: list[tuple[float, float]] = []
    seconds: dict[str, float] = {}
    for event in profiled.events():
        if event.device_type.name == "CUDA" and not event.name.startswith(("Memcpy", "Memset")):
            begin, end = event.time_range.start, event.time_range.end
            spans.append((begin, end))
            seconds[event.name] = seconds.get(event.name, 0.0) + (end - begin) / 1e6
    if not spans:
        return {"problem": "the profiler saw no kernels"}
    busy, until = 0.0, min(spans)[0]
    for begin, end in sorted(spans):
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    longest = sorted(seconds.items(), key=lambda entry: -entry[1])[:12]
    return {
        "share": round(busy / (until - min(spans)[0]), 3),
        "kernels, s": {name[:100]: round(took, 4) for name, took in longest},
    }


def joules(device: torch.device) -> float | None:
    """Return the energy in joules that the card has used since its driver was loaded, or None if unknown."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    except Exception:  # noqa: BLE001 (without the energy, for any reason, the other figures remain)
        return None


def machine(device: torch.device) -> dict[str, Any]:
    """Return the versions and the hardware with which figures are measured."""
    import transformers
    import triton

    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "cores": os.cpu_count(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        driver = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory GiB": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "driver": subprocess.run(driver, capture_output=True, text=True, check=False).stdout.strip(),
        }
    return facts


def run_section(section: str, measure: Callable[[Bench], None]) -> None:
    """Run one section within its budget; exit with 1 if a configuration of evalkit failed."""
    parser = argparse.ArgumentParser(description=f"The section {section!r} of the GPU bench.")
    parser.add_argument("--out", type=Path, default=Path("results/bench/gpu"))
    parser.add_argument("--budget-s", type=float, default=100.0)
    parser.add_argument(
        "--smoke", action="store_true", help="toy sizes on the CPU, in Triton's interpreter: no figures"
    )
    chosen = parser.parse_args()
    if chosen.smoke and os.environ.get("TRITON_INTERPRET") != "1":
        # Triton reads the variable when it is first imported, which may have happened above.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "TRITON_INTERPRET": "1"})
    if not chosen.smoke and not torch.cuda.is_available():
        sys.exit("no CUDA device is here; wanted one, or --smoke, which runs every path at toy sizes on the CPU")
    device = torch.device("cpu" if chosen.smoke else "cuda")
    if chosen.smoke:
        torch.set_num_threads(1)  # Triton's interpreter supports one thread only
        triton_interpreter.mend()
    bench = Bench(section=section, device=device, smoke=chosen.smoke, out=chosen.out, budget_s=chosen.budget_s)
    command = " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
    bench.figures["machine"] = {"command": command, **machine(device)}
    bench.save()
    try:
        measure(bench)
    except Exception as error:  # noqa: BLE001 (recorded; the figures so far are kept)
        traceback.print_exc()
        bench.failed = True
        bench.record("errors", section, f"{type(error).__name__}: {str(error)[:500]}")
    if device.type == "cuda":
        bench.record("memory", "peak GB", round(torch.cuda.max_memory_allocated() / 1e9, 2))
    bench.record("section", "s", round(time.monotonic() - bench.started, 1))
    sys.exit(1 if bench.failed else 0)
