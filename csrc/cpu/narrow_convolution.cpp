#include "narrow_convolution.h"

#include "parallel.h"
#include "products.h"

namespace srnas_fast {
namespace {

constexpr bool kWide = kVectorBytes == 64;  // 32 registers, else 16
constexpr int kVectors = kWide ? 4 : 2;     // of a tile: with the outputs of a band they fill the registers

// Calls work(n), n a compile-time constant from 1 to `most`.
template <int most, class Work>
inline void with_constant(int64_t n, Work work) {
    if constexpr (most > 1) {
        if (n < most) return with_constant<most - 1>(n, work);
    }
    work(std::integral_constant<int, most>{});
}

// A piece of work is a band of rows of an image, small enough for its planes to stay in the L2 cache, and for
// several threads to share one image. The bands depend on the shape only, so sums over them do not depend on
// the number of threads.
template <class T>
struct Bands {
    int64_t height, reach, rows, count;
    Planes planes;  // of a band of a tensor: its rows and those that the kernel reaches above and below
    int64_t
        lead;  // elements before the planes, so that the first pixel of a row lies at the start of a vector

    Bands(const NarrowShape& shape, int64_t channels) : height(shape.height), reach(shape.reach()) {
        constexpr int64_t kBytes = 640 << 10, kRows = 16, kPieces = 16;
        const int64_t row = Planes::make<T>(1, shape.width, reach, 1).row;
        const int64_t fit = kBytes / int64_t(sizeof(T)) / (channels * row) - 2 * reach;
        const int64_t share = divide_up(height, divide_up(kPieces, std::max<int64_t>(1, shape.images)));
        const int64_t least = std::max(kRows, 2 * reach);  // else there would be more rows around than inside
        const int64_t most = std::min(height, std::max(least, std::min(fit, share)));
        count = divide_up(height, most);
        rows = std::min(height, round_up(divide_up(height, count), 4));
        count = divide_up(height, rows);
        planes = Planes::make<T>(rows, shape.width, reach, 1);
        lead = round_up(reach, Lanes<T>) - reach;
    }
    int64_t begin(int64_t band) const { return band * rows; }
    int64_t size(int64_t band) const { return std::min(rows, height - begin(band)); }
    int64_t elements(int64_t channels) const { return spread<T>(lead + planes.template size<T>(channels)); }

    // Reads a band and what is around it by read(tensor from the band on, first row, row after the last one).
    template <class Read>
    void fill(int64_t channels, int64_t band, T* inside, Read read) const {
        const int64_t top = std::max(-reach, -begin(band));
        const int64_t bottom = std::min(size(band) + reach, height - begin(band));
        for (int64_t c = 0; c < channels; ++c) {
            T* const rows_above = inside + planes.at(c, -reach, -reach);
            T* const rows_below = inside + planes.at(c, bottom, -reach);
            std::fill(rows_above, rows_above + (top + reach) * planes.row, T(0));
            std::fill(rows_below, rows_below + (size(band) + reach - bottom) * planes.row, T(0));
        }
        read(top, bottom);
    }

    // source: one image.
    void read(const Source<T>& source, int64_t channels, int64_t band, T* inside) const {
        fill(channels, band, inside, [&](int64_t top, int64_t bottom) {
            read_rows<T>(source.part(0, 0, begin(band)), planes, inside, channels, top, bottom, nullptr);
        });
    }

