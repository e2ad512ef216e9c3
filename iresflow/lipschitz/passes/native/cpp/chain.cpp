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
// Errors are ruled out by the callers, `passes.py` and `norm.py`, but for memory that runs out.

#include <new>
#include <stdexcept>

#include "adjoint.h"
#include "dense.h"
#include "krylov.h"
#include "norm.h"
#include "passes.h"
#include "solve.h"

namespace {

// The status of a pass, 0 or 1 for out of memory: no exception may pass through Python.
template <class Pass> int status_of(Pass pass) noexcept {
    try {
        pass();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    } catch (const std::length_error&) {  // more than can be addressed
        return 1;
    }
}

}  // namespace

extern "C" {

#define PASSES(T)                                                                                 \
    int64_t packed_size_##T(const Link* link) { return Layer(*link).size<T>(); }                  \
    int pack_##T(const Shape* shape, const Link* links) {                                         \
        return status_of([=] { pack<T>(*shape, links); });                                        \
    }                                                                                             \
    int forward_##T(const Shape* shape, const Link* links, const T* x, T* out) {                  \
        return status_of([=] { forward<T>(*shape, links, x, out); });                             \
    }                                                                                             \
    int tangents_##T(const Shape* shape, const Link* links, const T* t, T* out) {                 \
        return status_of([=] { tangents<T>(*shape, links, t, out); });                            \
    }                                                                                             \
    int vjp_##T(const Shape* shape, const Link* links, const T* u, T* out) {                      \
        return status_of([=] { vjp<T>(*shape, links, u, out); });                                 \
    }                                                                                             \
    int adjoint_##T(const Shape* shape, const Link* links, const T* x, const T* t,                \
                    const T* after, T* before) {                                                  \
        return status_of([=] { adjoint<T>(*shape, links, x, t, after, before); });                \
    }                                                                                             \
    int power_sums_##T(const Shape* shape, const Link* links, const T* v, const T* weights,       \
                       const int64_t* limit, const T* enough, T* neumann, T* weighted, T* taken,  \
                       T* size, T* growth) {                                                      \
        const Powers<T> powers{v, weights, limit, enough, neumann, weighted, taken, size, growth}; \
        return status_of([=] { power_sums<T>(*shape, links, powers); });                          \
    }                                                                                             \
    int krylov_##T(const Shape* shape, const Link* links, const T* v, const double* rule,         \
                   const double* options, T* left, double* found) {                               \
        const Process<T> process{v, rule, options, left, found};                                  \
        return status_of([=] { krylov<T>(*shape, links, process); });                             \
    }                                                                                             \
    int dense_##T(const Shape* shape, const Link* links, double* found, T* matrices) {            \
        return status_of([=] { dense<T>(*shape, links, found, matrices); });                      \
    }                                                                                             \
    int solve_##T(const Shape* shape, const Link* links, const Link* wide, const double* goal,        \
                  const double* slopes, const double* offsets, const void* y, void* x,            \
                  double* found) {                                                                \
        const Equation<T> equation{wide, goal, slopes, offsets, y, x, found};                     \
        return status_of([=] { solve<T>(*shape, links, equation); });                             \
    }                                                                                             \
    int bidiagonal_##T(const Shape* shape, const Link* link, T* left, double* norm) {             \
        return status_of([=] {                                                                    \
            pack<T>(*shape, link);                                                                \
            *norm = bidiagonal<T>(*shape, *link, left);                                           \
        });                                                                                       \
    }

PASSES(float)
PASSES(double)

}  // extern "C"
