// A linear map and the norm behind it as one affine map, and its gradients: algebra on small matrices, in
// double.
//
// Let v be what the map z = P v + b reads (O x C weights, one column of v for each pixel), with mean m and
// covariance S over the M pixels of the batch. Then z has the mean P m + b and the variance diag(P S P^T),
// and what the norm makes of it, gamma (z - mean) rstd + beta, is (gamma rstd P) (v - m) + beta: known
// without ever forming z. The backward pass needs G, the sum over the pixels of dy (v - m)^T, which is the
// gradient of a weight matrix, and the sum of dy. srnas_fast/mixed/norm.py is the same in plain torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "program.h"

namespace srnas_fast {

// Of a linear map and its norm: P (O, C), the rest (O) or null.
template <class T>
struct MapParameters {
    const T *weight, *bias, *gamma, *beta;
};

// matrix (v - centre) + shift, where row o of the matrix is scale[o] times that of P.
struct Affine {
    std::vector<double> scale, shift;  // (O); shift is empty for zeros
};

// What the norm multiplies with, once its statistics are kept.
template <class T>
Affine affine_of(const Stage& stage, const MapParameters<T>& p, const T* kept) {
    const int64_t outputs = stage.outputs;
    Affine made{std::vector<double>(outputs, 1.0), {}};
    if (stage.norm == NormKind::none) {
        if (p.bias) made.shift.assign(p.bias, p.bias + outputs);
        return made;
    }
    const bool frozen = stage.norm == NormKind::frozen;
    for (int64_t o = 0; o < outputs; ++o)
        made.scale[o] = double(kept[stage.kept.rstd + o]) * (p.gamma ? double(p.gamma[o]) : 1.0);
    if (frozen || p.beta) made.shift.assign(outputs, 0.0);
    for (int64_t o = 0; o < outputs && frozen; ++o)
        made.shift[o] = made.scale[o] * ((p.bias ? double(p.bias[o]) : 0.0) - kept[stage.kept.mean + o]);
    for (int64_t o = 0; o < outputs && p.beta; ++o) made.shift[o] += double(p.beta[o]);
    return made;
}

// Keeps mean and biased variance of what a norm reads: of the batch, or its running ones, which may move
// before the backward pass.
template <class T>
void keep_moments(const Stage& stage, const T* mean, const T* variance, T* kept) {
    for (int64_t o = 0; o < stage.outputs; ++o) {
        kept[stage.kept.mean + o] = mean[o];
        kept[stage.kept.variance + o] = variance[o];
        kept[stage.kept.rstd + o] = T(1.0 / std::sqrt(double(variance[o]) + stage.eps));
    }
}

// out[r][c] = sum_k a[r][k] b[k][c].
template <class A, class B>
void multiply_small(const A* a, const B* b, int64_t rows, int64_t inner, int64_t columns, double* out) {
    for (int64_t r = 0; r < rows; ++r) {
        double* const line = out + r * columns;
        std::fill_n(line, columns, 0.0);
        for (int64_t k = 0; k < inner; ++k) {
            const double value = double(a[r * inner + k]);
            for (int64_t c = 0; c < columns; ++c) line[c] += value * double(b[k * columns + c]);
        }
    }
}

// Keeps what a norm behind a separable stage takes from the mean (C) and covariance (C, C) of the depthwise
// outputs.
template <class T>
void keep_separable(const Stage& stage, const MapParameters<T>& p, const T* mean, const T* covariance,
                    T* kept) {
    const int64_t outputs = stage.outputs, inputs = stage.inputs;
    std::vector<double> projected(outputs * inputs);
    multiply_small(p.weight, covariance, outputs, inputs, inputs, projected.data());
    for (int64_t o = 0; o < outputs; ++o) {
        double variance = 0, middle = p.bias ? double(p.bias[o]) : 0.0;
        for (int64_t c = 0; c < inputs; ++c) {
            variance += projected[o * inputs + c] * double(p.weight[o * inputs + c]);
            middle += double(p.weight[o * inputs + c]) * double(mean[c]);
        }
        if (variance < 0) variance = 0;  // rounding may leave less than nothing
        kept[stage.kept.mean + o] = T(middle);
        kept[stage.kept.variance + o] = T(variance);
        kept[stage.kept.rstd + o] = T(1.0 / std::sqrt(variance + stage.eps));
    }
    std::copy_n(mean, inputs, kept + stage.kept.centre);
    std::copy_n(projected.begin(), outputs * inputs, kept + stage.kept.projected);
}

// Where the gradients of a map's parameters go; null: not wanted.
template <class T>
struct MapGradients {
    T *weight, *bias, *gamma, *beta;