    // dz: of image `image`; `other` has room for what this reads.
    void read(const NarrowGradient<T>& dz, int64_t image, int64_t channels, int64_t band, T* inside,
              T* other) const {
        fill(channels, band, inside, [&](int64_t top, int64_t bottom) {
            const auto copy = [&](const Tensor<const T>& from, T* to) {
                copy_rows<T, true>(from.part(image, 0, begin(band)), planes, to, channels, top, bottom,
                                   nullptr);
            };
            copy(dz.dy, inside);
            if (!dz.z.data) return;
            copy(dz.z, other);
            for (int64_t c = 0; c < channels; ++c) {
                const T scale = dz.scale[c], right = dz.right[c], centre = dz.centre[c],
                        offset = dz.offset[c];
                for (int64_t y = top; y < bottom; ++y) {
                    T* __restrict const row = inside + planes.at(c, y, 0);
                    const T* __restrict const z = other + planes.at(c, y, 0);
                    for (int64_t x = 0; x < planes.width; ++x)
                        row[x] = scale * row[x] + (right * (z[x] - centre) + offset);
                }
            }
        });
    }
};

// ---- z

template <class T, int M, int V>
inline void convolve_tile(const T* in, int64_t in_apart, const int64_t* offsets, int64_t terms,
                          const T* weights, const T* start, bool add, T* out, int64_t out_plane,
                          int64_t out_apart) {
    Vec<T> sums[M][V];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            sums[m][v] = broadcast(start[m]);
            if (add) sums[m][v] += load(out + m * out_plane + v * out_apart);
        }
    }
    for (int64_t t = 0; t < terms; ++t, weights += M) {
        Vec<T> pixels[V];
        const T* from = in + offsets[t];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v, from = step(from, in_apart)) pixels[v] = keep(load(from));
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const Vec<T> weight = broadcast(weights[m]);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sums[m][v] += weight * pixels[v];
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(out + m * out_plane + v * out_apart, sums[m][v]);
    }
}

// A convolution that is ready to run on bands of planes.
template <class T>
class Convolution {
public:
    // kernel: (outputs, channels * taps)
    Convolution(const T* kernel, const T* bias, int64_t outputs, int64_t channels, const NarrowShape& shape,
                const Planes& planes)
        : width_(shape.width),
          packed_(kernel, outputs, channels * shape.taps()),
          start_(outputs),
          planes_(planes) {
        if (bias) start_.assign(bias, bias + outputs);
        for (int64_t c = 0; c < channels; ++c) {
            for (int64_t t = 0; t < shape.taps(); ++t) {
                const int64_t down = t / shape.size * shape.dilation - shape.reach();
                const int64_t right = t % shape.size * shape.dilation - shape.reach();
                offsets_.push_back(planes.at(c, down, right) - planes.at(0, 0, 0));
            }
        }
    }

    // Rows that are made at a time, and how they lie in a buffer that stays in the L1 cache.
    static Planes block(int64_t outputs, int64_t height, int64_t width) {
        constexpr int64_t kBytes = 24 << 10;
        const int64_t row = round_up(width, Lanes<T>);
        const int64_t fit = kBytes / int64_t(sizeof(T)) / (outputs * row);
        return Planes::make<T>(std::min(height, std::max<int64_t>(4, fit - fit % 4)), width, 0, 1);
    }

    // Rows [y, y + rows) of all outputs: from the planes `in` to `out`, where lines are whole vectors, or
    // added to it.
    void run(const T* in, int64_t y, int64_t rows, bool add, T* out, int64_t out_plane,
             int64_t out_row) const {
        constexpr int L = Lanes<T>;
        const int64_t vectors = divide_up(width_, L);
        in += planes_.at(0, y, 0);
        // A tile takes neighbours of a row, or one vector of several rows: whatever makes fewer tiles.
        if (rows * divide_up(vectors, kVectors) <= vectors * divide_up(rows, kVectors)) {
            for (int64_t row = 0; row < rows; ++row, in += planes_.row, out += out_row)
                strip(in, L, vectors, add, out, out_plane, L);
        } else {
            for (int64_t v = 0; v < vectors; ++v, in += L, out += L)
                strip(in, planes_.row, rows, add, out, out_plane, out_row);
        }
    }

private:
    void strip(const T* in, int64_t in_apart, int64_t vectors, bool add, T* out, int64_t out_plane,
               int64_t out_apart) const {
        const int64_t tiles = divide_up(vectors, kVectors);
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t begin = vectors * tile / tiles, count = vectors * (tile + 1) / tiles - begin;
            with_constant<kVectors>(count, [&](auto V) {
                for (int64_t band = 0; band < packed_.bands(); ++band) {
                    const int64_t first = packed_.begin(band);
                    with_constant<Packed<T>::kBand>(packed_.begin(band + 1) - first, [&](auto M) {
                        convolve_tile<T, decltype(M)::value, decltype(V)::value>(
                            in + begin * in_apart, in_apart, offsets_.data(), int64_t(offsets_.size()),
                            packed_.values(band), start_.data() + first, add,
                            out + first * out_plane + begin * out_apart, out_plane, out_apart);
                    });
                }
            });
        }
    }

    int64_t width_;
    Packed<T> packed_;
    std::vector<T> start_;
    Planes planes_;
    std::vector<int64_t> offsets_;  // of each term's input from the output's pixel
};

