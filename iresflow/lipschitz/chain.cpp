// Passes through a chain of activations and linear layers, for CPUs: g = A_n phi (... A_1 phi(x)).
//
// A library runs each layer over the whole batch, and each of a chain's tensors passes through main
// memory. Here a thread takes one image at a time through all of the chain, so that whatever is not
// kept stays in its cache. A convolution is a product of matrices per image. With `narrow` and
// `wide` the smaller and the larger of its numbers of channels, and M its kernel as a matrix
// (k k narrow, wide), it and its adjoint are
//
//     up:    windows(x) M          from narrow to wide, windows(x) the k x k patches of all pixels
//     down:  windows^T (x M^T)     from wide to narrow, with the adjoint of `windows`
//
// in one order or the other; both leave the large images as they are. The gradient of M is
// windows(narrow)^T wide, whichever way round.
//
// Every array is a contiguous matrix (rows, channels), its rows the pixels of an image and these
// the samples of a batch; a dense layer has k = 1, and some rows of a batch make up an `Item`.
// Errors are ruled out by the caller (`native.py`), which mirrors `Link` and `Shape`.

#include <omp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr long BYTES = 64, TALL = 12;  // of a vector register; rows of a tile that fills them all
#elif defined(__AVX__)
constexpr long BYTES = 32, TALL = 6;
#else
constexpr long BYTES = 16, TALL = 4;
#endif

constexpr long SMALL = 20000;  // multiplications below which threads cost more than they save

template <class T> constexpr long LANES = BYTES / sizeof(T);
template <class T> struct Register { typedef T type __attribute__((vector_size(BYTES))); };
template <class T> using Vector = typename Register<T>::type;

template <class T> inline Vector<T> load(const T* from) {
    Vector<T> v;
    std::memcpy(&v, from, BYTES);
    return v;
}

template <class T> inline Vector<T> load(const T* from, long count) {
    Vector<T> v = {};
    std::memcpy(&v, from, count * sizeof(T));
    return v;
}

template <class T> inline void store(T* to, Vector<T> v) { std::memcpy(to, &v, BYTES); }
template <class T> inline void store(T* to, Vector<T> v, long count) {
    std::memcpy(to, &v, count * sizeof(T));
}

inline long padded(long n, long lanes) { return (n + lanes - 1) / lanes * lanes; }

}  // namespace

extern "C" {

// One activation and the linear layer behind it.
struct Link {
    int64_t inputs, outputs, side;  // channels, and k
    int64_t activation;             // a Kind
    double beta;                    // its slope, for those that have one
    const void* weight;             // (outputs, inputs, k, k)
    const void* bias;               // (outputs), or a row for each sample
    int64_t bias_stride;            // 0, or from one sample's to the next
    void* matrix;                   // M and its transpose, as `pack` leaves them
    void* input;                    // h in front of the activation; null in the first link
    void* slope;                    // phi'(h); null where it is not wanted or there is none
    void* tangent;                  // what enters the activation along each direction
    void* weight_gradient;
    void* bias_gradient;
    double* beta_gradient;
};

// A batch: `directions` stacks of `samples` images; height = width = 1 for vectors.
struct Shape {
    int64_t links, samples, directions, height, width;
    int64_t terms;  // of power sums
};

enum Kind : int64_t { NONE, ELU, TANH, LIPSWISH };

}  // extern "C"

