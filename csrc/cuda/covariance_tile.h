// SPDX-License-Identifier: BSD-3-Clause
// What a warp of cross_covariance multiplies at a time, for each type: channels by channels, over a stage of samples.
#pragma once

#include "../compiler.h"
#include "numbers.h"

namespace rf::cuda {
namespace {

RF_DEVICE float relu(float x) { return x <= 0 ? 0 : x; }
RF_DEVICE double relu(double x) { return x <= 0 ? 0 : x; }

// A side's stage as a lane sees it: the address of its first channel and sample, and the steps to the next channel and
// to the next sample.
template <class T>
struct View {
  const T* at;
  int channel, sample;
  bool along, relu;
};

// A tile of kChannels x kChannels, computed by 2 x 4 warps. Each warp has kRowTiles of 16 rows by kColTiles of 8
// columns.
//
// 16 bits: a stage holds the terms of two products. Tensor cores round their sums towards zero, and the error grows
// with the number of bits of a product. So they sum over two stages in bfloat16 and over one stage in float16.
template <class T>
struct Tile {
  static constexpr int kChannels = 128, kSamples = 32, kAlong = 40, kAcross = 136, kRowTiles = 4, kColTiles = 4;
  static constexpr int kPromote = __is_same(T, bf16) ? 2 : 1, kFlush = 128;  // stages
  float sums[kRowTiles][kColTiles][4], parts[kRowTiles][kColTiles][4];

  static RF_DEVICE View<T> view(const T* stage, bool along, bool relu, int lane) {
    if (along) return {stage + (lane & 15) * kAlong + (lane >> 4) * 8, kAlong, 1, along, relu};
    return {stage + ((lane >> 4) * 8 + (lane & 7)) * kAcross + (lane & 8), 1, kAcross, along, relu};
  }
  // Loads 16 channels by 16 samples.
  static RF_DEVICE void load(uint32_t (&r)[4], const View<T>& from, int channel, int sample) {
    const T* const row = from.at + channel * from.channel + sample * from.sample;
    if (from.along)
      load_matrices(r, row);
    else
      load_matrices_transposed(r, row);
    if (!from.relu) return;
    RF_UNROLL
    for (int k = 0; k < 4; ++k) r[k] = __is_same(T, bf16) ? relu_bf16(r[k]) : relu_f16(r[k]);
  }
  static RF_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (__is_same(T, bf16))
      mma_bf16(d, a, b);
    else
      mma_f16(d, a, b);
  }
  RF_DEVICE void multiply(const View<T>& x, const View<T>& y) {
    RF_UNROLL
    for (int s = 0; s < kSamples; s += 16) {
      uint32_t a[kRowTiles][4];
      RF_UNROLL
      for (int i = 0; i < kRowTiles; ++i) load(a[i], x, i * 16, s);
      RF_UNROLL
      for (int j = 0; j < kColTiles; j += 2) {
        uint32_t b[4];
        load(b, y, j * 8, s);
        const uint32_t left[2] = {b[0], b[2]}, right[2] = {b[1], b[3]};
        RF_UNROLL
        for (int i = 0; i < kRowTiles; ++i) {
          mma(parts[i][j], a[i], left);
          mma(parts[i][j + 1], a[i], right);
        }
      }
    }
  }
  RF_DEVICE void promote() {
    RF_UNROLL
    for (int i = 0; i < kRowTiles; ++i) RF_UNROLL
    for (int j = 0; j < kColTiles; ++j) RF_UNROLL
    for (int k = 0; k < 4; ++k) sums[i][j][k] += parts[i][j][k], parts[i][j][k] = 0;
  }
};

// float32: tf32 splits each number into two parts, and three products of the parts are added, the small ones first, 8
// terms at a time.
template <>
struct Tile<float> {
  static constexpr int kChannels = 128, kSamples = 16, kAlong = 20, kAcross = 136, kRowTiles = 4, kColTiles = 4;
  static constexpr int kPromote = 1, kFlush = 64;
  float sums[kRowTiles][kColTiles][4];

