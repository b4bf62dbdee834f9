#include "separable.h"
#include "separable_blocks.h"

namespace srnas_fast {
namespace {

template <class T>
struct SumScratch : SeparableScratch<T> {
    int64_t planes, d, y;

    SumScratch(const Separable<T>& s, int64_t outputs, int threads)
        : SeparableScratch<T>(s.shape, outputs, threads) {
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

#define INSTANTIATE(T)                                                                                    \
    template int64_t separable_sum_scratch<T>(const DepthwiseShape&, int64_t, int);                       \
    template void separable_sum<T>(const DepthwiseShape&, const Source<T>&, const std::vector<const T*>&, \
                                   const std::vector<const T*>&, const T*, const T*, int64_t, Tensor<T>,  \
                                   bool, T*, int);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace srnas_fast
