#include "separable.h"

#include "parallel.h"
#include "products.h"

namespace srnas_fast {
namespace {

// Rows of the outputs that are made at a time, so that all channels of them stay in the cache, and bands of
// such blocks: sums run within a band, then over bands, then over images, so they are the same for any number
// of threads.
struct Blocks {
    int64_t height, rows, count, bands;

    template <class T>
    static Blocks make(int64_t height, int64_t row, int64_t channels) {
        constexpr int64_t kBytes = 80 << 10, kBands = 8;
        int64_t rows = std::max<int64_t>(1, kBytes / int64_t(sizeof(T)) / (row * channels));
        for (const int64_t unit : {8, 4}) {  // convolve likes rows by the four, also with dilation 2
            if (rows >= unit) {
                rows -= rows % unit;
                break;
            }
        }
        rows = std::min(rows, height);
        const int64_t count = divide_up(height, rows);
        return {height, rows, count, std::min(count, kBands)};
    }
    int64_t begin(int64_t block) const { return block * rows; }
    int64_t size(int64_t block) const { return std::min(rows, height - begin(block)); }
    int64_t first(int64_t band) const { return count * band / bands; }
};

// Takes pieces of the scratch, each on a cache line of its own.
template <class T>
class Slices {
public:
    int64_t take(int64_t elements) {
        constexpr int64_t kLine = 64 / sizeof(T);
        const int64_t begin = end_;
        end_ += round_up(elements, kLine);
        return begin;
    }
    int64_t take_doubles(int64_t count) { return take(count * int64_t(sizeof(double) / sizeof(T))); }
    int64_t end() const { return end_; }

private:
    int64_t end_ = 0;
};

template <class T>
double* doubles(T* scratch) {
    return reinterpret_cast<double*>(scratch);
}

// The scratch of each kernel: one part for each image at work, which begins with planes of zeros, one for
// each thread, and one for all.
template <class T>
struct Scratch {
    int images, threads;
    Slices<T> image, worker, shared;
    int64_t line;  // of a worker: room for a row of all channels

    Scratch(const DepthwiseShape& shape, int64_t outputs, int threads)
        : images(images_at_once(shape.images, threads)), threads(threads) {
        line = worker.take(std::max(shape.channels, outputs) * shape.width);
    }
    int64_t size() const { return shared_begin() + shared.end(); }
    int64_t shared_begin() const { return images * image.end() + threads * worker.end(); }
    Cleared<T> images_in(T* scratch) const { return {scratch, image.end(), images}; }
    T* worker_in(T* scratch, int thread) const {
        return scratch + images * image.end() + thread * worker.end();
    }
    T* shared_in(T* scratch) const { return scratch + shared_begin(); }
};

// Copies one image into planes (in) or back, by all `inner` threads; line(worker) is room for a row.
template <class T, class Line, class Copy>
void by_rows(const Planes& planes, Line line, int inner, int thread, Copy copy) {
    constexpr int64_t kRows = 16;
    for_pieces(divide_up(planes.height, kRows), inner, thread, [&](int64_t piece, int worker) {
        copy(piece * kRows, std::min(planes.height, (piece + 1) * kRows), line(worker));
    });
}

template <class T, bool in, class Line>
void copy_image(const Tensor<Outside<T, in>>& outside, const Planes& planes, T* inside, int64_t channels,
                Line line, int inner, int thread) {
    by_rows<T>(planes, line, inner, thread, [&](int64_t begin, int64_t end, T* row) {
        copy_rows<T, in>(outside, planes, inside, channels, begin, end, row);
    });
}

template <class T, class Line>
void read_image(const Source<T>& outside, const Planes& planes, T* inside, int64_t channels, Line line,
                int inner, int thread) {
    by_rows<T>(planes, line, inner, thread, [&](int64_t begin, int64_t end, T* row) {
        read_rows(outside, planes, inside, channels, begin, end, row);
    });
}

// Images whose sums are held before they are added up, in their order; any number gives the same result.
inline int64_t wave(int64_t images, int threads) {
    constexpr int64_t kLeast = 16;
    return std::min(images, divide_up(kLeast, threads) * threads);
}

// What the three kernels share: the input as planes and blocks of rows of depthwise outputs.
template <class T>
struct Separable {
    const DepthwiseShape& shape;
    int64_t channels;
    Planes x, d;  // d: the outputs, without a border
    std::vector<Kernel<T>> kernels;
    Blocks blocks;
    int64_t buffer_row;  // elements from a channel to the next in a block of rows

    Separable(const DepthwiseShape& shape, const std::vector<const T*>& weights, int64_t outputs)
        : shape(shape),
          channels(shape.channels),
          x(shape.x_planes<T>()),
          d(shape.z_planes<T>()),
          blocks(Blocks::make<T>(shape.out_height(), d.row, std::max(channels, outputs))),
          buffer_row(spread<T>(blocks.rows * d.row)) {
        if (!weights.empty()) kernels = shape.kernels<T>(weights);
    }

    int64_t pixels(int64_t block) const { return blocks.size(block) * d.row; }

