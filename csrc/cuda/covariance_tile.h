// SPDX-License-Identifier: BSD-3-Clause
// What a warp of cross_covariance multiplies at a time, for each type: channels by channels, over a stage of samples.
#pragma once

#include "products.h"

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
          mma<T>(parts[i][j], a[i], left);
          mma<T>(parts[i][j + 1], a[i], right);
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

// float32, split into kParts parts. The samples of a lane are t, t + 4, and so on, up to W::kTerms.
template <Way W, int kParts>
struct SplitTile {
  static constexpr int kChannels = 128, kSamples = 16, kAlong = 20, kAcross = 136, kRowTiles = 4, kColTiles = 4;
  static constexpr int kPromote = 1, kFlush = 64;
  float sums[kRowTiles][kColTiles][4];

  static RF_DEVICE View<float> view(const float* stage, bool along, bool relu, int lane) {
    const int channel = along ? kAlong : 1, sample = along ? 1 : kAcross;
    return {stage + (lane >> 2) * channel + (lane & 3) * sample, channel, sample, along, relu};
  }
  // Loads 16 channels by W::kTerms samples: rows g, g + 8, g, g + 8 of the first half of the samples, then of the
  // other.
  static RF_DEVICE void load(uint32_t (&parts)[kParts][4], const View<float>& from, int channel, int sample) {
    split_words<W>(parts, [&](int w, int n) {
      const int across = channel + (w & 1) * 8, down = sample + 4 * ((w >> 1) * W::kInWord + n);
      const float x = from.at[across * from.channel + down * from.sample];
      return from.relu ? cuda::relu(x) : x;
    });
  }
  RF_DEVICE void multiply(const View<float>& x, const View<float>& y) {
    static_assert(kSamples % W::kTerms == 0);
#pragma unroll 1  // a larger part at once would not fit into the registers of sm_100
    for (int s = 0; s < kSamples; s += W::kTerms) RF_UNROLL
    for (int j = 0; j < kColTiles; j += 2) {
      uint32_t b[kParts][4];
      load(b, y, j * 8, s);
      RF_UNROLL
      for (int i = 0; i < kRowTiles; ++i) {
        uint32_t a[1][kParts][4];
        load(a[0], x, i * 16, s);
        RF_UNROLL
        for (int h = 0; h < 2; ++h) {
          uint32_t half[1][kParts][2];
          RF_UNROLL
          for (int n = 0; n < kParts; ++n) half[0][n][0] = b[n][h], half[0][n][1] = b[n][h + 2];
          float sum[4] = {};
          add_products<W>(sum, a, half);
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
concept TileOf = requires(S tile, const View<T>& side, const T* stage) {
  { S::kChannels + S::kSamples + S::kAlong + S::kAcross } -> std::convertible_to<int>;  // of a stage
  { S::kPromote + S::kFlush } -> std::convertible_to<int>;                              // stages of a sum
  { S::view(stage, true, true, 0) } -> std::same_as<View<T>>;
  tile.multiply(side, side);
  tile.promote();
  tile.sums[S::kRowTiles - 1][S::kColTiles - 1][3] = 0;
};

}  // namespace
}  // namespace rf::cuda
