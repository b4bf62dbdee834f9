// Vectors of the widest registers that the compiler was allowed to use: +, -, *, / work on them lane by lane.
#pragma once

#include <cstdint>
#include <utility>

namespace srnas_fast {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T, int L>
struct VectorOf {
    typedef T Type __attribute__((vector_size(L * sizeof(T))));
    typedef T Loose __attribute__((vector_size(L * sizeof(T)), aligned(alignof(T)), may_alias));
};

template <class T>
constexpr int Lanes = kVectorBytes / int(sizeof(T));

template <class T, int L = Lanes<T>>
using Vec = typename VectorOf<T, L>::Type;

// Loads and stores at any address.
template <class T, int L = Lanes<T>>
inline Vec<T, L> load(const T* p) {
    return *reinterpret_cast<const typename VectorOf<T, L>::Loose*>(p);
}

template <class T, int L = Lanes<T>>
inline void store(T* p, Vec<T, L> v) {
    *reinterpret_cast<typename VectorOf<T, L>::Loose*>(p) = v;
}

template <class T>
inline Vec<T> broadcast(T value) {
    return value - Vec<T>{};  // not +, which would turn -0 into 0 and so cost an addition
}

// The value, in a register from here on: else GCC may load it from memory anew for each of its uses.
template <class V>
inline V keep(V value) {
#if defined(__AVX512F__)
    asm("" : "+v"(value));
#elif defined(__SSE2__)
    asm("" : "+x"(value));
#elif defined(__aarch64__)
    asm("" : "+w"(value));
#endif
    return value;
}

// The pointer, computed here and nowhere else: else GCC keeps one for each row in registers that it does not
// have.
template <class T>
inline T* step(T* pointer, int64_t elements) {
    pointer += elements;
    asm("" : "+r"(pointer));
    return pointer;
}

template <class V, class I, int... index>
inline V shuffle(V a, V b, std::integer_sequence<int, index...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, index...);
#else
    typedef I Mask __attribute__((vector_size(sizeof(V))));
    return __builtin_shuffle(a, b, Mask{index...});
#endif
}

template <class T>
using IndexOf = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// a0 b0 a1 b1 ... of the lower halves (from = 0) or the upper halves (from = L / 2).
template <int L, int from, int... i>
constexpr auto interleaved(std::integer_sequence<int, i...>) {
    return std::integer_sequence<int, (from + i / 2 + (i % 2) * L)...>{};
}

template <class T, int L, int from>
inline Vec<T, L> interleave(Vec<T, L> a, Vec<T, L> b) {
    return shuffle<Vec<T, L>, IndexOf<T>>(a, b, interleaved<L, from>(std::make_integer_sequence<int, L>{}));
}

// a0 a2 ... b0 b2 ... (from = 0) or a1 a3 ... b1 b3 ... (from = 1): the way back.
template <int from, int... i>
constexpr auto every_second(std::integer_sequence<int, i...>) {
    return std::integer_sequence<int, (from + 2 * i)...>{};
}

template <class T, int L, int from>
inline Vec<T, L> separate(Vec<T, L> a, Vec<T, L> b) {
    return shuffle<Vec<T, L>, IndexOf<T>>(a, b, every_second<from>(std::make_integer_sequence<int, L>{}));
}

// Rows become columns. A round of interleaving rotates the bits of (row, lane) by one, so log2(L) rounds swap
// them.
template <class T, int L>
inline void transpose(Vec<T, L>* rows) {
#pragma GCC unroll 8
    for (int round = 1; round < L; round *= 2) {
        Vec<T, L> next[L];
#pragma GCC unroll 16
        for (int i = 0; i < L / 2; ++i) {
            next[2 * i] = interleave<T, L, 0>(rows[i], rows[i + L / 2]);
            next[2 * i + 1] = interleave<T, L, L / 2>(rows[i], rows[i + L / 2]);
        }
#pragma GCC unroll 32
        for (int i = 0; i < L; ++i) rows[i] = next[i];
    }
}

// out[i] = the sum of the lanes of values[i], for `count` vectors: a transposition that adds instead of
// keeping.
template <int count, class T>
inline void sum_lanes(const Vec<T>* values, T* out) {
    constexpr int L = Lanes<T>;
#pragma GCC unroll 8
    for (int first = 0; first < count; first += L) {
        Vec<T> rows[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) rows[i] = first + i < count ? values[first + i] : Vec<T>{};
#pragma GCC unroll 8
        for (int half = L / 2; half > 0; half /= 2) {
#pragma GCC unroll 16
            for (int i = 0; i < half; ++i) {
                rows[i] = interleave<T, L, 0>(rows[i], rows[i + half]) +
                          interleave<T, L, L / 2>(rows[i], rows[i + half]);
            }
        }
        if (first + L <= count) {
            store(out + first, rows[0]);
        } else {
            for (int i = 0; i < count - first; ++i) out[first + i] = rows[0][i];
        }
    }
}

}  // namespace srnas_fast
