#include "separable.h"
#include "separable_blocks.h"

namespace srnas_fast {
namespace {

// A set of pixels: their count, mean (C) and sum of products of centred values (C, C), of which the part
// above the diagonal counts. Doubles in this order.
struct Moments {
    double* set;
    int64_t channels;

    static int64_t size(int64_t channels) { return 1 + channels + channels * channels; }
    double& count() const { return set[0]; }
    double* mean() const { return set + 1; }
    double* products(int64_t channel) const { return set + 1 + channels + channel * channels; }

    void clear() const { std::fill_n(set, size(channels), 0.0); }

    // Joins another set to this one (Chan, Golub, LeVeque 1979).
    void add(const Moments& other) const {
        const double total = count() + other.count(), share = other.count() / total;
        double *const to = mean(), *const from = other.mean();
        for (int64_t i = 0; i < channels; ++i) {
            const double distance = (from[i] - to[i]) * share * count();
            double *const sums = products(i), *const more = other.products(i);
            for (int64_t j = i; j < channels; ++j) sums[j] += more[j] + distance * (from[j] - to[j]);
        }
        for (int64_t i = 0; i < channels; ++i) to[i] += (from[i] - to[i]) * share;
        count() = total;
    }
};

// The moments of a block of rows in d, which is centred on the way.
template <class T>
void take_moments(const Separable<T>& s, int64_t block, T* d, const Moments& moments) {
    const int64_t rows = s.blocks.size(block), pixels = s.pixels(block);
    moments.clear();
    moments.count() = double(rows * s.d.width);
    for (int64_t c = 0; c < s.channels; ++c) {
        T* const row = d + c * s.buffer_row;
        clear_tails(row, s.d.row, rows, s.d.width);
        Vec<T> sums[1] = {};
        for (int64_t p = 0; p < pixels; p += Lanes<T>) sums[0] += load(row + p);
        T sum;
        sum_lanes<1>(sums, &sum);
        const T mean = sum / T(moments.count());
        for (int64_t p = 0; p < pixels; ++p) row[p] -= mean;
        clear_tails(row, s.d.row, rows, s.d.width);
        moments.mean()[c] = double(mean);
    }
    add_outer(d, s.buffer_row, s.channels, d, s.buffer_row, s.channels, pixels, true, moments.products(0));
}

template <class T>
struct MomentsScratch : SeparableScratch<T> {
    int64_t planes, bands, d, block;

    MomentsScratch(const Separable<T>& s, int threads) : SeparableScratch<T>(s.shape, 0, threads) {
        const int64_t moments = Moments::size(s.channels);
        this->image.take(s.x.template size<T>(s.channels));
        planes = this->image.end();
        bands = this->image.take_doubles(s.blocks.bands * moments);
        d = this->worker.take(s.channels * s.buffer_row);
        block = this->worker.take_doubles(moments);
        this->shared.take_doubles((wave(s.shape.images, threads) + 1) * s.shape.count() * moments);
    }
};

}  // namespace

template <class T>
int64_t separable_moments_scratch(const DepthwiseShape& shape, int threads) {
    return MomentsScratch<T>(Separable<T>(shape, {}, 0), threads).size();
}

template <class T>
void separable_moments(const DepthwiseShape& shape, const Source<T>& x,
                       const std::vector<const T*>& depthwise, T* means, T* covariances, T* scratch,
                       int threads) {
    const Separable<T> s(shape, depthwise, 0);
    const MomentsScratch<T> at(s, threads);
    const int64_t channels = s.channels, count = shape.count(), held = wave(shape.images, threads);
    const auto line = [&](int worker) { return at.worker_in(scratch, worker) + at.line; };
    const auto moments = [&](T* first, int64_t index) {
        return Moments{doubles(first) + index * Moments::size(channels), channels};
    };
    T* const sets = at.shared_in(scratch);  // (held, K) of images, then K of all images
    Cleared<T> images = at.images_in(scratch);
    for (int64_t k = 0; k < count; ++k) moments(sets, held * count + k).clear();

    for (int64_t begin = 0; begin < shape.images; begin += held) {
        const int64_t end = std::min(shape.images, begin + held);
        for_images(begin, end, threads, [&](int64_t image, int thread, int inner) {
            T *const planes = images.of(thread, at.planes), *const bands = planes + at.bands;
            read_image(x.part(image), s.x, planes, channels, line, inner, thread);
            for (int64_t k = 0; k < count; ++k) {
                for_pieces(s.blocks.bands, inner, thread, [&](int64_t band, int worker) {
                    T *const d = at.worker_in(scratch, worker) + at.d, *const block_set = d - at.d + at.block;
                    const Moments sum = moments(bands, band);
                    sum.clear();
                    for (int64_t block = s.blocks.first(band); block < s.blocks.first(band + 1); ++block) {
                        s.depthwise(k, block, planes, nullptr, d);
                        take_moments(s, block, d, moments(block_set, 0));
                        sum.add(moments(block_set, 0));
                    }
                });
                const Moments sum = moments(sets, (image - begin) * count + k);
                sum.clear();
                for (int64_t band = 0; band < s.blocks.bands; ++band) sum.add(moments(bands, band));
            }
        });
        for_pieces(count, threads, 0, [&](int64_t k, int) {
            for (int64_t image = begin; image < end; ++image) {
                moments(sets, held * count + k).add(moments(sets, (image - begin) * count + k));
            }
        });
    }
    for (int64_t k = 0; k < count; ++k) {
        const Moments sum = moments(sets, held * count + k);
        T* const covariance = covariances + k * channels * channels;
        for (int64_t i = 0; i < channels; ++i) {
            means[k * channels + i] = T(sum.mean()[i]);
            for (int64_t j = i; j < channels; ++j) {
                const T value = T(sum.products(i)[j] / sum.count());
                covariance[i * channels + j] = covariance[j * channels + i] = value;
            }
        }
    }
}

#define INSTANTIATE(T)                                                          \
    template int64_t separable_moments_scratch<T>(const DepthwiseShape&, int);  \
    template void separable_moments<T>(const DepthwiseShape&, const Source<T>&, \
                                       const std::vector<const T*>&, T*, T*, T*, int);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace srnas_fast
