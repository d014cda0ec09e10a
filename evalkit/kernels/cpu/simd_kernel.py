"""MaxSim on a CPU's vector units: a kernel that keeps all dot products in registers.

Shapes: N documents, Q queries, D dim, H pairs; X document vectors, concatenated; M panels of query vectors, each of
which holds Y vectors transposed [D, Y].

A tile is the dot products of ROWS document vectors with one panel. They are accumulated in registers, one dimension per
step, and only the maximum per query vector is stored. A matrix product would write every dot product to memory, and the
reduction would read them again. No padding is needed: a tile may overlap rows that were already processed, because that
does not change a maximum.

Arithmetic: with AVX-512 a tile of 6 by 64 fp32 numbers has 24 sums in the 32 registers. A step is 24 fused operations
(12 cycles on two units) and 10 loads (5 cycles on two ports), so the arithmetic units are the bottleneck. A panel takes
32 KiB at D = 128 and stays in the level-1 cache while the block's documents are read from level 2. In float64 the tile
covers 32 query vectors and computes the exact scores. With pairs of 16-bit integers, each stored as one 32-bit integer,
a step does twice the work of fp32.
"""

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from evalkit.kernels.cpu.register_code import REVISION, Code, Panel, index, sums
from evalkit.kernels.cpu.registers import REGISTERS

assert REVISION == 1  # numba caches this kernel by this file alone; see REVISION
PANEL_REGISTERS = 4 if REGISTERS.total >= 32 else 2
"""Registers for the sums of one row. The sums of ROWS rows, a panel's numbers and a row's number fit the registers."""
ROWS = 6
"""Document vectors of a tile."""
FEW_ROWS = 3
"""Document vectors of the smaller tile, which covers the last rows of a document."""


def panel_vectors(number_bytes: int) -> int:
    """Return the number of query vectors in a panel, given the size of a number."""
    return REGISTERS.size_bytes // number_bytes * PANEL_REGISTERS


def _tile(rows):
    """Return a function that updates a panel's maxima with `rows` rows of a document.

    Its arguments are document_XD, the first row, panel_MDY, the panel's number, best_NMY, and the document's position
    in best_NMY.
    """

    @intrinsic
    def tile(_typing, documents, _row, panels, _panel, best, _document):
        signature = types.void(documents, types.intp, panels, types.intp, best, types.intp)

        def build(context, builder, signature, arguments):
            documents, panels, best = (make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2, 4))
            row, panel, document = arguments[1::2]
            kind = signature.args[0].dtype
            code = Code.of(builder, context.get_data_type(kind), kind.bitwidth // 8)
            dim = builder.extract_value(documents.shape, 1)
            width = index(panel_vectors(code.number_bytes))
            panel_start = code.times(code.times(panel, dim), width)
            found = sums(
                code,
                documents.data,
                [code.times(code.plus(row, more), dim) for more in range(rows)],
                Panel(panels.data, panel_start, width, PANEL_REGISTERS),
                dim,
            )
            panel_count = builder.extract_value(panels.shape, 0)
            offset = code.times(builder.add(code.times(document, panel_count), panel), width)
            for part, known in enumerate(code.registers(best.data, offset, PANEL_REGISTERS)):
                largest = known
                for of_row in found:
                    largest = code.larger(of_row[part], largest)
                code.store(largest, best.data, code.plus(offset, code.lanes * part))
            return context.get_dummy_value()

        return signature, build

    return tile


_rows = _tile(ROWS)
_few_rows = _tile(FEW_ROWS)
_one_row = _tile(1)


@njit(nogil=True, cache=True)
def _document(document_XD, first, end, panel_MDY, panel, best_NMY, document):
    """Update a panel's maxima with one document, whose rows are `first` to `end` (exclusive).

    The last rows are covered by a tile that overlaps earlier rows, if the document is long enough for one.
    """
    row = first
    while row + ROWS <= end:
        _rows(document_XD, row, panel_MDY, panel, best_NMY, document)
        row += ROWS
    if end - row > FEW_ROWS and end - first >= ROWS:
        _rows(document_XD, end - ROWS, panel_MDY, panel, best_NMY, document)
    elif end > row and end - first >= FEW_ROWS:
        if end - row > FEW_ROWS:
            _few_rows(document_XD, row, panel_MDY, panel, best_NMY, document)
        _few_rows(document_XD, end - FEW_ROWS, panel_MDY, panel, best_NMY, document)
    else:
        while row < end:
            _one_row(document_XD, row, panel_MDY, panel, best_NMY, document)
            row += 1


@njit(nogil=True, cache=True)
def all_scores(document_XD, offsets_N, panel_MDY, offsets_Q, unit_Y, lowest, out_NQ):
    """Write the scores of all queries against all documents [N, Q]; the panels hold all query vectors, concatenated.

    The maximum of query vector y is multiplied by `unit_Y[y]`, and the sum has the type of `unit_Y`. Maxima start at
    `lowest`.
    """
    documents, queries = out_NQ.shape
    panels, _, width = panel_MDY.shape
    best_NMY = np.full((documents, panels, width), lowest, document_XD.dtype)
    for panel in range(panels):
        for document in range(documents):
            _document(document_XD, offsets_N[document], offsets_N[document + 1], panel_MDY, panel, best_NMY, document)
    for document in range(documents):
        best_Y = best_NMY[document].reshape(panels * width)
        for query in range(queries):
            score = unit_Y.dtype.type(0)
            for vector in range(offsets_Q[query], offsets_Q[query + 1]):
                score += unit_Y[vector] * best_Y[vector]
            out_NQ[document, query] = score


@njit(nogil=True, cache=True)
def pair_scores(document_XD, offsets_N, query_numbers, offsets_Q, query_H, pair_offsets_N, panel_MDY, out_H):
    """Write the scores of (query, document) pairs, which are grouped by document.

    `query_numbers` holds each query's vectors transposed [D, L], with the queries concatenated. The vectors of one
    document's queries are copied into the panels one after another, so that short queries share a panel.
    """
    dim, width = document_XD.shape[1], panel_MDY.shape[2]
    for document in range(len(offsets_N) - 1):
        vectors = 0
        for pair in range(pair_offsets_N[document], pair_offsets_N[document + 1]):
            query = query_H[pair]
            length = offsets_Q[query + 1] - offsets_Q[query]
            source = offsets_Q[query] * dim
            copied = 0
            while copied < length:
                panel, column = (vectors + copied) // width, (vectors + copied) % width
                fitting = min(length - copied, width - column)
                for number in range(dim):
                    begin = source + number * length + copied
                    for more in range(fitting):
                        panel_MDY[panel, number, column + more] = query_numbers[begin + more]
                copied += fitting
            vectors += length
        panels = (vectors + width - 1) // width
        best_NMY = np.full((1, panels, width), -np.inf, document_XD.dtype)
        for panel in range(panels):
            _document(document_XD, offsets_N[document], offsets_N[document + 1], panel_MDY[:panels], panel, best_NMY, 0)
        best_Y = best_NMY.reshape(panels * width)
        vector = 0
        for pair in range(pair_offsets_N[document], pair_offsets_N[document + 1]):
            score = out_H.dtype.type(0)
            for _ in range(offsets_Q[query_H[pair] + 1] - offsets_Q[query_H[pair]]):
                score += best_Y[vector]
                vector += 1
            out_H[pair] = score
