// The operator norm of one layer.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "adjoint.h"

namespace {

// Divides by the norm, which it returns; zero stays zero.
template <class T> double normalize(long n, T* x) {
    const double norm = std::sqrt(dot<T>(n, x, x));
    const T factor = norm > 0 ? T(1 / norm) : T(0);
    for (long i = 0; i < n; ++i) x[i] *= factor;
    return norm;
}

// As in `layers/estimates.py`, where the reasons stand.
constexpr long BASIS = 8, ROUNDED = 256, SQUARINGS = 8;

// The largest eigenvector of a symmetric n x n matrix, from the first unit vector; or zeros.
inline std::vector<double> largest(long n, std::vector<double> matrix) {
    std::vector<double> square(n * n);
    for (long round = 0; round < SQUARINGS; ++round) {
        double trace = std::numeric_limits<double>::min();
        for (long i = 0; i < n; ++i) trace += matrix[i * n + i];
        for (double& entry : matrix) entry /= trace;
        for (long i = 0; i < n; ++i)
            for (long j = 0; j < n; ++j)
                square[i * n + j] = dot<double>(n, &matrix[i * n], &matrix[j * n]);
        std::swap(matrix, square);
    }
    matrix.resize(n);
    normalize(n, matrix.data());
    return matrix;
}

// A matrix (rows, columns) to its transpose, in blocks that the nearest cache holds.
template <class T> void transpose(long rows, long columns, const T* x, T* to) {
    const long block = 8;
    for (long i = 0; i < rows; i += block)
        for (long j = 0; j < columns; j += block)
            for (long r = i; r < std::min(rows, i + block); ++r)
                for (long c = j; c < std::min(columns, j + block); ++c)
                    to[c * rows + r] = x[r * columns + c];
}

// A^T A on the domain of a layer that widens, A A^T on the range of one that narrows: both are
// windows^T (windows(x) M M^T).
template <class T> struct Gram {
    const Layer layer;
    const Item item;
    const T* matrix;
    Scratch<T>& scratch;
    std::vector<T> square;  // M M^T in panels, where that takes fewer products

    Gram(const Link& link, const Item& item, Scratch<T>& scratch)
        : layer(link), item(item), matrix((const T*)link.matrix), scratch(scratch) {
        const long columns = layer.columns(), stride = padded(columns, LANES<T>);
        const long uses = BASIS * item.rows;
        if (columns * (layer.wide + uses) > 2 * layer.wide * uses) return;
        std::vector<T> rows, products(columns * stride);
        const auto offsets = layer.offsets();
        for (long c = 0; c < columns; ++c)
            for (long w = 0; w < layer.wide; ++w)
                rows.push_back(((const T*)link.weight)[offsets[c] + w * layer.step()]);
        product(columns, layer.wide, stride, rows.data(), matrix + layer.up_size<T>(),
                products.data(), stride, Ending<T>{});
        square.resize(columns * stride);
        const auto entry = [&](long i, long j) { return products[i * stride + j]; };
        pack_panels(columns, columns, entry, square.data());
    }

    void operator()(const T* x, T* y) const {
        if (square.empty()) {
            T* image = scratch.at(WIDE, item.rows * layer.wide);
            up(layer, item, matrix, x, image, Ending<T>{}, scratch);
            down(layer, item, matrix, image, y, Ending<T>{}, scratch);
            return;
        }
        const long columns = layer.columns(), stride = padded(columns, LANES<T>);
        const T* patches = up(layer, item, matrix, x, (T*)nullptr, Ending<T>{}, scratch);
        T* taps = scratch.at(TAPS, item.rows * stride);
        product(item.rows, columns, stride, patches, square.data(), taps, stride, Ending<T>{});
        gather(item.height, item.width, layer.narrow, layer.side, taps, stride, (const T*)nullptr,
               y);
    }
};

// The best vector of the Krylov space of a symmetric operator from a start, which it overwrites.
template <class T> std::vector<T> ritz_vector(const Gram<T>& gram, std::vector<T>& rest) {
    const long size = rest.size(), steps = std::min(BASIS, size);
    std::vector<T> basis(steps * size);
    std::vector<double> tridiagonal(steps * steps);
    for (long step = 0; step < steps; ++step) {
        T* vector = &basis[step * size];
        const double whole = std::sqrt(dot<T>(size, rest.data(), rest.data()));
        for (long round = 0; round < 2; ++round)
            for (long j = 0; j < step; ++j) {
                const double along = dot<T>(size, &basis[j * size], rest.data());
                add_scaled(size, T(-along), &basis[j * size], rest.data());
                if (j + 1 == step) tridiagonal[j * steps + j] += along;
            }
        const double length = std::sqrt(dot<T>(size, rest.data(), rest.data()));
        const bool new_direction = length > ROUNDED * std::numeric_limits<T>::epsilon() * whole;
        const T factor = new_direction ? T(1 / length) : T(0);
        for (long i = 0; i < size; ++i) vector[i] = factor * rest[i];
        if (step > 0) {
            const double beside = new_direction ? length : 0;
            tridiagonal[(step - 1) * steps + step] = tridiagonal[step * steps + step - 1] = beside;
        }
        gram(vector, rest.data());
    }
    tridiagonal.back() = dot<T>(size, &basis[(steps - 1) * size], rest.data());
    const std::vector<double> mixture = largest(steps, tridiagonal);
    std::vector<T> result(size, T(0));
    for (long step = 0; step < steps; ++step)
        add_scaled(size, T(mixture[step]), &basis[step * size], result.data());
    return result;
}

// The norm, as `bidiagonalization` of `layers/estimates.py` has it. `left` is (outputs, height,
// width) and moves on; writes the norm's gradient in the weight.
template <class T> double bidiagonal(const Shape& shape, const Link& link, T* left) {
    Borrowed<T> borrowed;
    Scratch<T>& scratch = borrowed.scratch;
    const long pixels = shape.height * shape.width;
    const Item item{0, pixels, 0, shape.height, shape.width};
    const Layer layer(link);
    const T* matrix = (const T*)link.matrix;
    const long range = pixels * link.outputs;
    T* wide = scratch.at(ODD, pixels * layer.wide);
    std::vector<T> narrow(pixels * layer.narrow);
    transpose(link.outputs, pixels, left, layer.widens ? wide : narrow.data());
    if (layer.widens) down(layer, item, matrix, wide, narrow.data(), Ending<T>{}, scratch);
    narrow = ritz_vector(Gram<T>(link, item, scratch), narrow);
    up(layer, item, matrix, narrow.data(), wide, Ending<T>{}, scratch);
    if (!layer.widens) {
        normalize(pixels * layer.wide, wide);
        down(layer, item, matrix, wide, narrow.data(), Ending<T>{}, scratch);
    }
    T* image = layer.widens ? wide : narrow.data();
    const double norm = normalize(range, image);
    // From the zero vector, that of a zero weight, the iteration would never come back.
    if (norm > 0) transpose(pixels, link.outputs, image, left);
    const long stride = padded(layer.wide, LANES<T>);
    std::vector<T> gradient(layer.up_size<T>(), T(0));
    const T* patches = up(layer, item, matrix, narrow.data(), (T*)nullptr, Ending<T>{}, scratch);
    outer_product(item.rows, layer.columns(), stride, patches,
                  pad_rows(item.rows, layer.wide, wide, scratch), gradient.data());
    unpack(layer, gradient.data(), (T*)link.weight_gradient);
    return norm;
}

}  // namespace