    // One block of rows of d_k - centre, all channels.
    void depthwise(int64_t k, int64_t block, const T* planes, const T* centres, T* buffer) const {
        for (int64_t c = 0; c < channels; ++c) {
            const T centre = centres ? centres[k * channels + c] : T(0);
            convolve(kernels[k], c, x, planes + c * x.plane, centre, blocks.begin(block), blocks.size(block),
                     buffer + c * buffer_row, d.row, d.row);
        }
    }

    // The planes that hold one block of rows: for copy_rows.
    Planes block_planes(int64_t block) const {
        Planes planes = d;
        planes.height = blocks.size(block);
        planes.plane = buffer_row;
        return planes;
    }
};

template <class T>
std::vector<Packed<T>> pack(const std::vector<const T*>& matrices, int64_t rows, int64_t columns) {
    std::vector<Packed<T>> packed;
    for (const T* matrix : matrices) packed.emplace_back(matrix, rows, columns);
    return packed;
}

// ---- separable_sum

template <class T>
struct SumScratch : Scratch<T> {
    int64_t planes, d, y;

    SumScratch(const Separable<T>& s, int64_t outputs, int threads) : Scratch<T>(s.shape, outputs, threads) {
        this->image.take(s.x.template size<T>(s.channels));
        planes = this->image.end();
        d = this->worker.take(s.channels * s.buffer_row);
        y = this->worker.take(outputs * s.buffer_row);
    }
};

}  // namespace

template <class T>
int64_t separable_sum_scratch(const DepthwiseShape& shape, int64_t outputs, int threads) {
    return SumScratch<T>(Separable<T>(shape, {}, outputs), outputs, threads).size();
}

template <class T>
void separable_sum(const DepthwiseShape& shape, const Source<T>& x, const std::vector<const T*>& depthwise,
                   const std::vector<const T*>& pointwise, const T* shift, const T* centres, int64_t outputs,
                   Tensor<T> y, bool accumulate, T* scratch, int threads) {
    const Separable<T> s(shape, depthwise, outputs);
    const SumScratch<T> at(s, outputs, threads);
    const auto matrices = pack(pointwise, outputs, s.channels);
    const std::vector<T> first = shift ? std::vector<T>(shift, shift + outputs) : std::vector<T>(outputs);
    const auto line = [&](int worker) { return at.worker_in(scratch, worker) + at.line; };
    Cleared<T> images = at.images_in(scratch);
    for_images(0, shape.images, threads, [&](int64_t image, int thread, int inner) {
        T* const planes = images.of(thread, at.planes);
        read_image(x.part(image), s.x, planes, s.channels, line, inner, thread);
        for_pieces(s.blocks.count, inner, thread, [&](int64_t block, int worker) {
            T *const d = at.worker_in(scratch, worker) + at.d, *const sum = d - at.d + at.y;
            const int64_t pixels = s.pixels(block);
            const Planes rows = s.block_planes(block);
            const Tensor<T> to = y.part(image, 0, s.blocks.begin(block));
            if (accumulate) copy_rows<T, true>(to.read_only(), rows, sum, outputs, 0, rows.height, nullptr);
            for (int64_t k = 0; k < shape.count(); ++k) {
                s.depthwise(k, block, planes, centres, d);
                const T* const start = k == 0 && !accumulate ? first.data() : nullptr;
                multiply(matrices[k], start, d, s.buffer_row, sum, s.buffer_row, pixels);
            }
            if (accumulate && shift) {
                for (int64_t o = 0; o < outputs; ++o) {
                    for (int64_t p = 0; p < pixels; ++p) sum[o * s.buffer_row + p] += shift[o];
                }
            }
            copy_rows<T, false>(to, rows, sum, outputs, 0, rows.height, nullptr);
        });
    });
}

// ---- separable_moments

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
struct MomentsScratch : Scratch<T> {
    int64_t planes, bands, d, block;

    MomentsScratch(const Separable<T>& s, int threads) : Scratch<T>(s.shape, 0, threads) {
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

// ---- separable_gradient

namespace {

template <class T>
struct GradientScratch : Scratch<T> {
    Planes dd, dx, dy;  // dy and d lie without a border
    int64_t x_at, dd_at, dy_at, planes, dx_at, bands, d;
    int64_t products, dysum, ddepthwise;  // shared: of the images that are held

    GradientScratch(const Separable<T>& s, int64_t outputs, int threads)
        : Scratch<T>(s.shape, outputs, threads),
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

#define INSTANTIATE(T)                                                                                    \
    template int64_t separable_sum_scratch<T>(const DepthwiseShape&, int64_t, int);                       \
    template int64_t separable_moments_scratch<T>(const DepthwiseShape&, int);                            \
    template int64_t separable_gradient_scratch<T>(const DepthwiseShape&, int64_t, int);                  \
    template void separable_sum<T>(const DepthwiseShape&, const Source<T>&, const std::vector<const T*>&, \
                                   const std::vector<const T*>&, const T*, const T*, int64_t, Tensor<T>,  \
                                   bool, T*, int);                                                        \
    template void separable_moments<T>(const DepthwiseShape&, const Source<T>&,                           \
                                       const std::vector<const T*>&, T*, T*, T*, int);                    \
    template void separable_gradient<T>(const DepthwiseShape&, const GradientInput<T>&,                   \
                                        const GradientOutput<T>&, T*, int);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace srnas_fast
