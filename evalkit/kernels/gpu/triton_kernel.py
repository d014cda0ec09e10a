"""MaxSim on the tensor cores of a GPU: one Triton kernel for documents and queries in pieces (see `pieces`).

Shapes: Q queries, N documents, M query pieces of 32 vectors, D dim; in the kernel Y query vectors and T document rows
of a tile, P pieces of a tile, S rows of a piece.

One program loads G query pieces (128 or 256 query vectors) and processes one chunk of whole documents, tile by tile. A
tile's scores [Y, T] stay in registers. They are split into pieces [Y, S], and an elementwise running maximum is taken
over the pieces of a document. Where a document ends, it is reduced over S and summed over a query's 32 vectors. A
document may therefore end after any piece, a tile may contain parts of several documents, and no score is masked. Query
vectors are assigned to rows such that each warp has one whole query piece, so the sum stays inside a warp. Every output
is written once, by one program, in a fixed order: there are no atomics, and results are reproducible to the bit.

Arithmetic, for D = 128 on an H100 (132 multiprocessors, 4,096 fp16 operations a cycle each on tensor cores, 64 maxima
a cycle): a score takes 2 * 128 / 4096 = 1/16 cycle of a tensor core and 1/64 cycle for the maximum. Without overlap
the maxima take a quarter of the products' time (80 % of the GEMM rate), and a third or a half at D = 96 and 64; two
programs on a multiprocessor overlap them. A document row of 256 bytes is used for 256 query vectors, which is 256
operations per byte from the level-2 cache. Programs of one chunk run concurrently, so device memory is read about once
per wave.
Compiled for compute capability 9.0, the 256-by-64 tile takes 102 registers per thread, spills none, and fits twice on a
multiprocessor. scripts/gpu/search.py measures which share of the peak it reaches.
"""

import triton
import triton.language as tl


@triton.jit
def _halves(pieces_YSP):
    """Return the pieces at even and at odd positions."""
    half: tl.constexpr = pieces_YSP.shape[2] // 2
    return tl.split(tl.reshape(pieces_YSP, [pieces_YSP.shape[0], pieces_YSP.shape[1], half, 2]))


@triton.jit
def _pieces(score_YT, rows: tl.constexpr, piece: tl.constexpr):
    """Split a tile's scores into pieces [Y, S, 1], in order."""
    pieces_YSP = tl.permute(tl.reshape(score_YT, [score_YT.shape[0], rows // piece, piece]), [0, 2, 1])
    if rows // piece == 2:
        p0, p1 = _halves(pieces_YSP)
        return (p0, p1)
    elif rows // piece == 4:
        even, odd = _halves(pieces_YSP)
        p0, p2 = _halves(even)
        p1, p3 = _halves(odd)
        return (p0, p1, p2, p3)
    else:
        tl.static_assert(rows // piece == 8, "a tile has 2, 4 or 8 pieces")
        even, odd = _halves(pieces_YSP)
        even0, even1 = _halves(even)
        odd0, odd1 = _halves(odd)
        p0, p4 = _halves(even0)
        p2, p6 = _halves(even1)
        p1, p5 = _halves(odd0)
        p3, p7 = _halves(odd1)
        return (p0, p1, p2, p3, p4, p5, p6, p7)


@triton.jit(do_not_specialize=["out_stride"])  # the number of documents varies by shard: one variant serves all
def maxsim(
    queries,
    documents,
    ends,
    chunk_grains,
    chunk_documents,
    out,
    out_stride,
    dim: tl.constexpr,
    dim0: tl.constexpr,
    dim1: tl.constexpr,
    dim2: tl.constexpr,
    rows: tl.constexpr,
    piece: tl.constexpr,
    grain: tl.constexpr,
    warps: tl.constexpr,
    stages: tl.constexpr,
):
    """Write the scores of `warps` query pieces against one chunk; `dim` is the sum of `dim0`, `dim1` and `dim2`.

    `rows` are those of a tile, `piece` those of a document piece and `grain` those of one entry of `ends`; see `pieces`
    for `ends` and the chunks.
    """
    first_piece = tl.program_id(0) * warps
    chunk = tl.program_id(1)
    # Rows 16w to 16w + 15 of each half of the tile belong to warp w: both halves of a query piece go to one warp.
    y = tl.arange(0, 32 * warps)
    vector_Y = (first_piece + (y // 16) % warps) * 32 + y // (16 * warps) * 16 + y % 16
    query_Y = queries + vector_Y[:, None].to(tl.int64) * dim
    query0_YD = tl.load(query_Y + tl.arange(0, dim0)[None, :])
    if dim1 > 0:
        query1_YD = tl.load(query_Y + dim0 + tl.arange(0, dim1)[None, :])
    if dim2 > 0:
        query2_YD = tl.load(query_Y + dim0 + dim1 + tl.arange(0, dim2)[None, :])
    out_G = out + (first_piece + tl.arange(0, warps)).to(tl.int64) * out_stride
    document = tl.load(chunk_documents + chunk)
    best_YS = tl.full([32 * warps, piece], float("-inf"), tl.float32)
    first_tile = tl.load(chunk_grains + chunk) * (grain // rows)
    last_tile = tl.load(chunk_grains + chunk + 1) * (grain // rows)
    # Tiles are counted in int64, as chunk_grains is: a shard of 8 M vectors has 2³⁰ numbers, two have 2³¹.
    for tile in tl.range(first_tile, last_tile, num_stages=stages):
        row_T = documents + tile * (rows * dim) + tl.arange(0, rows)[None, :] * dim
        score_YT = tl.dot(query0_YD, tl.load(row_T + tl.arange(0, dim0)[:, None]))
        if dim1 > 0:
            score_YT = tl.dot(query1_YD, tl.load(row_T + dim0 + tl.arange(0, dim1)[:, None]), score_YT)
        if dim2 > 0:
            score_YT = tl.dot(query2_YD, tl.load(row_T + dim0 + dim1 + tl.arange(0, dim2)[:, None]), score_YT)
        end = tl.load(ends + tile // (grain // rows)) >> (tile % (grain // rows) * (rows // piece))
        pieces = _pieces(score_YT, rows, piece)
        for i in tl.static_range(rows // piece):
            best_YS = tl.maximum(best_YS, tl.reshape(pieces[i], [32 * warps, piece]))
            if (end >> i) & 1 != 0:
                best_HGI = tl.reshape(tl.max(best_YS, axis=1), [2, warps, 16])
                tl.store(out_G + document, tl.sum(tl.sum(best_HGI, axis=2), axis=0))
                best_YS = tl.full([32 * warps, piece], float("-inf"), tl.float32)
                document += 1
