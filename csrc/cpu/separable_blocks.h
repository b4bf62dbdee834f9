// What the kernels of separable.h share: the input as planes, blocks of rows of depthwise outputs, and the
// scratch of the threads that make them.
#pragma once

#include "activation.h"
#include "multi_depthwise.h"
#include "parallel.h"
#include "products.h"

namespace srnas_fast {

// Rows of the outputs that are made at a time, so that all channels of them stay in the cache, and bands of
// such blocks: sums run within a band, then over bands, then over images, so they are the same for any number
// of threads.
struct RowBlocks {
    int64_t height, rows, count, bands;

    template <class T>
    static RowBlocks make(int64_t height, int64_t row, int64_t channels) {
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
class ScratchSlices {
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
struct SeparableScratch {
    int images, threads;
    ScratchSlices<T> image, worker, shared;
    int64_t line;  // of a worker: room for a row of all channels

    SeparableScratch(const DepthwiseShape& shape, int64_t outputs, int threads)
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

// The input as planes and the depthwise outputs by blocks of rows.
template <class T>
struct Separable {
    const DepthwiseShape& shape;
    int64_t channels;
    Planes x, d;  // d: the outputs, without a border
    std::vector<Kernel<T>> kernels;
    RowBlocks blocks;
    int64_t buffer_row;  // elements from a channel to the next in a block of rows

    Separable(const DepthwiseShape& shape, const std::vector<const T*>& weights, int64_t outputs)
        : shape(shape),
          channels(shape.channels),
          x(shape.x_planes<T>()),
          d(shape.z_planes<T>()),
          blocks(RowBlocks::make<T>(shape.out_height(), d.row, std::max(channels, outputs))),
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

}  // namespace srnas_fast
