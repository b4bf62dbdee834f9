// How a dense tensor with channels is cut into pieces of work, the same ones for any number of threads.
//
// Element i of the tensor belongs to channel (i / inner) % channels: inner is 1 in channels_last and H * W in
// NCHW. A piece is walked in rows of `period` elements, in such a way that element j of every row has the
// same channel. Then a loop over j needs no index arithmetic, and reductions go into `period` accumulators of
// their own, which the compiler vectorises without reordering a sum.
//
// There are two ways to get there. Periodic: the pattern of channels repeats after channels * inner elements,
// and the period is a multiple of that. Planar, where that would be too long: a piece lies within one plane,
// and all its elements share a channel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <vector>

namespace srnas_fast {

// Numbers of type T, at first 0, from a cache line's start on: a vector that crosses lines is slow to store
// and load.
template <class T>
class Lines {
    struct alignas(64) Line {
        T values[64 / sizeof(T)];
    };
    std::vector<Line> lines_;

public:
    explicit Lines(int64_t count) : lines_((count * sizeof(T) + 63) / 64) {}
    T* data() { return lines_.data()->values; }
    const T* data() const { return lines_.data()->values; }
    void clear() { std::fill(lines_.begin(), lines_.end(), Line{}); }
};

struct Piece {
    int64_t begin;    // first element
    int64_t count;    // elements
    int64_t channel;  // the channel of all elements (planar), or 0
};

class ChannelPieces {
    static constexpr int64_t kLanes = 16;  // a period is a multiple of it (any vector register) where it can

public:
    static constexpr int kRows = 4;  // that a step of a walk has at most

    ChannelPieces(int64_t size, int64_t channels, int64_t inner) : channels_(channels) {
        constexpr int64_t kLongest = 2048;  // elements of a period: what fits several times into the L1 cache
        constexpr int64_t kShortest = 256;  // below, the loops over a period would be too short
        constexpr int64_t kPiece = 8192;  // elements of a piece, about: a share of the L1 cache or twice that
        constexpr int64_t kPlane = 64;    // elements of a plane that are worth a piece
        planar_ = channels > 1 && channels * inner > kLongest && inner >= kPlane;
        inner_ = planar_ || channels == 1 ? 1 : inner;
        width_ = planar_ ? 1 : channels;
        row_ = planar_ ? inner : size;
        period_ = width_ * inner_;
        if (const int64_t aligned = std::lcm(period_, kLanes); aligned <= kLongest) period_ = aligned;
        period_ *= (kShortest + period_ - 1) / period_;
        piece_ = period_ * std::max<int64_t>(1, kPiece / period_);
        per_row_ = (row_ + piece_ - 1) / piece_;
        count_ = row_ > 0 ? size / row_ * per_row_ : 0;
    }

    int64_t count() const { return count_; }
    bool planar() const { return planar_; }
    int64_t period() const { return period_; }
    int64_t channels() const { return channels_; }
    int64_t width() const { return width_; }  // channels that occur in one piece

    Piece piece(int64_t index) const {
        const int64_t row = index / per_row_, offset = index % per_row_ * piece_;
        return {row * row_ + offset, std::min(piece_, row_ - offset), planar_ ? row % channels_ : 0};
    }

    // Calls step(R, first element, elements of a row) for R rows, a compile-time constant, of a period each
    // (the last row of all may be shorter), so that what is kept per element of a period is loaded and stored
    // once for R rows.
    template <class Step>
    void walk(const Piece& piece, Step step) const {
        int64_t done = 0;
        for (; done + kRows * period_ <= piece.count; done += kRows * period_) {
            step(std::integral_constant<int, kRows>(), piece.begin + done, period_);
        }
        for (; done < piece.count; done += period_) {
            step(std::integral_constant<int, 1>(), piece.begin + done, std::min(period_, piece.count - done));
        }
    }

    // Adds values[j], j < period, to sums[channel of j within the piece].
    template <class T>
    void fold(const T* __restrict values, double* __restrict sums) const {
        if (width_ == 1) {
            double lanes[kLanes] = {};  // several sums at once: one alone would wait for each addition
            for (int64_t j = 0; j < period_; j += kLanes) {
                for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += values[j + lane];
            }
            for (const double sum : lanes) sums[0] += sum;
        } else if (inner_ == 1) {
            for (int64_t j = 0; j < period_; j += width_) {
                for (int64_t c = 0; c < width_; ++c) sums[c] += values[j + c];
            }
        } else {
            for (int64_t j = 0; j < period_;) {
                for (int64_t c = 0; c < width_; ++c) {
                    for (int64_t i = 0; i < inner_; ++i) sums[c] += values[j++];
                }
            }
        }
    }

    // values[c] of the channels in one piece, spread over a period: spread[j] = values[channel of j].
    template <class T, class Value>
    void spread(const Value* values, T* spread) const {
        T* end = spread;
        for (int64_t c = 0; c < width_; ++c, end += inner_) std::fill(end, end + inner_, T(values[c]));
        for (int64_t done = width_ * inner_; done < period_; done *= 2) {
            std::copy(spread, spread + std::min(done, period_ - done), spread + done);
        }
    }

    // A row of coefficients per candidate: a period of them, or (planar) one for each channel.
    int64_t table_width() const { return planar_ ? channels_ : period_; }

    // Fills such a row from one value per channel (step 1) or one for all (step 0), or with 0 without values.
    template <class T>
    void fill(const T* values, int64_t step, T* row) const {
        std::vector<T> all(channels_);
        for (int64_t c = 0; c < channels_; ++c) all[c] = values ? values[c * step] : T(0);
        if (planar_) {
            std::copy(all.begin(), all.end(), row);
        } else {
            spread(all.data(), row);
        }
    }

private:
    int64_t channels_;
    bool planar_;
    int64_t inner_, width_;  // within a piece
    int64_t row_, period_, piece_, per_row_, count_;
};

}  // namespace srnas_fast
