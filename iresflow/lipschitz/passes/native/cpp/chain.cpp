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
// Errors are ruled out by the callers, `native.py` and `native_norm.py`.

#include "adjoint.h"
#include "norm.h"
#include "passes.h"

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