  static RF_DEVICE View<float> view(const float* stage, bool along, bool relu, int lane) {
    const int channel = along ? kAlong : 1, sample = along ? 1 : kAcross;
    return {stage + (lane >> 2) * channel + (lane & 3) * sample, channel, sample, along, relu};
  }
  // Loads 16 channels by 8 samples: rows g, g + 8, g, g + 8 of samples t, t, t + 4, t + 4.
  static RF_DEVICE void load(uint32_t (&high)[4], uint32_t (&low)[4], const View<float>& from, int channel,
                             int sample) {
    RF_UNROLL
    for (int k = 0; k < 4; ++k) {
      const float x = from.at[(channel + (k & 1) * 8) * from.channel + (sample + (k & 2) * 2) * from.sample];
      split(from.relu ? cuda::relu(x) : x, high[k], low[k]);
    }
  }
  RF_DEVICE void multiply(const View<float>& x, const View<float>& y) {
#pragma unroll 1  // a larger part at once would not fit into the registers of sm_100
    for (int s = 0; s < kSamples; s += 8) RF_UNROLL
    for (int j = 0; j < kColTiles; j += 2) {
      uint32_t b[4], rest[4];
      load(b, rest, y, j * 8, s);
      RF_UNROLL
      for (int i = 0; i < kRowTiles; ++i) {
        uint32_t high[4], low[4];
        load(high, low, x, i * 16, s);
        RF_UNROLL
        for (int h = 0; h < 2; ++h) {
          float sum[4] = {};
          mma_tf32(sum, low, {b[h], b[h + 2]});
          mma_tf32(sum, high, {rest[h], rest[h + 2]});
          mma_tf32(sum, high, {b[h], b[h + 2]});
          RF_UNROLL
          for (int k = 0; k < 4; ++k) sums[i][j + h][k] += sum[k];
        }
      }
    }
  }
  RF_DEVICE void promote() {}
};

// float32 in bf16 terms: the samples of a lane are t, t + 4, t + 8 and t + 12 of 16. The small products come first.
template <int N>
struct Tile<InTerms<N>> : Tile<float> {
  // Loads 16 channels by 16 samples: rows g, g + 8, g, g + 8 of the first two samples, then of the other two.
  static RF_DEVICE void load(uint32_t (&words)[N][4], const View<float>& from, int channel, int sample) {
    RF_UNROLL
    for (int k = 0; k < 4; ++k) {
      const float* const x = from.at + (channel + (k & 1) * 8) * from.channel + (sample + (k & 2) * 4) * from.sample;
      const float first = x[0], second = x[4 * from.sample];
      uint32_t terms[N];
      split_pair(from.relu ? cuda::relu(first) : first, from.relu ? cuda::relu(second) : second, terms);
      RF_UNROLL
      for (int n = 0; n < N; ++n) words[n][k] = terms[n];
    }
  }
  RF_DEVICE void multiply(const View<float>& x, const View<float>& y) {
    static_assert(kSamples == 16);
    RF_UNROLL
    for (int j = 0; j < kColTiles; j += 2) {
      uint32_t b[N][4];
      load(b, y, j * 8, 0);
      RF_UNROLL
      for (int i = 0; i < kRowTiles; ++i) {
        uint32_t a[N][4];
        load(a, x, i * 16, 0);
        RF_UNROLL
        for (int h = 0; h < 2; ++h) {
          float sum[4] = {};
          if constexpr (N == 2) {
            mma_bf16(sum, a[1], {b[0][h], b[0][h + 2]});
            mma_bf16(sum, a[0], {b[1][h], b[1][h + 2]});
          }
          mma_bf16(sum, a[0], {b[0][h], b[0][h + 2]});
          RF_UNROLL
          for (int k = 0; k < 4; ++k) sums[i][j + h][k] += sum[k];
        }
      }
    }
  }
};

// float64: sums of 32 terms, and sums of 32 of these sums. Sums of equal numbers are always rounded in the same
// direction; short sums keep them from drifting.
template <>
struct Tile<double> {
  static constexpr int kChannels = 64, kSamples = 8, kAlong = 12, kAcross = 68, kRowTiles = 2, kColTiles = 2;
  static constexpr int kPromote = 4, kFlush = 128;
  double sums[kRowTiles][kColTiles][4], parts[kRowTiles][kColTiles][4];

  static RF_DEVICE View<double> view(const double* stage, bool along, bool relu, int lane) {
    const int channel = along ? kAlong : 1, sample = along ? 1 : kAcross;
    return {stage + (lane >> 2) * channel + (lane & 3) * sample, channel, sample, along, relu};
  }
  static RF_DEVICE double load(const View<double>& from, int channel, int sample) {
    const double x = from.at[channel * from.channel + sample * from.sample];
    return from.relu ? cuda::relu(x) : x;
  }
  RF_DEVICE void multiply(const View<double>& x, const View<double>& y) {
    RF_UNROLL
    for (int s = 0; s < kSamples; s += 4) {
      double b[kColTiles];
      RF_UNROLL
      for (int j = 0; j < kColTiles; ++j) b[j] = load(y, j * 8, s);
      RF_UNROLL
      for (int i = 0; i < kRowTiles; ++i) RF_UNROLL
      for (int half = 0; half < 2; ++half) {
        const double a = load(x, i * 16 + half * 8, s);
        RF_UNROLL
        for (int j = 0; j < kColTiles; ++j) {
          double sum[2] = {parts[i][j][2 * half], parts[i][j][2 * half + 1]};
          mma_f64(sum, a, b[j]);
          parts[i][j][2 * half] = sum[0], parts[i][j][2 * half + 1] = sum[1];
        }
      }
    }
  }
  RF_DEVICE void promote() {
    RF_UNROLL
    for (int i = 0; i < kRowTiles; ++i) RF_UNROLL
    for (int j = 0; j < kColTiles; ++j) RF_UNROLL
    for (int k = 0; k < 4; ++k) sums[i][j][k] += parts[i][j][k], parts[i][j][k] = 0;
  }
};

}  // namespace
}  // namespace rf::cuda
