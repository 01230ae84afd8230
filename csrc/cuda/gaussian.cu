// SPDX-License-Identifier: BSD-3-Clause
// gaussian: writes a tile of G.
//
// Bytes: 4 for each float32 value, written once. Instructions: about 42 for each value. Lower bound for 10^9 values, by
// memory: 1.2 ms on an H100 and 2.0 ms on an A100. The arithmetic of the generator takes about as long.
#include "kernels_cuda.h"
#include "tile.h"

namespace rf::cuda {
namespace {

struct Normal {
  template <class T>
  static RF_DEVICE void numbers(const Origin& at, int64_t i, uint32_t q, T (&x)[4]) {
    float g[4];
    generate(at, i, q, g);
    for (int c = 0; c < 4; ++c) x[c] = to<T>(g[c]);
  }
};

}  // namespace

void gaussian(void* out, DType dtype, int64_t rows, int64_t cols, int64_t ld, Address at, Stream stream) {
  write_tile<Normal>("gaussian", out, dtype, rows, cols, ld, at, stream);
}

}  // namespace rf::cuda
