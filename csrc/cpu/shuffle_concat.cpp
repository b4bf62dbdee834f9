// Two ways through memory. Planes: channel after channel, each a few rows of pixels, in tensors of any
// strides. Pixels, where all tensors are in channels_last: pixel after pixel, each a few runs of channels,
// which are shuffled in registers. Both are made of the same loops over a line: along a row, or across
// channels.
#include "shuffle_concat.h"

#include <numeric>
#include <type_traits>
#include <vector>

#include "maximum.h"
#include "parallel.h"

namespace srnas_fast {
namespace {

// Neighbours on a line are `step` elements apart.
template <class T>
struct Line {
    T* data;
    int64_t step;
    T& operator[](int64_t i) const { return data[i * step]; }
};

// The same with a step of 1: loops over it become vectors.
template <class T>
struct Dense {
    T* data;
    T& operator[](int64_t i) const { return data[i]; }
};

// The 2 x 2 windows of a line of outputs: the upper left corner of each, and the ways to the other three.
template <class Corners>
struct Windows {
    Corners corners;
    int64_t right, down;
};

// Every second element of a row, as the corners of the windows along it.
template <class T>
struct Second {
    T* data;
    T& operator[](int64_t i) const { return data[2 * i]; }
};

// ---- along a line of `count` elements

template <class From, class To, class T>
void scaled(From from, T scale, To to, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] = scale * from[i];
}

template <class T, class A, class B>
T inner(A a, B b, int64_t count) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
    return sum;
}

template <class From, class To, class T>
void largest(const Windows<From>& windows, T scale, To to, int64_t count) {
    const From corners = windows.corners;
    const int64_t right = windows.right, down = windows.down;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const T* const corner = &corners[i];
        T most = corner[0];
        most = beats(corner[right], most) ? corner[right] : most;
        most = beats(corner[down], most) ? corner[down] : most;
        most = beats(corner[down + right], most) ? corner[down + right] : most;
        to[i] = scale * most;
    }
}

// Each gradient goes to the place of its window's maximum, the other three get 0. Returns the sum of gradient
// times maximum.
template <class Given, class From, class To, class T>
T to_largest(Given given, const Windows<From>& windows, T scale, const Windows<To>& found, int64_t count) {
    const From corners = windows.corners;
    const To targets = found.corners;
    const int64_t right = windows.right, down = windows.down, to_right = found.right, to_down = found.down;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) {
        const T* const corner = &corners[i];
        T* const target = &targets[i];
        const T gradient = given[i];
        T most = corner[0], place = 0;  // a T like the values, so that both fill vectors alike
        for (int tap = 1; tap < 4; ++tap) {
            const T value = corner[(tap & 1) * right + (tap >> 1) * down];
            const bool better = beats(value, most);
            most = better ? value : most;
            place = better ? T(tap) : place;
        }
        sum += gradient * most;
        const T part = scale * gradient;
        target[0] = place == T(0) ? part : T(0);
        target[to_right] = place == T(1) ? part : T(0);
        target[to_down] = place == T(2) ? part : T(0);
        target[to_down + to_right] = place == T(3) ? part : T(0);
    }
    return sum;
}

// ---- planes

// run(from, to) with dense lines where both are.
template <class A, class B, class Run>
void with_lines(Line<A> from, Line<B> to, Run run) {
    if (from.step == 1 && to.step == 1) {
        run(Dense<A>{from.data}, Dense<B>{to.data});
    } else {
        run(from, to);
    }
}

template <class T>
void copy_plane(Tensor<const T> from, T scale, Tensor<T> to, int64_t height, int64_t width) {
    if (from.w == 1 && to.w == 1 && from.h == width && to.h == width) {
        width *= height;
        height = 1;
    }
    for (int64_t y = 0; y < height; ++y) {
        const Line<const T> row{from.data + y * from.h, from.w};
        with_lines(row, Line<T>{to.data + y * to.h, to.w},
                   [&](auto a, auto b) { scaled(a, scale, b, width); });
    }
}

// The windows of row y of the output.
template <class T>
Windows<Line<T>> windows_of(const Tensor<T>& x, int64_t y) {
    return {{x.data + 2 * y * x.h, 2 * x.w}, x.w, x.h};
}

template <class T>
void pool_plane(Tensor<const T> x, T scale, Tensor<T> out, int64_t height, int64_t width) {
    for (int64_t y = 0; y < height; ++y) {
        const auto windows = windows_of(x, y);
        T* const row = out.data + y * out.h;
        if (x.w == 1 && out.w == 1) {
            const Windows<Second<const T>> dense{{windows.corners.data}, 1, x.h};
            largest(dense, scale, Dense<T>{row}, width);
        } else {
            largest(windows, scale, Line<T>{row, out.w}, width);
        }
    }
}

