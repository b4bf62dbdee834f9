#include "combine.h"

#include "parallel.h"

namespace srnas_fast {
namespace {

// A few planes at a time: enough work for a thread, and the same pieces for any number of threads.
struct PlanePieces {
    int64_t planes, share;

    explicit PlanePieces(const ImageSize& size)
        : planes(size.planes()),
          share(std::max<int64_t>(1, 8192 / std::max<int64_t>(1, size.height * size.width))) {}
    int64_t count() const { return divide_up(planes, share); }
};

// work(image, channel, plane) for every plane.
template <class Work>
void for_planes(const ImageSize& size, int threads, Work work) {
    const PlanePieces pieces(size);
    for_pieces(pieces.count(), threads, 0, [&](int64_t piece, int) {
        const int64_t end = std::min(pieces.planes, (piece + 1) * pieces.share);
        for (int64_t plane = piece * pieces.share; plane < end; ++plane)
            work(plane / size.channels, plane % size.channels, plane);
    });
}

// How a plane is walked: row by row, or as one row where all tensors have its rows one after the other.
struct Rows {
    int64_t count, width;

    template <class... Tensors>
    static Rows of(const ImageSize& size, const Tensors&... tensors) {
        const bool together = ((tensors.h == size.width) && ...);
        return together ? Rows{1, size.height * size.width} : Rows{size.height, size.width};
    }
};

template <class T>
inline T* plane_of(const Tensor<T>& tensor, int64_t image, int64_t channel) {
    return tensor.data + image * tensor.n + channel * tensor.c;
}

// The sum over a row of a (b - centre), or of a alone.
template <bool PRODUCT, class T>
inline double row_sum(const T* a, const T* b, T centre, int64_t width) {
    constexpr int64_t kRun = 1024;  // added up in T
    constexpr int L = Lanes<T>;
    double total = 0;
    for (int64_t begin = 0; begin < width; begin += kRun) {
        const int64_t end = std::min(width, begin + kRun);
        Vec<T> sums[2] = {};
        const Vec<T> centres = broadcast(centre);
        int64_t i = begin;
        const auto term = [&](int64_t at) {
            if constexpr (PRODUCT) return load(a + at) * (load(b + at) - centres);
            return load(a + at);
        };
        for (; i + 2 * L <= end; i += 2 * L) {
            sums[0] += term(i);
            sums[1] += term(i + L);
        }
        for (; i + L <= end; i += L) sums[0] += term(i);
        sums[0] += sums[1];
        T sum;
        sum_lanes<1>(sums, &sum);
        for (; i < end; ++i) sum += PRODUCT ? a[i] * (b[i] - centre) : a[i];
        total += double(sum);
    }
    return total;
}

// totals[c] = the sum over images of partial[image, c].
inline void add_images(const ImageSize& size, const double* partial, double* totals) {
    std::fill_n(totals, size.channels, 0.0);
    for (int64_t plane = 0; plane < size.planes(); ++plane) totals[plane % size.channels] += partial[plane];
}

}  // namespace

template <class T>
void combine(const ImageSize& size, Tensor<T> out, bool accumulate, const std::vector<Term<T>>& terms,
             const T* shift, int threads) {
    const Term<T>& one = terms.front();
    const Term<T>* const two = terms.size() > 1 ? &terms[1] : nullptr;
    const Rows rows = two ? Rows::of(size, out, one.image, two->image) : Rows::of(size, out, one.image);
    for_planes(size, threads, [&](int64_t image, int64_t c, int64_t) {
        const T scale = one.scale[c], centre = one.centre ? one.centre[c] : T(0);
        const T scale2 = two ? two->scale[c] : T(0), centre2 = two && two->centre ? two->centre[c] : T(0);
        const T start = shift ? shift[c] : T(0);
        const T* const plane = plane_of(one.image, image, c);
        const T* const plane2 = two ? plane_of(two->image, image, c) : nullptr;
        T* const to_plane = plane_of(out, image, c);
        for (int64_t y = 0; y < rows.count; ++y) {
            const T* const a = plane + y * one.image.h;
            T* const to = to_plane + y * out.h;
            if (two) {
                const T* const b = plane2 + y * two->image.h;
#pragma GCC ivdep
                for (int64_t x = 0; x < rows.width; ++x) {
                    const T value = start + scale * (a[x] - centre) + scale2 * (b[x] - centre2);
                    to[x] = accumulate ? to[x] + value : value;
                }
            } else if (accumulate) {
#pragma GCC ivdep
                for (int64_t x = 0; x < rows.width; ++x) to[x] += start + scale * (a[x] - centre);
            } else {
#pragma GCC ivdep
                for (int64_t x = 0; x < rows.width; ++x) to[x] = start + scale * (a[x] - centre);
            }
        }
    });
}

template <class T>
void channel_products(const ImageSize& size, Tensor<const T> a, Tensor<const T> b, const T* centre,
                      double* products, double* partial, int threads) {
    const Rows rows = Rows::of(size, a, b);
    for_planes(size, threads, [&](int64_t image, int64_t c, int64_t plane) {
        const T *const first = plane_of(a, image, c), *const second = plane_of(b, image, c);
        double sum = 0;
        for (int64_t y = 0; y < rows.count; ++y)
            sum += row_sum<true>(first + y * a.h, second + y * b.h, centre ? centre[c] : T(0), rows.width);
        partial[plane] = sum;
    });
    add_images(size, partial, products);
}

template <class T>
void channel_sums(const ImageSize& size, Tensor<const T> a, double* sums, double* partial, int threads) {
    const Rows rows = Rows::of(size, a);
    for_planes(size, threads, [&](int64_t image, int64_t c, int64_t plane) {
        const T* const first = plane_of(a, image, c);
        double sum = 0;
        for (int64_t y = 0; y < rows.count; ++y)
            sum += row_sum<false>(first + y * a.h, (const T*)nullptr, T(0), rows.width);
        partial[plane] = sum;
    });
    add_images(size, partial, sums);
}

template <class T>
void copy_images(const ImageSize& size, const Source<T>& from, Tensor<T> to, int threads) {
    const Tensor<const T> source = from.image;
    if (rows_lie_together(source, size) && rows_lie_together(to, size)) {
        const Rows rows = Rows::of(size, source, to);
        for_planes(size, threads, [&](int64_t image, int64_t c, int64_t) {
            for (int64_t y = 0; y < rows.count; ++y) {
                T* const row = plane_of(to, image, c) + y * to.h;
                copy_line(plane_of(source, image, c) + y * source.h, row, rows.width);
                activate(from.activation, c, row, rows.width);
            }
        });
        return;
    }
    // A row of all channels at a time, which the side whose rows lie together holds plane by plane.
    const bool in = rows_lie_together(to, size);
    for_pieces(size.images * size.height, threads, 0, [&](int64_t piece, int) {
        const int64_t image = piece / size.height, y = piece % size.height;
        const T* const source_row = source.data + image * source.n + y * source.h;
        T* const row = to.data + image * to.n + y * to.h;
        if (in) {
            copy_row<T, true>(source_row, source.c, source.w, row, to.c, size.channels, size.width);
            for (int64_t c = 0; c < size.channels; ++c)
                activate(from.activation, c, row + c * to.c, size.width);
        } else {
            copy_row<T, false>(row, to.c, to.w, const_cast<T*>(source_row), source.c, size.channels,
                               size.width);
        }
    });
}

template <class T>
void activation_backward(const ImageSize& size, const Source<T>& x, Tensor<const T> da, Tensor<T> out,
                         bool accumulate, double* dslopes, double* partial, int threads) {
    const Rows rows = Rows::of(size, x.image, da, out);
    for_planes(size, threads, [&](int64_t image, int64_t c, int64_t plane) {
        constexpr int64_t kRun = 256;
        T run[kRun];
        double sum = 0;
        for (int64_t y = 0; y < rows.count; ++y) {
            const T* const pixels = plane_of(x.image, image, c) + y * x.image.h;
            const T* const gradient = plane_of(da, image, c) + y * da.h;
            T* const to = plane_of(out, image, c) + y * out.h;
            for (int64_t begin = 0; begin < rows.width; begin += kRun) {
                const int64_t count = std::min(kRun, rows.width - begin);
                std::copy_n(gradient + begin, count, run);
                if (dslopes) {
                    T part = 0;
                    for (int64_t i = 0; i < count; ++i)
                        part += pixels[begin + i] > 0 ? T(0) : run[i] * pixels[begin + i];
                    sum += double(part);
                }
                activation_gradient(x.activation, c, pixels + begin, run, count);
                if (accumulate) {
                    for (int64_t i = 0; i < count; ++i) to[begin + i] += run[i];
                } else {
                    std::copy_n(run, count, to + begin);
                }
            }
        }
        if (dslopes) partial[plane] = sum;
    });
    if (dslopes) add_images(size, partial, dslopes);
}

#define INSTANTIATE(T)                                                                                      \
    template void combine(const ImageSize&, Tensor<T>, bool, const std::vector<Term<T>>&, const T*, int);   \
    template void channel_products(const ImageSize&, Tensor<const T>, Tensor<const T>, const T*, double*,   \
                                   double*, int);                                                           \
    template void channel_sums(const ImageSize&, Tensor<const T>, double*, double*, int);                   \
    template void copy_images(const ImageSize&, const Source<T>&, Tensor<T>, int);                          \
    template void activation_backward(const ImageSize&, const Source<T>&, Tensor<const T>, Tensor<T>, bool, \
                                      double*, double*, int);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace srnas_fast
