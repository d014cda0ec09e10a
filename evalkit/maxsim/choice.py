"""Choose the kernel that scores a shard's documents, and bound the error of its scores.

Shapes: Q queries, N documents, D dim; H pairs; Y query vectors and X document vectors, concatenated.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import normalize

from evalkit.config.settings import MaxsimKernel, Nomination
from evalkit.errors import ConfigError
from evalkit.kernels.cpu import fixed_point, registers, simd
from evalkit.kernels.fp32 import require_full_precision
from evalkit.kernels.trouble import first_line, warn_once
from evalkit.maxsim import bounds, packed, rescore
from evalkit.ragged import Ragged, ragged

KernelName = Literal["simd", "packed", "triton", "late-interaction-kernels"]
MODULES: Mapping[str, str] = {"triton": "triton", "late-interaction-kernels": "late_interaction_kernels"}
"""The module that each optional kernel needs."""
PIECE = 16
"""Rows of a piece in the Triton kernel. A document is divided into pieces; the last one repeats a row to fill up."""
SHORT_PIECE = 8
"""Rows of a piece for documents of fewer than SHORT_LENGTH vectors on average, so that fewer rows are repeated."""
SHORT_LENGTH = 48
SHORTEST_LENGTH = 4
"""The mean length below which `auto` does not use the Triton kernel, because most rows would be repeated ones."""
ELEMENT_LIMIT = 1 << 30
"""Most numbers in one call of late-interaction-kernels, which counts them in 32 bits."""


class Kernel(NamedTuple):
    """A kernel bound to a shard's documents on a device."""

    name: KernelName
    scores: Callable[[Ragged], Tensor]
    """Nominating scores [Q, N] in fp32, on the device."""
    error_bound: Callable[[Ragged], Tensor]
    """A bound of |score - exact score| per query [Q], on the CPU."""
    exact_scores: Callable[[Ragged, Tensor, Tensor], Tensor]
    """Exact scores of pairs, rounded once to fp32 [H], on the CPU."""


_Scores: TypeAlias = Callable[[Ragged], Tensor]
_ErrorBound: TypeAlias = Callable[[Ragged], Tensor]


def bind(
    choice: MaxsimKernel,
    documents: Ragged,
    *,
    device: torch.device,
    precision: Nomination = "auto",
    known: Mapping[torch.dtype, bounds.QueryNorms] | None = None,
) -> Kernel:
    """Copy a shard's documents to a device and bind the chosen kernel to them.

    Only `simd` and `packed` use `precision`. `known` are the norms of the queries, by the type they were rounded to, if
    they were computed before. Raises what `require` raises, and ConfigError if `triton` does not fit the GPU's memory.
    """
    require(choice, device, precision=precision)
    on_device = documents._replace(rows_XD=documents.rows_XD.to(device))
    name = _automatic(documents, device, precision) if choice == "auto" else choice
    if name == "triton":
        name = _usable(on_device)
    exact_scores = simd.exact_scores if device.type == "cpu" and simd.usable() else rescore.exact_scores

    def exact(queries: Ragged, query_H: Tensor, document_H: Tensor) -> Tensor:
        return exact_scores(queries, on_device, query_H, document_H).cpu()

    if name == "simd":
        scores, error_bound = _simd(on_device, precision)
    elif name == "packed":
        scores, error_bound = _packed(on_device, precision)
    else:
        scores, error_bound = _tensor_cores(name, on_device, known or {})
    return Kernel(name, scores, error_bound, exact)


def _simd(documents: Ragged, precision: Nomination) -> tuple[_Scores, _ErrorBound]:
    """Bind the vector-unit kernel, with 16-bit integers unless fp32 is requested or would be as fast."""
    if precision == "float32" or not registers.multiplies_pairs():
        return (
            lambda queries: simd.scores(queries, documents),
            lambda queries: bounds.error_bound(queries, documents),
        )
    norm = bounds.largest_norm(documents.rows_XD)
    scale = float(fixed_point.scales(torch.tensor(norm)))
    return (
        lambda queries: simd.fixed_point_scores(
            queries, documents, scale_Y=fixed_point.scales(bounds.norms(queries.rows_XD)), scale=scale
        ),
        lambda queries: bounds.error_bound(queries, documents, precision="int16", document_norm=norm),
    )


def _packed(documents: Ragged, precision: Nomination) -> tuple[_Scores, _ErrorBound]:
    """Bind the plain torch kernel; it rounds vectors to bf16 only if that is requested."""
    rounds: bounds.Precision = "bfloat16" if precision == "bfloat16" else "float32"
    return (
        lambda queries: packed.scores(queries, documents, precision=rounds),
        lambda queries: bounds.error_bound(queries, documents, precision=rounds),
    )