template <class T>
double unpool_plane(Tensor<const T> dout, Tensor<const T> x, T scale, Tensor<T> dx, int64_t height,
                    int64_t width) {
    double sum = 0;
    for (int64_t y = 0; y < height; ++y) {
        const auto windows = windows_of(x, y);
        const auto found = windows_of(dx, y);
        const T* const given = dout.data + y * dout.h;
        if (x.w == 1 && dx.w == 1 && dout.w == 1) {
            const Windows<Second<const T>> dense{{windows.corners.data}, 1, x.h};
            const Windows<Second<T>> dense_found{{found.corners.data}, 1, dx.h};
            sum += to_largest(Dense<const T>{given}, dense, scale, dense_found, width);
        } else {
            sum += to_largest(Line<const T>{given, dout.w}, windows, scale, found, width);
        }
    }
    return sum;
}

template <class T>
double inner_plane(Tensor<const T> a, Tensor<const T> b, int64_t height, int64_t width) {
    double sum = 0;
    for (int64_t y = 0; y < height; ++y) {
        const Line<const T> row{a.data + y * a.h, a.w};
        with_lines(row, Line<const T>{b.data + y * b.h, b.w},
                   [&](auto p, auto q) { sum += inner<T>(p, q, width); });
    }
    return sum;
}

template <class T>
void store_planes(const ShuffleShape& s, Tensor<const T> y, Tensor<const T> x, T scale, Tensor<T> out,
                  int threads) {
    for_pieces(s.images * s.channels(), threads, 0, [&](int64_t piece, int) {
        const int64_t image = piece / s.channels(), channel = piece % s.channels();
        const int64_t j = channel / s.groups, i = channel % s.groups;
        const Tensor<T> to = out.part(image, channel);
        const Tensor<const T> passed = x.part(image, i * s.part + j);
        if (i == 0) {
            copy_plane(y.part(image, j), T(1), to, s.height, s.width);
        } else if (s.stride == 1) {
            copy_plane(passed, scale, to, s.height, s.width);
        } else {
            pool_plane(passed, scale, to, s.height, s.width);
        }
    });
}

template <class T>
void return_planes(const ShuffleShape& s, Tensor<const T> dout, Tensor<const T> x, T scale, Tensor<T> dy,
                   Tensor<T> dx, double* sums, int threads) {
    for_pieces(s.images * s.channels(), threads, 0, [&](int64_t piece, int) {
        const int64_t image = piece / s.channels(), channel = piece % s.channels();
        const int64_t j = channel / s.groups, i = channel % s.groups, source = i * s.part + j;
        const Tensor<const T> given = dout.part(image, channel), passed = x.part(image, source);
        if (i == 0) {
            copy_plane(given, T(1), dy.part(image, j), s.height, s.width);
        } else if (s.stride == 2 && (dx.data || sums)) {
            // Where only the sum is wanted, the gradients fall on a few lines that nobody reads.
            std::vector<T> unread(dx.data ? 0 : 4 * s.width);
            const Tensor<T> to = dx.data ? dx.part(image, source) : Tensor<T>{unread.data(), 0, 0, 0, 1};
            const double sum = unpool_plane(given, passed, scale, to, s.height, s.width);
            if (sums) sums[piece] = sum;
        } else if (s.stride == 1) {
            if (dx.data) copy_plane(given, scale, dx.part(image, source), s.height, s.width);
            if (sums) sums[piece] = inner_plane(given, passed, s.height, s.width);
        }
    });
}

// ---- pixels

// out[j * groups] = y[j], out[j * groups + i] = rest[(i - 1) * part + j]; GROUPS: a constant, or 0 for any.
template <int GROUPS, class T>
void shuffle_pixel(const T* __restrict y, const T* __restrict rest, int64_t part, int64_t any, T scale,
                   T* __restrict out) {
    const int64_t groups = GROUPS ? GROUPS : any;
    for (int64_t j = 0; j < part; ++j) {
        out[j * groups] = y[j];
#pragma GCC unroll 8
        for (int64_t i = 1; i < groups; ++i) out[j * groups + i] = scale * rest[(i - 1) * part + j];
    }
}

template <int GROUPS, class T>
void unshuffle_pixel(const T* __restrict dout, int64_t part, int64_t any, T* __restrict dy,
                     T* __restrict rest) {
    const int64_t groups = GROUPS ? GROUPS : any;
    for (int64_t j = 0; j < part; ++j) {
        dy[j] = dout[j * groups];
#pragma GCC unroll 8
        for (int64_t i = 1; i < groups; ++i) rest[(i - 1) * part + j] = dout[j * groups + i];
    }
}

