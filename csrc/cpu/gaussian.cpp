// SPDX-License-Identifier: BSD-3-Clause
// gaussian: writes a row-major tile of G. A vector holds kLanes consecutive pairs (row, group of four columns) of the
// tile in row-major order, so that short rows fill it as well as long ones.
#include "convert.h"
#include "generate.h"
#include "kernels_cpu.h"

namespace rf::RF_ISA {
namespace {

constexpr int kValues = 4 * kLanes;  // values of one vector of pairs

struct Tile {
  Address at;
  int64_t rows, cols, ld, first, groups;  // of the 4 * groups columns, `first` lie before the tile

  // The values of kLanes pairs from (i, q) on, in order.
  RF_INLINE void values(const Tile& t, int64_t i, int64_t q, vf (&out)[4]) {
    RowCounter counter;
    VectorLanes::Word group{};
    const uint64_t row = static_cast<uint64_t>(t.at.row + i), column = static_cast<uint64_t>((t.at.col >> 2) + q);
    if (q + kLanes <= t.groups) {
      counter = row_counter(vq{} + row, vq{} + row);
      const vq even = row_counter(0).low.even + column;
      group = {even, even + 1};
    } else {
      uint64_t lane_row[kLanes], lane_group[kLanes];
      int64_t di = 0, dq = q;
      for (int l = 0; l < kLanes; ++l) {
        lane_row[l] = row + static_cast<uint64_t>(di);
        lane_group[l] = static_cast<uint64_t>((t.at.col >> 2) + dq);
        if (++dq == t.groups) dq = 0, ++di;
      }
      vq row_even{}, row_odd{};
      for (int l = 0; l < kLanes / 2; ++l) {
        row_even[l] = lane_row[2 * l], row_odd[l] = lane_row[2 * l + 1];
        group.even[l] = lane_group[2 * l], group.odd[l] = lane_group[2 * l + 1];
      }
      counter = row_counter(row_even, row_odd);
    }
    vf g[4];
    generate(t.at, counter, group, g);
    const vf low02 = interleave_low(g[0], g[2]), high02 = interleave_high(g[0], g[2]);
    const vf low13 = interleave_low(g[1], g[3]), high13 = interleave_high(g[1], g[3]);
    out[0] = interleave_low(low02, low13), out[1] = interleave_high(low02, low13);
    out[2] = interleave_low(high02, high13), out[3] = interleave_high(high02, high13);
  }

  template <class S>
  static void fill(const Tile& t, S* out, int64_t begin, int64_t end) {  // begin and end count pairs
    for (int64_t p = begin; p < end; p += kLanes) {
      int64_t i = p / t.groups, q = p % t.groups, column = 4 * q - t.first;
      vf g[4];
      values(t, i, q, g);
      if (q + kLanes <= t.groups && p + kLanes <= end && column >= 0 && column + kValues <= t.cols) {
        for (int v = 0; v < 4; ++v) store_as<kLanes, float>(out + i * t.ld + column + v * kLanes, g[v]);
        continue;
      }
      float buffer[kValues];
      for (int v = 0; v < 4; ++v) store<float, kLanes>(buffer + v * kLanes, g[v]);
      for (int64_t l = 0; l < kLanes && p + l < end; ++l) {
        const int64_t from = column < 0 ? -column : 0, to = column + 4 > t.cols ? t.cols - column : 4;
        for (int64_t w = from; w < to; ++w) narrow(buffer[4 * l + w], out[i * t.ld + column + w]);
        column += 4;
        if (++q == t.groups) q = 0, ++i, column = -t.first;
      }
    }
  }
};

}  // namespace

void gaussian(void* out, DType dtype, int64_t rows, int64_t cols, int64_t ld, Address at, int threads) {
  const int64_t first = at.col & 3;
  const Tile tile{at, rows, cols, ld, first, (first + cols + 3) / 4};
  const int64_t pairs = rows * tile.groups, chunk = 1024 * kLanes;
  with_type(dtype, [&]<class S>(Type<S>) {
    S* to = static_cast<S*>(out);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t begin = 0; begin < pairs; begin += chunk)
      Tile::fill(tile, to, begin, begin + chunk < pairs ? begin + chunk : pairs);
  });
}

}  // namespace rf::RF_ISA
