// log det of a small matrix by elimination.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "vectors.h"

namespace {

// Below this a pivot is looked for. Of I + J with |J| < 1 none is needed, since its symmetric part
// is positive definite (Golub and Van Loan, 2013, section 4.4.2).
constexpr double SMALL_PIVOT = 0.25;

// y -= f x for some rows y from a row x on, each with its factor f = y[k] / x[k].
template <class T, int ROWS>
inline void eliminate(long k, long n, const T* row, T inverse, T* first, long step) {
    T factor[ROWS];
    for (int r = 0; r < ROWS; ++r) factor[r] = first[r * step + k] * inverse;
    // From the register that holds column k + 1 on: what is left of column k is not read.
    for (long j = (k + 1) / LANES<T> * LANES<T>; j < n; j += LANES<T>) {
        const Vector<T> x = load(row + j);
        for (int r = 0; r < ROWS; ++r)
            store(first + r * step + j, load(first + r * step + j) - factor[r] * x);
    }
}

// log det of a matrix of n rows, each padded to whole registers, which is overwritten; NaN where it
// is not positive.
template <class T> double log_det(long n, T* a) {
    const long step = padded(n, LANES<T>);
    constexpr long together = sizeof(T) < sizeof(double) ? 4 : 1;  // pivots that can't overflow
    double sum = 0, pivots = 1;
    bool positive = true;
    for (long k = 0; k < n; ++k) {
        T *row = a + k * step, *top = row, *const end = a + n * step;
        if (!(std::abs(row[k]) >= SMALL_PIVOT))
            for (T* y = row + step; y < end; y += step)
                if (std::abs(y[k]) > std::abs(top[k])) top = y;
        const bool swapped = top != row;
        if (swapped) std::swap_ranges(row, row + step, top);
        positive ^= swapped ^ (row[k] < 0);
        pivots *= std::abs(double(row[k]));
        if (k % together == together - 1 || k + 1 == n) {
            sum += std::log(pivots);
            pivots = 1;
        }
        const T inverse = 1 / row[k];
        T* y = row + step;
        for (; y + 3 * step < end; y += 4 * step) eliminate<T, 4>(k, n, row, inverse, y, step);
        for (; y < end; y += step) eliminate<T, 1>(k, n, row, inverse, y, step);
    }
    return positive && sum > -HUGE_VAL ? sum : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace
