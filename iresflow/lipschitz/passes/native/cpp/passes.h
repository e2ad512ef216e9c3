// The passes through a chain: forward, along directions, against them, and powers of the latter.

#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <vector>

#include "activations.h"
#include "layers.h"

namespace {

constexpr long SMALL = 1000000;  // multiplications below which threads cost more than they save

template <class T> inline const T* rows(const void* matrix, long row, long channels) {
    return matrix ? (const T*)matrix + row * channels : nullptr;
}
template <class T> inline T* rows(void* matrix, long row, long channels) {
    return matrix ? (T*)matrix + row * channels : nullptr;
}

// Channels in front of the activation.
inline long front(const Link& link) { return link.inputs / link.width; }

constexpr long VECTORS = 32;  // of a dense chain that make up an item

// Runs body(item, direction, scratch) for all items of so many directions, in threads.
template <class T, class Body>
void for_items(const Shape& shape, const Link* links, long directions, Body body) {
    const long pixels = shape.height * shape.width, all = shape.samples * pixels;
    long work = 0, side = 1;
    for (long i = 0; i < shape.links; ++i) {
        work += links[i].inputs * links[i].outputs * links[i].side * links[i].side;
        side = std::max(side, long(links[i].side));
    }
    const long each = pixels == 1 && side == 1 ? VECTORS : pixels;
    const long items = (all + each - 1) / each;
    std::atomic<bool> out_of_memory{false};  // an exception must not leave a thread's region
#pragma omp parallel if (work * all * directions > SMALL)
    {
        Borrowed<T> borrowed;
#pragma omp for schedule(static)
        for (long n = 0; n < items * directions; ++n) {
            if (out_of_memory) continue;
            const long row = n % items * each;
            const Item item{row, std::min(each, all - row), row / pixels, shape.height,
                            shape.width};
            try {
                body(item, n / items, borrowed.scratch);
            } catch (const std::bad_alloc&) {
                out_of_memory = true;
            }
        }
    }
    if (out_of_memory) throw std::bad_alloc();
}

// g at an item; what the links keep goes to its rows.
template <class T>
void forward(const Shape& shape, const Link* links, const Item& item, const T* h, T* out,
             Scratch<T>& scratch) {
    for (long i = 0; i < shape.links; ++i) {
        const Link& link = links[i];
        if (link.activation != NONE) {
            T* value = scratch.at(VALUE, item.rows * link.inputs);
            T* slope = rows<T>(link.slope, item.row, link.inputs);
            activate(link, item.rows, h, value, slope, (T*)nullptr);
            h = value;
        }
        T* y = out;
        if (i + 1 < shape.links) {
            y = rows<T>(links[i + 1].input, item.row, link.outputs);
            if (!y) y = scratch.at(i % 2 ? ODD : EVEN, item.rows * link.outputs);
        }
        apply(link, item, h, true, y, Ending<T>{}, scratch);
        h = y;
    }
}

template <class T> void forward(const Shape& shape, const Link* links, const T* x, T* out) {
    const long entering = front(links[0]), leaving = links[shape.links - 1].outputs;
    for_items<T>(shape, links, 1, [&](const Item& item, long, Scratch<T>& scratch) {
        forward(shape, links, item, x + item.row * entering, out + item.row * leaving, scratch);
    });
}

// t, and its images in front of each link and after the last, for each direction.
template <class T> void tangents(const Shape& shape, const Link* links, const T* t, T* out) {
    const long all = shape.samples * shape.height * shape.width;
    for_items<T>(shape, links, shape.directions, [&](const Item& item, long k, Scratch<T>& scratch) {
        const long row = k * all + item.row;
        const T* h = t + row * front(links[0]);
        if (const T* slope = rows<T>((const void*)links[0].slope, item.row, links[0].inputs)) {
            T* entered = scratch.at(ENTERED, item.rows * links[0].inputs);
            spread(links[0], item.rows, h, slope, entered);
            h = entered;
        }
        for (long i = 0; i < shape.links; ++i) {
            const Link& link = links[i];
            const bool last = i + 1 == shape.links;
            T* y = last ? out + row * link.outputs
                        : rows<T>(links[i + 1].tangent, row, link.outputs);
            Ending<T> end;
            T* entered = y;
            if (!last && links[i + 1].slope) {
                const Link& next = links[i + 1];
                entered = scratch.at(i % 2 ? ODD : EVEN, item.rows * next.inputs);
                end.scale = rows<T>((const void*)next.slope, item.row, next.inputs);
                end.scaled = entered;
            }
            if (last || links[i + 1].width == 1) {
                apply(link, item, h, false, y, end, scratch);
            } else {
                apply(link, item, h, false, y, Ending<T>{}, scratch);
                spread(links[i + 1], item.rows, y, end.scale, entered);
            }
            h = entered;
        }
    });
}

// J^T u at an item.
template <class T>
void vjp(const Shape& shape, const Link* links, const Item& item, const T* u, T* out,
         Scratch<T>& scratch) {
    for (long i = shape.links - 1; i >= 0; --i) {
        const Link& link = links[i];
        T* before = i ? scratch.at(i % 2 ? ODD : EVEN, item.rows * link.inputs) : out;
        T* wide = link.width > 1 ? scratch.at(WIDE, item.rows * link.inputs) : before;
        Ending<T> end;
        end.scale = rows<T>((const void*)link.slope, item.row, link.inputs);
        apply_adjoint(link, item, u, wide, end, scratch);
        if (wide != before) fold(link, item.rows, wide, before);
        u = before;
    }
}

template <class T> void vjp(const Shape& shape, const Link* links, const T* u, T* out) {
    const long all = shape.samples * shape.height * shape.width;
    const long channels = front(links[0]);
    for_items<T>(shape, links, shape.directions, [&](const Item& item, long k, Scratch<T>& scratch) {
        const long row = (k * all + item.row) * channels;
        vjp(shape, links, item, u + row, out + row, scratch);
    });
}

// What the series of powers of J^T takes and gives, as `Products.power_sums` says.
template <class T> struct Powers {
    const T* v;
    const T* weights;      // (terms, 2)
    const int64_t* limit;  // (directions, samples), or null
    const T* enough;       // the same
    T *neumann, *weighted;
    T *taken, *size, *growth;  // (directions, samples)
};

template <class T>
void power_sums(const Shape& shape, const Link* links, const Powers<T>& powers) {
    const long pixels = shape.height * shape.width, all = shape.samples * pixels;
    const long channels = front(links[0]), each = pixels * channels;
    for_items<T>(shape, links, shape.directions, [&](const Item& item, long k, Scratch<T>& scratch) {
        const long row = (k * all + item.row) * channels, count = item.rows / pixels;
        const long first = k * shape.samples + item.sample, entries = item.rows * channels;
        std::copy(powers.v + row, powers.v + row + entries, powers.neumann + row);
        std::copy(powers.v + row, powers.v + row + entries, powers.weighted + row);
        T *now = scratch.at(POWER, entries), *next = scratch.at(NEXT, entries);
        std::copy(powers.v + row, powers.v + row + entries, now);
        std::vector<char> running(count, 1);
        for (long s = 0; s < count; ++s) {
            const T* x = now + s * each;
            powers.size[first + s] = T(std::sqrt(dot(each, x, x)));
            powers.taken[first + s] = 1;
            powers.growth[first + s] = 0;
        }
        for (long term = 1; term < shape.terms; ++term) {
            bool some = false;
            for (long s = 0; s < count; ++s) {
                if (powers.limit && powers.limit[first + s] <= term) running[s] = 0;
                if (powers.enough && term > 1) {  // as `Series.goes_on`
                    const T rate = powers.growth[first + s];
                    const T left = term * powers.enough[first + s] * (1 - rate);
                    if (!(powers.size[first + s] * rate > left)) running[s] = 0;
                }
                some |= running[s];
            }
            if (!some) break;
            vjp(shape, links, item, now, next, scratch);
            std::swap(now, next);
            const T a = powers.weights[2 * term], b = powers.weights[2 * term + 1];
            for (long s = 0; s < count; ++s) {
                if (!running[s]) continue;
                const T* x = now + s * each;
                T* neumann = powers.neumann + row + s * each;
                T* weighted = powers.weighted + row + s * each;
                for (long j = 0; j < each; ++j) neumann[j] += a * x[j];
                for (long j = 0; j < each; ++j) weighted[j] += b * x[j];
                const T before = powers.size[first + s], after = T(std::sqrt(dot(each, x, x)));
                const T ratio = after / std::max(before, std::numeric_limits<T>::min());
                T& growth = powers.growth[first + s];
                growth = ratio <= growth ? growth : ratio;  // NaN, too, is a growth
                powers.size[first + s] = after;
                powers.taken[first + s] += 1;
            }
        }
    });
}

}  // namespace
