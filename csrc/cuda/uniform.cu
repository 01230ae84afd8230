// SPDX-License-Identifier: BSD-3-Clause
// uniform: writes a tile of uniform numbers, by the rule of csrc/cpu/uniform.cpp.
//
// Bytes: those of the values, written once. They bound float32; a float64 value takes two calls of the generator.
#include "kernels_cuda.h"
#include "tile.h"

namespace rf::cuda {
namespace {

struct Uniform {
  template <class T>
  static RF_DEVICE void numbers(const Origin& at, int64_t i, uint32_t q, T (&u)[4]) {
    constexpr int kBits = sizeof(T) == 4 ? 23 : __is_same(T, bf16) ? 7 : 10;
    uint32_t x[4];
    words(at, i, q, kUniformKind, x);
    for (int c = 0; c < 4; ++c) u[c] = to<T>(midpoint<DeviceLanes, kBits>(x[c]));
  }

  static RF_DEVICE void numbers(const Origin& at, int64_t i, uint32_t q, double (&u)[4]) {
    uint32_t high[4], low[4];
    words(at, i, q, kUniformKind, high);
    words(at, i, q, kUniformLowKind, low);
    for (int c = 0; c < 4; ++c) {
      const int64_t k = static_cast<int64_t>(high[c]) << 20 | low[c] >> 12;
      u[c] = (static_cast<double>(k) + 0.5) * 0x1p-52;  // exact
    }
  }
};

}  // namespace

void uniform(void* out, DType dtype, int64_t rows, int64_t cols, int64_t ld, Address at, Stream stream) {
  write_tile<Uniform>("uniform", out, dtype, rows, cols, ld, at, stream);
}

}  // namespace rf::cuda
