// SPDX-License-Identifier: BSD-3-Clause
// The inverse of a symmetric positive definite matrix by its Cholesky factor, A = U^T U, in n^3 flops.
//
// The recursion turns everything but the diagonal blocks of at most kLeaf rows into matrix products. Of a diagonal
// block of U the inverse is stored, because nothing else of it is used.
#pragma once

#include "dense.h"

namespace rf::RF_ISA {

constexpr int64_t kLeaf = 64;

RF_INLINE int64_t half(int64_t n) { return blocks(n, 2 * kLeaf) * kLeaf; }

constexpr int kPivots = 4;  // rows that are eliminated together

// to[i] -= sum_q f[q][i] * rows[q] for kPivots rows i and kPivots rows q, in columns [begin, end)
template <class T>
RF_INLINE void eliminate(T (*to)[kLeaf], const T (*rows)[kLeaf], const T (*f)[kPivots], int64_t begin, int64_t end) {
  constexpr int W = kWidth<T>;
  for (int64_t j = begin; j < end; j += W) {
    Full<T> row[kPivots];
    RF_UNROLL
    for (int q = 0; q < kPivots; ++q) row[q] = load<T, W>(rows[q] + j);
    RF_UNROLL
    for (int i = 0; i < kPivots; ++i) {
      Full<T> sum = load<T, W>(to[i] + j);
      RF_UNROLL
      for (int q = 0; q < kPivots; ++q) sum = fma(splat<T, W>(-f[q][i]), row[q], sum);
      store<T, W>(to[i] + j, sum);
    }
  }
}

// Replaces `a`, n x n with n <= kLeaf, by the inverse of its factor U, upper triangular with zeros below. Returns false
// if `a` is not positive definite. The row operations that turn `a` into U turn the identity into U^-T.
template <class T>
static bool factor_leaf(Strided<T> a, int64_t n) {
  constexpr int W = kWidth<T>;
  alignas(64) T u[kLeaf][kLeaf], inverse[kLeaf][kLeaf];
  const int64_t padded = blocks(n, larger(W, kPivots)) * larger(W, kPivots);
  for (int64_t i = 0; i < padded; ++i)
    for (int64_t j = 0; j < padded; ++j) {
      u[i][j] = i < n && j < n ? a.data[i * a.s_row + j] : static_cast<T>(i == j);
      inverse[i][j] = static_cast<T>(i == j);
    }
  for (int64_t k = 0; k < padded; k += kPivots) {
    const int64_t from = k / W * W, to = from + larger(W, kPivots);
    for (int64_t p = k; p < k + kPivots; ++p) {
      for (int64_t q = k; q < p; ++q) {
        const T f = u[q][p];
        for (int64_t j = from; j < padded; ++j) u[p][j] -= f * u[q][j];
        for (int64_t j = 0; j < to; ++j) inverse[p][j] -= f * inverse[q][j];
      }
      if (!(u[p][p] > 0)) return false;
      const T scale = static_cast<T>(1 / __builtin_sqrt(static_cast<double>(u[p][p])));
      for (int64_t j = from; j < padded; ++j) u[p][j] *= scale;
      for (int64_t j = 0; j < to; ++j) inverse[p][j] *= scale;
    }
    for (int64_t i = k + kPivots; i < padded; i += kPivots) {
      T f[kPivots][kPivots];
      for (int q = 0; q < kPivots; ++q)
        for (int r = 0; r < kPivots; ++r) f[q][r] = u[k + q][i + r];
      eliminate(u + i, u + k, f, from, padded);
      eliminate(inverse + i, inverse + k, f, 0, to);
    }
  }
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) a.data[i * a.s_row + j] = inverse[j][i];
  return true;
}

// x <- U^-T x if `transposed`, else x <- U^-1 x
template <class T>
static void solve(Strided<T> u, int64_t n, Strided<T> x, int64_t cols, bool transposed, int threads) {
  if (n <= kLeaf) {
    multiply<T>(n, cols, n, transposed ? u.transposed() : u, x, Into<T>{x.data, x.s_row}, threads);
    return;
  }
  const int64_t h = half(n);
  const Strided<T> right = u.from(0, h), lower = x.from(h, 0);
  if (transposed) {
    solve(u, h, x, cols, true, threads);
    multiply<T>(n - h, cols, h, right.transposed(), x, Into<T>{lower.data, x.s_row, -1, true}, threads);
    solve(u.from(h, h), n - h, lower, cols, true, threads);
  } else {
    solve(u.from(h, h), n - h, lower, cols, false, threads);
    multiply<T>(h, cols, n - h, right, lower, Into<T>{x.data, x.s_row, -1, true}, threads);
    solve(u, h, x, cols, false, threads);
  }
}

// Replaces the upper triangle of `a` by U. Returns false if `a` is not positive definite.
template <class T>
static bool factor(Strided<T> a, int64_t n, int threads) {
  if (n <= kLeaf) return factor_leaf(a, n);
  const int64_t h = half(n);
  const Strided<T> right = a.from(0, h), rest = a.from(h, h);
  if (!factor(a, h, threads)) return false;
  solve(a, h, right, n - h, true, threads);
  multiply<T>(n - h, n - h, h, right.transposed(), right, Into<T>{rest.data, a.s_row, -1, true, true}, threads);
  return factor(rest, n - h, threads);
}

// to[j, i] = from[i, j] for a `rows` x `cols` matrix; both matrices are row-major.
template <class T>
static void copy_transposed(Strided<T> to, Strided<T> from, int64_t rows, int64_t cols) {
  constexpr int W = kWidth<T>;
  for (int64_t i = 0; i < rows; i += W)
    for (int64_t j = 0; j < cols; j += W) {
      if (i + W <= rows && j + W <= cols) {
        Full<T> v[W];
        for (int r = 0; r < W; ++r) v[r] = load<T, W>(from.from(i + r, j).data);
        transpose<T, W>(v);
        for (int r = 0; r < W; ++r) store<T, W>(to.from(j + r, i).data, v[r]);
      } else {
        for (int64_t r = i; r < smaller(i + W, rows); ++r)
          for (int64_t c = j; c < smaller(j + W, cols); ++c) *to.from(c, r).data = *from.from(r, c).data;
      }
    }
}

// Replaces U by A^-1, in both triangles.
template <class T>
static void invert_factored(Strided<T> u, int64_t n, int threads) {
  if (n <= kLeaf) {
    alignas(64) T copied[kLeaf * kLeaf];
    const Strided<T> copy{copied, kLeaf, 1};
    copy_transposed(copy, u, n, n);
    multiply<T>(n, n, n, copy.transposed(), copy, Into<T>{u.data, u.s_row, 1, false, true}, 1);
    return;
  }
  const int64_t h = half(n), m = n - h;
  const Strided<T> right = u.from(0, h), below = u.from(h, 0), rest = u.from(h, h);
  solve(u, h, right, m, false, threads);  // G = A11^-1 A12
  invert_factored(rest, m, threads);
  multiply<T>(m, h, m, rest, right.transposed(), Into<T>{below.data, u.s_row, -1}, threads);
  invert_factored(u, h, threads);
  multiply<T>(h, h, m, right, below, Into<T>{u.data, u.s_row, -1, true, true}, threads);
  copy_transposed(right, below, m, h);
}

}  // namespace rf::RF_ISA
