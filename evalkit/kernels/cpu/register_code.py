"""What is written for vector registers, through LLVM: the parts that the kernels of MaxSim and of attention share."""

from typing import Any, NamedTuple

from llvmlite import binding, ir
from numba.core import cgutils

from evalkit.kernels.cpu.registers import REGISTERS

REVISION = 1
"""Raised with every change of this file, and in the kernels, which assert it.

numba keeps compiled kernels until a kernel's own file changes, whatever else they were written with.
"""
UNROLLED = 4
"""Numbers that one turn of `sums` takes: rows and panels are filled up with zeros to a multiple of it."""

binding.initialize_native_asmparser()  # for the one instruction that is written out


def index(value):
    """Return a constant for addresses and counts."""
    return ir.Constant(ir.IntType(64), value)


class Code(NamedTuple):
    """What is written into: LLVM's builder, and the types of one size of numbers."""

    builder: Any
    number: Any
    number_bytes: int
    register: Any

    @classmethod
    def of(cls, builder, number, number_bytes):
        """Write for registers full of a type of number; a whole number of 32 bits is a pair of 16 bits each."""
        register = ir.VectorType(number, REGISTERS.size_bytes // number_bytes)
        return cls(builder, number, number_bytes, register)

    @property
    def whole(self):
        """Whether a number is a pair of 16-bit whole numbers."""
        return isinstance(self.number, ir.IntType)

    @property
    def lanes(self):
        """How many numbers a register holds."""
        return self.register.count

    def plus(self, value, more):
        """Return a count and some more."""
        return self.builder.add(value, index(more))

    def times(self, value, other):
        """Return the product of two counts."""
        return self.builder.mul(value, other)

    def load(self, base, offset, kind):
        """Load what is so many numbers behind a place."""
        pointer = self.builder.bitcast(self.builder.gep(base, [offset]), kind.as_pointer())
        return self.builder.load(pointer, align=self.number_bytes)

    def store(self, value, base, offset):
        """Store a register so many numbers behind a place."""
        pointer = self.builder.bitcast(self.builder.gep(base, [offset]), self.register.as_pointer())
        self.builder.store(value, pointer, align=self.number_bytes)

    def registers(self, base, offset, count):
        """Load neighbouring registers."""
        return [self.load(base, self.plus(offset, self.lanes * part), self.register) for part in range(count)]

    def constant(self, value):
        """Return a register with a constant in all its places."""
        return ir.Constant(self.register, [value] * self.lanes)

    def zeros(self):
        """Return a register of zeros."""
        return self.constant(0 if self.whole else 0.0)

    def spread(self, value):
        """Return a register with one number in all its places."""
        undefined = ir.Constant(self.register, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(first, undefined, self._places([0] * self.lanes))

    def turned(self, value, by):
        """Return a register whose numbers have moved round by some places."""
        return self.builder.shuffle_vector(
            value, value, self._places([(i + by) % self.lanes for i in range(self.lanes)])
        )

    def _places(self, places):
        return ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), places)

    def fused(self, a, b, c):
        """Return a · b + c, rounded once; of pairs the sum of both products, which is exact below 2³¹."""
        kind = ir.FunctionType(self.register, [self.register] * 3)
        if self.whole:
            # Left the choice, LLVM takes a multiplication and an addition for it, at half the rate.
            return self.builder.asm(kind, "vpdpwssd $2, $1, $0", "=v,v,v,0", [a, b, c], side_effect=False)
        name = f"llvm.fma.v{self.lanes}f{8 * self.number_bytes}"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [a, b, c])

    def larger(self, a, b):
        """Return the larger numbers; b where a is NaN."""
        compare = self.builder.icmp_signed if self.whole else self.builder.fcmp_ordered
        return self.builder.select(compare(">", a, b), a, b)

    def loop(self, count, step, carried, turn):
        """Write a loop over `at` = 0, step, … below a count, one turn at least; return what it carries at the end.

        `turn(at, carried)` writes one turn and returns what the next one starts from.
        """
        before = self.builder.block
        inside, behind = self.builder.append_basic_block("loop"), self.builder.append_basic_block("behind")
        self.builder.branch(inside)
        self.builder.position_at_end(inside)
        at = self.builder.phi(ir.IntType(64))
        phis = [self.builder.phi(value.type) for value in carried]
        values = turn(at, phis)
        following = self.plus(at, step)
        end = self.builder.block
        for phi, first, later in zip([at, *phis], [index(0), *carried], [following, *values], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(later, end)
        self.builder.cbranch(self.builder.icmp_signed("<", following, count), inside, behind)
        self.builder.position_at_end(behind)
        return values


class Panel(NamedTuple):
    """Columns that stand side by side in memory, and so many numbers further on their next numbers."""

    base: Any
    start: Any
    stride: Any
    registers: int
    """How many of them hold the columns."""


def sums(code, rows, row_starts, panel, count, begin=None):
    """Write the products of some rows with a panel's columns, added up over `count` numbers, a multiple of UNROLLED.

    Return for each row a register of sums for each of the panel's; `begin`, one per register, is where they start.
    """
    begin = [code.zeros()] * panel.registers if begin is None else begin

    def turn(at, flat):
        for step in range(UNROLLED):
            here = code.plus(at, step)
            columns = code.registers(
                panel.base, code.builder.add(panel.start, code.times(here, panel.stride)), panel.registers
            )
            own = [code.spread(code.load(rows, code.builder.add(start, here), code.number)) for start in row_starts]
            factors = [(of_row, column) for of_row in own for column in columns]
            flat = [code.fused(*factor, so_far) for factor, so_far in zip(factors, flat, strict=True)]
        return flat

    flat = code.loop(count, UNROLLED, begin * len(row_starts), turn)
    return [flat[first : first + panel.registers] for first in range(0, len(flat), panel.registers)]
