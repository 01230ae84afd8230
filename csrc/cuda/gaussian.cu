// SPDX-License-Identifier: BSD-3-Clause
// gaussian: writes a tile of G. A warp makes 32 groups of four columns of a row.
//
// Bytes: 4 for each float32 value, written once. Instructions: about 42 for each value. Lower bound for 10^9 values, by
// memory: 1.2 ms on an H100 and 2.0 ms on an A100. The arithmetic of the generator takes about as long.
#include "generate.h"
#include "kernels_cuda.h"
#include "numbers.h"

namespace rf::cuda {
namespace {

constexpr int kRows = 8;  // rows of a block: one for each warp
constexpr int64_t kMostBlocks = 65535;

// Group k of a row holds column 4 k - at.col % 4 and the next three, as far as they are inside the tile.
template <class T>
__global__ void __launch_bounds__(kWarp* kRows) write(T* out, int64_t rows, int64_t cols, int64_t ld, Origin at) {
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x % kWarp;
  const int64_t column = 4 * group - (at.col & 3);
  if (column >= cols) return;
  const bool inside = column >= 0 && column + 4 <= cols;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * kRows + threadIdx.x / kWarp; row < rows;
       row += static_cast<int64_t>(gridDim.y) * kRows) {
    float g[4];
    generate(at, at.row + row, static_cast<uint32_t>((at.col >> 2) + group), g);
    T* target = out + row * ld + column;
    if (inside && reinterpret_cast<uint64_t>(target) % sizeof(Four<T>) == 0)
      *reinterpret_cast<Four<T>*>(target) = {{to<T>(g[0]), to<T>(g[1]), to<T>(g[2]), to<T>(g[3])}};
    else
      for (int c = 0; c < 4; ++c)
        if (column + c >= 0 && column + c < cols) target[c] = to<T>(g[c]);
  }
}

}  // namespace

void gaussian(void* out, DType dtype, int64_t rows, int64_t cols, int64_t ld, Address at, Stream stream) {
  if (rows <= 0 || cols <= 0) return;
  const int64_t groups = ((at.col & 3) + cols + 3) >> 2, blocks = (rows + kRows - 1) / kRows;
  const dim3 grid(static_cast<unsigned>((groups + kWarp - 1) / kWarp),
                  static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks));
  with_type(dtype, [&]<class T>(Type<T>) {
    launch("gaussian", write<T>, grid, kWarp * kRows, 0, stream, static_cast<T*>(out), rows, cols, ld, at);
  });
}

}  // namespace rf::cuda
