// SPDX-License-Identifier: BSD-3-Clause
// Writes a tile of random numbers. A warp makes 32 groups of four columns of a row.
#pragma once

#include "generate.h"
#include "numbers.h"

namespace rf::cuda {

constexpr int kTileRows = 8;  // rows of a block: one for each warp
constexpr int64_t kMostBlocks = 65535;

// L::numbers(at, i, q, x) gives the four columns of group q of row i, as numbers of type T.
template <class L, class T>
concept Law = requires(const Origin& at, T (&x)[4]) { L::numbers(at, int64_t{}, uint32_t{}, x); };

// Group k of a row holds column 4 k - at.col % 4 of the tile and the next three, as far as they are inside.
template <class T, Law<T> L>
__global__ void __launch_bounds__(kWarp* kTileRows) write(T* out, int64_t rows, int64_t cols, int64_t ld, Origin at) {
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x % kWarp;
  const int64_t column = 4 * group - (at.col & 3);
  if (column >= cols) return;
  const bool inside = column >= 0 && column + 4 <= cols;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * kTileRows + threadIdx.x / kWarp; row < rows;
       row += static_cast<int64_t>(gridDim.y) * kTileRows) {
    Four<T> x;
    L::numbers(at, at.row + row, static_cast<uint32_t>((at.col >> 2) + group), x.values);
    T* target = out + row * ld + column;
    if (inside && reinterpret_cast<uint64_t>(target) % sizeof(Four<T>) == 0)
      *reinterpret_cast<Four<T>*>(target) = x;
    else
      for (int c = 0; c < 4; ++c)
        if (column + c >= 0 && column + c < cols) target[c] = x.values[c];
  }
}

template <class L>
void write_tile(const char* name, void* out, DType dtype, int64_t rows, int64_t cols, int64_t ld, Address at,
                Stream stream) {
  if (rows <= 0 || cols <= 0) return;
  const int64_t groups = ((at.col & 3) + cols + 3) >> 2, blocks = (rows + kTileRows - 1) / kTileRows;
  const dim3 grid(static_cast<unsigned>((groups + kWarp - 1) / kWarp),
                  static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks));
  with_type(dtype, [&]<class T>(Type<T>) {
    launch(name, write<T, L>, grid, kWarp * kTileRows, 0, stream, static_cast<T*>(out), rows, cols, ld, at);
  });
}

}  // namespace rf::cuda
