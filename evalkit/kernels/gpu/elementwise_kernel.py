"""Triton kernels for a transformer's elementwise operations: RoPE of queries and keys, and a residual with its norm.

Shapes: X tokens of a batch, A heads, K width of a head, H hidden size.

Arithmetic, for jina-colbert-v2 (H = 1024, 24 layers, 2 bytes per number): a token's matrix products take 604 MFLOP,
which is 0.8 µs at the 750 TFLOP/s of an H100 or H200. Per token and layer, torch's own calls move 42 KB for RoPE, 20 KB
for the two residuals with their norms and 16 KB for GELU. That is 1.9 MB for all layers, or 0.7 µs at 2.7 TB/s, nearly
as long as the products. Here RoPE moves 8 KB and the norms 12 KB: with GELU 0.9 MB for all layers, or 0.3 µs. Both
kernels are limited by memory bandwidth, and rows are independent. Compiled for compute capability 9.0, a thread loads
and stores 16 bytes at a time, and no register is spilled.
"""

import triton
import triton.language as tl


@triton.jit
def _rotate_one(heads, at_AK, mask_AK, half, cos_K, sin_K):
    """Rotate one token's heads of queries or keys, in place."""
    first_AK = tl.load(heads + at_AK, mask=mask_AK).to(tl.float32)
    second_AK = tl.load(heads + at_AK + half, mask=mask_AK).to(tl.float32)
    rotated_first_AK = first_AK * cos_K - second_AK * sin_K
    rotated_second_AK = second_AK * cos_K + first_AK * sin_K
    tl.store(heads + at_AK, rotated_first_AK.to(heads.dtype.element_ty), mask=mask_AK)
    tl.store(heads + at_AK + half, rotated_second_AK.to(heads.dtype.element_ty), mask=mask_AK)


@triton.jit(do_not_specialize=["period"])  # varies by batch: one variant serves all
def rotate(
    query,
    key,
    cos,
    sin,
    period,
    heads: tl.constexpr,
    half: tl.constexpr,
    head_block: tl.constexpr,
    half_block: tl.constexpr,
):
    """Rotate the two halves of each head of a token's query and key by its position's angles, in place.

    Token x uses row x modulo `period` of the tables. A row contains each angle's cosine or sine twice, as in the
    variant of RoPE that pairs two halves. Products and sums are fp32 and rounded once; torch's own calls round three
    times.
    """
    token = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, half_block)
    a = tl.arange(0, head_block)
    angle_K = token % period * (2 * half) + k
    cos_K = tl.load(cos + angle_K, mask=k < half).to(tl.float32)[None, :]
    sin_K = tl.load(sin + angle_K, mask=k < half).to(tl.float32)[None, :]
    at_AK = token * (heads * 2 * half) + a[:, None] * (2 * half) + k[None, :]
    mask_AK = (a < heads)[:, None] & (k < half)[None, :]
    _rotate_one(query, at_AK, mask_AK, half, cos_K, sin_K)
    _rotate_one(key, at_AK, mask_AK, half, cos_K, sin_K)


@triton.jit
def add_norm(rows, others, weight, bias, eps, width: tl.constexpr, block: tl.constexpr):
    """Replace one row of `rows` by the norm of `rows + others` [H]; everything is fp32 and rounded once at the end."""
    h = tl.arange(0, block)
    at_H = tl.program_id(0).to(tl.int64) * width + h
    mask_H = h < width
    total_H = tl.load(rows + at_H, mask=mask_H, other=0.0).to(tl.float32)
    total_H += tl.load(others + at_H, mask=mask_H, other=0.0).to(tl.float32)
    centred_H = tl.where(mask_H, total_H - tl.sum(total_H, axis=0) / width, 0.0)
    variance = tl.sum(centred_H * centred_H, axis=0) / width
    weight_H = tl.load(weight + h, mask=mask_H).to(tl.float32)
    bias_H = tl.load(bias + h, mask=mask_H).to(tl.float32)
    normed_H = centred_H * (1.0 / tl.sqrt(variance + eps)) * weight_H + bias_H
    tl.store(rows + at_H, normed_H.to(rows.dtype.element_ty), mask=mask_H)