    bool any() const { return weight || bias || gamma || beta; }
};

// What a norm that uses its batch adds to the gradient of v: right (v - centre) + offset.
struct Correction {
    std::vector<double> right, offset;  // (C, C), (C)
};

// From G (O, columns) and the sum of dy (O): returns the gradient of w, of w (matrix (v - centre) + shift),
// and writes those of the parameters; `correction` where it is asked for, of a norm behind a separable stage
// that uses its batch of `pixels`.
template <class T, class G>
double unfold(const Stage& stage, double w, const MapParameters<T>& p, const T* kept, const G* products,
              const double* total, int64_t pixels, const MapGradients<T>& out, Correction* correction) {
    const int64_t outputs = stage.outputs, columns = stage.columns();
    const bool none = stage.norm == NormKind::none, batch = stage.norm == NormKind::batch;
    double dw = 0;
    std::vector<double> inner(outputs), scales(outputs);
    for (int64_t o = 0; o < outputs; ++o) {
        double q = 0;  // the sum of dy times z, of a norm times the normalised z
        for (int64_t c = 0; c < columns; ++c)
            q += double(p.weight[o * columns + c]) * double(products[o * columns + c]);
        if (none) {
            dw += q + (p.bias ? double(p.bias[o]) * total[o] : 0.0);
            if (out.bias) out.bias[o] = T(w * total[o]);
            scales[o] = w;
        } else {
            const double rstd = double(kept[stage.kept.rstd + o]);
            const double gamma = p.gamma ? double(p.gamma[o]) : 1.0;
            q *= rstd;
            if (!batch)
                q += rstd * ((p.bias ? double(p.bias[o]) : 0.0) - kept[stage.kept.mean + o]) * total[o];
            scales[o] = w * gamma * rstd;
            dw += gamma * q + (p.beta ? double(p.beta[o]) * total[o] : 0.0);
            if (out.gamma) out.gamma[o] = T(w * q);
            if (out.beta) out.beta[o] = T(w * total[o]);
            // The batch's mean takes the bias away again.
            if (out.bias) out.bias[o] = batch ? T(0) : T(scales[o] * total[o]);
            inner[o] = scales[o] * q * rstd;
        }
    }
    const T* const projected = batch ? kept + stage.kept.projected : nullptr;
    if (out.weight) {
        for (int64_t o = 0; o < outputs; ++o) {
            for (int64_t c = 0; c < columns; ++c) {
                const int64_t i = o * columns + c;
                const double value = scales[o] * double(products[i]);
                out.weight[i] = T(batch ? value - inner[o] * double(projected[i]) : value);
            }
        }
    }
    if (correction) {
        correction->right.assign(columns * columns, 0.0);
        correction->offset.assign(columns, 0.0);
        for (int64_t o = 0; o < outputs; ++o) {
            const T* const row = p.weight + o * columns;
            const double share = -inner[o] / double(pixels), given = -scales[o] * total[o] / double(pixels);
            for (int64_t i = 0; i < columns; ++i) {
                const double value = share * double(row[i]);
                double* const line = correction->right.data() + i * columns;
                for (int64_t j = 0; j < columns; ++j) line[j] += value * double(row[j]);
                correction->offset[i] += given * double(row[i]);
            }
        }
    }
    return dw;
}

}  // namespace srnas_fast