// Runs a convolution on one band of planes, writes the result to the tensor `to` (which begins at the band)
// or adds it, and shows each block of it to look(block, element strides of a plane and a row, rows, first
// row).
template <class T, class Look>
void convolve_band(const Convolution<T>& convolution, const T* planes, int64_t outputs, int64_t rows,
                   const Planes& block, const Tensor<T>& to, bool add, T* buffer, Look look) {
    const bool direct = to.w == 1 && block.width % Lanes<T> == 0;
    for (int64_t y = 0; y < rows; y += block.height) {
        const int64_t count = std::min(block.height, rows - y);
        const Tensor<T> target = to.part(0, 0, y);
        if (direct) {
            convolution.run(planes, y, count, add, target.data, target.c, target.h);
            look(target.data, target.c, target.h, count, y);
        } else {
            if (add) copy_rows<T, true>(target.read_only(), block, buffer, outputs, 0, count, nullptr);
            convolution.run(planes, y, count, add, buffer, block.plane, block.row);
            look(buffer, block.plane, block.row, count, y);
            copy_rows<T, false>(target, block, buffer, outputs, 0, count, nullptr);
        }
    }
}

// ---- moments of z

// Pixels of one channel: their number, mean and sum of squares around it.
struct Moments {
    double count, mean, squares;

    // Joins another set to this one (Chan, Golub, LeVeque 1979).
    void add(const Moments& other) {
        const double total = count + other.count, share = other.count / total, distance = other.mean - mean;
        squares += other.squares + distance * distance * share * count;
        mean += distance * share;
        count = total;
    }
};

template <class T, class Term>
inline T sum_rows(const T* z, int64_t row, int64_t rows, int64_t vectors, Term term) {
    Vec<T> sums[2] = {};
    for (int64_t y = 0; y < rows; ++y, z += row) {
        int64_t v = 0;
        for (; v + 2 <= vectors; v += 2) {
            sums[0] += term(load(z + v * Lanes<T>));
            sums[1] += term(load(z + (v + 1) * Lanes<T>));
        }
        if (v < vectors) sums[0] += term(load(z + v * Lanes<T>));
    }
    sums[0] += sums[1];
    T total;
    sum_lanes<1>(sums, &total);
    return total;
}

// The moments of rows of a channel. What lies beyond the width of a row is overwritten.
template <class T>
Moments moments_of(T* z, int64_t row, int64_t rows, int64_t width) {
    const int64_t vectors = divide_up(width, Lanes<T>), whole = vectors * Lanes<T>;
    const auto set_tails = [&](T value) {
        for (int64_t y = 0; y < rows && whole > width; ++y)
            std::fill(z + y * row + width, z + y * row + whole, value);
    };
    const double count = double(rows * width);
    set_tails(T(0));
    const T sum = sum_rows(z, row, rows, vectors, [](Vec<T> v) { return v; });
    const T centre = T(double(sum) / count);  // the mean but for rounding
    const Vec<T> centres = broadcast(centre);
    set_tails(centre);
    const double rest = sum_rows(z, row, rows, vectors, [&](Vec<T> v) { return v - centres; });
    const double squares =
        sum_rows(z, row, rows, vectors, [&](Vec<T> v) { return (v - centres) * (v - centres); });
    return {count, double(centre) + rest / count, squares - rest * rest / count};
}

