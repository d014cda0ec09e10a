"""MaxSim on a CPU's vector units: one kernel whose products never leave the registers.

Shapes: N documents, Q queries, D dim, H pairs; X document vectors, packed; M panels of query vectors, in each of which
the numbers of Y vectors stand side by side [D, Y].

A tile is ROWS document vectors against one panel. Its products are added up in registers, one number of all vectors per
step, and what is kept of a tile is a maximum per query vector: a matrix product would write every score to memory, and
a reduction would read it again. Nothing is padded, because a tile may reach back over rows that were seen before: a
maximum does not mind.

Arithmetic: with AVX-512 a tile of 6 by 64 fp32 numbers has 24 sums in the 32 registers. A step is 24 fused operations,
12 cycles of two units, against 10 loads, 5 cycles of two ports, so the units are what limits it. A panel of 32 KiB at
D = 128 stays in the first-level cache while the documents of a block pass by in the second. The same tile in float64,
of 32 query vectors, makes the exact scores; in pairs of 16-bit whole numbers, each pair one number of 32 bits, a step
does twice what it does in fp32.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array


class Registers(NamedTuple):
    """The vector registers that a tile is cut for."""

    size_bytes: int
    per_row: int
    """Registers that hold the sums of one row: with those of ROWS rows, a panel's numbers and a row's own all fit."""


REGISTERS = Registers(64, 4) if torch.cpu.get_capabilities().get("avx512_f") else Registers(32, 2)
ROWS = 6
"""Document vectors of a tile."""
FEW_ROWS = 3
"""The same where fewer are left of a document."""
UNROLLED = 4
"""Numbers of a vector that one turn of the loop takes; vectors are filled up with zeros to a multiple of it."""

binding.initialize_native_asmparser()  # for the one instruction that is written out


def panel_vectors(number_bytes: int) -> int:
    """Return the query vectors of a panel, for numbers of a size."""
    return REGISTERS.size_bytes // number_bytes * REGISTERS.per_row


class _Code(NamedTuple):
    """What is written into: LLVM's builder, and the types and functions of one size of numbers."""

    builder: Any
    number: Any
    number_bytes: int
    register: Any

    @classmethod
    def of(cls, builder, number, number_bytes):
        register = ir.VectorType(number, REGISTERS.size_bytes // number_bytes)
        return cls(builder, number, number_bytes, register)

    @property
    def whole(self):
        """Whether a number is a pair of 16-bit whole numbers."""
        return isinstance(self.number, ir.IntType)

    def fused(self, a, b, c):
        """Return a · b + c, rounded once; of pairs the sum of both products, which is exact below 2³¹."""
        kind = ir.FunctionType(self.register, [self.register] * 3)
        if self.whole:
            # Left the choice, LLVM takes a multiplication and an addition for it, at half the rate.
            return self.builder.asm(kind, "vpdpwssd $2, $1, $0", "=v,v,v,0", [a, b, c], side_effect=False)
        name = f"llvm.fma.v{self.register.count}f{8 * self.number_bytes}"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [a, b, c])

    def larger(self, a, b):
        compare = self.builder.icmp_signed if self.whole else self.builder.fcmp_ordered
        return self.builder.select(compare(">", a, b), a, b)

    def zeros(self):
        return ir.Constant(self.register, [0 if self.whole else 0.0] * self.register.count)

    def plus(self, value, more):
        return self.builder.add(value, _index(more))

    def load(self, base, offset, kind):
        pointer = self.builder.bitcast(self.builder.gep(base, [offset]), kind.as_pointer())
        return self.builder.load(pointer, align=self.number_bytes)

    def store(self, value, base, offset):
        pointer = self.builder.bitcast(self.builder.gep(base, [offset]), self.register.as_pointer())
        self.builder.store(value, pointer, align=self.number_bytes)

    def registers(self, base, offset):
        """Load a panel's numbers, one line of it."""
        lanes = self.register.count
        return [self.load(base, self.plus(offset, lanes * part), self.register) for part in range(REGISTERS.per_row)]

    def spread(self, value):
        """Return a register with one number in all its places."""
        undefined = ir.Constant(self.register, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), self.register.count), [0] * self.register.count)
        return self.builder.shuffle_vector(first, undefined, everywhere)


def _index(value):
    return ir.Constant(ir.IntType(64), value)


