// The operator norm of one layer.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "adjoint.h"

namespace {

// Divides by the norm, which it returns; zero stays zero.
template <class T> double normalize(std::vector<T>& x) {
    const double norm = std::sqrt(dot<T>(x.size(), x.data(), x.data()));
    const T factor = norm > 0 ? T(1 / norm) : T(0);
    for (T& entry : x) entry *= factor;
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
    normalize(matrix);
    return matrix;
}

// Golub and Kahan's bidiagonalisation, as `bidiagonalization` of `layers/estimates.py` has it, with
// the names of that. `left` is (outputs, height, width) and moves on; returns the norm and writes
// its gradient in the weight.
template <class T> double bidiagonal(const Shape& shape, const Link& link, T* left) {
    Borrowed<T> borrowed;
    Scratch<T>& scratch = borrowed.scratch;
    const long pixels = shape.height * shape.width;
    const Item item{0, pixels, 0, shape.height, shape.width};
    const Layer layer(link);
    const long range = pixels * link.outputs, domain = pixels * link.inputs;
    const long steps = std::min({BASIS, range, domain});
    std::vector<T> image(range), rest(domain), basis(steps * domain), images(steps * range);
    const auto adjoint = [&](const T* u) {
        apply_adjoint(link, item, u, rest.data(), Ending<T>{}, scratch);
    };
    for (long p = 0; p < pixels; ++p)
        for (long c = 0; c < link.outputs; ++c) image[p * link.outputs + c] = left[c * pixels + p];
    adjoint(image.data());
    for (long step = 0; step < steps; ++step) {
        const double whole = std::sqrt(dot<T>(domain, rest.data(), rest.data()));
        for (long round = 0; round < 2; ++round)
            for (long j = 0; j < step; ++j) {
                const T* vector = &basis[j * domain];
                const T along = T(dot<T>(domain, vector, rest.data()));
                for (long i = 0; i < domain; ++i) rest[i] -= along * vector[i];
            }
        const double size = std::sqrt(dot<T>(domain, rest.data(), rest.data()));
        const bool new_direction = size > ROUNDED * std::numeric_limits<T>::epsilon() * whole;
        const T factor = new_direction ? T(1 / size) : T(0);
        for (long i = 0; i < domain; ++i) basis[step * domain + i] = factor * rest[i];
        apply(link, item, &basis[step * domain], false, &images[step * range], Ending<T>{}, scratch);
        if (step + 1 < steps) adjoint(&images[step * range]);
    }
    std::vector<double> products(steps * steps);
    for (long i = 0; i < steps; ++i)
        for (long j = 0; j < steps; ++j)
            products[i * steps + j] = dot<T>(range, &images[i * range], &images[j * range]);
    const std::vector<double> mixture = largest(steps, products);
    std::vector<T> right(domain, T(0));
    std::fill(image.begin(), image.end(), T(0));
    for (long step = 0; step < steps; ++step) {
        const T share = T(mixture[step]);
        for (long i = 0; i < domain; ++i) right[i] += share * basis[step * domain + i];
        for (long i = 0; i < range; ++i) image[i] += share * images[step * range + i];
    }
    const double norm = normalize(image);
    // From the zero vector, that of a zero weight, the iteration would never come back.
    if (norm > 0)
        for (long p = 0; p < pixels; ++p)
            for (long c = 0; c < link.outputs; ++c)
                left[c * pixels + p] = image[p * link.outputs + c];
    const T* narrow = layer.widens ? right.data() : image.data();
    const T* wide = layer.widens ? image.data() : right.data();
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
