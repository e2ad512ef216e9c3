// Activations with their first two derivatives, as in `activations.py`.

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
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

template <class T> struct Circle;
template <> struct Circle<float> {
    // pi / 2 in parts whose products with a number of quarters up to LIMIT are exact.
    static constexpr float HIGH = 1.5703125f, MIDDLE = 4.837512969970703125e-4f;
    static constexpr float LOW = 7.54978995489188216e-8f, LIMIT = 8192.0f;
    static constexpr int TERMS = 5;
};
template <> struct Circle<double> {
    static constexpr double HIGH = 1.57079632673412561417, MIDDLE = 6.07710050630396597660e-11;
    static constexpr double LOW = 2.02226624879595063154e-21, LIMIT = 1e6;
    static constexpr int TERMS = 9;
};

// 1 / 0!, -1 / 2!, ... or 1 / 1!, -1 / 3!, ...: Taylor's coefficients in the square of a number.
template <class T> constexpr std::array<T, Circle<T>::TERMS + 1> alternating(int first) {
    std::array<T, Circle<T>::TERMS + 1> factor{1};
    double last = 1;
    for (int i = 1; i <= Circle<T>::TERMS; ++i)
        factor[i] = T(last /= -double((2 * i + first) * (2 * i + first - 1)));
    return factor;
}

// Sine and cosine of r, with x = n pi / 2 + r and |r| <= pi / 4; of x itself, and n = 0, where
// that is too large for a quick n.
template <class T> struct Turn {
    Vector<T> sine, cosine;
    typename Exponential<T>::Integer quarters;  // n
};

// By Taylor polynomials; NaN stays NaN.
template <class T> inline Turn<T> turn(Vector<T> x) {
    using Integer = typename Exponential<T>::Integer;
    using C = Circle<T>;
    const T round = Exponential<T>::ROUND;
    const Vector<T> zero = {};
    const Integer inside = (x <= zero + C::LIMIT) & (x >= zero - C::LIMIT);
    const Vector<T> y = inside ? x : zero;
    const Vector<T> n = (y * T(0.63661977236758134308) + round) - round;
    const Vector<T> r = ((y - n * C::HIGH) - n * C::MIDDLE) - n * C::LOW, square = r * r;
    constexpr auto sines = alternating<T>(1), cosines = alternating<T>(0);
    Vector<T> odd = zero + sines[C::TERMS], even = zero + cosines[C::TERMS];
#pragma GCC unroll 16
    for (int i = C::TERMS - 1; i >= 0; --i) {
        odd = odd * square + sines[i];
        even = even * square + cosines[i];
    }
    Turn<T> found{r * odd, even, __builtin_convertvector(n, Integer)};
    const Integer all = zero == zero;
    if (!std::memcmp(&inside, &all, BYTES)) return found;
    for (long lane = 0; lane < LANES<T>; ++lane)
        if (!inside[lane]) {
            found.sine[lane] = T(std::sin(double(x[lane])));
            found.cosine[lane] = T(std::cos(double(x[lane])));
        }
    return found;
}

// phi, phi' and phi'' of what has them in closed form; beta as in activations.py.
template <class T> struct Jet {
    Vector<T> value, slope, curvature;
};

// The jets of all values that an activation has for an entry, one for each block of channels.
template <class T, int WIDTH> using Jets = std::array<Jet<T>, WIDTH>;

template <class T> struct Elu {
    static constexpr int WIDTH = 1;
    T beta;
    Jets<T, 1> operator()(Vector<T> h) const {
        const Vector<T> zero = {};
        const Vector<T> slope = exponential<T>(h > zero ? zero : h);
        return {{{h > zero ? h : slope - 1, slope, h >= zero ? zero : slope}}};
    }
};

template <class T> struct Tanh {
    static constexpr int WIDTH = 1;
    T beta;
    Jets<T, 1> operator()(Vector<T> h) const {
        const Vector<T> value = 1 - 2 / (exponential<T>(2 * h) + 1);
        const Vector<T> slope = 1 - value * value;
        return {{{value, slope, -2 * value * slope}}};
    }
};

template <class T> inline Jet<T> swish(Vector<T> h, T beta, T scale) {
    const Vector<T> u = beta * h, gate = 1 / (1 + exponential<T>(-u));
    const Vector<T> rest = gate * (1 - gate);
    return {h * gate * scale, (gate + u * rest) * scale,
            rest * (2 + u * (1 - 2 * gate)) * (beta * scale)};
}

template <class T> struct LipSwish {
    static constexpr int WIDTH = 1;
    T beta;
    Jets<T, 1> operator()(Vector<T> h) const { return {{swish<T>(h, beta, T(1 / 1.1))}}; }
};

template <class T> struct CLipSwish {
    static constexpr int WIDTH = 2;
    T beta;
    Jets<T, 2> operator()(Vector<T> h) const {
        const T scale = T(1 / (1.1 * 1.004));
        const Jet<T> jet = swish<T>(h, beta, scale);
        return {{jet, {jet.value - h * scale, jet.slope - scale, jet.curvature}}};
    }
};