namespace {

// ---------------------------------------------------------------------------------- activations

template <class T> struct Exponential;
template <> struct Exponential<float> {
    typedef int32_t Integer __attribute__((vector_size(BYTES)));
    static constexpr float LOW = -87.3f, HIGH = 88.0f, ROUND = 12582912.0f;
    static constexpr float LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
    static constexpr int TERMS = 7, BIAS = 127, SHIFT = 23;
};
template <> struct Exponential<double> {
    typedef int64_t Integer __attribute__((vector_size(BYTES)));
    static constexpr double LOW = -708.3, HIGH = 709.0, ROUND = 6755399441055744.0;
    static constexpr double LN2_HIGH = 6.93147180369123816490e-01;
    static constexpr double LN2_LOW = 1.90821492927058770002e-10;
    static constexpr int TERMS = 13, BIAS = 1023, SHIFT = 52;
};

template <class T> constexpr std::array<T, Exponential<T>::TERMS + 1> taylor() {
    std::array<T, Exponential<T>::TERMS + 1> factor{1};
    double factorial = 1;
    for (int i = 1; i <= Exponential<T>::TERMS; ++i) factor[i] = T(1 / (factorial *= i));
    return factor;
}

// exp(x) = 2^n exp(r) with |r| <= log(2) / 2 and a Taylor polynomial; NaN stays NaN.
template <class T> inline Vector<T> exponential(Vector<T> x) {
    using E = Exponential<T>;
    const Vector<T> zero = {}, low = zero + E::LOW, high = zero + E::HIGH;
    x = x < low ? low : x;
    x = x > high ? high : x;
    const Vector<T> n = (x * T(1.44269504088896340736) + E::ROUND) - E::ROUND;
    const Vector<T> r = (x - n * E::LN2_HIGH) - n * E::LN2_LOW;
    constexpr auto factor = taylor<T>();
    Vector<T> y = zero + factor[E::TERMS];
#pragma GCC unroll 16
    for (int i = E::TERMS - 1; i >= 0; --i) y = y * r + factor[i];
    typename E::Integer power = __builtin_convertvector(n, typename E::Integer);
    power = (power + E::BIAS) << E::SHIFT;
    Vector<T> scale;
    std::memcpy(&scale, &power, BYTES);
    return y * scale;
}

// phi, phi' and phi'' of what has them in closed form; beta as in activations.py.
template <class T> struct Jet {
    Vector<T> value, slope, curvature;
};

template <class T> struct Identity {
    T beta;
    Jet<T> operator()(Vector<T> h) const { return {h, h * 0 + 1, h * 0}; }
};

template <class T> struct Elu {
    T beta;
    Jet<T> operator()(Vector<T> h) const {
        const Vector<T> zero = {};
        const Vector<T> slope = exponential<T>(h > zero ? zero : h);
        return {h > zero ? h : slope - 1, slope, h > zero ? zero : slope};
    }
};

template <class T> struct Tanh {
    T beta;
    Jet<T> operator()(Vector<T> h) const {
        const Vector<T> value = 1 - 2 / (exponential<T>(2 * h) + 1);
        const Vector<T> slope = 1 - value * value;
        return {value, slope, -2 * value * slope};
    }
};

template <class T> struct LipSwish {
    T beta;
    Jet<T> operator()(Vector<T> h) const {
        const Vector<T> u = beta * h, gate = 1 / (1 + exponential<T>(-u));
        const Vector<T> rest = gate * (1 - gate);
        const T scale = T(1) / T(1.1);
        return {h * gate * scale, (gate + u * rest) * scale,
                rest * (2 + u * (1 - 2 * gate)) * (beta * scale)};
    }
};

template <class T, class Phi>
void activate(Phi phi, long n, const T* h, T* value, T* slope, T* curvature) {
    for (long i = 0; i < n; i += LANES<T>) {
        const long count = std::min(LANES<T>, n - i);
        const Jet<T> jet = phi(count == LANES<T> ? load(h + i) : load(h + i, count));
        if (count == LANES<T>) {
            if (value) store(value + i, jet.value);
            if (slope) store(slope + i, jet.slope);
            if (curvature) store(curvature + i, jet.curvature);
        } else {
            if (value) store(value + i, jet.value, count);
            if (slope) store(slope + i, jet.slope, count);
            if (curvature) store(curvature + i, jet.curvature, count);
        }
    }
}

// Writes those of phi(h), phi'(h) and phi''(h) that are asked for.
template <class T>
void activate(const Link& link, long n, const T* h, T* value, T* slope, T* curvature) {
    const T beta = T(link.beta);
    if (link.activation == ELU) activate(Elu<T>{beta}, n, h, value, slope, curvature);
    else if (link.activation == TANH) activate(Tanh<T>{beta}, n, h, value, slope, curvature);
    else if (link.activation == LIPSWISH) activate(LipSwish<T>{beta}, n, h, value, slope, curvature);
    else activate(Identity<T>{beta}, n, h, value, slope, curvature);
}

// ----------------------------------------------------------------------------------- products

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

// ------------------------------------------------------------------------------------- layers

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
        if (long(buffer.size()) < size + LANES<T>) buffer.resize(size + LANES<T>);
        return buffer.data();
    }
};

