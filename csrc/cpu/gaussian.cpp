// SPDX-License-Identifier: BSD-3-Clause
// gaussian: writes a row-major tile of G.
#include "kernels_cpu.h"
#include "tile.h"

namespace rf::RF_ISA {
namespace {

struct Normal {
  typedef float T;

  RF_INLINE void numbers(const Address& at, VectorLanes::Word rows, VectorLanes::Word group, vf (&out)[4]) {
    vf g[4];
    generate(at, row_counter(rows.even, rows.odd), group, g);
    in_row_order(g, out);
  }
};

}  // namespace

void gaussian(void* out, DType dtype, int64_t rows, int64_t cols, int64_t ld, Address at, int threads) {
  with_type(dtype, [&]<class S>(Type<S>) { write_tile<Normal>(static_cast<S*>(out), rows, cols, ld, at, threads); });
}

}  // namespace rf::RF_ISA
