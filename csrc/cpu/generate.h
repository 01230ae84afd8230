// SPDX-License-Identifier: BSD-3-Clause
// Generates G, and the words of other random numbers, in registers: four columns of a vector of rows.
#pragma once

#include "../kernels.h"
#include "../philox.h"
#include "simd.h"

namespace rf::RF_ISA {

// The words of the counter that depend on the rows of a vector. The rows i are 64-bit numbers, in one vector for even
// lanes and one for odd lanes.
struct RowCounter {
  VectorLanes::Word low, tags;
};

RF_INLINE RowCounter row_counter(vq even, vq odd, uint32_t kind = kGaussianKind) {
  const uint64_t first = tag(0, kind);
  return {{even, odd}, {(even >> 32) + first, (odd >> 32) + first}};
}

// The same for rows i, i + 1, ..., i + kLanes - 1.
RF_INLINE RowCounter row_counter(int64_t i) {
  vq even{};
  RF_UNROLL
  for (int l = 0; l < kLanes / 2; ++l) even[l] = 2 * l;
  even += static_cast<uint64_t>(i);
  return row_counter(even, even + 1);
}

// G[rows, 4q .. 4q + 3], one vector for each column.
RF_INLINE void generate(const Address& at, const RowCounter& rows, VectorLanes::Word q, vf (&g)[4]) {
  gaussian4<VectorLanes>(q, rows.low, VectorLanes::uniform(static_cast<uint32_t>(at.stream)), rows.tags,
                         keys_of(at.seed), g);
}

// The four words of the same addresses, for the kind of the counter.
RF_INLINE void words(const Address& at, const RowCounter& rows, VectorLanes::Word q, VectorLanes::Word (&x)[4]) {
  x[0] = q, x[1] = rows.low, x[2] = VectorLanes::uniform(static_cast<uint32_t>(at.stream)), x[3] = rows.tags;
  Philox<VectorLanes>::rounds(x[0], x[1], x[2], x[3], keys_of(at.seed));
}

}  // namespace rf::RF_ISA
