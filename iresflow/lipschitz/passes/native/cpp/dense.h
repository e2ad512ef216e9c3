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
#include <utility>
#include <vector>

#include "passes.h"

namespace {

// Lines of a convolution's taps, and of the pixels that they read.
struct Window {
    long tap, pixel, lines, count, side, width;

    // Calls body(tap, pixel) for the first of each line.
    template <class Body> void for_lines(Body body) const {
        for (long line = 0; line < lines; ++line) body(tap + line * side, pixel + line * width);
    }
    template <class Body> void for_each(Body body) const {
        for_lines([&](long tap, long pixel) {
            for (long n = 0; n < count; ++n) body(tap + n, pixel + n);
        });
    }
};

// The rows of a table: for each pixel q of an image, those of the pixels p within a radius of it.
struct Reach {
    const long height, width, radius, channels;
    std::vector<long> first;  // of each q's rows, and the number of all

    Reach(long height, long width, long radius, long channels)
        : height(height), width(width), radius(radius), channels(channels), first(1, 0) {
        for (long q = 0; q < height * width; ++q) {
            const long rows = bottom(q) - top(q) + 1, line = right(q) - left(q) + 1;
            first.push_back(first.back() + rows * line * channels);
        }
    }

    long top(long q) const { return std::max(0L, q / width - radius); }
    long bottom(long q) const { return std::min(height - 1, q / width + radius); }
    long left(long q) const { return std::max(0L, q % width - radius); }
    long right(long q) const { return std::min(width - 1, q % width + radius); }
    long rows() const { return first.back(); }
    // The first row of p in those of q, or -1 where it is out of reach.
    long row(long q, long p) const {
        const long i = p / width, j = p % width, from = left(q);
        if (i < top(q) || i > bottom(q) || j < from || j > right(q)) return -1;
        return first[q] + ((i - top(q)) * (right(q) - from + 1) + j - from) * channels;
    }
    // Calls body(p, row) for all pixels within q's reach.
    template <class Body> void for_rows(long q, Body body) const {
        long row = first[q];
        for (long i = top(q); i <= bottom(q); ++i)
            for (long j = left(q); j <= right(q); ++j, row += channels)
                body(i * width + j, row);
    }
    // The pixels in q's window of side k.
    Window window(long q, long side) const {
        const long margin = side / 2, i = q / width - margin, j = q % width - margin;
        const long r = std::max(0L, -i), s = std::max(0L, -j);
        return {r * side + s, (i + r) * width + j + s, std::min(side, height - i) - r,
                std::min(side, width - j) - s, side, width};
    }
};

// What a chain's layers reach, and its first weight as (taps, inputs, outputs).
template <class T> struct Locality {
    std::vector<Reach> reach;
    std::vector<T> weight;

    Locality(const Shape& shape, const Link* links) {
        long radius = 0;
        for (long i = 0; i < shape.links; ++i) {
            radius += links[i].side / 2;
            reach.emplace_back(shape.height, shape.width, radius, front(links[0]));
        }
        const long taps = links[0].side * links[0].side;
        const T* from = (const T*)links[0].weight;
        weight.resize(taps * links[0].inputs * links[0].outputs);
        for (long o = 0; o < links[0].outputs; ++o)
            for (long c = 0; c < links[0].inputs; ++c)
                for (long tap = 0; tap < taps; ++tap)
                    weight[(tap * links[0].inputs + c) * links[0].outputs + o] = *from++;
    }
};

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

// The table after the first layer.
template <class T>
void first_columns(const Link& link, const Item& item, const Locality<T>& local, T* to) {
    const Reach& reach = local.reach[0];
    const long channels = front(link), outputs = link.outputs;
    std::fill(to, to + reach.rows() * outputs, T(0));
    for (long q = 0; q < item.rows; ++q)
        reach.window(q, link.side).for_each([&](long tap, long p) {
            T* y = to + reach.row(q, p) * outputs;
            const T* slope = rows<T>((const void*)link.slope, item.row + p, link.inputs);
            for (long c = 0; c < channels; ++c, y += outputs)
                for (long at = c; at < link.inputs; at += channels)
                    add_scaled(outputs, slope ? slope[at] : T(1),
                               local.weight.data() + (tap * link.inputs + at) * outputs, y);
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

// A table through a convolution that narrows: its columns, one after another, (D, pixels, outputs).
template <class T>
void scatter(const Link& link, const Reach& reach, const T* x, T* to, Scratch<T>& scratch) {
    const Layer layer(link);
    const long pixels = reach.height * reach.width, outputs = link.outputs;
    const long stride = padded(layer.columns(), LANES<T>), column = pixels * outputs;
    T* taps = scratch.at(TAPS, reach.rows() * stride);
    product(reach.rows(), layer.wide, stride, x, (const T*)link.matrix + layer.up_size<T>(), taps,
            stride, Ending<T>{});
    std::fill(to, to + pixels * reach.channels * column, T(0));
    for (long q = 0; q < pixels; ++q) {
        const Window window = reach.window(q, link.side);
        const long length = window.count * outputs;
        reach.for_rows(q, [&](long p, long row) {
            for (long c = 0; c < reach.channels; ++c)
                window.for_lines([&](long tap, long near) {
                    const T* from = taps + (row + c) * stride + tap * outputs;
                    T* y = to + (p * reach.channels + c) * column + near * outputs;
                    for (long o = 0; o < length; ++o) y[o] += from[o];
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
        const T* entered = through_slopes(link, item, reach, x, scratch);
        if (narrows && i + 1 == shape.links) {
            scatter(link, reach, entered, jacobian, scratch);
            return;
        }
        x = scratch.at(i % 2 ? ODD : EVEN, next.rows() * channels);
        if (link.side == 1) {
            apply(link, Item{0, next.rows(), 0, 1, 1}, entered, false, x, Ending<T>{}, scratch);
        } else if (narrows) {
            T* all = scratch.at(ENTERED, item.rows * item.rows * next.channels * channels);
            scatter(link, reach, entered, all, scratch);
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

// Below this a pivot is looked for. Of I + J with |J| < 1 none is needed, since its symmetric part
// is positive definite (Golub and Van Loan, 2013, section 4.4.2).
constexpr double SMALL_PIVOT = 0.25;

// y -= f x for some rows y from a row x on, each with its factor f = y[k] / x[k].
template <class T, int ROWS>
inline void eliminate(long k, long n, const T* row, T* first, long step) {
    const T pivot = row[k];
    T factor[ROWS];
    for (int r = 0; r < ROWS; ++r) factor[r] = first[r * step + k] / pivot;
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
    double sum = 0;
    bool positive = true;
    for (long k = 0; k < n; ++k) {
        T *row = a + k * step, *top = row, *const end = a + n * step;
        if (!(std::abs(row[k]) >= SMALL_PIVOT))
            for (T* y = row + step; y < end; y += step)
                if (std::abs(y[k]) > std::abs(top[k])) top = y;
        const bool swapped = top != row;
        if (swapped) std::swap_ranges(row, row + step, top);
        positive ^= swapped ^ (row[k] < 0);
        sum += std::log(std::abs(double(row[k])));
        T* y = row + step;
        for (; y + 3 * step < end; y += 4 * step) eliminate<T, 4>(k, n, row, y, step);
        for (; y < end; y += step) eliminate<T, 1>(k, n, row, y, step);
    }
    return positive && sum > -HUGE_VAL ? sum : std::numeric_limits<double>::quiet_NaN();
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