// ---- the weight gradient

// A tile is the products of A planes of dz with B planes of x: as many as the registers hold.
constexpr int kTaps = kWide ? 5 : 3;
constexpr int most_outputs(int64_t taps) {
    if (!kWide) return taps <= 2 ? 4 : 3;
    return taps <= 4 ? 6 : 5;
}

template <class T, int A, int B>
inline void correlate_tile(const T* dz, const T* x, const Planes& planes, int64_t apart, int64_t rows,
                           int64_t vectors, T* out, int64_t out_plane, int64_t out_apart) {
    Vec<T> sums[A * B] = {};
    const int64_t plane = planes.plane;
    for (int64_t y = 0; y < rows; ++y, dz += planes.row, x += planes.row) {
        for (int64_t v = 0; v < vectors * Lanes<T>; v += Lanes<T>) {
            Vec<T> left[A];
            const T* from = dz + v;
#pragma GCC unroll 8
            for (int a = 0; a < A; ++a, from = step(from, plane)) left[a] = keep(load(from));
            from = x + v;
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b, from = step(from, apart)) {
                const Vec<T> right = keep(load(from));
#pragma GCC unroll 8
                for (int a = 0; a < A; ++a) sums[a * B + b] += left[a] * right;
            }
        }
    }
    T totals[A * B];
    sum_lanes<A * B>(sums, totals);
    for (int a = 0; a < A; ++a) {
        for (int b = 0; b < B; ++b) out[a * out_plane + b * out_apart] += totals[a * B + b];
    }
}

// out (outputs, channels, taps) += the sums over one band of rows of dz * (x as the tap sees it). dz is zero
// beyond its width.
template <class T>
void correlate_band(const NarrowShape& shape, const Planes& planes, const T* dz, const T* x, int64_t rows,
                    T* out) {
    constexpr int64_t kBytes = 24 << 10;  // of a block of dz that stays in the L1 cache
    const bool pointwise = shape.size == 1;
    // The planes of a tile: taps of a row of the kernel, or channels if there is but one tap.
    const int64_t line = pointwise ? shape.channels : shape.size;
    const int64_t groups = divide_up(line, pointwise ? std::min(4, kTaps) : kTaps);
    const int64_t apart = pointwise ? planes.plane : shape.dilation;
    const int64_t taps = shape.taps(), vectors = divide_up(planes.width, Lanes<T>);
    const int64_t outputs = most_outputs(divide_up(line, groups)), bands = divide_up(shape.outputs, outputs);
    const int64_t fit = kBytes / int64_t(sizeof(T)) / (outputs * vectors * Lanes<T>);
    const int64_t step = std::max<int64_t>(4, fit);
    for (int64_t y = 0; y < rows; y += step) {
        const int64_t count = std::min(step, rows - y);
        for (int64_t band = 0; band < bands; ++band) {
            const int64_t o = shape.outputs * band / bands, height = shape.outputs * (band + 1) / bands - o;
            for (int64_t c = 0; c < (pointwise ? 1 : shape.channels); ++c) {
                for (int64_t i = 0; i < shape.size; ++i) {
                    const T* const pixels =
                        x + planes.at(c, y + i * shape.dilation - shape.reach(), -shape.reach());
                    for (int64_t group = 0; group < groups; ++group) {
                        const int64_t first = line * group / groups;
                        with_constant<kTaps>(line * (group + 1) / groups - first, [&](auto B) {
                            with_constant<most_outputs(decltype(B)::value)>(height, [&](auto A) {
                                correlate_tile<T, decltype(A)::value, decltype(B)::value>(
                                    dz + planes.at(o, y, 0), pixels + first * apart, planes, apart, count,
                                    vectors, out + (o * shape.channels + c) * taps + i * shape.size + first,
                                    shape.channels * taps, 1);
                            });
                        });
                    }
                }
            }
        }
    }
}

