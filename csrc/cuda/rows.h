// SPDX-License-Identifier: BSD-3-Clause
// Operands in shared memory, as rows of terms: samples, and rows of G, given or generated.
#pragma once

#include "../samples.h"
#include "fragments.h"
#include "generate.h"
#include "numbers.h"

namespace rf::cuda {

constexpr int kDepth = 64;  // terms of a stage
// Rows are a multiple of 32 terms plus kPad apart, so that the eight rows and four pairs of a fragment lie in different
// banks.
constexpr int kPad = 8;

RF_DEVICE int smaller(int64_t a, int b) { return static_cast<int>(a < b ? a : b); }

inline int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

// The offset of a sample, in elements.
RF_DEVICE int64_t offset(const Samples& x, int64_t sample) {
  if (x.images == 1 && x.lines == 1) return sample * x.s_position;
  const int64_t line = sample / x.positions, image = line / x.lines;
  return image * x.s_image + (line - image * x.lines) * x.s_line + (sample - line * x.positions) * x.s_position;
}

template <class T>
RF_DEVICE void copy_number(T* shared, const T* global) {
  if constexpr (sizeof(T) == 8)
    copy_async_two_words(shared, global);
  else
    copy_async_word(shared, global);
}

// Copies terms [first, first + kDepth) of the samples at `offsets`. Rows from `there` on and terms beyond the last
// channel become zeros. Lanes go along memory, or along 8 rows of it: whole sectors in both cases.
template <class T>
RF_DEVICE void copy_rows(T* to, int ld, const Samples& x, const int64_t* offsets, int rows, int there, int64_t first) {
  const bool along = x.s_channel == 1;
  for (int i = threadIdx.x; i < rows * kDepth; i += blockDim.x) {
    const int row = along ? i / kDepth : i % 8 + i / (8 * kDepth) * 8;
    const int term = along ? i % kDepth : i / 8 % kDepth;
    T* const target = to + row * ld + term;
    if (row < there && first + term < x.channels)
      copy_number(target, static_cast<const T*>(x.data) + offsets[row] + (first + term) * x.s_channel);
    else
      *target = 0;
  }
}

// The same for rows of G from `row` on, generated. Each thread makes groups of four columns.
template <class T>
RF_DEVICE void generate_rows(T* to, int ld, const Rows& g, int64_t row, int rows, int there, int64_t first) {
  const Origin at{g.address};
  const int64_t column = at.col + first;
  const int before = static_cast<int>(column & 3);
  const int quads = kDepth / 4 + (before != 0 ? 1 : 0);
#pragma unroll 1
  for (int i = threadIdx.x; i < rows * quads; i += blockDim.x) {
    const int r = i / quads, begin = 4 * (i - r * quads) - before;
    float made[4] = {};
    if (r < there && first + begin < g.given.channels)
      generate(at, at.row + row + r, static_cast<uint32_t>((column + begin) >> 2), made);
    RF_UNROLL
    for (int k = 0; k < 4; ++k)
      if (begin + k >= 0 && begin + k < kDepth)
        to[r * ld + begin + k] = first + begin + k < g.given.channels ? static_cast<T>(made[k]) : T{0};
  }
}

}  // namespace rf::cuda
