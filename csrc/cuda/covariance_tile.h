// SPDX-License-Identifier: BSD-3-Clause
// What a warp of cross_covariance multiplies at a time, for each type: channels by channels, over a stage of samples.
#pragma once

#include "products.h"

namespace rf::cuda {
namespace {

RF_DEVICE float relu(float x) { return x <= 0 ? 0 : x; }
RF_DEVICE double relu(double x) { return x <= 0 ? 0 : x; }

// A side's stage as a lane sees it: the address of its first channel and sample, and the steps to the next channel and
// to the next sample. The steps are constants, so that an address is one register for all loads of a side.
template <class T, int kChannel, int kSample, bool kRelu>
struct View {
  static constexpr int channel = kChannel, sample = kSample;
  static constexpr bool along = kSample == 1, relu = kRelu;
  const T* at;
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

  // Words 0 and 1 of a lane of the left side are two rows; those of a lane of the right side are two words of a column.
  static constexpr RF_HOST_DEVICE int first(bool along, bool right, int lane) {
    if (right) lane = (lane & 7) | (lane & 8) << 1 | (lane & 16) >> 1;
    return along ? (lane & 15) * kAlong + (lane >> 4) * 8 : ((lane >> 4) * 8 + (lane & 7)) * kAcross + (lane & 8);
  }
  // Loads 16 channels by 16 samples.
  template <class V>
  static RF_DEVICE void load(uint32_t (&r)[4], const V& from, int channel, int sample) {
    const T* const row = from.at + channel * V::channel + sample * V::sample;
    if constexpr (V::along)
      load_matrices(r, row);
    else
      load_matrices_transposed(r, row);
    if constexpr (V::relu) {
      RF_UNROLL
      for (int k = 0; k < 4; ++k) r[k] = __is_same(T, bf16) ? relu_bf16(r[k]) : relu_f16(r[k]);
    }
  }
  template <class X, class Y>
  RF_DEVICE void multiply(const X& x, const Y& y) {
    if constexpr (kPromote == 1) clear();
    RF_UNROLL
    for (int s = 0; s < kSamples; s += 16) {
      uint32_t a[kRowTiles][4];
      RF_UNROLL
      for (int i = 0; i < kRowTiles; ++i) load(a[i], x, i * 16, s);
      RF_UNROLL
      for (int j = 0; j < kColTiles; j += 2) {
        uint32_t b[4];
        load(b, y, j * 8, s);
        const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
        RF_UNROLL
        for (int i = 0; i < kRowTiles; ++i) {
          mma<T>(parts[i][j], a[i], left);
          mma<T>(parts[i][j + 1], a[i], right);
        }
      }
    }
  }
  // Where each stage begins with zeros, the first products have them as a constant.
  RF_DEVICE void promote() {
    RF_UNROLL
    for (int i = 0; i < kRowTiles; ++i) RF_UNROLL
    for (int j = 0; j < kColTiles; ++j) RF_UNROLL
    for (int k = 0; k < 4; ++k) sums[i][j][k] += parts[i][j][k];
    if constexpr (kPromote > 1) clear();
  }
  RF_DEVICE void clear() {
    RF_UNROLL
    for (int i = 0; i < kRowTiles; ++i) RF_UNROLL
    for (int j = 0; j < kColTiles; ++j) RF_UNROLL
    for (int k = 0; k < 4; ++k) parts[i][j][k] = 0;
  }
};

// float32, split into kParts parts. The samples of a lane are t, t + 4, and so on, up to W::kTerms.
template <Way W, int kParts>
struct SplitTile {
  static constexpr int kChannels = 128, kSamples = 16, kAlong = 20, kAcross = 136, kRowTiles = 4, kColTiles = 4;
  static constexpr int kPromote = 1, kFlush = 64;
  float sums[kRowTiles][kColTiles][4];

