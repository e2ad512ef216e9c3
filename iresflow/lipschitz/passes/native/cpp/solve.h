// Solutions of x + g(x) = y, a sample's whole iteration while it is in the cache.
//
// `iresflow/solvers/residuals.py` says what is certified and `anderson.py` what is proposed;
// `iteration.py` is the reference of `iterate`. A sample's last steps, in the wide type, go on with
// the moves that the first ones have left: there the wide type is only twice as dear.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "passes.h"

namespace {

constexpr double STAGNATION = 0.9, NOISE = 3, RIDGE = 16;  // as in `iteration.py`, `anderson.py`

// What is asked, and what a sample has taken and proven.
struct Goal {
    double lipschitz, tol;
    long memory, steps;  // moves that are remembered; evaluations at most
};
struct Proof {
    double steps = 0, error = 0, floor = 0;
};

template <class T> double norm(long n, const T* x) { return std::sqrt(dot(n, x, x)); }

// Where a branch was evaluated: x and r = y - g(x) - x, their sizes, and the rounding of r.
template <class T> struct Point {
    T *x, *r;
    double far = 0, size = 0, rounding = 0;
};

// A branch at one sample, with a bound slope |x| + offset of its rounding in units of eps.
template <class T> struct Branch {
    const Shape& shape;
    const Link* links;
    const Item item;
    const double slope, offset;
    Scratch<T>& scratch;

    long entries() const { return item.rows * front(links[0]); }
    // All of a point but its x, for y of a norm `scale`.
    void evaluate(const T* y, double scale, Point<T>& at) const {
        const long n = entries();
        forward(shape, links, item, at.x, at.r, scratch);
        for (long j = 0; j < n; ++j) at.r[j] = y[j] - at.r[j] - at.x[j];
        at.far = norm(n, at.x);
        at.size = norm(n, at.r);
        at.rounding = 2 * std::numeric_limits<T>::epsilon() *
                      (at.far + scale + slope * at.far + offset);
    }
};

// The last moves and what the residual changed by in them; the oldest is overwritten first.
template <class T> struct Moves {
    const long n, memory;
    T *const changes, *const steps;  // (memory, n); steps are moves plus changes
    std::vector<double> gram;        // of the changes
    long count = 0;

    Moves(long n, long memory, T* buffer)
        : n(n), memory(memory), changes(buffer), steps(buffer + memory * n),
          gram(memory * memory) {}

    template <class U> void remember(const U* change, const U* step) {
        if (!memory) return;
        const long at = count++ % memory, used = std::min(count, memory);
        std::copy_n(change, n, changes + at * n);
        std::copy_n(step, n, steps + at * n);
        for (long i = 0; i < used; ++i)
            gram[i * memory + at] = gram[at * memory + i] =
                dot(n, changes + i * n, changes + at * n);
    }

    // r becomes the move that is proposed; false for none.
    bool propose(T* r) const {
        const long used = std::min(count, memory);
        std::vector<double> gamma(used);
        for (long i = 0; i < used; ++i) gamma[i] = dot(n, changes + i * n, r);
        solve(gamma);
        for (long i = 0; i < used; ++i) add_scaled(n, T(-gamma[i]), steps + i * n, r);
        return used > 0;
    }

    // The normal equations, scaled to a unit diagonal, by Cholesky's factorisation.
    void solve(std::vector<double>& gamma) const {
        const long used = gamma.size();
        std::vector<double> size(used), factor(used * used);
        for (long i = 0; i < used; ++i) {
            const double tiny = std::numeric_limits<T>::min();
            size[i] = std::max(std::sqrt(gram[i * memory + i]), tiny);
            gamma[i] /= size[i];
            for (long j = 0; j <= i; ++j) {
                double sum = gram[i * memory + j] / size[i] / size[j];
                if (i == j) sum += RIDGE * std::numeric_limits<T>::epsilon();
                for (long k = 0; k < j; ++k) sum -= factor[i * used + k] * factor[j * used + k];
                factor[i * used + j] = i == j ? std::sqrt(sum) : sum / factor[j * used + j];
            }
        }
        for (long i = 0; i < used; ++i) {
            for (long k = 0; k < i; ++k) gamma[i] -= factor[i * used + k] * gamma[k];
            gamma[i] /= factor[i * used + i];
        }
        for (long i = used - 1; i >= 0; --i) {
            for (long k = i + 1; k < used; ++k) gamma[i] -= factor[k * used + i] * gamma[k];
            gamma[i] /= factor[i * used + i];
        }
        for (long i = 0; i < used; ++i) gamma[i] /= size[i];
    }
};

// Whether a residual that is a `rate` of that of a point is likely to be small enough, or as small
// as rounding commonly makes it.
template <class T>
bool nearly(const Goal& goal, long n, const T* y, const Point<T>& at, double rate, T* buffer) {
    for (long j = 0; j < n; ++j) buffer[j] = y[j] - at.x[j];
    const double eps = std::numeric_limits<T>::epsilon(), left = rate * at.size;
    return goal.lipschitz * left / (1 - goal.lipschitz) <= goal.tol ||
           left <= eps * (NOISE * norm(n, buffer) + at.far);
}

// Solves in one type from x on; x becomes the solution, to the tolerance or to rounding where
// `certify`, else what rounding in that type is commonly like. False where that fails.
template <class T, class W>
bool iterate(const Goal& goal, bool certify, const Branch<T>& g, const T* y, T* x,
             Moves<W>& moves, T* buffer, W* proposal, Proof& proof) {
    const long n = g.entries();
    const double lipschitz = goal.lipschitz, slack = 1 - lipschitz, scale = norm(n, y);
    T *move = buffer, *change = buffer + n, *step = buffer + 2 * n;
    Point<T> points[3];
    for (long i = 0; i < 3; ++i) points[i] = {buffer + (3 + 2 * i) * n, buffer + (4 + 2 * i) * n};
    Point<T> *now = points, *last = nullptr, *best = nullptr;
    std::copy_n(x, n, now->x);
    bool plain = true;  // a fixed-point step from the best point, or the start
    while (proof.steps < goal.steps) {
        proof.steps += 1;
        g.evaluate(y, scale, *now);
        if (!std::isfinite(now->size)) return false;
        bool kept = plain, stuck = false;
        double rate = lipschitz;
        if (last) {
            for (long j = 0; j < n; ++j) {
                move[j] = now->x[j] - last->x[j];
                change[j] = now->r[j] - last->r[j];
                step[j] = move[j] + change[j];
            }
            const double allowed = lipschitz * norm(n, move) + now->rounding + last->rounding;
            if (norm(n, step) > allowed) return false;  // no contraction
            kept = plain || now->size <= lipschitz * best->size;
            stuck = plain && now->size >= std::max(STAGNATION, lipschitz) * best->size;
            if (kept) rate = std::min(lipschitz, now->size / last->size);
            moves.remember(change, step);
        }
        proof.floor = now->rounding / slack;
        proof.error = lipschitz * now->size / slack + proof.floor;
        const bool done = (stuck && now->size <= now->rounding) || now->size == 0 ||
                          (certify ? proof.error <= goal.tol
                                   : nearly(goal, n, y, *now, rate, move));
        const bool trusted = kept && !plain;
        if (kept) best = now;
        std::copy_n(now->r, n, proposal);
        // False where the proposal is not finite.
        plain = !(kept && moves.propose(proposal) && norm(n, proposal) <= now->size / slack);
        last = now;
        for (Point<T>& point : points)
            if (&point != last && &point != best) now = &point;
        for (long j = 0; j < n; ++j)
            now->x[j] = plain ? best->x[j] + best->r[j] : last->x[j] + proposal[j];
        if (done) {
            if (!certify && trusted) std::copy_n(now->x, n, x);
            else
                for (long j = 0; j < n; ++j) x[j] = last->x[j] + last->r[j];
            return true;
        }
    }
    return false;
}

// The solutions for y in the type of `wide`, or of T where that is null, and each sample's proof
// (samples, 3): steps, error, floor. An error is infinite where a sample has none.
template <class T> struct Equation {
    const Link* wide;
    const double* goal;    // lipschitz, tol, memory, steps
    const double* slopes;  // of the rounding in T and in the wide type
    const double* offsets;  // (2, samples)
    const void* y;
    void* x;
    double* found;
};

template <class T> void solve(const Shape& shape, const Link* links, const Equation<T>& equation) {
    const double* numbers = equation.goal;
    const Goal goal{numbers[0], numbers[1], long(numbers[2]), long(numbers[3])};
    for_items<T>(shape, links, 1, [&](const Item& item, long, Scratch<T>& scratch) {
        const long n = item.rows * front(links[0]), at = item.sample * n;
        T* buffer = scratch.at(POWER, (2 * goal.memory + 12) * n);
        T *proposal = buffer + 9 * n, *target = proposal + n, *x = target + n;
        Moves<T> moves(n, goal.memory, x + n);
        const Branch<T> g{shape, links, item, equation.slopes[0], equation.offsets[item.sample],
                          scratch};
        Proof proof;
        bool solved;
        if (equation.wide) {
            const double* y = (const double*)equation.y + at;
            double* result = (double*)equation.x + at;
            Borrowed<double> borrowed;
            const Branch<double> exact{shape, equation.wide, item, equation.slopes[1],
                                       equation.offsets[shape.samples + item.sample],
                                       borrowed.scratch};
            std::copy_n(y, n, target);
            std::copy_n(target, n, x);
            solved = iterate(goal, false, g, target, x, moves, buffer, proposal, proof);
            std::copy_n(x, n, result);
            double* wide = borrowed.scratch.at(POWER, 9 * n);
            solved = solved && iterate(goal, true, exact, y, result, moves, wide, proposal, proof);
        } else {
            const T* y = (const T*)equation.y + at;
            T* result = (T*)equation.x + at;
            std::copy_n(y, n, result);
            solved = iterate(goal, true, g, y, result, moves, buffer, proposal, proof);
        }
        double* found = equation.found + 3 * item.sample;
        found[0] = proof.steps;
        found[1] = solved ? proof.error : HUGE_VAL;
        found[2] = proof.floor;
    });
}

}  // namespace
