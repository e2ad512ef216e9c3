// Activations with their first two derivatives, as in `activations.py`.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "links.h"
#include "vectors.h"

namespace {

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

// Writes those of phi(h), phi'(h) and phi''(h) that are asked for; not for NONE.
template <class T>
void activate(const Link& link, long n, const T* h, T* value, T* slope, T* curvature) {
    const T beta = T(link.beta);
    if (link.activation == ELU) activate(Elu<T>{beta}, n, h, value, slope, curvature);
    else if (link.activation == TANH) activate(Tanh<T>{beta}, n, h, value, slope, curvature);
    else activate(LipSwish<T>{beta}, n, h, value, slope, curvature);
}

}  // namespace
