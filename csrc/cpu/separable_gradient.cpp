#include "separable.h"
#include "separable_blocks.h"

namespace srnas_fast {
namespace {

template <class T>
struct GradientScratch : SeparableScratch<T> {
    Planes dd, dx, dy;  // dy and d lie without a border
    int64_t x_at, dd_at, dy_at, planes, dx_at, bands, d;
    int64_t products, dysum, ddepthwise;  // shared: of the images that are held

    GradientScratch(const Separable<T>& s, int64_t outputs, int threads)
        : SeparableScratch<T>(s.shape, outputs, threads),
          dd(s.shape.template dz_planes<T>()),
          dx(s.shape.template dx_planes<T>()),
          dy(s.d) {
        const int64_t held = wave(s.shape.images, threads), matrix = outputs * s.channels;
        x_at = this->image.take(s.x.template size<T>(s.channels));
        dd_at = this->image.take(dd.template size<T>(s.channels));
        dy_at = this->image.take(dy.template size<T>(outputs));
        planes = this->image.end();
        dx_at = this->image.take(dx.template size<T>(s.channels));
        bands = this->image.take_doubles(s.blocks.bands * matrix);
        d = this->worker.take(s.channels * s.buffer_row);
        products = this->shared.take_doubles(held * s.shape.count() * matrix);
        dysum = this->shared.take_doubles(held * outputs);
        ddepthwise = this->shared.take(held * s.channels * s.shape.taps());
    }
};

// totals[i] += the sum over sets of sets[set * size + i], set after set.
template <class V>
void add_sets(const V* sets, int64_t count, int64_t size, int threads, double* totals) {
    constexpr int64_t kPiece = 1024;
    for_pieces(divide_up(size, kPiece), threads, 0, [&](int64_t piece, int) {
        const int64_t begin = piece * kPiece, end = std::min(size, begin + kPiece);
        for (int64_t set = 0; set < count; ++set) {
            for (int64_t i = begin; i < end; ++i) totals[i] += double(sets[set * size + i]);
        }
    });
}

}  // namespace

template <class T>
int64_t separable_gradient_scratch(const DepthwiseShape& shape, int64_t outputs, int threads) {
    return GradientScratch<T>(Separable<T>(shape, {}, outputs), outputs, threads).size();
}

template <class T>
void separable_gradient(const DepthwiseShape& shape, const GradientInput<T>& in, const GradientOutput<T>& out,
                        T* scratch, int threads) {
    const Separable<T> s(shape, in.depthwise, in.outputs);
    const GradientScratch<T> at(s, in.outputs, threads);
    const int64_t channels = s.channels, outputs = in.outputs, count = shape.count(), taps = shape.taps();
    const int64_t matrix = outputs * channels, held = wave(shape.images, threads);
    const bool want_x = out.dx.data, want_depthwise = !out.ddepthwise.empty(),
               want_products = !out.products.empty();
    const bool want_dd = want_x || want_depthwise, has_right = !in.right.empty() && want_dd;
    const bool want_d = want_products || has_right;
    const auto left = pack(in.left, channels, outputs), right = pack(in.right, channels, channels);
    std::vector<double> products(count * matrix), dysum(outputs), ddepthwise(channels * taps);
    const std::vector<T> zeros(channels);
    const auto line = [&](int worker) { return at.worker_in(scratch, worker) + at.line; };
    Cleared<T> planes_of = at.images_in(scratch);
    T* const shared = at.shared_in(scratch);

    // A block of rows: d_k, its share of the products, and dd_k into its planes.
    const auto do_block = [&](int64_t k, int64_t block, T* planes, T* d, double* sums) {
        const int64_t top = s.blocks.begin(block), rows = s.blocks.size(block);
        const T* const dy = planes + at.dy_at + top * at.dy.row;
        if (want_d) s.depthwise(k, block, planes + at.x_at, in.centres, d);
        if (want_products)
            add_outer(dy, at.dy.plane, outputs, d, s.buffer_row, channels, s.pixels(block), false, sums);
        if (!want_dd) return;
        const T* const offsets = in.offsets ? in.offsets + k * channels : zeros.data();
        for (int64_t y = 0; y < rows; ++y) {
            T* const dd = planes + at.dd_at + at.dd.at(0, top + y, 0);
            const int64_t row = y * s.d.row;
            if (in.dy.data) multiply(left[k], offsets, dy + row, at.dy.plane, dd, at.dd.plane, s.d.row);
            if (has_right) {
                multiply(right[k], in.dy.data ? nullptr : offsets, d + row, s.buffer_row, dd, at.dd.plane,
                         s.d.row);
            }
            for (int64_t c = 0; c < channels; ++c) {
                T* const line = dd + c * at.dd.plane;
                if (!in.dy.data && !has_right) std::fill_n(line, s.d.width, offsets[c]);
                // The last vector may have reached into the border, of this row or the next one.
                std::fill(line + s.d.width, line + s.d.row, T(0));
            }
        }
    };

    for (int64_t begin = 0; begin < shape.images; begin += held) {
        const int64_t end = std::min(shape.images, begin + held);
        for_images(begin, end, threads, [&](int64_t image, int thread, int inner) {
            T* const planes = planes_of.of(thread, at.planes);
            T *const x = planes + at.x_at, *const dd = planes + at.dd_at;
            T *const dx = planes + at.dx_at, *const dy = planes + at.dy_at;
            double* const bands = doubles(planes + at.bands);
            if (want_d || want_depthwise) read_image(in.x.part(image), s.x, x, channels, line, inner, thread);
            if (in.dy.data) copy_image<T, true>(in.dy.part(image), at.dy, dy, outputs, line, inner, thread);
            if (want_x && out.accumulate) {
                copy_image<T, true>(out.dx.part(image).read_only(), at.dx, dx, channels, line, inner, thread);
            }
            if (out.dysum) {
                double* const sums = doubles(shared + at.dysum) + (image - begin) * outputs;
                for_pieces(outputs, inner, thread, [&](int64_t o, int) {
                    sums[o] = 0;
                    for (int64_t y = 0; y < at.dy.height; ++y) {
                        Vec<T> row[1] = {};
                        const T* const pixels = dy + at.dy.at(o, y, 0);
                        for (int64_t p = 0; p < at.dy.row; p += Lanes<T>) row[0] += load(pixels + p);
                        T sum;
                        sum_lanes<1>(row, &sum);
                        sums[o] += double(sum);
                    }
                });
            }
            int64_t first_tap = 0;
            for (int64_t k = 0; k < count; ++k) {
                for_pieces(s.blocks.bands, inner, thread, [&](int64_t band, int worker) {
                    if (want_products) std::fill_n(bands + band * matrix, matrix, 0.0);
                    for (int64_t block = s.blocks.first(band); block < s.blocks.first(band + 1); ++block) {
                        do_block(k, block, planes, at.worker_in(scratch, worker) + at.d,
                                 bands + band * matrix);
                    }
                });
                if (want_products) {
                    double* const sum =
                        doubles(shared + at.products) + ((image - begin) * count + k) * matrix;
                    std::fill_n(sum, matrix, 0.0);
                    add_sets(bands, s.blocks.bands, matrix, 1, sum);
                }
                const Kernel<T>& kernel = s.kernels[k];
                T* const sums =
                    shared + at.ddepthwise + (image - begin) * channels * taps + channels * first_tap;
                for_pieces(want_dd ? channels : 0, inner, thread, [&](int64_t c, int) {
                    const T* const plane = dd + c * at.dd.plane;
                    if (want_depthwise) {
                        correlate(kernel, at.dd, plane, s.x, x + c * s.x.plane, sums + c * kernel.taps());
                    }
                    if (want_x) {
                        const bool add = k > 0 || out.accumulate;
                        convolve_transposed(kernel, c, at.dd, plane, at.dx, dx + c * at.dx.plane, add);
                    }
                });
                first_tap += kernel.taps();
            }
            if (want_x) copy_image<T, false>(out.dx.part(image), at.dx, dx, channels, line, inner, thread);
        });
        const int64_t images = end - begin;
        if (want_products) {
            add_sets(doubles(shared + at.products), images, count * matrix, threads, products.data());
        }
        if (out.dysum) add_sets(doubles(shared + at.dysum), images, outputs, 1, dysum.data());
        if (want_depthwise) {
            add_sets(shared + at.ddepthwise, images, channels * taps, threads, ddepthwise.data());
        }
    }
    const double* depthwise_sums = ddepthwise.data();
    for (int64_t k = 0; k < count; ++k) {
        const int64_t size = channels * s.kernels[k].taps();
        if (want_products) std::copy_n(products.data() + k * matrix, matrix, out.products[k]);
        if (want_depthwise) std::copy_n(depthwise_sums, size, out.ddepthwise[k]);
        depthwise_sums += size;
    }
    if (out.dysum) std::copy_n(dysum.data(), outputs, out.dysum);
}

#define INSTANTIATE(T)                                                                   \
    template int64_t separable_gradient_scratch<T>(const DepthwiseShape&, int64_t, int); \
    template void separable_gradient<T>(const DepthwiseShape&, const GradientInput<T>&,  \
                                        const GradientOutput<T>&, T*, int);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace srnas_fast
