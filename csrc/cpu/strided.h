// SPDX-License-Identifier: BSD-3-Clause
// Packs strided memory as an operand of a product. Rows lie side by side, so that a step of the product loads a vector
// of them.
#pragma once

#include "convert.h"

namespace rf::RF_ISA {

RF_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
RF_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
RF_INLINE int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }
template <class T>
RF_INLINE int64_t whole_vectors(int64_t size) {
  return blocks(size, kWidth<T>) * kWidth<T>;
}

// The distance of the columns of a packed operand with `rows` rows, in numbers: an odd number of vectors, so that
// columns do not share few sets of a cache.
template <class T>
RF_INLINE int64_t column_stride(int64_t rows) {
  return (blocks(rows, kWidth<T>) | 1) * kWidth<T>;
}

// v[i][j] <-> v[j][i]: each stage is a perfect shuffle of the vectors and of their lanes.
template <class T, int N>
RF_INLINE void transpose(Vector<T, N> (&v)[N]) {
  RF_UNROLL
  for (int stage = 1; stage < N; stage *= 2) {
    Vector<T, N> w[N];
    RF_UNROLL
    for (int i = 0; i < N / 2; ++i) {
      w[2 * i] = interleave_low(v[i], v[i + N / 2]);
      w[2 * i + 1] = interleave_high(v[i], v[i + N / 2]);
    }
    RF_UNROLL
    for (int i = 0; i < N; ++i) v[i] = w[i];
  }
}

// Loads a vector of columns of one row from `count` elements of contiguous memory; the rest are zeros.
template <class T, class S>
RF_INLINE Full<T> load_columns(const S* src, int64_t count) {
  constexpr int N = kWidth<T>;
  if constexpr (kElements<T> == 1)
    return load_as<T, N>(src, count);
  else
    return (Full<T>)load_first<uint16_t, 2 * N>(&src->bits, count);
}

// Loads the first `rows` of a vector of rows; the rest are zeros.
template <class T, class S>
RF_INLINE Full<T> load_rows(const S* src, int64_t rows, int64_t s_row) {
  constexpr int N = kWidth<T>;
  if (s_row == 1) return load_as<T, N>(src, rows);
  if constexpr (sizeof(T) == sizeof(S))
    if (s_row == 2 && rows >= N)
      return every_other(load_as<T, N>(src, N), load_as<T, N>(src + N - 1, N), typename FirstLanes<N>::type{});
  T values[N] = {};
  for (int64_t j = 0; j < smaller(N, rows); ++j) values[j] = widen(src[j * s_row]);
  return load<T, N>(values);
}

// The same for a column of an operand. Its elements are s_k apart, and `count` of them exist in memory.
template <class T, class S>
RF_INLINE Full<T> load_column(const S* src, int64_t rows, int64_t count, int64_t s_row, int64_t s_k) {
  if constexpr (kElements<T> == 1) {
    return load_rows<T>(src, rows, s_row);
  } else {
    const vu first = (vu)load_rows<float>(src, rows, s_row);
    return first >> 16 | (count > 1 ? (vu)load_rows<float>(src + s_k, rows, s_row) : vu{});
  }
}

// Packs N rows of N columns each; the columns of a row are contiguous.
template <class T, class S>
__attribute__((noinline)) static void pack_square(T* to, int64_t ld, const S* src, int64_t s_row) {
  constexpr int N = kWidth<T>;
  Vector<T, N> v[N];
  RF_UNROLL
  for (int j = 0; j < N; ++j, src += s_row) v[j] = load_columns<T>(src, N * kElements<T>);
  transpose<T, N>(v);
  RF_UNROLL
  for (int j = 0; j < N; ++j, to += ld) store<T, N>(to, v[j]);
}

// The same at an edge: `rows` rows of `length` elements each, up to N rows of N columns.
template <class T, class S>
__attribute__((noinline)) static void pack_corner(T* to, int64_t ld, const S* src, int64_t rows, int64_t length,
                                                  int64_t s_row) {
  constexpr int N = kWidth<T>;
  Vector<T, N> v[N];
  RF_UNROLL
  for (int j = 0; j < N; ++j) v[j] = j < rows ? load_columns<T>(src + j * s_row, length) : Full<T>{};
  transpose<T, N>(v);
  RF_UNROLL
  for (int j = 0; j < N; ++j)
    if (j * kElements<T> < length) store<T, N>(to + j * ld, v[j]);
}

// Packs `rows` rows of `length` elements each: element e of row j is at src[j * s_row + e * s_k]. Row j of column p
// goes to to[p * ld + j]. Zeros fill up the last vector of rows.
template <class T, class S>
static void pack_strided(T* to, int64_t ld, const S* src, int64_t rows, int64_t length, int64_t s_row, int64_t s_k) {
  constexpr int N = kWidth<T>, E = kElements<T>;
  if (s_k == 1 && s_row != 1) {
    for (int64_t j = 0; j < rows; j += N)
      for (int64_t e = 0; e < length; e += N * E)
        if (rows - j >= N && length - e >= N * E)
          pack_square(to + e / E * ld + j, ld, src + j * s_row + e, s_row);
        else
          pack_corner(to + e / E * ld + j, ld, src + j * s_row + e, rows - j, smaller(N * E, length - e), s_row);
  } else {
    for (int64_t e = 0; e < length; e += E, to += ld)
      for (int64_t j = 0; j < rows; j += N)
        store<T, N>(to + j, load_column<T>(src + j * s_row + e * s_k, rows - j, length - e, s_row, s_k));
  }
}

}  // namespace rf::RF_ISA
