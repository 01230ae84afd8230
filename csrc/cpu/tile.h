// SPDX-License-Identifier: BSD-3-Clause
// Writes a row-major tile of random numbers. A vector holds kLanes consecutive pairs (row, group of four columns) of
// the tile in row-major order, so that short rows fill it as well as long ones.
#pragma once

#include "convert.h"
#include "generate.h"

namespace rf::RF_ISA {

// Four vectors, of one column each, as four vectors of one pair after the other.
template <class V>
RF_INLINE void in_row_order(const V (&column)[4], V* out) {
  const V low02 = interleave_low(column[0], column[2]), high02 = interleave_high(column[0], column[2]);
  const V low13 = interleave_low(column[1], column[3]), high13 = interleave_high(column[1], column[3]);
  out[0] = interleave_low(low02, low13), out[1] = interleave_high(low02, low13);
  out[2] = interleave_low(high02, high13), out[3] = interleave_high(high02, high13);
}

// A law gives the type T of its numbers, and numbers(at, rows, groups, out): those of kLanes pairs, in order. Lane l of
// the even words has pair kStep * l of the vector; lane l of the odd words has the pair kOdd further on. So the numbers
// of the even words are every other one in floats, and the first half in doubles, of which a vector has half as many.
template <class Law>
struct Tile {
  typedef typename Law::T T;
  static constexpr int kStep = sizeof(T) == 4 ? 2 : 1, kOdd = sizeof(T) == 4 ? 1 : kLanes / 2;
  static constexpr int kValues = 4 * kLanes, kVectors = kValues / kWidth<T>;

  Address at;
  int64_t rows, cols, ld, first, groups;  // of the 4 * groups columns, `first` lie before the tile

  // The values of kLanes pairs from (i, q) on, in order.
  RF_INLINE void values(const Tile& t, int64_t i, int64_t q, Full<T> (&out)[kVectors]) {
    VectorLanes::Word rows{}, group{};
    const uint64_t row = static_cast<uint64_t>(t.at.row + i), column = static_cast<uint64_t>((t.at.col >> 2) + q);
    if (q + kLanes <= t.groups) {
      rows = {vq{} + row, vq{} + row};
      RF_UNROLL
      for (int l = 0; l < kLanes / 2; ++l) group.even[l] = kStep * l;
      group.even += column;
      group.odd = group.even + kOdd;
    } else {
      uint64_t lane_row[kLanes], lane_group[kLanes];
      int64_t di = 0, dq = q;
      for (int l = 0; l < kLanes; ++l) {
        lane_row[l] = row + static_cast<uint64_t>(di);
        lane_group[l] = static_cast<uint64_t>((t.at.col >> 2) + dq);
        if (++dq == t.groups) dq = 0, ++di;
      }
      for (int l = 0; l < kLanes / 2; ++l) {
        rows.even[l] = lane_row[kStep * l], rows.odd[l] = lane_row[kStep * l + kOdd];
        group.even[l] = lane_group[kStep * l], group.odd[l] = lane_group[kStep * l + kOdd];
      }
    }
    Law::numbers(t.at, rows, group, out);
  }

  template <class S>
  static void fill(const Tile& t, S* out, int64_t begin, int64_t end) {  // begin and end count pairs
    for (int64_t p = begin; p < end; p += kLanes) {
      int64_t i = p / t.groups, q = p % t.groups, column = 4 * q - t.first;
      Full<T> x[kVectors];
      values(t, i, q, x);
      if (q + kLanes <= t.groups && p + kLanes <= end && column >= 0 && column + kValues <= t.cols) {
        for (int v = 0; v < kVectors; ++v) store_as<kWidth<T>, T>(out + i * t.ld + column + v * kWidth<T>, x[v]);
        continue;
      }
      T buffer[kValues];
      for (int v = 0; v < kVectors; ++v) store<T, kWidth<T>>(buffer + v * kWidth<T>, x[v]);
      for (int64_t l = 0; l < kLanes && p + l < end; ++l) {
        const int64_t from = column < 0 ? -column : 0, to = column + 4 > t.cols ? t.cols - column : 4;
        for (int64_t w = from; w < to; ++w) narrow(buffer[4 * l + w], out[i * t.ld + column + w]);
        column += 4;
        if (++q == t.groups) q = 0, ++i, column = -t.first;
      }
    }
  }
};

template <class Law, class S>
void write_tile(S* out, int64_t rows, int64_t cols, int64_t ld, Address at, int threads) {
  const int64_t first = at.col & 3;
  const Tile<Law> tile{at, rows, cols, ld, first, (first + cols + 3) / 4};
  const int64_t pairs = rows * tile.groups, chunk = 1024 * kLanes;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t begin = 0; begin < pairs; begin += chunk)
    Tile<Law>::fill(tile, out, begin, begin + chunk < pairs ? begin + chunk : pairs);
}

}  // namespace rf::RF_ISA
