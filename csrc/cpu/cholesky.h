// SPDX-License-Identifier: BSD-3-Clause
// The inverse of a symmetric positive definite matrix by its Cholesky factor, A = U^T U, in n^3 flops.
//
// Everything above blocks of kLeaf is matrix products, by recursion. A diagonal block of U is stored as its inverse: that
// is all that is ever asked of it.
#pragma once

#include "dense.h"

namespace rf::RF_ISA {

constexpr int64_t kLeaf = 64;

RF_INLINE int64_t half(int64_t n) { return blocks(n, 2 * kLeaf) * kLeaf; }

// a, n <= kLeaf, becomes the inverse of its factor U, upper triangular with zeros below; false if a is not positive.
// Gauss-Jordan: what is done to the rows of `a` to make it U makes the identity U^-T, in the lower triangle.
static bool factor_leaf(Matrix a, int64_t n) {
  constexpr int W = kWidth<double>;
  alignas(64) double row[kLeaf][kLeaf];
  const int64_t padded = blocks(n, W) * W;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < padded; ++j) row[i][j] = j >= n ? 0 : j < i ? row[j][i] : a.data[i * a.s_row + j];
  for (int64_t k = 0; k < n; ++k) {
    if (!(row[k][k] > 0)) return false;
    const double inverse = 1 / __builtin_sqrt(row[k][k]);
    for (int64_t j = 0; j < padded; ++j) row[k][j] *= inverse;
    row[k][k] = inverse;
    for (int64_t i = k + 1; i < n; ++i) {
      const Full<double> f = splat<double, W>(-row[i][k] * inverse);
      row[i][k] = 0;
      for (int64_t j = 0; j < padded; j += W)
        store<double, W>(row[i] + j, fma(f, load<double, W>(row[k] + j), load<double, W>(row[i] + j)));
    }
  }
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) a.data[i * a.s_row + j] = j < i ? 0 : row[j][i];
  return true;
}

// x <- U^-T x, or U^-1 x
static void solve(Matrix u, int64_t n, Matrix x, int64_t cols, bool transposed, int threads) {
  if (n <= kLeaf) {
    multiply(n, cols, n, transposed ? u.transposed() : u, x, Into{x.data, x.s_row}, threads);
    return;
  }
  const int64_t h = half(n);
  const Matrix right = u.from(0, h), lower = x.from(h, 0);
  if (transposed) {
    solve(u, h, x, cols, true, threads);
    multiply(n - h, cols, h, right.transposed(), x, Into{lower.data, x.s_row, -1.0, true}, threads);
    solve(u.from(h, h), n - h, lower, cols, true, threads);
  } else {
    solve(u.from(h, h), n - h, lower, cols, false, threads);
    multiply(h, cols, n - h, right, lower, Into{x.data, x.s_row, -1.0, true}, threads);
    solve(u, h, x, cols, false, threads);
  }
}

// The upper triangle of a becomes U; false if a is not positive definite.
static bool factor(Matrix a, int64_t n, int threads) {
  if (n <= kLeaf) return factor_leaf(a, n);
  const int64_t h = half(n);
  const Matrix right = a.from(0, h), rest = a.from(h, h);
  if (!factor(a, h, threads)) return false;
  solve(a, h, right, n - h, true, threads);
  multiply(n - h, n - h, h, right.transposed(), right, Into{rest.data, a.s_row, -1.0, true, true}, threads);
  return factor(rest, n - h, threads);
}

// U becomes A^-1, both triangles; work holds n * n / 2 + kLeaf * kLeaf numbers.
static void invert_factored(Matrix u, int64_t n, double* work, int threads) {
  if (n <= kLeaf) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) work[i * n + j] = u.data[i * u.s_row + j];
    const Matrix copy{work, n, 1};
    multiply(n, n, n, copy, copy.transposed(), Into{u.data, u.s_row, 1.0, false, true}, threads);
    return;
  }
  const int64_t h = half(n), m = n - h;
  const Matrix g = u.from(0, h), rest = u.from(h, h), product{work, m, 1};
  solve(u, h, g, m, false, threads);  // G = A11^-1 A12
  invert_factored(rest, m, work, threads);
  multiply(h, m, m, g, rest, Into{work, m}, threads);  // G S^-1
  invert_factored(u, h, work + h * m, threads);
  multiply(h, h, m, product, g.transposed(), Into{u.data, u.s_row, 1.0, true, true}, threads);
  for (int64_t i = 0; i < h; ++i)
    for (int64_t j = 0; j < m; ++j) {
      u.from(i, h + j).data[0] = -work[i * m + j];
      u.from(h + j, i).data[0] = -work[i * m + j];
    }
}

}  // namespace rf::RF_ISA