  static constexpr RF_HOST_DEVICE int first(bool along, bool, int lane) {
    return (lane >> 2) * (along ? kAlong : 1) + (lane & 3) * (along ? 1 : kAcross);
  }
  // Loads 16 channels by W::kTerms samples: rows g, g + 8, g, g + 8 of the first half of the samples, then of the
  // other.
  template <class V>
  static RF_DEVICE void load(uint32_t (&parts)[kParts][4], const V& from, int channel, int sample) {
    split_words<W>(parts, [&](int w, int n) {
      const int across = channel + (w & 1) * 8, down = sample + 4 * ((w >> 1) * W::kInWord + n);
      const float x = from.at[across * V::channel + down * V::sample];
      return V::relu ? cuda::relu(x) : x;
    });
  }
  template <class X, class Y>
  RF_DEVICE void multiply(const X& x, const Y& y) {
    static_assert(kSamples % W::kTerms == 0);
#pragma unroll 1  // a larger part at once would not fit into the registers of sm_100
    for (int s = 0; s < kSamples; s += W::kTerms) {
      uint32_t a[kRowTiles][1][kParts][4];
      RF_UNROLL
      for (int i = 0; i < kRowTiles; ++i) load(a[i][0], x, i * 16, s);
      RF_UNROLL
      for (int j = 0; j < kColTiles; j += 2) {
        uint32_t b[kParts][4];
        load(b, y, j * 8, s);
        RF_UNROLL
        for (int i = 0; i < kRowTiles; ++i) RF_UNROLL
        for (int h = 0; h < 2; ++h) {
          uint32_t half[1][kParts][2];
          RF_UNROLL
          for (int n = 0; n < kParts; ++n) half[0][n][0] = b[n][h], half[0][n][1] = b[n][h + 2];
          float sum[4] = {};
          add_products<W>(sum, a[i], half);
          RF_UNROLL
          for (int k = 0; k < 4; ++k) sums[i][j + h][k] += sum[k];
        }
      }
    }
  }
  RF_DEVICE void promote() {}
};

template <>
struct Tile<float> : SplitTile<InTf32, 2> {};

// float64: sums of 32 terms, and sums of 32 of these sums. Sums of equal numbers are always rounded in the same
// direction; short sums keep them from drifting.
template <>
struct Tile<double> {
  static constexpr int kChannels = 64, kSamples = 8, kAlong = 12, kAcross = 68, kRowTiles = 2, kColTiles = 2;
  static constexpr int kPromote = 4, kFlush = 128;
  double sums[kRowTiles][kColTiles][4], parts[kRowTiles][kColTiles][4];

  static constexpr RF_HOST_DEVICE int first(bool along, bool, int lane) {
    return (lane >> 2) * (along ? kAlong : 1) + (lane & 3) * (along ? 1 : kAcross);
  }
  template <class V>
  static RF_DEVICE double load(const V& from, int channel, int sample) {
    const double x = from.at[channel * V::channel + sample * V::sample];
    return V::relu ? cuda::relu(x) : x;
  }
  template <class X, class Y>
  RF_DEVICE void multiply(const X& x, const Y& y) {
    RF_UNROLL
    for (int s = 0; s < kSamples; s += 4) {
      double b[kColTiles];
      RF_UNROLL
      for (int j = 0; j < kColTiles; ++j) b[j] = load(y, j * 8, s);
      RF_UNROLL
      for (int i = 0; i < kRowTiles; ++i) {
        const double a[2] = {load(x, i * 16, s), load(x, i * 16 + 8, s)};
        RF_UNROLL
        for (int j = 0; j < kColTiles; ++j) add_products(parts[i][j], a, b[j]);
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

// What the kernel asks of a tile for numbers of type T.
template <class S, class T>
concept TileOf =
    requires(S tile, const View<T, S::kAlong, 1, true>& along, const View<T, 1, S::kAcross, true>& across) {
      { S::kChannels + S::kSamples + S::kAlong + S::kAcross } -> std::convertible_to<int>;  // of a stage
      { S::kPromote + S::kFlush } -> std::convertible_to<int>;                              // stages of a sum
      { S::first(true, true, 0) } -> std::same_as<int>;  // where the first number of a lane stands in a stage
      tile.multiply(along, across);
      tile.promote();
      tile.sums[S::kRowTiles - 1][S::kColTiles - 1][3] = 0;
    };

// Whether lanes that load a number (or, in 16 bits, a row of 16 bytes) at the same time always meet different banks of
// shared memory, of 128 bytes in all.
template <class T, TileOf<T> S>
constexpr bool without_conflicts() {
  constexpr int bytes = sizeof(T) == 2 ? 16 : sizeof(T), at_once = 128 / bytes;
  for (int form = 0; form < 4; ++form)
    for (int start = 0; start < kWarp; start += at_once) {
      uint32_t banks = 0;
      for (int lane = start; lane < start + at_once; ++lane)
        banks |= 1u << (S::first(form % 2 == 1, form / 2 == 1, lane) * sizeof(T) / bytes % at_once);
      if (banks != ~0u >> (32 - at_once)) return false;
    }
  return true;
}
static_assert(without_conflicts<bf16, Tile<bf16>>() && without_conflicts<f16, Tile<f16>>());
static_assert(without_conflicts<float, Tile<float>>() && without_conflicts<double, Tile<double>>());
static_assert(without_conflicts<float, SplitTile<InBf16, 2>>());

}  // namespace
}  // namespace rf::cuda