enum Buffer {
    WINDOWS, TAPS, VALUE, SLOPE, CURVATURE, ENTERED, PADDED, EVEN, ODD, POWER, NEXT
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

// The k x k patches of an image (height width, channels), with zeros beyond its border.
template <class T>
void windows(long height, long width, long channels, long side, const T* x, T* to) {
    const long line = side * side * channels;
    std::fill(to, to + height * width * line, T(0));
    for_taps(height, width, side, [&](long pixel, long neighbour, long count, long tap) {
        T* out = to + pixel * line + tap * channels;
        const T* in = x + neighbour * channels;
        for (long j = 0; j < count; ++j)
            for (long c = 0; c < channels; ++c) out[j * line + c] = in[j * channels + c];
    });
}

// The adjoint of `windows`, of patches with rows of `line` entries, plus a bias.
template <class T>
void gather(long height, long width, long channels, long side, const T* patches, long line,
            const T* bias, T* to) {
    for (long i = 0; i < height * width; ++i)
        for (long c = 0; c < channels; ++c) to[i * channels + c] = bias ? bias[c] : T(0);
    for_taps(height, width, side, [&](long pixel, long neighbour, long count, long tap) {
        const T* in = patches + pixel * line + tap * channels;
        T* out = to + neighbour * channels;
        for (long j = 0; j < count; ++j)
            for (long c = 0; c < channels; ++c) out[j * channels + c] += in[j * line + c];
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

// y = A x, with its bias where that is wanted.
template <class T>
void apply(const Link& link, const Item& item, const T* x, bool biased, T* y, Ending<T> end,
           Scratch<T>& scratch) {
    const Layer layer(link);
    const T* bias = biased ? (const T*)link.bias + item.sample * link.bias_stride : nullptr;
    const bool each = biased && link.bias_stride && item.height * item.width == 1;
    end.bias = each ? nullptr : bias;
    if (layer.widens) up(layer, item, (const T*)link.matrix, x, y, end, scratch);
    else down(layer, item, (const T*)link.matrix, x, y, end, scratch);
    if (each)  // rows are samples of their own
        for (long i = 0; i < item.rows; ++i)
            for (long c = 0; c < link.outputs; ++c)
                y[i * link.outputs + c] += bias[i * link.bias_stride + c];
}

// y = A^T u.
template <class T>
void apply_adjoint(const Link& link, const Item& item, const T* u, T* y, Ending<T> end,
                   Scratch<T>& scratch) {
    const Layer layer(link);
    if (layer.widens) down(layer, item, (const T*)link.matrix, u, y, end, scratch);
    else up(layer, item, (const T*)link.matrix, u, y, end, scratch);
}

// ------------------------------------------------------------------------------------- passes

template <class T> inline const T* rows(const void* matrix, long row, long channels) {
    return matrix ? (const T*)matrix + row * channels : nullptr;
}
template <class T> inline T* rows(void* matrix, long row, long channels) {
    return matrix ? (T*)matrix + row * channels : nullptr;
}

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
#pragma omp parallel if (work * all * directions > SMALL)
    {
        thread_local Scratch<T> scratch;
#pragma omp for schedule(static)
        for (long n = 0; n < items * directions; ++n) {
            const long row = n % items * each;
            const Item item{row, std::min(each, all - row), row / pixels, shape.height,
                            shape.width};
            body(item, n / items, scratch);
        }
    }
}

template <class T> void forward(const Shape& shape, const Link* links, const T* x, T* out) {
    for_items<T>(shape, links, 1, [&](const Item& item, long, Scratch<T>& scratch) {
        const T* h = x + item.row * links[0].inputs;
        for (long i = 0; i < shape.links; ++i) {
            const Link& link = links[i];
            if (link.activation != NONE) {
                const long n = item.rows * link.inputs;
                T* value = scratch.at(VALUE, n);
                activate(link, n, h, value, rows<T>(link.slope, item.row, link.inputs), (T*)nullptr);
                h = value;
            }
            T* y = out + item.row * link.outputs;
            if (i + 1 < shape.links) {
                y = rows<T>(links[i + 1].input, item.row, link.outputs);
                if (!y) y = scratch.at(i % 2 ? ODD : EVEN, item.rows * link.outputs);
            }
            apply(link, item, h, true, y, Ending<T>{}, scratch);
            h = y;
        }
    });
}

// t, and its images in front of each link and behind the last, for each direction.
template <class T> void tangents(const Shape& shape, const Link* links, const T* t, T* out) {
    const long all = shape.samples * shape.height * shape.width;
    for_items<T>(shape, links, shape.directions, [&](const Item& item, long k, Scratch<T>& scratch) {
        const long row = k * all + item.row;
        const T* h = t + row * links[0].inputs;
        if (const T* slope = rows<T>((const void*)links[0].slope, item.row, links[0].inputs)) {
            T* entered = scratch.at(ENTERED, item.rows * links[0].inputs);
            for (long j = 0; j < item.rows * links[0].inputs; ++j) entered[j] = h[j] * slope[j];
            h = entered;
        }
        for (long i = 0; i < shape.links; ++i) {
            const Link& link = links[i];
            const bool last = i + 1 == shape.links;
            T* y = last ? out + row * link.outputs
                        : rows<T>(links[i + 1].tangent, row, link.outputs);
            Ending<T> end;
            if (!last && links[i + 1].slope) {
                end.scale = rows<T>((const void*)links[i + 1].slope, item.row, link.outputs);
                end.scaled = scratch.at(i % 2 ? ODD : EVEN, item.rows * link.outputs);
            }
            apply(link, item, h, false, y, end, scratch);
            h = end.scaled ? end.scaled : y;
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
        Ending<T> end;
        end.scale = rows<T>((const void*)link.slope, item.row, link.inputs);
        apply_adjoint(link, item, u, before, end, scratch);
        u = before;
    }
}

template <class T> void vjp(const Shape& shape, const Link* links, const T* u, T* out) {
    const long all = shape.samples * shape.height * shape.width, channels = links[0].inputs;
    for_items<T>(shape, links, shape.directions, [&](const Item& item, long k, Scratch<T>& scratch) {
        const long row = (k * all + item.row) * channels;
        vjp(shape, links, item, u + row, out + row, scratch);
    });
}

template <class T> inline T sum_of(Vector<T> v) {
    T sum = 0;
    for (long i = 0; i < LANES<T>; ++i) sum += v[i];
    return sum;
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
    const long channels = links[0].inputs, each = pixels * channels;
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
                if (powers.enough && !(powers.size[first + s] >= term * powers.enough[first + s]))
                    running[s] = 0;
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

// A wide matrix with its rows padded by zeros to whole vectors.
template <class T>
const T* pad_rows(long count, long channels, const T* x, Scratch<T>& scratch) {
    const long stride = padded(channels, LANES<T>);
    if (stride == channels) return x;
    T* to = scratch.at(PADDED, count * stride);
    for (long i = 0; i < count; ++i) {
        std::copy(x + i * channels, x + (i + 1) * channels, to + i * stride);
        std::fill(to + i * stride + channels, to + (i + 1) * stride, T(0));
    }
    return to;
}

// A gradient of M, its rows padded, as one of the weight.
template <class T> void unpack(const Layer& layer, const T* matrix, T* weight) {
    const long stride = padded(layer.wide, LANES<T>), step = layer.step();
    const auto offsets = layer.offsets();
    for (long c = 0; c < layer.columns(); ++c)
        for (long w = 0; w < layer.wide; ++w) weight[offsets[c] + w * step] = matrix[c * stride + w];
}

// What a thread sums up for each link: the gradients of M (wide padded), bias and beta.
template <class T> struct Sums {
    std::vector<std::vector<T>> matrix, bias;
    std::vector<double> beta;

    Sums(const Shape& shape, const Link* links) : beta(shape.links, 0.0) {
        for (long i = 0; i < shape.links; ++i) {
            const Layer layer(links[i]);
            matrix.emplace_back(layer.up_size<T>(), T(0));
            bias.emplace_back(links[i].outputs, T(0));
        }
    }

    void add(const Sums& other) {
        for (size_t i = 0; i < beta.size(); ++i) {
            beta[i] += other.beta[i];
            for (size_t j = 0; j < matrix[i].size(); ++j) matrix[i][j] += other.matrix[i][j];
            for (size_t j = 0; j < bias[i].size(); ++j) bias[i][j] += other.bias[i][j];
        }
    }

    void write(const Shape& shape, const Link* links) const {
        for (long i = 0; i < shape.links; ++i) {
            unpack(Layer(links[i]), matrix[i].data(), (T*)links[i].weight_gradient);
            if (!links[i].bias_stride)
                std::copy(bias[i].begin(), bias[i].end(), (T*)links[i].bias_gradient);
            *links[i].beta_gradient = beta[i];
        }
    }
};

// The adjoint of an activation: q of phi(h) and phi'(h) t becomes that of h and t, in place.
// Returns the gradient of log(beta), as `pointwise.py` derives it.
template <class T>
double activation_adjoint(long n, long directions, const T* h, const T* value, const T* slope,
                          const T* curvature, const T* const* t, T* const* q) {
    Vector<T> beta = {};
    for (long j = 0; j < n; j += LANES<T>) {
        const long count = std::min(LANES<T>, n - j);
        const auto get = [&](const T* x) {
            return count == LANES<T> ? load(x + j) : load(x + j, count);
        };
        const auto put = [&](T* x, Vector<T> v) {
            count == LANES<T> ? store(x + j, v) : store(x + j, v, count);
        };
        const Vector<T> s = get(slope);
        Vector<T> mixed = {};
        for (long k = 1; k <= directions; ++k) {
            const Vector<T> u = get(q[k]);
            mixed += get(t[k]) * u;
            put(q[k], u * s);
        }
        mixed *= get(curvature);
        const Vector<T> p = get(q[0]), x = get(h);
        beta += (x * s - get(value)) * p + x * mixed;
        put(q[0], p * s + mixed);
    }
    return sum_of<T>(beta);
}

// One item of the adjoint of the value and of the tangents along each direction.
template <class T> struct Adjoint {
    const Shape& shape;
    const Link* links;
    const T* x;       // what entered the first link
    const T* t;       // the directions
    const T* behind;  // adjoints of value and tangents
    T* before;        // the adjoint of x

    void operator()(const Item& item, Scratch<T>& scratch, Sums<T>& sums) const {
        const long stacks = 1 + shape.directions, last = shape.links - 1;
        const long all = shape.samples * shape.height * shape.width;
        std::vector<const T*> delta(stacks), entering(stacks), entered(stacks);
        std::vector<T*> q(stacks);
        for (long k = 0; k < stacks; ++k)
            delta[k] = behind + (k * all + item.row) * links[last].outputs;
        for (long i = last; i >= 0; --i) {
            const Link& link = links[i];
            const long n = item.rows * link.inputs;
            const T* h = i ? rows<T>((const void*)link.input, item.row, link.inputs)
                           : x + item.row * link.inputs;
            entered[0] = h;
            for (long k = 1; k < stacks; ++k)
                entered[k] = entering[k] = (i ? (const T*)link.tangent : t) +
                                           ((k - 1) * all + item.row) * link.inputs;
            T *value = nullptr, *slope = nullptr, *curvature = nullptr;
            if (link.activation != NONE) {
                value = scratch.at(VALUE, n);
                slope = scratch.at(SLOPE, n);
                curvature = scratch.at(CURVATURE, n);
                activate(link, n, h, value, slope, curvature);
                T* scaled = scratch.at(ENTERED, shape.directions * n);
                entered[0] = value;
                for (long k = 1; k < stacks; ++k, scaled += n) {
                    for (long j = 0; j < n; ++j) scaled[j] = entering[k][j] * slope[j];
                    entered[k] = scaled;
                }
            }
            T* to = scratch.at(i % 2 ? ODD : EVEN, stacks * n);
            for (long k = 0; k < stacks; ++k, to += n) {
                q[k] = to;
                layer_adjoint(link, item, entered[k], delta[k], to, sums.matrix[i], scratch);
            }
            add_bias(link, item, delta[0], sums.bias[i]);
            if (link.activation != NONE)
                sums.beta[i] += activation_adjoint(n, shape.directions, h, value, slope, curvature,
                                                   entering.data(), q.data());
            for (long k = 0; k < stacks; ++k) delta[k] = q[k];
        }
        std::copy(q[0], q[0] + item.rows * links[0].inputs, before + item.row * links[0].inputs);
    }

    static void layer_adjoint(const Link& link, const Item& item, const T* entered, const T* delta,
                              T* to, std::vector<T>& gradient, Scratch<T>& scratch) {
        const Layer layer(link);
        const T* matrix = (const T*)link.matrix;
        const T* narrow = layer.widens ? entered : delta;
        const T* wide = layer.widens ? delta : entered;
        const T* columns = up(layer, item, matrix, narrow, layer.widens ? nullptr : to,
                              Ending<T>{}, scratch);
        outer_product(item.rows, layer.columns(), padded(layer.wide, LANES<T>), columns,
                      pad_rows(item.rows, layer.wide, wide, scratch), gradient.data());
        if (layer.widens) down(layer, item, matrix, delta, to, Ending<T>{}, scratch);
    }

    static void add_bias(const Link& link, const Item& item, const T* delta, std::vector<T>& sum) {
        const bool each = link.bias_stride && item.height * item.width == 1;
        T* to = sum.data();
        if (link.bias_stride) {
            to = (T*)link.bias_gradient + item.sample * link.outputs;
            if (!each) std::fill(to, to + link.outputs, T(0));
        }
        for (long i = 0; i < item.rows; ++i)
            for (long c = 0; c < link.outputs; ++c) {
                if (each) to[i * link.outputs + c] = delta[i * link.outputs + c];
                else to[c] += delta[i * link.outputs + c];
            }
    }
};

template <class T>
void adjoint(const Shape& shape, const Link* links, const T* x, const T* t, const T* behind,
             T* before) {
    const Adjoint<T> pass{shape, links, x, t, behind, before};
    const int threads = omp_get_max_threads();
    std::vector<Sums<T>> sums;
    for (int i = 0; i < threads; ++i) sums.emplace_back(shape, links);
    for_items<T>(shape, links, 1, [&](const Item& item, long, Scratch<T>& scratch) {
        pass(item, scratch, sums[omp_get_thread_num()]);
    });
    for (int i = 1; i < threads; ++i) sums[0].add(sums[i]);
    sums[0].write(shape, links);
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

// ------------------------------------------------------------------------------------- norms

// Divides by the norm, which it returns; zero stays zero.
template <class T> double normalize(std::vector<T>& x) {
    const double norm = std::sqrt(dot<T>(x.size(), x.data(), x.data()));
    const T factor = norm > 0 ? T(1 / norm) : T(0);
    for (T& entry : x) entry *= factor;
    return norm;
}

// Two steps of Golub and Kahan's bidiagonalisation, as in `NormalizedLayer.bidiagonal_estimate`,
// with the names of that. `left` is (outputs, height, width) and moves on; returns the norm and
// writes its gradient in the weight.
template <class T> double bidiagonal(const Shape& shape, const Link& link, T* left) {
    thread_local Scratch<T> scratch;
    const long pixels = shape.height * shape.width;
    const Item item{0, pixels, 0, shape.height, shape.width};
    const Layer layer(link);
    std::vector<T> u(pixels * link.outputs), beside(u.size()), image(u.size());
    std::vector<T> first(pixels * link.inputs), second(first.size());
    const auto multiply = [&](const std::vector<T>& x, std::vector<T>& y) {
        apply(link, item, x.data(), false, y.data(), Ending<T>{}, scratch);
    };
    const auto multiply_adjoint = [&](const std::vector<T>& x, std::vector<T>& y) {
        apply_adjoint(link, item, x.data(), y.data(), Ending<T>{}, scratch);
    };
    for (long p = 0; p < pixels; ++p)
        for (long c = 0; c < link.outputs; ++c) u[p * link.outputs + c] = left[c * pixels + p];
    multiply_adjoint(u, first);
    const double upper = normalize(first);
    multiply(first, beside);
    for (size_t i = 0; i < u.size(); ++i) beside[i] -= T(upper) * u[i];
    const double below = normalize(beside);
    multiply_adjoint(beside, second);
    const T along = T(dot<T>(first.size(), first.data(), second.data()));
    for (size_t i = 0; i < first.size(); ++i) second[i] -= along * first[i];
    const double lower = normalize(second);
    const double angle =
        std::atan2(2 * below * lower, upper * upper + below * below - lower * lower) / 2;
    const T cosine = T(std::cos(angle)), sine = T(std::sin(angle));
    for (size_t i = 0; i < first.size(); ++i) first[i] = cosine * first[i] + sine * second[i];
    normalize(first);
    multiply(first, image);
    const double norm = normalize(image);
    // From the zero vector, that of a zero weight, the iteration would never come back.
    if (norm > 0)
        for (long p = 0; p < pixels; ++p)
            for (long c = 0; c < link.outputs; ++c)
                left[c * pixels + p] = image[p * link.outputs + c];
    const T* narrow = layer.widens ? first.data() : image.data();
    const T* wide = layer.widens ? image.data() : first.data();
    const long stride = padded(layer.wide, LANES<T>);
    std::vector<T> gradient(layer.up_size<T>(), T(0));
    const T* columns = up(layer, item, (const T*)link.matrix, narrow, (T*)nullptr, Ending<T>{},
                          scratch);
    outer_product(item.rows, layer.columns(), stride, columns,
                  pad_rows(item.rows, layer.wide, wide, scratch), gradient.data());
    unpack(layer, gradient.data(), (T*)link.weight_gradient);
    return norm;
}

}  // namespace

extern "C" {

#define PASSES(T)                                                                                 \
    int64_t packed_size_##T(const Link* link) { return Layer(*link).size<T>(); }                  \
    void pack_##T(const Shape* shape, const Link* links) { pack<T>(*shape, links); }              \
    void forward_##T(const Shape* shape, const Link* links, const T* x, T* out) {                 \
        forward<T>(*shape, links, x, out);                                                        \
    }                                                                                             \
    void tangents_##T(const Shape* shape, const Link* links, const T* t, T* out) {                \
        tangents<T>(*shape, links, t, out);                                                       \
    }                                                                                             \
    void vjp_##T(const Shape* shape, const Link* links, const T* u, T* out) {                     \
        vjp<T>(*shape, links, u, out);                                                            \
    }                                                                                             \
    void adjoint_##T(const Shape* shape, const Link* links, const T* x, const T* t,               \
                     const T* behind, T* before) {                                                \
        adjoint<T>(*shape, links, x, t, behind, before);                                          \
    }                                                                                             \
    void power_sums_##T(const Shape* shape, const Link* links, const T* v, const T* weights,      \
                        const int64_t* limit, const T* enough, T* neumann, T* weighted, T* taken, \
                        T* size, T* growth) {                                                     \
        power_sums<T>(*shape, links,                                                              \
                      {v, weights, limit, enough, neumann, weighted, taken, size, growth});       \
    }                                                                                             \
    double bidiagonal_##T(const Shape* shape, const Link* link, T* left) {                        \
        pack<T>(*shape, link);                                                                    \
        return bidiagonal<T>(*shape, *link, left);                                                \
    }

PASSES(float)
PASSES(double)

}  // extern "C"
