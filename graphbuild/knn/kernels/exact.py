"""Exact similarities and the final order of a row's neighbours, in numba.

Shape letters: N texts, n rows of a block, M candidates a row, K neighbours kept, D vector width.

The product of two float16 numbers is a multiple of 2^-48, and partial sums of the inner product of vectors of length
about 1 stay below 2. So they fit the 53 bits of a float64: the sum is exact in any order, the same on any machine, and
symmetric. What is stored is therefore a function of the vectors alone, whichever way the candidates were found.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

_UNSHIFT = 2.0**224
"""What the exponents of two float16 numbers lack when their bits are read in a float32's place."""
_AHEAD = 4
"""Candidates whose vectors are asked for before they are needed: they lie anywhere in memory, and are 1.8 times as fast so."""
_LINE = 32
"""float16 numbers in a cache line."""


def _prefetch_typing(_context: Any, matrix: Any, row: Any, column: Any) -> Any:
    """Ask for the cache line of one element of a matrix in C order, without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        stride = builder.extract_value(array.strides, 0)
        item = ir.Constant(ir.IntType(64), signature.args[0].dtype.bitwidth // 8)
        offset = builder.add(builder.mul(arguments[1], stride), builder.mul(arguments[2], item))
        byte = ir.IntType(8).as_pointer()
        address = builder.gep(builder.bitcast(array.data, byte), [offset])
        kinds = [byte, *[ir.IntType(32)] * 3]
        declared = builder.module.declare_intrinsic("llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), kinds))
        # Read, keep in all caches, data.
        builder.call(declared, [address, *(ir.Constant(ir.IntType(32), value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(matrix, types.intp, types.intp), generate


# Calls of an intrinsic leave out the typing context; Any, because its type does not say so.
prefetch: Any = intrinsic(_prefetch_typing)


@njit(cache=True, nogil=True)
def half_bits(value: float) -> np.int64:
    """Return the float16 nearest to a float64 (ties to even), as its bits; |value| below 65,504."""
    bits = np.float64(value).view(np.int64)
    sign = np.int64(0x8000) if bits < 0 else np.int64(0)
    magnitude = bits & np.int64(0x7FFFFFFFFFFFFFFF)
    if abs(value) < 2.0**-14:
        return sign | np.int64(np.rint(abs(value) * 2.0**24))
    magnitude += np.int64(0x1FFFFFFFFFF) + ((magnitude >> np.int64(42)) & np.int64(1))
    return sign | ((magnitude >> np.int64(42)) - np.int64((1023 - 15) << 10))


@njit(cache=True, nogil=True)
def _shifted(bits: np.int16) -> float:
    """A float16 in a float32's place: read 2^112 times too small, exactly."""
    wide = np.int32(bits)
    return np.float64(np.int32(((wide & np.int32(0x7FFF)) << np.int32(13)) | (wide & np.int32(-2147483648))).view(np.float32))


@njit(cache=True, nogil=True)
def widened(bits: np.int16) -> float:
    """Return a float16 from its bits."""
    return _shifted(bits) * 2.0**112


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
def similarity(bits_ND: NDArray[np.int16], one: int, other: int) -> float:
    """Return the exact similarity of two texts."""
    total = 0.0
    for d in range(bits_ND.shape[1]):
        total += _shifted(bits_ND[one, d]) * _UNSHIFT * _shifted(bits_ND[other, d])
    return total


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
def dot(a_D: NDArray[np.float64], bits_D: NDArray[np.int16]) -> float:
    """Return the inner product with a text, 2^112 times too small. Reassociation changes nothing: the sum is exact in float64."""
    total = 0.0
    for d in range(a_D.shape[0]):
        total += a_D[d] * _shifted(bits_D[d])
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def similarities_to(bits_ND: NDArray[np.int16], row: int, ids_M: NDArray[np.int32], count: int, out_M: NDArray[np.float64]) -> None:
    """Compute the exact similarity of text `row` to the first `count` of `ids_M`."""
    D = bits_ND.shape[1]
    own_D = np.empty(D, np.float64)
    for d in range(D):
        # Makes up for both factors' shift.
        own_D[d] = _shifted(bits_ND[row, d]) * _UNSHIFT
    for c in range(count):
        if c + _AHEAD < count:
            for d in range(0, D, _LINE):
                prefetch(bits_ND, ids_M[c + _AHEAD], d)
        out_M[c] = dot(own_D, bits_ND[ids_M[c]])


