// Which pixels of an image a chain's layers connect.

#pragma once

#include <algorithm>
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

}  // namespace
