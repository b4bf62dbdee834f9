// Fixed pieces of work on any number of threads.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace srnas_fast {

// work(piece, thread) for each piece in [0, pieces). With one thread it runs on the caller's, as number
// `thread`.
template <class Work>
void for_pieces(int64_t pieces, int threads, int thread, Work work) {
    if (threads <= 1 || pieces <= 1) {
        for (int64_t piece = 0; piece < pieces; ++piece) work(piece, thread);
        return;
    }
    const int64_t share = pieces / (16 * threads) + 1;  // taken at a time: few enough to end together
#pragma omp parallel for num_threads(threads) schedule(dynamic, share)
    for (int64_t piece = 0; piece < pieces; ++piece) work(piece, omp_get_thread_num());
}

// work(image, thread, inner threads) for each image in [begin, end): as long as there is one image for each
// thread, every thread has an image to itself, which stays in its cache; the rest is shared image by image.
template <class Work>
void for_images(int64_t begin, int64_t end, int threads, Work work) {
    const int64_t alone = (end - begin) / threads * threads;
    for_pieces(alone, threads, 0, [&](int64_t i, int thread) { work(begin + i, thread, 1); });
    for (int64_t image = begin + alone; image < end; ++image) work(image, 0, threads);
}

// The highest number of images that for_images has at work at a time: threads below it get work.
inline int images_at_once(int64_t images, int threads) { return images < threads ? 1 : threads; }

// The part of each thread's scratch that has to begin as zeros; a thread clears its own when it first needs
// it.
template <class T>
class Cleared {
public:
    Cleared(T* scratch, int64_t thread_size, int threads)
        : scratch_(scratch), thread_size_(thread_size), done_(threads, false) {}
    T* of(int thread, int64_t size) {
        T* const begin = scratch_ + thread * thread_size_;
        if (!done_[thread]) std::fill_n(begin, size, T(0));
        done_[thread] = true;
        return begin;
    }

private:
    T* scratch_;
    int64_t thread_size_;
    std::vector<char> done_;  // not bits: each thread writes its own
};

}  // namespace srnas_fast