@njit(cache=True, nogil=True, error_model="numpy")
def keep_best(
    ids_M: NDArray[np.int32],
    exact_M: NDArray[np.float64],
    count: int,
    keys_K: NDArray[np.int64],
    out_ids_K: NDArray[np.int32],
    out_bits_K: NDArray[np.int16],
) -> float:
    """Keep the K best by (exact similarity, then lower id), ordered by (float16 similarity, then lower id).

    Returns:
        The exact K-th similarity.
    """
    K = keys_K.shape[0]
    kth = float(np.partition(exact_M[:count], count - K)[count - K])
    above = 0
    for c in range(count):
        if exact_M[c] > kth:
            above += 1
    ties = np.empty(count, np.int32)
    n_ties = 0
    for c in range(count):
        if exact_M[c] == kth:
            ties[n_ties] = ids_M[c]
            n_ties += 1
    last_tie = np.sort(ties[:n_ties])[K - above - 1]
    filled = 0
    for c in range(count):
        if exact_M[c] > kth or (exact_M[c] == kth and ids_M[c] <= last_tie):
            bits = half_bits(exact_M[c])
            # Larger similarities get smaller keys; -0 counts as 0.
            ordered = bits & np.int64(0x7FFF)
            if bits < 0x8000:
                ordered = -ordered
            keys_K[filled] = ordered * np.int64(1 << 32) + np.int64(ids_M[c])
            filled += 1
    keys_K.sort()
    for q in range(K):
        ordered = keys_K[q] >> np.int64(32)
        out_ids_K[q] = np.int32(keys_K[q] & np.int64(0xFFFFFFFF))
        out_bits_K[q] = np.int16(-ordered) if ordered <= 0 else np.int16(np.int64(-32768) + ordered)
    return kth


@njit(cache=True, nogil=True, error_model="numpy")
def finish_rows(
    bits_ND: NDArray[np.int16],
    rows_n: NDArray[np.int64],
    candidates_nM: NDArray[np.int32],
    out_ids_nK: NDArray[np.int32],
    out_bits_nK: NDArray[np.int16],
    kth_n: NDArray[np.float64],
) -> None:
    """Find the K best of each row's M candidates, exactly; the row itself, wherever it is among them, is left out.

    Args:
        bits_ND: All vectors, float16 seen as int16; C order.
        rows_n: The text id of each row.
        candidates_nM: Distinct text ids, in any order; at least K of them other than the row itself.
        out_ids_nK: Takes the neighbours.
        out_bits_nK: Takes their float16 similarities as int16 bits.
        kth_n: Takes each row's exact K-th similarity.
    """
    K = out_ids_nK.shape[1]
    M = candidates_nM.shape[1]
    for i in range(rows_n.shape[0]):
        ids_M = np.empty(M, np.int32)
        exact_M = np.empty(M, np.float64)
        keys_K = np.empty(K, np.int64)
        count = 0
        for c in range(M):
            if candidates_nM[i, c] != rows_n[i]:
                ids_M[count] = candidates_nM[i, c]
                count += 1
        similarities_to(bits_ND, rows_n[i], ids_M, count, exact_M)
        kth_n[i] = keep_best(ids_M, exact_M, count, keys_K, out_ids_nK[i], out_bits_nK[i])


@njit(cache=True, nogil=True, error_model="numpy")
def brute_rows(
    bits_ND: NDArray[np.int16],
    rows_n: NDArray[np.int64],
    out_ids_nK: NDArray[np.int32],
    out_bits_nK: NDArray[np.int16],
) -> None:
    """Search each row against all N texts in float64: for the rows that a certificate did not settle."""
    N = bits_ND.shape[0]
    K = out_ids_nK.shape[1]
    for i in range(rows_n.shape[0]):
        ids_M = np.empty(N - 1, np.int32)
        exact_M = np.empty(N - 1, np.float64)
        keys_K = np.empty(K, np.int64)
        for c in range(N - 1):
            ids_M[c] = c if c < rows_n[i] else c + 1
        similarities_to(bits_ND, rows_n[i], ids_M, N - 1, exact_M)
        keep_best(ids_M, exact_M, N - 1, keys_K, out_ids_nK[i], out_bits_nK[i])
