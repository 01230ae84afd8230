// SPDX-License-Identifier: BSD-3-Clause
// uniform: writes a row-major tile of uniform numbers. A number of S is the midpoint (k + 1/2) 2^-b of a cell, where k
// are b random bits and S has b + 1 bits. It takes one word of kind 2, and a float64 a further word of kind 3.
#include "kernels_cpu.h"
#include "tile.h"

namespace rf::RF_ISA {
namespace {

template <class S>
struct Uniform {
  typedef float T;
  static constexpr int kBits = sizeof(S) == 4 ? 23 : is_bf16(static_cast<S*>(nullptr)) ? 7 : 10;

  RF_INLINE void numbers(const Address& at, VectorLanes::Word rows, VectorLanes::Word group, vf (&out)[4]) {
    VectorLanes::Word x[4];
    words(at, row_counter(rows.even, rows.odd, kUniformKind), group, x);
    vf u[4];
    RF_UNROLL
    for (int c = 0; c < 4; ++c) u[c] = midpoint<VectorLanes, kBits>(VectorLanes::lanes(x[c]));
    in_row_order(u, out);
  }
};

template <>
struct Uniform<double> {
  typedef double T;

  // 1 + k 2^-52 by its bits, minus 1 - 2^-53: exact.
  RF_INLINE Full<double> midpoints(vq high, vq low) {
    const vq k = high << 32 >> 12 | (low & 0xffffffffu) >> 12;
    return (Full<double>)(k | 0x3ff0000000000000u) - 0x1.fffffffffffffp-1;
  }

  RF_INLINE void numbers(const Address& at, VectorLanes::Word rows, VectorLanes::Word group, Full<double> (&out)[8]) {
    VectorLanes::Word high[4], low[4];
    words(at, row_counter(rows.even, rows.odd, kUniformKind), group, high);
    words(at, row_counter(rows.even, rows.odd, kUniformLowKind), group, low);
    Full<double> even[4], odd[4];
    RF_UNROLL
    for (int c = 0; c < 4; ++c) {
      even[c] = midpoints(high[c].even, low[c].even);
      odd[c] = midpoints(high[c].odd, low[c].odd);
    }
    in_row_order(even, out);
    in_row_order(odd, out + 4);
  }
};

}  // namespace

void uniform(void* out, DType dtype, int64_t rows, int64_t cols, int64_t ld, Address at, int threads) {
  with_type(dtype,
            [&]<class S>(Type<S>) { write_tile<Uniform<S>>(static_cast<S*>(out), rows, cols, ld, at, threads); });
}

}  // namespace rf::RF_ISA
