// Products of matrices, in tiles that fill the registers.

#pragma once

#include <algorithm>

#include "vectors.h"

namespace {

// What becomes of a product C as it is written, with pointers into arrays that lie as C does.
template <class T> struct Ending {
    const T* bias = nullptr;   // (columns), added
    const T* scale = nullptr;  // multiplies C
    T* scaled = nullptr;       // takes the multiplied C, where both are wanted
    bool add = false;          // to what C was

    Ending at(long row, long column) const {
        return {bias ? bias + column : nullptr, scale ? scale + row + column : nullptr,
                scaled ? scaled + row + column : nullptr, add};
    }
};

// C = A B for a tile of MR rows and NV vectors. A has the strides (row, step); C of `columns`.
template <class T, int MR, int NV>
inline void tile(long depth, const T* a, long row, long step, const T* b, long ldb, T* c, long ldc,
                 long columns, Ending<T> end) {
    // What the tile ends with comes from memory while the product is computed.
    if (end.scale)
        for (int m = 0; m < MR; ++m)
            for (int v = 0; v < NV; ++v) __builtin_prefetch(end.scale + m * ldc + v * LANES<T>);
    Vector<T> sum[MR][NV];
    const bool whole = columns == NV * LANES<T>;
    for (int v = 0; v < NV; ++v) {
        const long at = v * LANES<T>, count = std::min(LANES<T>, columns - at);
        for (int m = 0; m < MR; ++m) {
            sum[m][v] = Vector<T>{};
            const T* from = end.add ? c + m * ldc + at : end.bias ? end.bias + at : nullptr;
            if (from) sum[m][v] = whole ? load(from) : load(from, count);
        }
    }
    for (long k = 0; k < depth; ++k) {
        Vector<T> x[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) x[v] = load(b + k * ldb + v * LANES<T>);
#pragma GCC unroll 12
        for (int m = 0; m < MR; ++m) {
            const T y = a[m * row + k * step];
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) sum[m][v] += y * x[v];
        }
    }
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) {
            const long at = m * ldc + v * LANES<T>;
            const long count = std::min(LANES<T>, columns - v * LANES<T>);
            const auto put = [&](T* to, Vector<T> x) {
                whole ? store(to + at, x) : store(to + at, x, count);
            };
            Vector<T> scaled = sum[m][v];
            if (end.scale) scaled *= whole ? load(end.scale + at) : load(end.scale + at, count);
            if (end.scaled) put(end.scaled, scaled);
            put(c, end.scaled ? sum[m][v] : scaled);
        }
}

// The same for any number of rows.
template <class T, int NV>
void strip(long rows, long depth, const T* a, long row, long step, const T* b, long ldb, T* c,
           long ldc, long columns, Ending<T> end) {
    long m = 0;
    for (; m + TALL <= rows; m += TALL)
        tile<T, TALL, NV>(depth, a + m * row, row, step, b, ldb, c + m * ldc, ldc, columns,
                          end.at(m * ldc, 0));
    for (; m + 4 <= rows; m += 4)
        tile<T, 4, NV>(depth, a + m * row, row, step, b, ldb, c + m * ldc, ldc, columns,
                       end.at(m * ldc, 0));
    for (; m < rows; ++m)
        tile<T, 1, NV>(depth, a + m * row, row, step, b, ldb, c + m * ldc, ldc, columns,
                       end.at(m * ldc, 0));
}

// C = A B for A (rows, depth) and B (depth, columns) in panels, as `pack_panels` leaves it.
template <class T>
void product(long rows, long depth, long columns, const T* a, const T* panels, T* c, long ldc,
             Ending<T> end) {
    const long width = 2 * LANES<T>;
    for (long n = 0; n < columns; n += width) {
        const long count = std::min(width, columns - n);
        const T* b = panels + n * depth;
        if (count > LANES<T>)
            strip<T, 2>(rows, depth, a, depth, 1, b, width, c + n, ldc, count, end.at(0, n));
        else
            strip<T, 1>(rows, depth, a, depth, 1, b, LANES<T>, c + n, ldc, count, end.at(0, n));
    }
}

// C += A^T B for A (rows, m) and B (rows, n) with n a multiple of the lanes.
template <class T>
void outer_product(long rows, long m, long n, const T* a, const T* b, T* c) {
    const long width = 2 * LANES<T>;
    Ending<T> sum;
    sum.add = true;
    for (long j = 0; j < n; j += width) {
        if (n - j >= width)
            strip<T, 2>(m, rows, a, 1, m, b + j, n, c + j, n, width, sum);
        else
            strip<T, 1>(m, rows, a, 1, m, b + j, n, c + j, n, LANES<T>, sum);
    }
}

template <class T, class Entry>
void pack_panels(long depth, long columns, Entry entry, T* to) {
    const long lanes = LANES<T>;
    for (long n = 0; n < columns; n += 2 * lanes) {
        const long width = columns - n > lanes ? 2 * lanes : lanes;
        for (long k = 0; k < depth; ++k)
            for (long j = n; j < n + width; ++j) *to++ = j < columns ? entry(k, j) : T(0);
    }
}

// y += scale x.
template <class T> inline void add_scaled(long n, T scale, const T* x, T* to) {
    long i = 0;
    for (; i + LANES<T> <= n; i += LANES<T>) store(to + i, load(to + i) + scale * load(x + i));
    for (; i < n; ++i) to[i] += scale * x[i];
}

// In pairs, which neither waits for each sum before the next nor loses as many digits.
template <class T> inline T sum_of(Vector<T> v) {
    T sums[LANES<T>];
    store(sums, v);
    for (long half = LANES<T> / 2; half > 0; half /= 2)
        for (long i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
}

// The inner product of two vectors; sums of T are taken over some hundreds of entries only.
template <class T> double dot(long n, const T* x, const T* y) {
    constexpr long block = 64 * LANES<T>;
    double sum = 0;
    for (long from = 0; from < n; from += block) {
        Vector<T> lanes = {};
        const long end = std::min(n, from + block);
        long i = from;
        for (; i + LANES<T> <= end; i += LANES<T>) lanes += load(x + i) * load(y + i);
        if (i < end) lanes += load(x + i, end - i) * load(y + i, end - i);
        sum += sum_of<T>(lanes);
    }
    return sum;
}

}  // namespace