template <class T> struct Sine {
    static constexpr int WIDTH = 1;
    T beta;
    Jets<T, 1> operator()(Vector<T> h) const {
        const Turn<T> at = turn<T>(beta * h);
        const auto swapped = (at.quarters & 1) != 0;
        const Vector<T> s = swapped ? at.cosine : at.sine, c = swapped ? at.sine : at.cosine;
        const Vector<T> sine = (at.quarters & 2) != 0 ? -s : s;
        const Vector<T> cosine = ((at.quarters + 1) & 2) != 0 ? -c : c;
        return {{{sine * (1 / beta), cosine, -beta * sine}}};
    }
};

template <class T> struct SinePair {
    static constexpr int WIDTH = 2;
    T beta;
    Jets<T, 2> operator()(Vector<T> h) const {
        // Of half the angle, so that 1 - cos has all its digits near to 0.
        const Turn<T> half = turn<T>(T(0.5) * beta * h);
        const auto odd = (half.quarters & 1) != 0;
        const Vector<T> twice = 2 * half.sine, product = twice * half.cosine;
        const Vector<T> small = twice * half.sine, sine = odd ? -product : product;
        const Vector<T> rest = odd ? 2 - small : small, cosine = 1 - rest;
        const T unit = 1 / beta;
        return {{{sine * unit, cosine, -beta * sine}, {-rest * unit, -sine, -beta * cosine}}};
    }
};

template <class T> struct Same {
    static constexpr int WIDTH = 1;
    Jets<T, 1> operator()(Vector<T> h) const {
        const Vector<T> zero = {};
        return {{{h, zero + 1, zero}}};
    }
};

// h itself, then the values of another activation.
template <class T, class Phi> struct Beside {
    static constexpr int WIDTH = 1 + Phi::WIDTH;
    Phi phi;
    Jets<T, WIDTH> operator()(Vector<T> h) const {
        const auto jets = phi(h);
        Jets<T, WIDTH> all{Same<T>{}(h)[0]};
        std::copy(jets.begin(), jets.end(), all.begin() + 1);
        return all;
    }
};

// Calls body with an activation, as a type.
template <class T, class Body> inline void with_kind(int64_t kind, T beta, Body body) {
    switch (kind) {
        case NONE: return body(Same<T>{});
        case ELU: return body(Elu<T>{beta});
        case TANH: return body(Tanh<T>{beta});
        case LIPSWISH: return body(LipSwish<T>{beta});
        case CLIPSWISH: return body(CLipSwish<T>{beta});
        case SINE: return body(Sine<T>{beta});
        default: return body(SinePair<T>{beta});
    }
}

// Calls body with the activation of a link, as a type; not for NONE.
template <class T, class Body> inline void with_activation(const Link& link, Body body) {
    const bool beside = link.activation >= BESIDE;
    with_kind<T>(link.activation - (beside ? BESIDE : 0), T(link.beta), [&](auto phi) {
        if (beside) body(Beside<T, decltype(phi)>{phi});
        else body(phi);
    });
}

// Rows of channels as an activation of so many values takes them: all are one where it has one.
struct Rows {
    long count, channels, width;
    Rows(const Link& link, long rows)
        : count(link.width > 1 ? rows : 1),
          channels(link.width > 1 ? link.inputs / link.width : rows * link.inputs),
          width(link.width) {}
};

// Writes those of phi(h), phi'(h) and phi''(h) that are asked for; not for NONE.
template <class T>
void activate(const Link& link, long rows, const T* h, T* value, T* slope, T* curvature) {
    const Rows all(link, rows);
    const long entries = all.count * all.channels;
    with_activation<T>(link, [&](auto phi) {
        long row = 0, channel = 0;  // of the entry i; some rows may lie in a register
        for (long i = 0; i < entries; i += LANES<T>) {
            const long count = std::min(LANES<T>, entries - i);
            const auto jets = phi(count == LANES<T> ? load(h + i) : load(h + i, count));
            for (long done = 0; done < count;) {
                const long part = std::min(count - done, all.channels - channel);
                const auto put = [&](T* to, long at, const Vector<T>& v) {
                    if (!to) return;
                    if (part == LANES<T>) store(to + at, v);
                    else
                        for (long lane = 0; lane < part; ++lane) to[at + lane] = v[done + lane];
                };
                for (int block = 0; block < phi.WIDTH; ++block) {
                    const long at = (row * phi.WIDTH + block) * all.channels + channel;
                    put(value, at, jets[block].value);
                    put(slope, at, jets[block].slope);
                    put(curvature, at, jets[block].curvature);
                }
                done += part;
                channel += part;
                if (channel == all.channels) channel = 0, ++row;
            }
        }
    });
}

// Each entry times the slopes of the activation there: (rows, inputs / width) to (rows, inputs).
template <class T>
void spread(const Link& link, long rows, const T* t, const T* slope, T* to) {
    const Rows all(link, rows);
    for (long row = 0; row < all.count; ++row, t += all.channels)
        for (long block = 0; block < all.width; ++block)
            for (long i = 0; i < all.channels; ++i) *to++ = t[i] * *slope++;
}

// The sum over an activation's blocks of channels: (rows, inputs) to (rows, inputs / width).
template <class T> void fold(const Link& link, long rows, const T* from, T* to) {
    const Rows all(link, rows);
    for (long row = 0; row < all.count; ++row, to += all.channels)
        for (long block = 0; block < all.width; ++block, from += all.channels)
            for (long i = 0; i < all.channels; ++i) to[i] = block ? to[i] + from[i] : from[i];
}

}  // namespace
