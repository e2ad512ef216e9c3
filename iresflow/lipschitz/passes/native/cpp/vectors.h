// Vector registers, in the compiler's own notation.

#pragma once

#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr long BYTES = 64, TALL = 12;  // of a vector register; rows of a tile that fills them all
#elif defined(__AVX__)
constexpr long BYTES = 32, TALL = 6;
#else
constexpr long BYTES = 16, TALL = 4;
#endif

template <class T> constexpr long LANES = BYTES / sizeof(T);
template <class T> struct Register { typedef T type __attribute__((vector_size(BYTES))); };
template <class T> using Vector = typename Register<T>::type;

template <class T> inline Vector<T> load(const T* from) {
    Vector<T> v;
    std::memcpy(&v, from, BYTES);
    return v;
}

template <class T> inline Vector<T> load(const T* from, long count) {
    Vector<T> v = {};
    std::memcpy(&v, from, count * sizeof(T));
    return v;
}

template <class T> inline void store(T* to, Vector<T> v) { std::memcpy(to, &v, BYTES); }
template <class T> inline void store(T* to, Vector<T> v, long count) {
    std::memcpy(to, &v, count * sizeof(T));
}

inline long padded(long n, long lanes) { return (n + lanes - 1) / lanes * lanes; }

}  // namespace
