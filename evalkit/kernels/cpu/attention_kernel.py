"""Attention of padded texts on a CPU's vector units, in fp32; padding is neither attended to nor computed.

Shapes: B texts, T padded width, A heads, K width of a head, a multiple of COLUMNS; P panels of COLUMNS keys; R rows of
a tile; Y keys of a panel or of all panels.

A tile is ROWS query positions of a text. Their products with all keys are accumulated in registers and stored, the
exponentials are taken in place, and the products with all values are accumulated in registers again. Keys are first
transposed into panels [K, COLUMNS]. A text's result depends on its own token ids only: the logits of keys after its end
start at -1e30, so each exponential is 2⁻¹²⁶, which does not change a sum that contains a 1.

Arithmetic: with AVX-512 a tile of 12 by 32 has 24 sums in the 32 registers, and one step takes 24 fused operations and
14 loads. An exponential takes 13 operations for 16 numbers; their products take 2 K fused operations.
"""

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from evalkit.kernels.cpu.register_code import REVISION, UNROLLED, Code, Panel, index, sums
from evalkit.kernels.cpu.registers import REGISTERS

assert REVISION == 1  # numba caches this kernel by this file alone; see REVISION
PANEL_REGISTERS = 2
COLUMNS = PANEL_REGISTERS * REGISTERS.size_bytes // 4
"""Keys of a panel, and output columns of a head that are computed together."""
ROWS = 12 if REGISTERS.total >= 32 else 6
"""Query positions of a tile: their sums, a panel's registers and one more fit the register file."""
PADDING_LOGIT = -1e30
"""Initial logit of keys that are padding."""
LOWEST_POWER = -126.0
"""The smallest exponent for which 2ˣ is a normal fp32 number."""
POWER = (1.00000008, 0.69314721, 0.24022107, 0.05550327, 0.00967604, 0.00134004)
"""Coefficients of a polynomial for 2ˣ with |x| ≤ ½, fitted at Chebyshev points; its error is at most 1.1e-7."""
ROUNDING = 1.5 * 2.0**23
"""Adding it to a number below 2²² puts the nearest integer into the low mantissa bits."""


def _arrays(context, builder, signature, arguments, positions):
    """Return the arrays among an intrinsic's arguments, given their positions."""
    return [make_array(signature.args[i])(context, builder, arguments[i]) for i in positions]


def _code(builder):
    """Return the emitter for fp32."""
    return Code.of(builder, ir.FloatType(), 4)


def _logits(rows):
    """Return a function that stores the logits of `rows` rows for a panel of keys, and updates each lane's maximum.

    Its arguments are query_TK, the first row, panel_PKY, the panel's number, begin_Y (the initial logits of the keys of
    all panels), logit_RY, and largest_RY (a register of maxima for each row).
    """

    @intrinsic
    def tile(_typing, query, _row, panels, _panel, begin, logits, largest):
        signature = types.void(query, types.intp, panels, types.intp, begin, logits, largest)

        def build(context, builder, signature, arguments):
            code = _code(builder)
            query, panels, begin, logits, largest = _arrays(context, builder, signature, arguments, (0, 2, 4, 5, 6))
            row, panel = arguments[1], arguments[3]
            head = builder.extract_value(query.shape, 1)
            first = code.times(panel, index(COLUMNS))
            found = sums(
                code,
                query.data,
                [code.times(code.plus(row, more), head) for more in range(rows)],
                Panel(panels.data, code.times(first, head), index(COLUMNS), PANEL_REGISTERS),
                head,
                code.registers(begin.data, first, PANEL_REGISTERS),
            )
            width = builder.extract_value(logits.shape, 1)
            for more, of_row in enumerate(found):
                offset = builder.add(code.times(index(more), width), first)
                known = code.load(largest.data, index(code.lanes * more), code.register)
                for part, logit in enumerate(of_row):
                    code.store(logit, logits.data, code.plus(offset, code.lanes * part))
                    known = code.larger(logit, known)
                code.store(known, largest.data, index(code.lanes * more))
            return context.get_dummy_value()

        return signature, build

    return tile