def _tile(rows):
    """Return a function that brings a panel's maxima up to date with some rows of a document.

    Its arguments are document_XD, the first row, panel_MDY, the panel, best_NMY, and the document's place in that.
    """

    @intrinsic
    def tile(_typing, documents, _row, panels, _panel, best, _document):
        signature = types.void(documents, types.intp, panels, types.intp, best, types.intp)

        def build(context, builder, signature, arguments):
            documents, panels, best = (
                make_array(signature.args[place])(context, builder, arguments[place]) for place in (0, 2, 4)
            )
            row, panel, document = arguments[1::2]
            kind = signature.args[0].dtype
            code = _Code.of(builder, context.get_data_type(kind), kind.bitwidth // 8)
            dim = builder.extract_value(documents.shape, 1)
            width = _index(panel_vectors(code.number_bytes))
            sums = _sums(
                code,
                documents.data,
                [builder.mul(code.plus(row, more), dim) for more in range(rows)],
                panels.data,
                builder.mul(builder.mul(panel, dim), width),
                dim,
            )
            panel_count = builder.extract_value(panels.shape, 0)
            place = builder.mul(builder.add(builder.mul(document, panel_count), panel), width)
            for part, known in enumerate(code.registers(best.data, place)):
                largest = known
                for of_row in sums:
                    largest = code.larger(of_row[part], largest)
                code.store(largest, best.data, code.plus(place, code.register.count * part))
            return context.get_dummy_value()

        return signature, build

    return tile


def _sums(code, documents, row_starts, panels, panel_start, dim):
    """Write the loop over a vector's numbers; return the registers of dot products, for each row those of a panel."""
    builder, width = code.builder, _index(panel_vectors(code.number_bytes))
    before = builder.block
    loop, behind = builder.append_basic_block("numbers"), builder.append_basic_block("maxima")
    builder.branch(loop)
    builder.position_at_end(loop)
    at = builder.phi(ir.IntType(64))
    old = [[builder.phi(code.register) for _ in range(REGISTERS.per_row)] for _ in row_starts]
    sums = old
    for turn in range(UNROLLED):
        here = code.plus(at, turn)
        query = code.registers(panels, builder.add(panel_start, builder.mul(here, width)))
        own = [code.spread(code.load(documents, builder.add(start, here), code.number)) for start in row_starts]
        sums = [
            [code.fused(of_row, of_query, of_both) for of_query, of_both in zip(query, line, strict=True)]
            for of_row, line in zip(own, sums, strict=True)
        ]
    following = code.plus(at, UNROLLED)
    at.add_incoming(_index(0), before)
    at.add_incoming(following, loop)
    for phis, values in zip(old, sums, strict=True):
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(code.zeros(), before)
            phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", following, dim), loop, behind)
    builder.position_at_end(behind)
    return sums


_rows = _tile(ROWS)
_few_rows = _tile(FEW_ROWS)
_one_row = _tile(1)


@njit(nogil=True, cache=True)
def _document(document_XD, first, behind, panel_MDY, panel, best_NMY, document):
    """Bring a panel's maxima up to date with one document, whose rows are `first` to `behind`."""
    row = first
    while row + ROWS <= behind:
        _rows(document_XD, row, panel_MDY, panel, best_NMY, document)
        row += ROWS
    if behind - row > FEW_ROWS and behind - first >= ROWS:
        _rows(document_XD, behind - ROWS, panel_MDY, panel, best_NMY, document)
    elif behind > row and behind - first >= FEW_ROWS:
        if behind - row > FEW_ROWS:
            _few_rows(document_XD, row, panel_MDY, panel, best_NMY, document)
        _few_rows(document_XD, behind - FEW_ROWS, panel_MDY, panel, best_NMY, document)
    else:
        while row < behind:
            _one_row(document_XD, row, panel_MDY, panel, best_NMY, document)
            row += 1


@njit(nogil=True, cache=True)
def all_scores(document_XD, starts_N, panel_MDY, starts_Q, unit_Y, lowest, out_NQ):
    """Write the scores of all queries, whose vectors stand back to back in the panels, against all documents.

    A maximum of query vector y counts `unit_Y[y]` each, in whose type they are added; none is below `lowest`.
    """
    documents, queries = out_NQ.shape
    panels, _, width = panel_MDY.shape
    best_NMY = np.full((documents, panels, width), lowest, document_XD.dtype)
    for panel in range(panels):
        for document in range(documents):
            _document(document_XD, starts_N[document], starts_N[document + 1], panel_MDY, panel, best_NMY, document)
    for document in range(documents):
        best_Y = best_NMY[document].reshape(panels * width)
        for query in range(queries):
            score = unit_Y.dtype.type(0)
            for vector in range(starts_Q[query], starts_Q[query + 1]):
                score += unit_Y[vector] * best_Y[vector]
            out_NQ[document, query] = score


@njit(nogil=True, cache=True)
def pair_scores(document_XD, starts_N, query_numbers, starts_Q, query_H, pair_starts_N, panel_MDY, out_H):
    """Write the scores of pairs, which stand document by document.

    `query_numbers` holds each query's vectors turned round [D, L], query behind query: those of one document's pairs
    are laid side by side into the panels, so that short queries share one.
    """
    dim, width = document_XD.shape[1], panel_MDY.shape[2]
    for document in range(len(starts_N) - 1):
        vectors = 0
        for pair in range(pair_starts_N[document], pair_starts_N[document + 1]):
            query = query_H[pair]
            length = starts_Q[query + 1] - starts_Q[query]
            source = starts_Q[query] * dim
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
            _document(document_XD, starts_N[document], starts_N[document + 1], panel_MDY[:panels], panel, best_NMY, 0)
        best_Y = best_NMY.reshape(panels * width)
        place = 0
        for pair in range(pair_starts_N[document], pair_starts_N[document + 1]):
            score = out_H.dtype.type(0)
            for _ in range(starts_Q[query_H[pair] + 1] - starts_Q[query_H[pair]]):
                score += best_Y[place]
                place += 1
            out_H[pair] = score
