// The operator norm of one layer.

#pragma once

#include <algorithm>
#include <cmath>
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

// Two steps of Golub and Kahan's bidiagonalisation, as in `bidiagonalization` of
// `layers/estimates.py`, with the names of that. `left` is (outputs, height, width) and moves on; returns the norm and
// writes its gradient in the weight.
template <class T> double bidiagonal(const Shape& shape, const Link& link, T* left) {
    Borrowed<T> borrowed;
    Scratch<T>& scratch = borrowed.scratch;
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