@intrinsic
def _exponentials(_typing, logits, _row, _count, largest):
    """Replace each logit x of a row by 2^(x - largest), in place, and return the sum.

    The arguments are logit_RY, the row, the number of its logits (a multiple of COLUMNS), and largest_RY.
    """
    signature = types.float32(logits, types.intp, types.intp, largest)

    def build(context, builder, signature, arguments):
        code = _code(builder)
        logits, largest = _arrays(context, builder, signature, arguments, (0, 3))
        row, count = arguments[1:3]
        start = code.times(row, builder.extract_value(logits.shape, 1))
        top = code.load(largest.data, code.times(row, index(code.lanes)), code.register)
        top = _among_lanes(code, top, code.larger)

        def body(at, totals):
            added = []
            for part, total in enumerate(totals):
                offset = code.plus(builder.add(start, at), code.lanes * part)
                power = _power(code, builder.fsub(code.load(logits.data, offset, code.register), top))
                code.store(power, logits.data, offset)
                added.append(builder.fadd(total, power))
            return added

        totals = code.loop(count, COLUMNS, [code.zeros()] * PANEL_REGISTERS, body)
        total = _among_lanes(code, builder.fadd(*totals), builder.fadd)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return signature, build


def _among_lanes(code, value, combine):
    """Combine all lanes of a register by `combine`; return a register with the result in every lane."""
    for step in range(int(math.log2(code.lanes))):
        value = combine(value, code.rotated(value, 1 << step))
    return value


def _power(code, value):
    """Return 2ˣ of each number in a register; 2⁻¹²⁶ for x below -126, NaN for NaN."""
    builder = code.builder
    below = builder.fcmp_ordered("<", value, code.constant(LOWEST_POWER))
    value = builder.select(below, code.constant(LOWEST_POWER), value)
    rounding = code.constant(ROUNDING)
    rounded = builder.fadd(value, rounding)
    rest = builder.fsub(value, builder.fsub(rounded, rounding))
    power = code.constant(POWER[-1])
    for factor in reversed(POWER[:-1]):
        power = code.fused(power, rest, code.constant(factor))
    bits = ir.VectorType(ir.IntType(32), code.lanes)
    exponent = builder.shl(builder.bitcast(rounded, bits), ir.Constant(bits, [23] * code.lanes))
    return builder.bitcast(builder.add(builder.bitcast(power, bits), exponent), code.register)


def _mixtures(rows):
    """Return a function that writes COLUMNS columns of `rows` rows' weighted sums of the values.

    Its arguments are weight_RY, value_TK, the first column, the number of values (a multiple of UNROLLED), share_R (the
    factor of each row), the flat output, the first row's offset in it, and the distance between its rows.
    """

    @intrinsic
    def tile(_typing, weights, values, _column, _count, shares, out, _start, _stride):
        integers = types.intp
        signature = types.void(weights, values, integers, integers, shares, out, integers, integers)

        def build(context, builder, signature, arguments):
            code = _code(builder)
            weights, values, shares, out = _arrays(context, builder, signature, arguments, (0, 1, 4, 5))
            column, count, offset, stride = (arguments[which] for which in (2, 3, 6, 7))
            width = builder.extract_value(weights.shape, 1)
            found = sums(
                code,
                weights.data,
                [code.times(index(more), width) for more in range(rows)],
                Panel(values.data, column, builder.extract_value(values.shape, 1), PANEL_REGISTERS),
                count,
            )
            for more, of_row in enumerate(found):
                share = code.spread(code.load(shares.data, index(more), code.number))
                start = builder.add(builder.add(offset, column), code.times(index(more), stride))
                for part, mixed in enumerate(of_row):
                    code.store(builder.fmul(mixed, share), out.data, code.plus(start, code.lanes * part))
            return context.get_dummy_value()

        return signature, build

    return tile