def _tensor_cores(
    name: KernelName, documents: Ragged, known: Mapping[torch.dtype, bounds.QueryNorms]
) -> tuple[_Scores, _ErrorBound]:
    """Bind `triton` or `late-interaction-kernels`, with documents rounded to half precision."""
    half = half_of(documents.rows_XD.dtype)
    rounded = documents._replace(rows_XD=documents.rows_XD.to(half))
    scores = _triton(rounded) if name == "triton" else _late_interaction_kernels(rounded)
    norms = known.get(half)
    return scores, lambda queries: bounds.tensor_core_bound(queries, documents, dtype=half, known=norms)


def require(choice: MaxsimKernel, device: torch.device, *, precision: Nomination = "auto") -> None:
    """Raise ConfigError if a kernel cannot run: its package is missing, or it needs another device.

    Raises DeviceError if fp32 products would be rounded.
    """
    require_full_precision()
    if choice == "simd" and (device.type != "cpu" or not registers.available() or simd.problem()):
        got = simd.problem() if device.type == "cpu" and simd.problem() else f"device {device.type}"
        msg = f"engine.maxsim=simd: got {got}, wanted a CPU with AVX2 or AVX-512; use engine.maxsim=auto"
        raise ConfigError(msg)
    if precision == "int16" and (
        device.type != "cpu" or choice not in ("auto", "simd") or not registers.multiplies_pairs()
    ):
        msg = f"engine.nominate=int16: got device {device.type} and engine.maxsim={choice}, wanted a CPU with AVX-512"
        raise ConfigError(f"{msg} VNNI and engine.maxsim=simd or auto; use engine.nominate=auto")
    if precision == "bfloat16" and choice == "simd":
        msg = "engine.nominate=bfloat16: got engine.maxsim=simd, which has float32 and int16; use engine.maxsim=packed"
        raise ConfigError(msg)
    module = MODULES.get(choice)
    if module is None:
        return
    if importlib.util.find_spec(module) is None:
        msg = f"engine.maxsim={choice}: {choice} is not installed; wanted `pip install {choice}`, or engine.maxsim=auto"
        raise ConfigError(msg)
    if choice == "triton" and device.type != "cuda" and not _interpreted():
        msg = f"engine.maxsim=triton: got device {device.type}, wanted a CUDA device (or TRITON_INTERPRET=1, for tests)"
        raise ConfigError(f"{msg}; use engine.maxsim=auto")


def _interpreted() -> bool:
    """Whether Triton's interpreter is on, which runs kernels on the CPU."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def _automatic(documents: Ragged, device: torch.device, precision: Nomination) -> KernelName:
    """Return the kernel of `auto`: vector units on a CPU, Triton on a GPU from Ampere on, else `packed`."""
    if device.type == "cpu":
        return "simd" if precision != "bfloat16" and simd.usable() else "packed"
    vectors_XD = documents.rows_XD
    promising = (
        importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and vectors_XD.dtype in (torch.float16, torch.bfloat16)
        and len(vectors_XD) >= SHORTEST_LENGTH * (len(documents.offsets_N) - 1)
    )
    if not promising:
        return "packed"
    from evalkit.kernels.gpu import tensor_core

    return "triton" if tensor_core.fits(vectors_XD.shape[1], device, piece=_piece(documents)) else "packed"


def half_of(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which tensor cores read vectors stored in `dtype`.

    fp16 is read as it is. Any other type is rounded to bf16, which has the range of fp32.
    """
    return torch.float16 if dtype == torch.float16 else torch.bfloat16


def _usable(documents: Ragged) -> KernelName:
    """Return `triton` if it works on the device for such documents; otherwise log once and return `packed`.

    Raises ConfigError if their dim does not fit the GPU.
    """
    vectors_XD, piece = documents.rows_XD, _piece(documents)
    device, dim = vectors_XD.device, vectors_XD.shape[1]
    _require_fit(dim, device, piece)
    problem = probe(device, half_of(vectors_XD.dtype), dim, piece)
    if not problem:
        return "triton"
    problem = f"{problem}; packed is used instead"
    _GIVEN_UP[device.type, dim] = problem
    warn_once(problem)
    return "packed"


_GIVEN_UP: dict[tuple[str, int], str] = {}
"""Why the Triton kernel was not used, by device type and dim."""


def given_up(device: torch.device, dims: Collection[int]) -> str:
    """Return why the Triton kernel was not used for some of these dims in this process, or ""."""
    return "; ".join(
        dict.fromkeys(problem for (kind, dim), problem in _GIVEN_UP.items() if kind == device.type and dim in dims)
    )


