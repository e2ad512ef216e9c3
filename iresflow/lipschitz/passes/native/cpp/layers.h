// Linear layers as products of matrices, an image at a time.

#pragma once

#include <algorithm>
#include <new>
#include <type_traits>
#include <vector>

#include "links.h"
#include "products.h"

namespace {

struct Layer {
    long narrow, wide, taps, side;
    bool widens;  // from narrow to wide, or the other way

    explicit Layer(const Link& link)
        : narrow(std::min(link.inputs, link.outputs)),
          wide(std::max(link.inputs, link.outputs)),
          taps(link.side * link.side),
          side(link.side),
          widens(link.inputs <= link.outputs) {}

    long columns() const { return taps * narrow; }
    template <class T> long up_size() const { return columns() * padded(wide, LANES<T>); }
    template <class T> long size() const {
        return up_size<T>() + wide * padded(columns(), LANES<T>);
    }
    // Where the entry (column, w) of M is in the weight: at offsets()[column] + w * step(). A layer
    // that narrows has its taps mirrored.
    long step() const { return widens ? narrow * taps : taps; }
    std::vector<long> offsets() const {
        std::vector<long> result;
        for (long tap = 0; tap < taps; ++tap)
            for (long n = 0; n < narrow; ++n)
                result.push_back(widens ? n * taps + tap : n * wide * taps + taps - 1 - tap);
        return result;
    }
};

// A thread's buffers, which grow as they are asked for.
template <class T> struct Scratch {
    std::vector<T> buffers[12];
    T* at(int which, long size) {
        auto& buffer = buffers[which];
        if (long(buffer.size()) < size + LANES<T>) {
            free(buffer);  // first, so that both are never there at once
            buffer.resize(size + LANES<T>);
        }
        return buffer.data();
    }
    static void free(std::vector<T>& buffer) { std::vector<T>().swap(buffer); }
};

constexpr size_t KEPT = size_t(16) << 20;  // bytes of its buffers that a thread keeps between passes

// The buffers of this thread, for one pass.
template <class T> struct Borrowed {
    Scratch<T>& scratch;

    Borrowed() : scratch(own()) {}
    ~Borrowed() {
        size_t bytes = 0;
        for (const auto& buffer : scratch.buffers) bytes += buffer.capacity() * sizeof(T);
        if (bytes > KEPT)
            for (auto& buffer : scratch.buffers) Scratch<T>::free(buffer);
    }
    static Scratch<T>& own() {
        thread_local Scratch<T> scratch;
        return scratch;
    }
};

enum Buffer {
    WINDOWS, TAPS, VALUE, SLOPE, CURVATURE, ENTERED, PADDED, EVEN, ODD, POWER, NEXT, WIDE
};

// Calls body(pixel, neighbour, count, tap) for all k k taps of an image's windows and all of its
// rows: the neighbours of `count` pixels in a row, which are the same number of pixels in a row.
template <class Body> inline void for_taps(long height, long width, long side, Body body) {
    const long margin = side / 2;
    for (long i = 0; i < height; ++i)
        for (long r = -margin; r <= margin; ++r) {
            if (i + r < 0 || i + r >= height) continue;
            for (long s = -margin; s <= margin; ++s) {
                const long from = std::max(0L, -s), end = std::min(width, width - s);
                if (from < end)
                    body(i * width + from, (i + r) * width + from + s, end - from,
                         (r + margin) * side + s + margin);
            }
        }
}

// Calls body with a number, as a type where that is one of some.
template <long... KNOWN, class Body> inline void with_length(long n, Body body) {
    if (!((n == KNOWN && (body(std::integral_constant<long, KNOWN>{}), true)) || ...)) body(n);
}

// The k x k patches of an image (height width, channels), with zeros beyond its border.
template <class T>
void windows(long height, long width, long channels, long side, const T* x, T* to) {
    const long line = side * side * channels;
    std::fill(to, to + height * width * line, T(0));
    with_length<1, 3, 12>(channels, [=](auto channels) {
        for_taps(height, width, side, [=](long pixel, long neighbour, long count, long tap) {
            T* __restrict__ out = to + pixel * line + tap * channels;
            const T* in = x + neighbour * channels;
            for (long j = 0; j < count; ++j)
                for (long c = 0; c < channels; ++c) out[j * line + c] = in[j * channels + c];
        });
    });
}

// The adjoint of `windows`, of patches with rows of `line` entries, plus a bias.
template <class T>
void gather(long height, long width, long channels, long side, const T* patches, long line,
            const T* bias, T* to) {
    for (long i = 0; i < height * width; ++i)
        for (long c = 0; c < channels; ++c) to[i * channels + c] = bias ? bias[c] : T(0);
    with_length<1, 3, 12>(channels, [=](auto channels) {
        for_taps(height, width, side, [=](long pixel, long neighbour, long count, long tap) {
            const T* in = patches + pixel * line + tap * channels;
            T* __restrict__ out = to + neighbour * channels;
            for (long j = 0; j < count; ++j)
                for (long c = 0; c < channels; ++c) out[j * channels + c] += in[j * line + c];
        });
    });
}

// Some rows of a stack that are computed at once: an image, or some vectors.
struct Item {
    long row, rows, sample, height, width;
};

// From narrow to wide; leaves the windows of x in the buffer unless k = 1, and returns them.
template <class T>
const T* up(const Layer& layer, const Item& item, const T* matrix, const T* x, T* y, Ending<T> end,
            Scratch<T>& scratch) {
    const T* columns = x;
    if (layer.side > 1) {
        T* to = scratch.at(WINDOWS, item.rows * layer.columns());
        windows(item.height, item.width, layer.narrow, layer.side, x, to);
        columns = to;
    }
    if (y) product(item.rows, layer.columns(), layer.wide, columns, matrix, y, layer.wide, end);
    return columns;
}

template <class T>
void down(const Layer& layer, const Item& item, const T* matrix, const T* x, T* y, Ending<T> end,
          Scratch<T>& scratch) {
    const T* transposed = matrix + layer.up_size<T>();
    if (layer.side == 1) {
        product(item.rows, layer.wide, layer.narrow, x, transposed, y, layer.narrow, end);
        return;
    }
    const long stride = padded(layer.columns(), LANES<T>);
    T* taps = scratch.at(TAPS, item.rows * stride);
    product(item.rows, layer.wide, stride, x, transposed, taps, stride, Ending<T>{});
    gather(item.height, item.width, layer.narrow, layer.side, taps, stride, end.bias, y);
    if (!end.scale) return;
    T* to = end.scaled ? end.scaled : y;
    for (long i = 0; i < item.rows * layer.narrow; ++i) to[i] = y[i] * end.scale[i];
}

// From one row of an item to the next in a bias that differs between them, or 0.
inline long bias_step(const Link& link, const Item& item) {
    return item.height * item.width == 1 ? link.bias_stride : link.bias_step;
}

// y = A x, with its bias where that is wanted.
template <class T>
void apply(const Link& link, const Item& item, const T* x, bool biased, T* y, Ending<T> end,
           Scratch<T>& scratch) {
    const Layer layer(link);
    const T* bias = biased ? (const T*)link.bias + item.sample * link.bias_stride : nullptr;
    const long step = biased ? bias_step(link, item) : 0;
    end.bias = step ? nullptr : bias;
    if (layer.widens) up(layer, item, (const T*)link.matrix, x, y, end, scratch);
    else down(layer, item, (const T*)link.matrix, x, y, end, scratch);
    if (step)
        for (long i = 0; i < item.rows; ++i)
            for (long c = 0; c < link.outputs; ++c) y[i * link.outputs + c] += bias[i * step + c];
}

// y = A^T u.
template <class T>
void apply_adjoint(const Link& link, const Item& item, const T* u, T* y, Ending<T> end,
                   Scratch<T>& scratch) {
    const Layer layer(link);
    if (layer.widens) down(layer, item, (const T*)link.matrix, u, y, end, scratch);
    else up(layer, item, (const T*)link.matrix, u, y, end, scratch);
}

template <class T> void pack(const Shape& shape, const Link* links) {
    for (long i = 0; i < shape.links; ++i) {
        const Layer layer(links[i]);
        const T* weight = (const T*)links[i].weight;
        T* to = (T*)links[i].matrix;
        const auto offsets = layer.offsets();
        const long step = layer.step();
        const auto entry = [&](long c, long w) { return weight[offsets[c] + w * step]; };
        pack_panels(layer.columns(), layer.wide, entry, to);
        const auto transposed = [&](long w, long c) { return entry(c, w); };
        pack_panels(layer.wide, layer.columns(), transposed, to + layer.up_size<T>());
    }
}

}  // namespace
