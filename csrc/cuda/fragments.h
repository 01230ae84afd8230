// SPDX-License-Identifier: BSD-3-Clause
// Products of a warp in float32 and float64, in one layout: d (16, 8) += a (16, 8) b (8, 8). Lane 4 g + t holds
//   of d: rows g (numbers 0, 1) and g + 8 (numbers 2, 3), columns 2 t and 2 t + 1;
//   of a: rows g (numbers 0, 2) and g + 8 (numbers 1, 3), at two of the eight terms;
//   of b: column g, at the same two terms.
// The order of the terms of a sum is free. Here the two terms are 2 t (a 0, 1; b 0) and 2 t + 1 (a 2, 3; b 1). They lie
// side by side in memory, and d can be the a of a next product as it is. Numbers in bf16 terms have the same layout,
// with 16 terms: those of two such products.
//
// Way says how numbers are multiplied: float and double in full, InTerms<1> and InTerms<2> in bf16 terms.
#pragma once

#include "../compiler.h"
#include "numbers.h"

namespace rf::cuda {

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T first, second;
};

template <class T>
RF_DEVICE Pair<T> pair_at(const T* p) {
  return *reinterpret_cast<const Pair<T>*>(p);
}

template <class Way>
struct Left;
template <class Way>
struct Right;
template <class Way>
struct Sum;

template <>
struct Left<float> {
  static constexpr int kTerms = 8;
  uint32_t high[4], low[4];
  RF_DEVICE Left() {}
  RF_DEVICE Left(Pair<float> upper, Pair<float> lower) {
    split(upper.first, high[0], low[0]);
    split(lower.first, high[1], low[1]);
    split(upper.second, high[2], low[2]);
    split(lower.second, high[3], low[3]);
  }
  // The a in memory, row g + 8 `down` numbers after row g; and the d of product j as an a.
  static RF_DEVICE Left at(const float* p, int down) { return Left(pair_at(p), pair_at(p + down)); }
  template <int K>
  static RF_DEVICE Left of(const float (&d)[K][4], int j) {
    return Left(Pair<float>{d[j][0], d[j][1]}, Pair<float>{d[j][2], d[j][3]});
  }
};

template <>
struct Right<float> {
  uint32_t high[2], low[2];
  RF_DEVICE explicit Right(Pair<float> p) {
    split(p.first, high[0], low[0]);
    split(p.second, high[1], low[1]);
  }
  static RF_DEVICE Right at(const float* p) { return Right(pair_at(p)); }
};

// Tensor cores truncate what they add to a sum. So the small products have a sum of their own, and `add_to` is called
// after at most 32 terms: few roundings are towards zero.
template <>
struct Sum<float> {
  static constexpr bool kCutsOff = true;
  float large[4] = {}, small[4] = {};

  RF_DEVICE void multiply(const Left<float>& a, const Right<float>& b) {
    mma_tf32(small, a.low, b.high);
    mma_tf32(large, a.high, b.high);
    mma_tf32(small, a.high, b.low);
  }
  template <class S>
  RF_DEVICE void add_to(S (&total)[4]) const {
    RF_UNROLL
    for (int k = 0; k < 4; ++k) total[k] += static_cast<S>(__fadd_rn(large[k], small[k]));
  }
};

template <int N>
struct Left<InTerms<N>> {
  static constexpr int kTerms = 16;
  uint32_t words[N][4];
  RF_DEVICE void put(int place, Pair<float> pair) {
    uint32_t terms[N];
    split_pair(pair.first, pair.second, terms);
    RF_UNROLL
    for (int n = 0; n < N; ++n) words[n][place] = terms[n];
  }
  static RF_DEVICE Left at(const float* p, int down) {
    Left left;
    RF_UNROLL
    for (int k = 0; k < 4; ++k) left.put(k, pair_at(p + k / 2 * 8 + k % 2 * down));
    return left;
  }
  template <int K>
  static RF_DEVICE Left of(const float (&d)[K][4], int j) {
    Left left;
    RF_UNROLL
    for (int k = 0; k < 4; ++k) left.put(k, Pair<float>{d[2 * j + k / 2][k % 2 * 2], d[2 * j + k / 2][k % 2 * 2 + 1]});
    return left;
  }
};

template <int N>
struct Right<InTerms<N>> {
  uint32_t words[N][2];
  static RF_DEVICE Right at(const float* p) {
    Right right;
    RF_UNROLL
    for (int k = 0; k < 2; ++k) {
      const Pair<float> pair = pair_at(p + 8 * k);
      uint32_t terms[N];
      split_pair(pair.first, pair.second, terms);
      RF_UNROLL
      for (int n = 0; n < N; ++n) right.words[n][k] = terms[n];
    }
    return right;
  }
};

template <int N>
struct Sum<InTerms<N>> : Sum<float> {
  RF_DEVICE void multiply(const Left<InTerms<N>>& a, const Right<InTerms<N>>& b) {
    if constexpr (N == 2) {
      mma_bf16(small, a.words[1], b.words[0]);
      mma_bf16(small, a.words[0], b.words[1]);
    }
    mma_bf16(large, a.words[0], b.words[0]);
  }
};

template <>
struct Left<double> {
  static constexpr int kTerms = 8;
  Pair<double> upper, lower;
  RF_DEVICE Left() {}
  RF_DEVICE Left(Pair<double> upper, Pair<double> lower) : upper(upper), lower(lower) {}
  static RF_DEVICE Left at(const double* p, int down) { return Left(pair_at(p), pair_at(p + down)); }
  template <int K>
  static RF_DEVICE Left of(const double (&d)[K][4], int j) {
    return Left(Pair<double>{d[j][0], d[j][1]}, Pair<double>{d[j][2], d[j][3]});
  }
};

template <>
struct Right<double> {
  Pair<double> p;
  RF_DEVICE explicit Right(Pair<double> p) : p(p) {}
  static RF_DEVICE Right at(const double* p) { return Right(pair_at(p)); }
};

template <>
struct Sum<double> {
  static constexpr bool kCutsOff = false;
  double upper[2] = {}, lower[2] = {};

  RF_DEVICE void multiply(const Left<double>& a, const Right<double>& b) {
    mma_f64(upper, a.upper.first, b.p.first);
    mma_f64(lower, a.lower.first, b.p.first);
    mma_f64(upper, a.upper.second, b.p.second);
    mma_f64(lower, a.lower.second, b.p.second);
  }
  RF_DEVICE void add_to(double (&total)[4]) const {
    RF_UNROLL
    for (int k = 0; k < 2; ++k) total[k] += upper[k], total[k + 2] += lower[k];
  }
};

}  // namespace rf::cuda