// ---- scratch: for each thread planes, which begin as zeros, and a block of results; for each piece sums

template <class T>
struct Scratch {
    int64_t x, dz, block, thread, sums;

    Scratch(const NarrowShape& shape, const Bands<T>& bands, bool backward) {
        const int64_t results = backward ? shape.channels : shape.outputs;
        // Also for what is read beside dy, which the gradient of a norm needs.
        x = bands.elements(backward ? std::max(shape.channels, shape.outputs) : shape.channels);
        dz = backward ? bands.elements(shape.outputs) : 0;
        block = spread<T>(Convolution<T>::block(results, bands.rows, shape.width).template size<T>(results));
        thread = x + dz + block;
        sums = backward ? shape.outputs * shape.channels * shape.taps()
                        : shape.outputs * int64_t(sizeof(Moments) / sizeof(T));
    }
};

// In how many runs the pieces add up the kernel's gradient, each run on numbers of its own: not so many that
// the numbers of large kernels take more room than the images, and enough to keep several threads busy.
inline int64_t gradient_runs(const NarrowShape& shape, int64_t pieces) {
    const int64_t pixels = shape.images * shape.height * shape.width;
    return std::min(pieces, std::max<int64_t>(8, pixels / (shape.outputs * shape.taps())));
}

template <class T>
Bands<T> bands_of(const NarrowShape& shape, bool backward) {
    return {shape, shape.channels + (backward ? shape.outputs : 0)};
}

}  // namespace

template <class T>
int64_t narrow_convolution_scratch(const NarrowShape& shape, bool backward, int threads) {
    const Bands<T> bands = bands_of<T>(shape, backward);
    const Scratch<T> sizes(shape, bands, backward);
    const int64_t pieces = shape.images * bands.count;
    return threads * sizes.thread + (backward ? gradient_runs(shape, pieces) : pieces) * sizes.sums;
}

template <class T>
void narrow_convolution(const NarrowShape& shape, const Source<T>& x, const T* kernel, const T* bias,
                        Tensor<T> z, bool accumulate, T* mean, T* variance, T* scratch, int threads) {
    const Bands<T> bands = bands_of<T>(shape, false);
    const Scratch<T> sizes(shape, bands, false);
    const int64_t outputs = shape.outputs, pieces = shape.images * bands.count;
    const Convolution<T> convolution(kernel, bias, outputs, shape.channels, shape, bands.planes);
    const Planes block = Convolution<T>::block(outputs, bands.rows, shape.width);
    Moments* const moments = reinterpret_cast<Moments*>(scratch + threads * sizes.thread);
    Cleared<T> cleared(scratch, sizes.thread, threads);
    for_pieces(pieces, threads, 0, [&](int64_t piece, int thread) {
        const int64_t image = piece / bands.count, band = piece % bands.count;
        T *const begin = cleared.of(thread, sizes.x), *const planes = begin + bands.lead;
        Moments* const sums = moments + piece * outputs;
        if (mean) std::fill_n(sums, outputs, Moments{});
        const auto look = [&](T* values, int64_t plane, int64_t row, int64_t rows, int64_t) {
            for (int64_t o = 0; mean && o < outputs; ++o)
                sums[o].add(moments_of(values + o * plane, row, rows, shape.width));
        };
        bands.read(x.part(image), shape.channels, band, planes);
        convolve_band(convolution, planes, outputs, bands.size(band), block,
                      z.part(image, 0, bands.begin(band)), accumulate, begin + sizes.x + sizes.dz, look);
    });
    for (int64_t o = 0; mean && o < outputs; ++o) {
        Moments all{};
        for (int64_t piece = 0; piece < pieces; ++piece) all.add(moments[piece * outputs + o]);
        mean[o] = T(all.mean);
        variance[o] = T(all.squares / all.count);
    }
}

