// Rows of logits to weights on the probability simplex, at least a radius away from its centre, and back.
#pragma once

#include "device.h"

namespace srnas_fast_cuda {

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

// T is float or double; computed in double.
template <class T>
void simplex_project(const SimplexRows<T>& in, T* weights, void* stream);

template <class T>
void simplex_project_backward(const SimplexRows<T>& in, const T* dweights, T* dlogits, void* stream);

}  // namespace srnas_fast_cuda
