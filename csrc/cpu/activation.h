// The activations in front of stages: applied to rows while they are copied into the cache, so that an
// activated image never exists in memory.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../program/program.h"
#include "planes.h"

namespace srnas_fast {

template <class T>
struct Activation {
    ActivationKind kind = ActivationKind::none;
    T slope = 0;                // of a leaky one
    const T* slopes = nullptr;  // of a PReLU: one for all channels (step 0), or one for each
    int64_t step = 0;

    bool none() const { return kind == ActivationKind::none; }
    T slope_of(int64_t channel) const { return slopes ? slopes[channel * step] : slope; }
};

// sin(x + quarters * pi / 2), in double: as exact as float can show for |x| < 1e8, where pi has enough
// digits.
inline float fast_sine(float x, double quarters) {
    const double angle = double(x) + quarters * 1.5707963267948966;
    const double turns = std::nearbyint(angle * 0.3183098861837907);
    double r = angle - turns * 3.1415926218032837;
    r -= turns * 3.178650942459171e-08;
    r -= turns * 1.2246467864107189e-16;
    const double odd = turns - 2 * std::floor(turns * 0.5), s = r * r;
    double p = 1.6059043836821613e-10;
    p = p * s - 2.505210838544172e-08;
    p = p * s + 2.7557319223985893e-06;
    p = p * s - 0.0001984126984126984;
    p = p * s + 0.008333333333333333;
    p = p * s - 0.16666666666666666;
    return float((r + r * s * p) * (1 - 2 * odd));
}

template <class T, class Value>
inline void sines(const T* x, int64_t count, double quarters, Value value) {
    if constexpr (std::is_same_v<T, float>) {
        bool far = false;
        for (int64_t i = 0; i < count; ++i) far |= std::fabs(x[i]) >= 1e8f;
        if (!far) {
            for (int64_t i = 0; i < count; ++i) value(i, fast_sine(x[i], quarters));
            return;
        }
    }
    for (int64_t i = 0; i < count; ++i)
        value(i, quarters == 0 ? T(std::sin(double(x[i]))) : T(std::cos(double(x[i]))));
}

// f of `count` numbers of a channel, in place. At a kink, and of NaN, what torch makes of it.
template <class T>
inline void activate(const Activation<T>& f, int64_t channel, T* __restrict row, int64_t count) {
    switch (f.kind) {
        case ActivationKind::none:
            return;
        case ActivationKind::relu:
            for (int64_t i = 0; i < count; ++i) row[i] = row[i] <= 0 ? T(0) : row[i];
            return;
        case ActivationKind::leaky:
        case ActivationKind::prelu: {
            const T slope = f.slope_of(channel);
            // Not `> 0 ? x :`, which would let an infinite slope turn the zeros of a border into NaN.
            for (int64_t i = 0; i < count; ++i) row[i] = row[i] < 0 ? row[i] * slope : row[i];
            return;
        }
        case ActivationKind::sine:
            sines(row, count, 0, [&](int64_t i, T value) { row[i] = value; });
    }
}

// da *= f'(x).
template <class T>
inline void activation_gradient(const Activation<T>& f, int64_t channel, const T* __restrict x,
                                T* __restrict da, int64_t count) {
    switch (f.kind) {
        case ActivationKind::none:
            return;
        case ActivationKind::relu:
            for (int64_t i = 0; i < count; ++i) da[i] = x[i] <= 0 ? T(0) : da[i];
            return;
        case ActivationKind::leaky:
        case ActivationKind::prelu: {
            const T slope = f.slope_of(channel);
            for (int64_t i = 0; i < count; ++i) da[i] = x[i] > 0 ? da[i] : da[i] * slope;
            return;
        }
        case ActivationKind::sine:
            sines(x, count, 1, [&](int64_t i, T value) { da[i] *= value; });
    }
}

// An image that a kernel reads through an activation.
template <class T>
struct Source {
    Tensor<const T> image;
    Activation<T> activation;

    Source part(int64_t n, int64_t channel = 0, int64_t y = 0) const {
        return {image.part(n, channel, y), activation};
    }
};

// Rows [y0, y1) of one image into planes, activated; the border stays zero, which every activation maps to
// zero.
template <class T>
void read_rows(const Source<T>& source, const Planes& planes, T* inside, int64_t channels, int64_t y0,
               int64_t y1, T* line) {
    if (source.activation.none()) {
        copy_rows<T, true>(source.image, planes, inside, channels, y0, y1, line);
        return;
    }
    for (int64_t y = y0; y < y1; ++y) {  // row by row, so that each is activated while it is in the L1 cache
        copy_rows<T, true>(source.image, planes, inside, channels, y, y + 1, line);
        T* const row = inside + (y + planes.pad) * planes.row;
        for (int64_t c = 0; c < channels; ++c)
            activate(source.activation, c, row + c * planes.plane, planes.row);
    }
}

}  // namespace srnas_fast
