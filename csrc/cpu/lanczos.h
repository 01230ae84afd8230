// SPDX-License-Identifier: BSD-3-Clause
// The largest eigenvalue of a symmetric positive definite matrix by Lanczos' method.
#pragma once

#include <math.h>

#include "dense.h"

namespace rf::RF_ISA {

constexpr int kLanczosSteps = 32;

RF_INLINE double dot(const double* x, const double* y, int64_t n) {
  constexpr int W = kWidth<double>;
  Full<double> sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W) RF_UNROLL
  for (int s = 0; s < 4; ++s) sums[s] = fma(load<double, W>(x + i + s * W), load<double, W>(y + i + s * W), sums[s]);
  const Full<double> all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  double sum = 0;
  for (int l = 0; l < W; ++l) sum += all[l];
  for (; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

constexpr int kBands = 8;  // bands of rows in `multiply_symmetric`

// The numbers of working memory that `largest_eigenvalue` takes: Krylov vectors, and partial sums of products.
RF_INLINE int64_t lanczos_size(int64_t n) { return (kLanczosSteps + 1 + kBands) * n; }

// w = a v from the upper triangle of a, which is read once; for a large matrix, reading takes the time. Bands of rows
// have partial sums of their own. Their number does not depend on the number of threads, and so neither do the bits.
static void multiply_symmetric(Matrix a, int64_t n, const double* v, double* w, double* partial, int threads) {
  constexpr int W = kWidth<double>, kRows = 4;
  const int bands = n < 768 ? 1 : kBands;
  const auto first_row = [&](int64_t band) {  // of bands with equal parts of the triangle
    return n - static_cast<int64_t>(sqrt(1 - static_cast<double>(band) / bands) * static_cast<double>(n));
  };
  for_each(bands, bands == 1 ? 1 : threads, [&](int64_t band) {
    double* const sums = partial + band * n;
    const int64_t begin = first_row(band), end = first_row(band + 1);
    for (int64_t j = begin; j < n; ++j) sums[j] = 0;
    for (int64_t i = begin; i < end; i += kRows) {
      const int64_t corner = smaller(blocks(i + kRows, W) * W, n);
      const double* const rows = a.from(i, 0).data;
      double x[kRows], sum[kRows] = {};
      Full<double> lanes[kRows] = {};
      const int64_t count = smaller(kRows, end - i);
      for (int64_t r = 0; r < kRows; ++r) x[r] = r < count ? v[i + r] : 0;
      const auto one = [&](int64_t r, int64_t j) {
        sum[r] += rows[r * a.s_row + j] * v[j];
        if (j > i + r) sums[j] += rows[r * a.s_row + j] * x[r];
      };
      for (int64_t r = 0; r < count; ++r)
        for (int64_t j = i + r; j < corner; ++j) one(r, j);
      int64_t j = corner;
      if (count == kRows)
        for (; j + W <= n; j += W) {
          const Full<double> right = load<double, W>(v + j);
          Full<double> down = load<double, W>(sums + j);
          RF_UNROLL
          for (int r = 0; r < kRows; ++r) {
            const Full<double> numbers = load<double, W>(rows + r * a.s_row + j);
            lanes[r] = fma(numbers, right, lanes[r]);
            down = fma(numbers, splat<double, W>(x[r]), down);
          }
          store<double, W>(sums + j, down);
        }
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t k = j; k < n; ++k) one(r, k);
        for (int l = 0; l < W; ++l) sum[r] += lanes[r][l];
        sums[i + r] += sum[r];
      }
    }
  });
  for (int64_t i = 0; i < n; ++i) w[i] = 0;
  for (int band = 0; band < bands; ++band)
    for (int64_t i = first_row(band); i < n; ++i) w[i] += partial[band * n + i];
}

// The largest eigenvalue of a tridiagonal matrix T by bisection. The number of positive pivots of T - x is the number
// of eigenvalues above x.
static double largest_of_tridiagonal(const double* diagonal, const double* next, int n, double low, double high) {
  while (high - low > 1e-6 * high) {
    const double x = (low + high) / 2;
    double pivot = diagonal[0] - x;
    bool above = pivot > 0;
    for (int i = 1; i < n && !above; ++i) {
      pivot = diagonal[i] - x - next[i - 1] * next[i - 1] / pivot;
      above = pivot > 0;
    }
    (above ? low : high) = x;
  }
  return low;
}

// The largest eigenvalue of `a`, estimated from below, beginning with the vector `start`. `work` holds lanczos_size(n)
// numbers. Ends when the estimate has settled to a relative 1e-4, or after kLanczosSteps products.
static double largest_eigenvalue(Matrix a, int64_t n, const double* start, double* work, int threads) {
  double diagonal[kLanczosSteps], next[kLanczosSteps], bound = 0, estimate = 0;
  const double norm = sqrt(dot(start, start, n));
  for (int64_t i = 0; i < n; ++i) work[i] = start[i] / norm;
  for (int step = 0; step < kLanczosSteps && step < n; ++step) {
    const double* v = work + step * n;
    double* w = work + (step + 1) * n;
    if (n < 256)
      for (int64_t i = 0; i < n; ++i) w[i] = dot(a.from(i, 0).data, v, n);
    else
      multiply_symmetric(a, n, v, w, work + (kLanczosSteps + 1) * n, threads);
    diagonal[step] = dot(w, v, n);
    for (int64_t i = 0; i < n; ++i) w[i] -= diagonal[step] * v[i];
    for (int s = step; s >= 0; --s) {  // against all vectors, the last one again: so they stay orthogonal
      const double share = dot(w, work + s * n, n);
      for (int64_t i = 0; i < n; ++i) w[i] -= share * work[s * n + i];
    }
    const double left = sqrt(dot(w, w, n));
    next[step] = left;
    bound = fmax(bound, diagonal[step] + left + (step ? next[step - 1] : 0));
    if (step % 4 == 3 || step + 1 == n || left <= 1e-14 * bound) {
      const double before = estimate;
      estimate = largest_of_tridiagonal(diagonal, next, step + 1, before, bound);
      if (estimate - before <= 1e-4 * estimate || left <= 1e-14 * bound) break;
    }
    for (int64_t i = 0; i < n; ++i) w[i] /= left;
  }
  return estimate;
}

}  // namespace rf::RF_ISA
