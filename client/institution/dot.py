"""The innermost loop of the scan, in LLVM's own vectors.

The loop vectoriser keeps a sum in memory where an inner loop runs over lanes and the outer one over
chunks; here sums stay in registers and the items stream through. Each line is prefetched a while
before it is read: alone, the processor's prefetcher stops at every page, which halves the rate.
Measured on 2 cores with AVX-512: 12 GB/s against 6 of the plain loop, from memory.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LINE = 16
"""Coefficients in a line of 64 bytes: the unit that packed blocks and questions are made of."""

_WORDS = LINE // 2
_AHEAD = 96
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_BYTES, _VECTOR = ir.IntType(8).as_pointer(), ir.VectorType(ir.IntType(64), _WORDS)


@intrinsic
def dot(  # type: ignore[no-untyped-def]
    typingctx, items, item_at, question, question_at, chunks, sums, first_at, second_at
):
    """Multiply ``chunks`` lines of an item with a question's and keep the sums, all uint64.

    A word holds two residues, low half and high half: word l of a line has coefficients l and
    l + 8. ``items`` from word ``item_at`` on: a line a chunk; ``question`` from ``question_at``
    on: two lines a chunk, of c0 and of a; ``sums``: 16 words from ``first_at`` for c0 and 16 from
    ``second_at`` for a. The caller sees to it that everything is inside its array.
    """
    signature = types.void(items, item_at, question, question_at, chunks, sums, first_at, second_at)
    return signature, _generate


def _generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    items, question, first, second = (
        _vectors(context, builder, signature.args[array], arguments[array], arguments[at])
        for array, at in ((0, 1), (2, 3), (5, 6), (5, 7))
    )
    entry = builder.block
    loop, done = (builder.append_basic_block(name) for name in ("chunk", "done"))
    builder.branch(loop)

    builder.position_at_end(loop)
    chunk = builder.phi(_I64)
    chunk.add_incoming(_I64(0), entry)
    before = [builder.phi(_VECTOR) for _ in range(4)]
    for one in before:
        one.add_incoming(_splat(0), entry)
    _prefetch(builder, builder.gep(items, [builder.add(chunk, _I64(_AHEAD))]))
    item = _halves(builder, _load(builder, items, chunk))
    twice = builder.shl(chunk, _I64(1))
    after: list[Any] = []
    for offset in (0, 1):
        asked = _halves(builder, _load(builder, question, builder.add(twice, _I64(offset))))
        for left, right in zip(item, asked, strict=True):
            product = builder.mul(left, right)
            after.append(builder.add(before[len(after)], product))
    following = builder.add(chunk, _I64(1))
    chunk.add_incoming(following, loop)
    for one, other in zip(before, after, strict=True):
        one.add_incoming(other, loop)
    builder.cbranch(builder.icmp_signed("<", following, arguments[4]), loop, done)

    builder.position_at_end(done)
    for number, one in enumerate(after):
        target = builder.gep((first, second)[number // 2], [_I64(number % 2)])
        builder.store(one, target).align = 8
    return context.get_dummy_value()


def _vectors(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), _VECTOR.as_pointer())


def _load(builder: Any, vectors: Any, at: Any) -> Any:
    loaded = builder.load(builder.gep(vectors, [at]))
    loaded.align = 8
    return loaded


def _halves(builder: Any, words: Any) -> tuple[Any, Any]:
    return builder.and_(words, _splat(0xFFFFFFFF)), builder.lshr(words, _splat(32))


def _splat(value: int) -> Any:
    return ir.Constant(_VECTOR, [value] * _WORDS)


def _prefetch(builder: Any, vectors: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [_BYTES, _I32, _I32, _I32])
    prefetch = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module, kind, "llvm.prefetch.p0"
    )
    read, second_level, data = _I32(0), _I32(2), _I32(1)
    builder.call(prefetch, [builder.bitcast(vectors, _BYTES), read, second_level, data])
