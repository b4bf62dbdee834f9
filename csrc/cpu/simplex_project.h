// Rows of logits to weights on the probability simplex, at least a radius away from its centre, and back.
#pragma once

#include <cstdint>

namespace srnas_fast {

// logits (rows, choices), contiguous, with at least one finite entry in each row and none that is NaN or
// +inf; radius[row * radius_step] is that of a row. Both passes find the supports from the logits.
template <class T>
struct SimplexRows {
    int64_t rows, choices;
    const T* logits;
    const double* radius;
    int64_t radius_step;
    bool as_published;
};

template <class T>
void simplex_project(const SimplexRows<T>& in, T* weights, int threads);

template <class T>
void simplex_project_backward(const SimplexRows<T>& in, const T* dweights, T* dlogits, int threads);

}  // namespace srnas_fast
