// The gradients of a chain's value and of its tangents, in one pass.

#pragma once

#include <omp.h>

#include <algorithm>
#include <vector>

#include "passes.h"

namespace {

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

// The adjoint of an activation: q of phi(h) and phi'(h) t becomes that of h and t, in place: a row
// of the latter begins before that of the former, and each is read before it is written.
// Returns the gradient of log(beta), as `pointwise.py` derives it.
template <class T, int WIDTH>
double activation_adjoint(const Rows& all, long directions, const T* h, const T* value,
                          const T* slope, const T* curvature, const T* const* t, T* const* q) {
    Vector<T> beta = {};
    const long n = all.channels;
    for (long row = 0; row < all.count; ++row)
        for (long j = 0; j < n; j += LANES<T>) {
            const long count = std::min(LANES<T>, n - j), narrow = row * n + j;
            const auto get = [&](const T* x) {
                return count == LANES<T> ? load(x) : load(x, count);
            };
            const auto put = [&](T* x, Vector<T> v) {
                count == LANES<T> ? store(x, v) : store(x, v, count);
            };
            Vector<T> mixed[WIDTH] = {};
            for (long k = 1; k <= directions; ++k) {
                const Vector<T> tangent = get(t[k] + narrow);
                Vector<T> sum = {};
                for (int block = 0; block < WIDTH; ++block) {
                    const long wide = (row * WIDTH + block) * n + j;
                    const Vector<T> u = get(q[k] + wide);
                    mixed[block] += tangent * u;
                    sum += u * get(slope + wide);
                }
                put(q[k] + narrow, sum);
            }
            const Vector<T> x = get(h + narrow);
            Vector<T> sum = {};
            for (int block = 0; block < WIDTH; ++block) {
                const long wide = (row * WIDTH + block) * n + j;
                const Vector<T> p = get(q[0] + wide), s = get(slope + wide);
                mixed[block] *= get(curvature + wide);
                beta += (x * s - get(value + wide)) * p + x * mixed[block];
                sum += p * s + mixed[block];
            }
            put(q[0] + narrow, sum);
        }
    return sum_of<T>(beta);
}

template <class T>
double activation_adjoint(const Link& link, long rows, long directions, const T* h,
                          const T* value, const T* slope, const T* curvature, const T* const* t,
                          T* const* q) {
    const auto pass = link.width == 1   ? activation_adjoint<T, 1>
                      : link.width == 2 ? activation_adjoint<T, 2>
                                        : activation_adjoint<T, 3>;
    return pass(Rows(link, rows), directions, h, value, slope, curvature, t, q);
}

// One item of the adjoint of the value and of the tangents along each direction.
template <class T> struct Adjoint {
    const Shape& shape;
    const Link* links;
    const T* x;       // what entered the first link
    const T* t;       // the directions
    const T* after;   // adjoints of value and tangents
    T* before;        // the adjoint of x

    void operator()(const Item& item, Scratch<T>& scratch, Sums<T>& sums) const {
        const long stacks = 1 + shape.directions, last = shape.links - 1;
        const long all = shape.samples * shape.height * shape.width;
        std::vector<const T*> delta(stacks), entering(stacks), entered(stacks);
        std::vector<T*> q(stacks);
        for (long k = 0; k < stacks; ++k)
            delta[k] = after + (k * all + item.row) * links[last].outputs;
        for (long i = last; i >= 0; --i) {
            const Link& link = links[i];
            const long n = item.rows * link.inputs;
            const long channels = front(link);
            const T* h = i ? rows<T>((const void*)link.input, item.row, channels)
                           : x + item.row * channels;
            entered[0] = h;
            for (long k = 1; k < stacks; ++k)
                entered[k] = entering[k] = (i ? (const T*)link.tangent : t) +
                                           ((k - 1) * all + item.row) * channels;
            T *value = nullptr, *slope = nullptr, *curvature = nullptr;
            if (link.activation != NONE) {
                value = scratch.at(VALUE, n);
                slope = scratch.at(SLOPE, n);
                curvature = scratch.at(CURVATURE, n);
                activate(link, item.rows, h, value, slope, curvature);
                T* scaled = scratch.at(ENTERED, shape.directions * n);
                entered[0] = value;
                for (long k = 1; k < stacks; ++k, scaled += n) {
                    spread(link, item.rows, entering[k], slope, scaled);
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
                sums.beta[i] +=
                    activation_adjoint<T>(link, item.rows, shape.directions, h, value, slope,
                                          curvature, entering.data(), q.data());
            for (long k = 0; k < stacks; ++k) delta[k] = q[k];
        }
        const long channels = front(links[0]);
        std::copy(q[0], q[0] + item.rows * channels, before + item.row * channels);
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
        const bool each = bias_step(link, item);
        T* to = sum.data();
        if (link.bias_stride) {
            to = (T*)link.bias_gradient + (each ? item.row : item.sample) * link.outputs;
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
void adjoint(const Shape& shape, const Link* links, const T* x, const T* t, const T* after,
             T* before) {
    const Adjoint<T> pass{shape, links, x, t, after, before};
    const int threads = omp_get_max_threads();
    std::vector<Sums<T>> sums;
    for (int i = 0; i < threads; ++i) sums.emplace_back(shape, links);
    for_items<T>(shape, links, 1, [&](const Item& item, long, Scratch<T>& scratch) {
        pass(item, scratch, sums[omp_get_thread_num()]);
    });
    for (int i = 1; i < threads; ++i) sums[0].add(sums[i]);
    sums[0].write(shape, links);
}

}  // namespace