_logits_of_rows, _logits_of_one = _logits(ROWS), _logits(1)
_mixtures_of_rows, _mixtures_of_one = _mixtures(ROWS), _mixtures(1)

_HEADS = types.Array(types.float32, 4, "C")
_COUNTS = types.Array(types.int64, 1, "C")
_OUT = types.Array(types.float32, 4, "C")


@njit([types.void(_HEADS, _HEADS, _HEADS, _COUNTS, _COUNTS, types.float32, _OUT)], nogil=True, cache=True)
def attention(query_BTAK, key_BTAK, value_BTAK, length_B, attended_B, scale, out_BTAK):
    """Write the attention output of each position of each text, and zeros after a text's last position.

    The first `length_B` positions of a text attend to its first `attended_B`; both are at least 1. `scale` multiplies
    the products of queries and keys.
    """
    texts, longest, heads, head = query_BTAK.shape
    panels = (longest + COLUMNS - 1) // COLUMNS
    query_TK = np.empty((longest, head), np.float32)
    panel_PKY = np.empty((panels, head, COLUMNS), np.float32)
    value_TK = np.empty((longest + UNROLLED, head), np.float32)
    begin_Y = np.empty(panels * COLUMNS, np.float32)
    logit_RY = np.empty((ROWS, panels * COLUMNS), np.float32)
    largest_RY = np.empty((ROWS, COLUMNS // PANEL_REGISTERS), np.float32)
    share_R = np.empty(ROWS, np.float32)
    out = out_BTAK.reshape(out_BTAK.size)
    to_powers_of_two = np.float32(scale * np.log2(np.e))
    for text in range(texts):
        length, attended = length_B[text], attended_B[text]
        panels = (attended + COLUMNS - 1) // COLUMNS
        mixed = (attended + UNROLLED - 1) // UNROLLED * UNROLLED
        for key in range(panels * COLUMNS):
            begin_Y[key] = 0 if key < attended else PADDING_LOGIT
        for a in range(heads):
            for row in range(length):
                for k in range(head):
                    query_TK[row, k] = query_BTAK[text, row, a, k] * to_powers_of_two
            for row in range(attended):
                for k in range(head):
                    value_TK[row, k] = value_BTAK[text, row, a, k]
            value_TK[attended:mixed] = 0
            for panel in range(panels):
                first = panel * COLUMNS
                count = min(COLUMNS, attended - first)
                for k in range(head):
                    for key in range(count):
                        panel_PKY[panel, k, key] = key_BTAK[text, first + key, a, k]
                    panel_PKY[panel, k, count:] = 0
            row = 0
            while row < length:
                rows = ROWS if length >= ROWS else 1
                row = min(row, length - rows)  # the last tile overlaps rows that are already computed
                largest_RY[:] = PADDING_LOGIT
                for panel in range(panels):
                    if rows == ROWS:
                        _logits_of_rows(query_TK, row, panel_PKY, panel, begin_Y, logit_RY, largest_RY)
                    else:
                        _logits_of_one(query_TK, row, panel_PKY, panel, begin_Y, logit_RY, largest_RY)
                keys = panels * COLUMNS
                for more in range(rows):
                    # numba passes the function's first argument, the typing context, which mypy counts.
                    share_R[more] = 1 / _exponentials(logit_RY, more, keys, largest_RY)  # type: ignore[call-arg]  # see above
                offset = ((text * longest + row) * heads + a) * head
                for column in range(0, head, COLUMNS):
                    if rows == ROWS:
                        _mixtures_of_rows(logit_RY, value_TK, column, mixed, share_R, out, offset, heads * head)
                    else:
                        _mixtures_of_one(logit_RY, value_TK, column, mixed, share_R, out, offset, heads * head)
                row += rows
        out_BTAK[text, length:] = 0