@cache
def probe(device: torch.device, dtype: torch.dtype, dim: int, piece: int) -> str:
    """Score three short documents with the Triton kernel and compare with float64. Return the problem, or "".

    If the compiler does not support the GPU, another kernel is used and the job continues.
    """
    label = f"Triton's MaxSim kernel for {dim} numbers of {str(dtype).removeprefix('torch.')}"
    generator = torch.Generator().manual_seed(0)
    lengths_N, lengths_Q = torch.tensor([1, 17, 40]), torch.tensor([32, 5])
    queries, documents = (
        ragged(normalize(torch.randn(int(lengths.sum()), dim, generator=generator), dim=1).to(dtype), lengths)
        for lengths in (lengths_Q, lengths_N)
    )
    bound_Q = bounds.tensor_core_bound(queries, documents, dtype=dtype)
    pairs_H2 = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    wanted_QN = rescore.exact_scores(queries, documents, pairs_H2[:, 0], pairs_H2[:, 1]).view(2, 3).double()
    on_device = documents._replace(rows_XD=documents.rows_XD.to(device))
    try:
        from evalkit.kernels.gpu import pieces, tensor_core

        fitting = tensor_core.tilings(dim, piece=piece, shared_bytes=tensor_core.shared_bytes_of(device))
        # The tiling for many queries, which nearly every call uses: it is compiled here and not again later.
        tiling = tensor_core.expected(fitting, query_count=tensor_core.FEW_PIECES + 1)
        in_pieces = pieces.document_pieces(on_device, piece=piece)
        error_QN = (tensor_core.scores(queries, in_pieces, tiling=tiling).cpu().double() - wanted_QN).abs()
    except Exception as error:  # noqa: BLE001 (a compiler that does not support the GPU can raise anything)
        return f"{label} is unusable here ({type(error).__name__}: {first_line(error)})"
    within_bound = bool((error_QN <= bound_Q.unsqueeze(1)).all())
    return "" if within_bound else f"{label} gives wrong scores here (off by {float(error_QN.max()):.1e})"


def _piece(documents: Ragged) -> int:
    """Return the number of rows of a piece for the documents' mean length."""
    return SHORT_PIECE if len(documents.rows_XD) < SHORT_LENGTH * (len(documents.offsets_N) - 1) else PIECE


def _triton(documents: Ragged) -> Callable[[Ragged], Tensor]:
    from evalkit.kernels.gpu import pieces, tensor_core

    in_pieces = pieces.document_pieces(documents, piece=_piece(documents))
    return lambda queries: tensor_core.scores(queries, in_pieces)


def _require_fit(dim: int, device: torch.device, piece: int) -> None:
    """Raise ConfigError if the Triton kernel needs more shared memory for such vectors than the GPU has."""
    from evalkit.kernels.gpu import tensor_core

    if not tensor_core.fits(dim, device, piece=piece):
        msg = f"engine.maxsim=triton: got vectors of {dim} numbers, wanted a dim that fits this GPU's shared memory"
        raise ConfigError(f"{msg} (at most 512 on Hopper); use engine.maxsim=packed")


def _late_interaction_kernels(documents: Ragged) -> Callable[[Ragged], Tensor]:
    """Bind the library's kernel for concatenated texts on CUDA, else its reference implementation."""
    from late_interaction_kernels import reference, varlen

    vectors_XD, offsets_N = documents
    device = vectors_XD.device
    lengths_N = offsets_N.diff()
    order_N = torch.argsort(lengths_N, stable=True)
    # Its kernel processes every document of a call as if it had the longest one's length, and counts in 32 bits.
    batches = torch.split(order_N, max(1, min(1 << 14, ELEMENT_LIMIT // int(lengths_N.max()) // vectors_XD.shape[1])))

    def scores(queries: Ragged) -> Tensor:
        query_YD = queries.rows_XD.to(device=device, dtype=vectors_XD.dtype)
        query_offsets = queries.offsets_N.to(device=device, dtype=torch.int32)
        out_QN = torch.empty((len(queries.offsets_N) - 1, len(lengths_N)), device=device)
        for documents_B in batches:
            lengths_B = lengths_N[documents_B]
            ends_B = lengths_B.cumsum(0)
            shift_B = offsets_N[documents_B] - (ends_B - lengths_B)
            row_X = torch.arange(int(ends_B[-1])) + torch.repeat_interleave(shift_B, lengths_B)
            batch = ragged(vectors_XD[row_X.to(device)], lengths_B)
            score = varlen.maxsim_varlen if device.type == "cuda" else reference.maxsim_reference_varlen
            batch_offsets = batch.offsets_N.to(device=device, dtype=torch.int32)
            out_QN[:, documents_B.to(device)] = score(query_YD, batch.rows_XD, query_offsets, batch_offsets)
        return out_QN

    return scores
