// SPDX-License-Identifier: BSD-3-Clause
// The micro-kernels of a matrix product C[i, j] = sum_p A[i, p] B[j, p]: a tile of C in registers, and all tiles of a
// block of C. Sources say where the rows of A and of B come from, and an epilogue says where the tiles of C go.
#pragma once

#include "pack.h"

namespace rf::RF_ISA {

// A tile is MR rows by NV vectors: 24 accumulators of 32 registers with AVX-512, 12 of 16 with AVX2, 8 of 16 below. On
// aarch64 it is 20 of 32, because the numbers of A need registers, too.
#if defined(__aarch64__)
constexpr int MR = 5, NV = 4;
#else
constexpr int MR = kLanes == 16 ? 6 : 4;
constexpr int NV = kLanes == 16 ? 4 : kLanes == 8 ? 3 : 2;
#endif
template <class T>
constexpr int NR = NV * kWidth<T>;

// The size of packed rows of A, in numbers. It includes MR further numbers, because the last tile reads on into the
// next column.
template <class T>
RF_INLINE int64_t packed_size(int64_t rows, int64_t k) {
  return column_stride<T>(rows) * k + MR;
}

template <class T, int V>
using Accumulators = Full<Sum<T>>[MR][V];

// Rows of A as the micro-kernel reads them: packed or where they lie, and as max(a, 0) with RELU. B comes in panels of
// NR rows: column p of a panel begins at p * NR.
template <class T, bool RELU = false>
struct RowsOf {
  const T* a;
  int64_t s_row, s_k;
  RF_INLINE Full<T> at(const RowsOf& x, int64_t p, int i) {
    const Full<T> value = splat<T, kWidth<T>>(x.a[i * x.s_row + p * x.s_k]);
    if constexpr (RELU) return positive_part(value);
    return value;
  }
  RowsOf from(int64_t i) const { return {a + i * s_row, s_row, s_k}; }
};

// The micro-kernel: acc += columns [begin, end) of MR rows of A times the first V vectors of a panel of B.
template <class T, int V, class Rows>
RF_INLINE void multiply(int64_t begin, int64_t end, const Rows& a, const T* b, Accumulators<T, V>& acc) {
  for (int64_t p = begin; p < end; ++p) {
    Full<T> row[V];
    RF_UNROLL
    for (int v = 0; v < V; ++v) row[v] = load<T, kWidth<T>>(b + p * NR<T> + v * kWidth<T>);
    RF_UNROLL
    for (int i = 0; i < MR; ++i) {
      const Full<T> left = Rows::at(a, p, i);
      RF_UNROLL
      for (int v = 0; v < V; ++v) acc[i][v] = multiply_add(left, row[v], acc[i][v]);
    }
  }
}

template <int V>
struct Vectors {};
constexpr int smallest(int a, int b) { return a < b ? a : b; }

// A sum over p may be computed in chunks. The first chunk begins at zero, and the others go on from `partial`. All but
// the last one put their sums into `partial` (MR * NR numbers for each tile).
struct Chain {
  bool first = true, last = true;
};

constexpr int64_t kStep = 64;  // terms of the sum between two prefetches

// Computes one tile. It is not inlined, so that the accumulators have the registers to themselves. Accumulators are
// indexed by constants only, as a register has no address. The rows come as a reference: a copy on the stack would be
// read in wider pieces than it was written, and such a read waits for all earlier stores. Every few steps `ahead`
// prefetches what comes next.
template <class T, int V, class Rows, class Epilogue, class Ahead>
__attribute__((noinline)) static void one_tile(const Rows& all, int64_t row, const T* b, int64_t k, int64_t i,
                                               int64_t j, int64_t rows, int64_t cols, Sum<T>* partial, Chain chain,
                                               Epilogue& epilogue, Ahead& ahead) {
  constexpr int N = kWidth<T>;
  const Rows a = all.from(row);
  Accumulators<T, V> acc = {};
  if (!chain.first) RF_UNROLL
  for (int t = 0; t < MR * V; ++t) acc[t / V][t % V] = load<Sum<T>, N>(partial + t * N);
  for (int64_t p = 0; p < k; p += kStep) {
    Ahead::step(ahead);
    if constexpr (requires { epilogue.touch(i, j); })
      if (p + kStep >= k) epilogue.touch(i, j);
    multiply<T, V>(p, smaller(p + kStep, k), a, b, acc);
  }
  if (chain.last) {
#if defined(__aarch64__)  // GCC would store acc in every step where an epilogue indexes it by a variable
    Accumulators<T, V> sums;
    RF_UNROLL
    for (int t = 0; t < MR * V; ++t) sums[t / V][t % V] = acc[t / V][t % V];
    epilogue.template tile<V>(i, j, rows, cols, sums);
#else
    epilogue.template tile<V>(i, j, rows, cols, acc);
#endif
  } else {
    RF_UNROLL
    for (int t = 0; t < MR * V; ++t) store<Sum<T>, N>(partial + t * N, acc[t / V][t % V]);
  }
}

// Computes all tiles of `rows` rows of a block of C, from row `top` on. The panels of B are `panel` numbers apart. The
// block has `tall` rows of tiles; where `partial` has the sums of a tile depends on its place in the block alone.
template <class T, class Rows, class Epilogue, class Ahead>
static void sweep_panels(const Rows& a, const T* b, int64_t panel, int64_t top, int64_t rows, int64_t cols, int64_t k,
                         Sum<T>* partial, int64_t tall, Chain chain, Epilogue& epilogue, Ahead& ahead) {
  constexpr int N = kWidth<T>;
  for (int64_t j = 0; j < cols; j += NR<T>, b += panel) {
    Sum<T>* own = partial + (j / NR<T> * tall + top / MR) * MR * NR<T>;
    for (int64_t i = 0; i < rows; i += MR, own += MR * NR<T>) {
      const int64_t skipped = epilogue.skips(top + i, j) / N * N, width = smaller(NR<T>, cols - j) - skipped;
      const auto run = [&]<int V>(Vectors<V>) {
        one_tile<T, V>(a, i, b + skipped, k, top + i, j + skipped, smaller(MR, rows - i), width, own, chain, epilogue,
                       ahead);
      };
      if (NV == 4 && width > 3 * N)
        run(Vectors<NV>{});
      else if (NV >= 3 && width > 2 * N)
        run(Vectors<smallest(NV, 3)>{});
      else if (width > N)
        run(Vectors<2>{});
      else if (width > 0)
        run(Vectors<1>{});
    }
  }
}

}  // namespace rf::RF_ISA
