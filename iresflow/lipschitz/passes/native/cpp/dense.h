// Whole Jacobians of images and log det(I + J), an image at a time, while it is in the cache.
//
// What enters at a pixel p reaches only the pixels q near to p. So the columns of J are pushed
// through the chain as a table: for each q and each p within its reach, a row of channels for each
// channel that entered at p. A layer multiplies all rows at once; `logdet/exact.py` is the
// reference.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "determinant.h"
#include "passes.h"
#include "reach.h"

namespace {

// Rows of n entries, `step` apart, times one row of factors.
template <class T>
inline void multiply(long rows, long n, const T* x, long step, const T* factor, T* to,
                     long step_to) {
    long i = 0;
    for (; i + LANES<T> <= n; i += LANES<T>) {
        const Vector<T> scale = load(factor + i);
        for (long row = 0; row < rows; ++row)
            store(to + row * step_to + i, load(x + row * step + i) * scale);
    }
    for (long row = 0; i < n && row < rows; ++row)
        for (long j = i; j < n; ++j) to[row * step_to + j] = x[row * step + j] * factor[j];
}

// Rows of a matrix (WIDTH channels, n), each times its slope; those of one channel are added up.
template <class T, int WIDTH>
void fold_rows(long channels, long n, const T* slope, const T* rows, T* to) {
    with_length<LANES<T>, 2 * LANES<T>>(n, [=](auto n) mutable {
        for (long c = 0; c < channels; ++c, rows += n, to += n) {
            T factor[WIDTH];
            for (int b = 0; b < WIDTH; ++b) factor[b] = slope ? slope[b * channels + c] : T(1);
            long i = 0;
            for (; i + LANES<T> <= n; i += LANES<T>) {
                Vector<T> sum = factor[0] * load(rows + i);
                for (int b = 1; b < WIDTH; ++b) sum += factor[b] * load(rows + b * channels * n + i);
                store(to + i, sum);
            }
            for (; i < n; ++i) {
                to[i] = factor[0] * rows[i];
                for (int b = 1; b < WIDTH; ++b) to[i] += factor[b] * rows[b * channels * n + i];
            }
        }
    });
}

template <class T> auto rows_folder(const Link& link) {
    return link.width == 1 ? fold_rows<T, 1> : link.width == 2 ? fold_rows<T, 2> : fold_rows<T, 3>;
}

// The table after the first layer.
template <class T>
void first_columns(const Link& link, const Item& item, const Locality<T>& local, T* to) {
    const Reach& reach = local.reach[0];
    const long outputs = link.outputs;
    const auto fold = rows_folder<T>(link);
    for (long q = 0; q < item.rows; ++q)
        reach.window(q, link.side).for_each([&](long tap, long p) {
            fold(front(link), outputs, rows<T>((const void*)link.slope, item.row + p, link.inputs),
                 local.weight.data() + tap * link.inputs * outputs,
                 to + reach.row(q, p) * outputs);
        });
}

// A table through an activation: x, or what it becomes in a buffer.
template <class T>
T* through_slopes(const Link& link, const Item& item, const Reach& reach, T* x,
                  Scratch<T>& scratch) {
    const T* slope = rows<T>((const void*)link.slope, item.row, link.inputs);
    if (!slope) return x;
    const long channels = front(link);
    T* to = link.width > 1 ? scratch.at(WIDE, reach.rows() * link.inputs) : x;
    for (long q = 0; q < item.rows; ++q, slope += link.inputs)
        for (long at = 0; at < link.inputs; at += channels)
            multiply(reach.first[q + 1] - reach.first[q], channels, x + reach.first[q] * channels,
                     channels, slope + at, to + reach.first[q] * link.inputs + at, link.inputs);
    return to;
}

template <class T> inline void add(long n, const T* __restrict__ x, T* __restrict__ to) {
    for (long i = 0; i < n; ++i) to[i] += x[i];
}

// The rows of one pixel of a table, through an activation of more values than one and the matrix of
// a layer that narrows: the slopes go into the matrix, since they would widen the table.
template <class T>
void narrow_folded(const Link& link, const T* slope, long count, const T* x, T* taps,
                   Scratch<T>& scratch) {
    const Layer layer(link);
    const long stride = padded(layer.columns(), LANES<T>), panel = 2 * LANES<T>;
    const long channels = front(link);
    const T* matrix = (const T*)link.matrix + layer.up_size<T>();
    T* folded = scratch.at(WIDE, channels * stride);
    const auto fold = rows_folder<T>(link);
    for (long n = 0; n < stride; n += panel)
        fold(channels, std::min(panel, stride - n), slope, matrix + n * link.inputs,
             folded + n * channels);
    product(count, channels, stride, x, folded, taps, stride, Ending<T>{});
}

// A table through an activation and a convolution that narrows: its columns, one after another,
// (D, pixels, outputs).
template <class T>
void scatter(const Link& link, const Item& item, const Reach& reach, T* x, T* to,
             Scratch<T>& scratch) {
    const Layer layer(link);
    const long pixels = reach.height * reach.width, outputs = link.outputs, channels = front(link);
    const long stride = padded(layer.columns(), LANES<T>), column = pixels * outputs;
    const bool folds = link.width > 1;
    T* taps = scratch.at(TAPS, reach.rows() * stride);
    if (!folds)
        product(reach.rows(), channels, stride, through_slopes(link, item, reach, x, scratch),
                (const T*)link.matrix + layer.up_size<T>(), taps, stride, Ending<T>{});
    std::fill(to, to + pixels * reach.channels * column, T(0));
    for (long q = 0; q < pixels; ++q) {
        const long first = reach.first[q], count = reach.first[q + 1] - first;
        if (folds)
            narrow_folded(link, rows<T>((const void*)link.slope, item.row + q, link.inputs), count,
                          x + first * channels, taps, scratch);
        const T* rows_of_q = folds ? taps : taps + first * stride;
        const Window window = reach.window(q, link.side);
        with_length<2, 3, 8, 12>(window.count * outputs, [&](auto length) {
            reach.for_rows(q, [&](long p, long row) {
                for (long c = 0; c < reach.channels; ++c) {
                    const T* from = rows_of_q + (row - first + c) * stride;
                    T* y = to + (p * reach.channels + c) * column;
                    window.for_lines([&](long tap, long near) {
                        add(length, from + tap * outputs, y + near * outputs);
                    });
                }
            });
        });
    }
}

// From columns (D, pixels, channels) to a table or back, as copy(of the columns, of the table).
template <class T, class Copy>
void reorder(const Reach& reach, long channels, T* columns, T* table, Copy copy) {
    const long pixels = reach.height * reach.width;
    for (long q = 0; q < pixels; ++q)
        reach.for_rows(q, [&](long p, long row) {
            for (long c = 0; c < reach.channels; ++c)
                copy(columns + ((p * reach.channels + c) * pixels + q) * channels,
                     table + (row + c) * channels);
        });
}

// A table of one reach through a convolution that widens, to one of a wider reach.
template <class T>
void gather_windows(const Link& link, const Reach& reach, const Reach& next, const T* x, T* to,
                    Scratch<T>& scratch) {
    const Layer layer(link);
    const long line = layer.columns();
    T* lines = scratch.at(WINDOWS, next.rows() * line);
    std::fill(lines, lines + next.rows() * line, T(0));
    for (long q = 0; q < next.height * next.width; ++q)
        next.for_rows(q, [&](long p, long row) {
            next.window(q, link.side).for_each([&](long tap, long near) {
                const long from = reach.row(near, p);
                for (long c = 0; from >= 0 && c < reach.channels; ++c)
                    std::copy_n(x + (from + c) * link.inputs, link.inputs,
                                lines + (row + c) * line + tap * link.inputs);
            });
        });
    product(next.rows(), line, layer.wide, lines, (const T*)link.matrix, to, layer.wide,
            Ending<T>{});
}

// The columns of J at an image, one after another, each with its channels last: (D, D).
template <class T>
void columns(const Shape& shape, const Link* links, const Item& item, const Locality<T>& local,
             T* jacobian, Scratch<T>& scratch) {
    T* x = scratch.at(EVEN, local.reach[0].rows() * links[0].outputs);
    first_columns(links[0], item, local, x);
    for (long i = 1; i < shape.links; ++i) {
        const Link& link = links[i];
        const Reach &reach = local.reach[i - 1], &next = local.reach[i];
        const long channels = link.outputs;
        const bool narrows = link.side > 1 && !Layer(link).widens;
        if (narrows && i + 1 == shape.links) {
            scatter(link, item, reach, x, jacobian, scratch);
            return;
        }
        T* entered = narrows ? x : through_slopes(link, item, reach, x, scratch);
        x = scratch.at(i % 2 ? ODD : EVEN, next.rows() * channels);
        if (link.side == 1) {
            apply(link, Item{0, next.rows(), 0, 1, 1}, entered, false, x, Ending<T>{}, scratch);
        } else if (narrows) {
            T* all = scratch.at(ENTERED, item.rows * item.rows * next.channels * channels);
            scatter(link, item, reach, entered, all, scratch);
            reorder(next, channels, all, x,
                    [&](T* from, T* to) { std::copy_n(from, channels, to); });
        } else {
            gather_windows(link, reach, next, entered, x, scratch);
        }
    }
    const long channels = front(links[0]), dim = item.rows * channels;
    std::fill(jacobian, jacobian + dim * dim, T(0));
    reorder(local.reach.back(), channels, jacobian, x,
            [&](T* to, T* from) { std::copy_n(from, channels, to); });
}

// Of each sample: log det(I + J) and the norm of the longest column of J, (samples, 2); where J is
// wanted, its columns (samples, D, D).
template <class T> void dense(const Shape& shape, const Link* links, double* found, T* matrices) {
    const Locality<T> local(shape, links);
    const long dim = shape.height * shape.width * front(links[0]);
    for_items<T>(shape, links, 1, [&](const Item& item, long, Scratch<T>& scratch) {
        T* jacobian = matrices ? matrices + item.sample * dim * dim
                               : scratch.at(POWER, dim * dim);
        columns(shape, links, item, local, jacobian, scratch);
        double longest = 0;
        for (long i = 0; i < dim; ++i) {
            const T* column = jacobian + i * dim;
            const double square = dot(dim, column, column);
            if (square > longest || std::isnan(square)) longest = square;  // NaN stays
        }
        found[2 * item.sample + 1] = std::sqrt(longest);
        if (matrices) return;
        const long step = padded(dim, LANES<T>);
        T* shifted = scratch.at(NEXT, dim * step);
        for (long i = 0; i < dim; ++i) {
            T* row = shifted + i * step;
            std::fill(std::copy_n(jacobian + i * dim, dim, row), row + step, T(0));
            row[i] += 1;
        }
        found[2 * item.sample] = log_det(dim, shifted);
    });
}

}  // namespace