template <int GROUPS, class T>
void store_pixels(const ShuffleShape& s, Tensor<const T> y, Tensor<const T> x, T scale, Tensor<T> out,
                  int threads) {
    const int64_t passing = s.channels() - s.part;
    for_pieces(s.images * s.height, threads, 0, [&](int64_t piece, int) {
        const int64_t image = piece / s.height, row = piece % s.height;
        std::vector<T> pooled(s.stride == 2 ? passing : 0);
        const auto ys = y.part(image, 0, row), xs = x.part(image, s.part, row * s.stride);
        const auto to = out.part(image, 0, row);
        for (int64_t p = 0; p < s.width; ++p) {
            const T* rest = xs.data + p * s.stride * x.w;
            T factor = scale;
            if (s.stride == 2) {
                const Windows<Dense<const T>> windows{{rest}, x.w, x.h};
                largest(windows, scale, Dense<T>{pooled.data()}, passing);
                rest = pooled.data();
                factor = T(1);
            }
            shuffle_pixel<GROUPS>(ys.data + p * y.w, rest, s.part, s.groups, factor, to.data + p * out.w);
        }
    });
}

template <int GROUPS, class T>
void return_pixels(const ShuffleShape& s, Tensor<const T> dout, Tensor<const T> x, T scale, Tensor<T> dy,
                   Tensor<T> dx, double* sums, int threads) {
    const int64_t passing = s.channels() - s.part;
    for_pieces(s.images * s.height, threads, 0, [&](int64_t piece, int) {
        const int64_t image = piece / s.height, row = piece % s.height;
        std::vector<T> rest(passing), unread(dx.data ? 0 : 4 * passing);
        const Dense<const T> gradients{rest.data()};
        double sum = 0;
        for (int64_t p = 0; p < s.width; ++p) {
            unshuffle_pixel<GROUPS>(dout.part(image, 0, row).data + p * dout.w, s.part, s.groups,
                                    dy.part(image, 0, row).data + p * dy.w, rest.data());
            const T* const passed = x.part(image, s.part, row * s.stride).data + p * s.stride * x.w;
            T* const to =
                dx.data ? dx.part(image, s.part, row * s.stride).data + p * s.stride * dx.w : unread.data();
            if (s.stride == 2 && (dx.data || sums)) {
                const Windows<Dense<const T>> windows{{passed}, x.w, x.h};
                const Windows<Dense<T>> found{{to}, dx.data ? dx.w : passing, dx.data ? dx.h : 2 * passing};
                sum += to_largest(gradients, windows, scale, found, passing);
            } else if (s.stride == 1) {
                if (dx.data) scaled(gradients, scale, Dense<T>{to}, passing);
                if (sums) sum += inner<T>(gradients, Dense<const T>{passed}, passing);
            }
        }
        if (sums) sums[piece] = sum;
    });
}

// run(GROUPS) with the number of groups as a constant where it is a usual one.
template <class Run>
void with_groups(int64_t groups, Run run) {
    if (groups == 2) return run(std::integral_constant<int, 2>());
    if (groups == 4) return run(std::integral_constant<int, 4>());
    if (groups == 8) return run(std::integral_constant<int, 8>());
    run(std::integral_constant<int, 0>());
}

}  // namespace

template <class T>
void shuffle_concat(const ShuffleShape& shape, Tensor<const T> y, Tensor<const T> x, T scale, Tensor<T> out,
                    int threads) {
    if (y.c != 1 || x.c != 1 || out.c != 1) return store_planes(shape, y, x, scale, out, threads);
    with_groups(shape.groups, [&](auto groups) {
        store_pixels<decltype(groups)::value>(shape, y, x, scale, out, threads);
    });
}

template <class T>
void shuffle_concat_backward(const ShuffleShape& shape, Tensor<const T> dout, Tensor<const T> x, T scale,
                             Tensor<T> dy, Tensor<T> dx, T* dscale, int threads) {
    // One sum for each piece of work, whatever thread did it.
    std::vector<double> sums(dscale ? shape.images * std::max(shape.channels(), shape.height) : 0);
    double* const kept = dscale ? sums.data() : nullptr;
    if (dout.c != 1 || x.c != 1 || dy.c != 1 || (dx.data && dx.c != 1)) {
        return_planes(shape, dout, x, scale, dy, dx, kept, threads);
    } else {
        with_groups(shape.groups, [&](auto groups) {
            return_pixels<decltype(groups)::value>(shape, dout, x, scale, dy, dx, kept, threads);
        });
    }
    if (dscale) *dscale = static_cast<T>(std::accumulate(sums.begin(), sums.end(), 0.0));
}

#define INSTANTIATE(T)                                                                                   \
    template void shuffle_concat<T>(const ShuffleShape&, Tensor<const T>, Tensor<const T>, T, Tensor<T>, \
                                    int);                                                                \
    template void shuffle_concat_backward<T>(const ShuffleShape&, Tensor<const T>, Tensor<const T>, T,   \
                                             Tensor<T>, Tensor<T>, T*, int);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace srnas_fast