template <class T>
void narrow_convolution_backward(const NarrowShape& shape, const NarrowGradient<T>& dz, const Source<T>& x,
                                 const T* kernel, Tensor<T> dx, bool accumulate, T* dkernel, T* scratch,
                                 int threads) {
    const Bands<T> bands = bands_of<T>(shape, true);
    const Scratch<T> sizes(shape, bands, true);
    const int64_t outputs = shape.outputs, channels = shape.channels, taps = shape.taps();
    const int64_t pieces = shape.images * bands.count;
    std::vector<T> flipped(channels * outputs * taps);  // (channels, outputs, taps), the taps in reverse
    for (int64_t o = 0; o < outputs; ++o) {
        for (int64_t c = 0; c < channels; ++c) {
            const T* const from = kernel + (o * channels + c) * taps;
            std::reverse_copy(from, from + taps, flipped.data() + (c * outputs + o) * taps);
        }
    }
    const Convolution<T> convolution(flipped.data(), nullptr, channels, outputs, shape, bands.planes);
    const Planes block = Convolution<T>::block(channels, bands.rows, shape.width);
    T* const sums = scratch + threads * sizes.thread;
    Cleared<T> cleared(scratch, sizes.thread, threads);
    const auto do_piece = [&](int64_t piece, int thread, T* sums_of_run) {
        const int64_t image = piece / bands.count, band = piece % bands.count, rows = bands.size(band);
        T *const begin = cleared.of(thread, sizes.x + sizes.dz), *const x_planes = begin + bands.lead;
        T *const dz_planes = x_planes + sizes.x, *const buffer = begin + sizes.x + sizes.dz;
        bands.read(dz, image, outputs, band, dz_planes, x_planes);
        if (dx.data) {
            convolve_band(convolution, dz_planes, channels, rows, block, dx.part(image, 0, bands.begin(band)),
                          accumulate, buffer, [](const T*, int64_t, int64_t, int64_t, int64_t) {});
        }
        if (dkernel) {
            bands.read(x.part(image), channels, band, x_planes);
            correlate_band(shape, bands.planes, dz_planes, x_planes, rows, sums_of_run);
        }
    };
    const int64_t runs = dkernel ? gradient_runs(shape, pieces) : pieces;
    for_pieces(runs, threads, 0, [&](int64_t run, int thread) {
        T* const sums_of_run = sums + run * sizes.sums;
        if (dkernel) std::fill_n(sums_of_run, sizes.sums, T(0));
        for (int64_t piece = pieces * run / runs; piece < pieces * (run + 1) / runs; ++piece)
            do_piece(piece, thread, sums_of_run);
    });
    if (!dkernel) return;
    constexpr int64_t kPart = 1024;
    for_pieces(divide_up(sizes.sums, kPart), threads, 0, [&](int64_t part, int) {
        const int64_t begin = part * kPart, count = std::min(kPart, sizes.sums - begin);
        double totals[kPart] = {};
        for (int64_t run = 0; run < runs; ++run) {
            for (int64_t i = 0; i < count; ++i) totals[i] += double(sums[run * sizes.sums + begin + i]);
        }
        std::copy_n(totals, count, dkernel + begin);
    });
}

#define INSTANTIATE(T)                                                                                       \
    template int64_t narrow_convolution_scratch<T>(const NarrowShape&, bool, int);                           \
    template void narrow_convolution<T>(const NarrowShape&, const Source<T>&, const T*, const T*, Tensor<T>, \
                                        bool, T*, T*, T*, int);                                              \
    template void narrow_convolution_backward<T>(const NarrowShape&, const NarrowGradient<T>&,               \
                                                 const Source<T>&, const T*, Tensor<T>, bool, T*, T*, int);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace srnas_fast
