// Krylov spaces of the transposed Jacobian, an image's whole process while it is in the cache.
//
// `iresflow/logdet/krylov.py` derives the formulas, and `arnoldi.py` is the reference.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "passes.h"

namespace {

// What the process of each probe takes and gives.
template <class T> struct Process {
    const T* v;
    const double* rule;     // nodes, then weights
    // Nodes in all, bound of |J| or below 0, its stand-in, enough, whether J is symmetric.
    const double* options;
    T* left;
    double* found;  // (directions, samples, 5): steps, value, bound, slack, growth
};

// The factors of I + t H at all nodes t, which grow with the columns of H.
struct Factors {
    const double *node, *weight;
    const long nodes;
    std::vector<double> lower, row, forward, corner, last, upper;  // upper: at the last node

    Factors(const double* rule, long nodes)
        : node(rule), weight(rule + nodes), nodes(nodes), forward(nodes, 1.0),
          corner(nodes, 0.0), last(nodes, 0.0) {}

    void extend(const std::vector<double>& column, double below) {
        const long j = column.size(), before = (j - 1) * nodes;
        lower.resize(before + nodes);
        row.resize(before + nodes);
        const size_t top = upper.size();
        upper.resize(top + j);
        for (long q = 0; q < nodes; ++q) {
            const double t = node[q];
            double u = t * column[0] + (j == 1), total = 0;
            if (q == nodes - 1) upper[top] = u;
            for (long i = 1; i < j; ++i) {
                total += row[(i - 1) * nodes + q] * u;
                u = t * column[i] + (i == j - 1) - lower[(i - 1) * nodes + q] * u;
                if (q == nodes - 1) upper[top + i] = u;
            }
            const double first = ((j == 1) - total) / u;
            row[before + q] = first;
            corner[q] += first * forward[q];
            last[q] = forward[q] / u;
            lower[before + q] = t * below / u;
            forward[q] *= -lower[before + q];
        }
    }

    double integral() const {
        double sum = 0;
        for (long q = 0; q < nodes; ++q) sum += (1 - corner[q]) / node[q] * weight[q];
        return sum;
    }

    // Relative to |v|^2.
    double error(double lipschitz, double rest, bool symmetric) const {
        double sum = 0;
        for (long q = 0; q < nodes; ++q) {
            const double reach = node[q] * lipschitz, part = rest * std::abs(last[q]);
            const double most = symmetric ? std::min(reach, node[q] * part) : reach;
            sum += part * most / (1 - reach) * weight[q];
        }
        return sum;
    }

    // (I + H)^-1 e_1: the last node is 1.
    std::vector<double> solution(long steps) const {
        std::vector<double> y(steps, 1.0);
        for (long i = 1; i < steps; ++i) y[i] = -lower[(i - 1) * nodes + nodes - 1] * y[i - 1];
        for (long i = steps - 1; i >= 0; --i) {
            for (long j = i + 1; j < steps; ++j) y[i] -= upper[j * (j + 1) / 2 + i] * y[j];
            y[i] /= upper[i * (i + 1) / 2 + i];
        }
        return y;
    }
};

template <class T> void krylov(const Shape& shape, const Link* links, const Process<T>& process) {
    const long pixels = shape.height * shape.width, channels = front(links[0]);
    const long entries = pixels * channels, nodes = long(process.options[0]);
    const double lipschitz = process.options[1], enough = process.options[3];
    const bool symmetric = process.options[4] != 0;
    const double eps = std::numeric_limits<T>::epsilon(), infinite = HUGE_VAL;
    for_items<T>(shape, links, shape.directions, [&](const Item& item, long k, Scratch<T>& scratch) {
        const long sample = k * shape.samples + item.sample;
        const T* v = process.v + sample * entries;
        T *basis = scratch.at(POWER, (shape.terms + 1) * entries), *image = nullptr;
        const T size = T(std::sqrt(dot(entries, v, v)));
        const double square = double(size) * double(size);
        for (long j = 0; j < entries; ++j) basis[j] = v[j] / size;
        Factors factors(process.rule, nodes);
        double growth = 0, rest = 0;
        long steps = 0;
        bool stalled = false;
        while (true) {
            const T* newest = basis + steps * entries;
            image = basis + ++steps * entries;
            vjp(shape, links, item, newest, image, scratch);
            const double before = std::sqrt(double(dot(entries, image, image)));
            std::vector<double> column(steps, 0.0);
            for (int pass = 0; pass < 2; ++pass)
                for (long i = 0; i < steps; ++i) {
                    const T* old = basis + i * entries;
                    const T part = T(dot(entries, old, image));
                    column[i] += part;
                    for (long j = 0; j < entries; ++j) image[j] -= part * old[j];
                }
            const T below = T(std::sqrt(dot(entries, image, image)));
            growth = before <= growth ? growth : before;  // NaN, too, is a growth
            const double noise = 8 * eps * before;
            stalled |= double(below) <= noise;
            rest = std::max(double(below), noise);
            const T scale = std::max(below, std::numeric_limits<T>::min());
            for (long j = 0; j < entries; ++j) image[j] /= scale;
            factors.extend(column, stalled ? 0 : double(below));
            if (steps == shape.terms || (enough && stalled)) break;
            const double reach = lipschitz < 0 ? std::min(growth, process.options[2]) : lipschitz;
            if (enough && square * factors.error(reach, rest, symmetric) <= enough) break;
        }
        double* found = process.found + 5 * sample;
        const bool certified = lipschitz >= 0;
        const double open = rest > 0 ? infinite : 0;
        found[0] = double(steps);
        found[1] = square * factors.integral();
        found[2] = certified ? square * factors.error(lipschitz, rest, symmetric) : open;
        found[3] = certified ? rest * std::abs(factors.last[nodes - 1]) / (1 - lipschitz) : open;
        found[4] = growth;
        const std::vector<double> y = factors.solution(steps);
        T* left = process.left + sample * entries;
        std::fill(left, left + entries, T(0));
        for (long i = 0; i < steps; ++i) {
            const T weight = T(y[i] * std::sqrt(square));
            for (long j = 0; j < entries; ++j) left[j] += weight * basis[i * entries + j];
        }
    });
}

}  // namespace
