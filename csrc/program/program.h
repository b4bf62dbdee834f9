// What a program is: the candidates of a mixed operation as numbers, and how they share work. No device, no
// memory, no modules; a device (csrc/cpu) runs it with the addresses that one call brings.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace srnas_fast {

enum class ActivationKind { none, relu, leaky, prelu, sine };
enum class StageKind { dense, separable, max_pool, average_pool };
enum class CandidateKind { zero, identity, staged };
// A norm behind a stage: none, one that uses its batch, one that uses its running statistics.
enum class NormKind { none, batch, frozen };

// Where the parameters of a stage stand among those of the program; -1: it has none.
struct Slots {
    int64_t depthwise, conv, bias, gamma, beta, slope;
};

// What a stage leaves for the backward pass, as places among the numbers that its candidate keeps: of its
// norm the mean, the biased variance and one over the standard deviation (O each); of a separable stage whose
// norm uses its batch also the mean of the depthwise outputs (C) and the pointwise matrix times their
// covariance (O, C).
struct Kept {
    int64_t mean = -1, variance = -1, rstd = -1, centre = -1, projected = -1;
};

// [activation -] convolution or pooling [- norm], as in srnas_fast/mixed/patterns.py.
struct Stage {
    StageKind kind;
    ActivationKind activation;
    double slope;    // of a leaky one
    int64_t slopes;  // parameters of a PReLU: 1 or one for each channel
    int64_t inputs, outputs, size, dilation, stride;
    bool counts_padding;  // of an average
    NormKind norm;
    double eps, momentum;  // momentum < 0: the mean over all batches so far
    bool moves;            // whether the norm's running statistics follow its batches
    bool counts;           // whether it counts them
    int64_t statistics;    // the norm's place among the program's running statistics; -1: it has none
    Slots slots;
    int64_t candidate;
    Kept kept;

    int64_t columns() const { return inputs * (kind == StageKind::dense ? size * size : 1); }
    int64_t reach() const { return dilation * (size / 2); }
};

struct Candidate {
    CandidateKind kind;
    int64_t group;  // which activated input it reads; -1 where it has no stages
    std::vector<Stage> stages;
    int64_t kept = 0;  // how many numbers it keeps
};

// Dense candidates that run as one convolution of this dilation; steps: the dilation of each kernel inside
// the merged one, of `size`.
struct Merged {
    int64_t dilation, size;
    std::vector<int64_t> members, steps;
};

struct Program {
    int64_t channels, outputs, stride;  // of what the candidates read and return
    int64_t partial;                    // the candidates see the first 1 / partial of the channels
    bool merge;
    std::vector<Candidate> candidates;
    int64_t groups = 0;

    // Gives each stage its places among what its candidate keeps, and counts.
    void lay_out();
    // Where among the numbers kept those of each live candidate begin: nothing of the dead is kept.
    std::vector<int64_t> kept_from(uint64_t live) const;
    // The live candidates that read one activated input, of one kind: stages at first.
    std::vector<int64_t> members(int64_t group, uint64_t live, StageKind kind, size_t stages) const;
    // How the live dense candidates of a group that are linear maps run: those whose kernels fit into one
    // another as one.
    std::vector<Merged> merged(int64_t group, uint64_t live) const;

    const Stage& first(int64_t candidate) const { return candidates[candidate].stages.front(); }
    const Stage& last(int64_t candidate) const { return candidates[candidate].stages.back(); }
};

inline bool alive(uint64_t live, int64_t candidate) { return live >> candidate & 1; }

}  // namespace srnas_fast
