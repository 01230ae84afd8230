// SPDX-License-Identifier: BSD-3-Clause
// The kernels of one level: what kernels.cpp puts into its table.
#pragma once

#include "../kernels.h"

namespace rf::RF_ISA {

void gaussian(void* out, DType dtype, int64_t rows, int64_t cols, int64_t ld, Address at, int threads);
void cross_covariance(double* out, int64_t ld, Samples x, Samples y, bool symmetric, int threads);
void polar_multiply(const double* q, const double* m, double* out, int64_t rows, int64_t inner, int64_t cols,
                    int threads);
void sample_project_align(void* out, DType dtype, int64_t n, int64_t ld, Samples p, Address at, double scale,
                          int threads);
void random_features(Samples out, const Features& features, int threads);
void random_features_covariance(double* out, double* total, double* square, Samples x, const Features& features,
                                int threads);
void random_features_projection(Samples out, Samples a, const Features& features, int threads);

}  // namespace rf::RF_ISA
