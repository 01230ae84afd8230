// SPDX-License-Identifier: BSD-3-Clause
// The matrix product C[i, j] = sum_p A[i, p] B[j, p] that every kernel is: micro-kernels, and one loop nest around
// them, given where the rows of A and of B come from (sources) and where the tiles of C go (a epilogue).
//
// Every element of C is summed over p in one order that sizes alone decide, so that neither the tile it falls into nor
// the number of threads changes its bits.
#pragma once

#include <omp.h>

#include "pack.h"

namespace rf::RF_ISA {

// A tile is MR rows by NV vectors: 24 accumulators of 32 registers with AVX-512, 12 of 16 with AVX2, 8 of 16 below.
constexpr int MR = kLanes == 16 ? 8 : 4;
constexpr int NV = kLanes == 4 ? 2 : 3;
template <class T>
constexpr int NR = NV * kWidth<T>;

template <class T, int V>
using Accumulators = Full<T>[MR][V];

// The micro-kernel: acc += A panel (k, MR) transposed times the first V vectors of a B panel (k, NR).
template <class T, int V>
RF_INLINE void multiply(int64_t k, const T* a, const T* b, Accumulators<T, V>& acc) {
  for (int64_t p = 0; p < k; ++p, a += MR, b += NR<T>) {
    Full<T> row[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) row[v] = load<T, kWidth<T>>(b + v * kWidth<T>);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      const Full<T> left = splat<T, kWidth<T>>(a[i]);
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) acc[i][v] = fma(left, row[v], acc[i][v]);
    }
  }
}

// Where a sum over p is cut: it begins, or goes on from, or is put aside in `partial` (a tile of MR * NR numbers).
struct Chain {
  bool first = true, last = true;
};

// Not inlined: the accumulators then have the registers to themselves.
template <class T, int V, class Epilogue>
__attribute__((noinline)) static void one_tile(const T* a, const T* b, int64_t k, int64_t i, int64_t j, int64_t rows,
                                               int64_t cols, T* partial, Chain chain, Epilogue& epilogue) {
  Accumulators<T, V> acc = {};
  if (!chain.first)
    for (int r = 0; r < MR; ++r)
      for (int v = 0; v < V; ++v) acc[r][v] = load<T, kWidth<T>>(partial + (r * NV + v) * kWidth<T>);
  multiply<T, V>(k, a, b, acc);
  if (chain.last) {
    epilogue.template tile<V>(i, j, rows, cols, acc);
  } else {
    for (int r = 0; r < MR; ++r)
      for (int v = 0; v < V; ++v) store<T, kWidth<T>>(partial + (r * NV + v) * kWidth<T>, acc[r][v]);
  }
}

// All tiles of a block of C, given its panels.
template <class T, class Epilogue>
static void sweep(const T* a, const T* b, int64_t rows, int64_t cols, int64_t k, T* partial, Chain chain,
                  Epilogue& epilogue) {
  for (int64_t j = 0; j < cols; j += NR<T>, b += k * NR<T>) {
    const int64_t width = smaller(NR<T>, cols - j);
    const T* panel = a;
    for (int64_t i = 0; i < rows; i += MR, panel += k * MR, partial += MR * NR<T>) {
      if (epilogue.skips(i, j)) continue;
      const int64_t height = smaller(MR, rows - i);
      if (width > 2 * kWidth<T>) {
        one_tile<T, NV>(panel, b, k, i, j, height, width, partial, chain, epilogue);
      } else if (width > kWidth<T>) {
        one_tile<T, 2>(panel, b, k, i, j, height, width, partial, chain, epilogue);
      } else {
        one_tile<T, 1>(panel, b, k, i, j, height, width, partial, chain, epilogue);
      }
    }
  }
}

// What one task computes: rows and columns of C, over slab `slab` of p.
struct Block {
  int64_t slab, row, rows, col, cols;
};

struct Problem {
  int64_t m, n, k;     // C is m x n, sums have k terms
  int64_t mc, nc, kc;  // block sizes
  int64_t slabs = 1;   // parts of the sum, each its own task
};

// A source opens on rows [row, row + rows) and yields their panels over [k0, k0 + k), into `to` unless it has them.
// This one packs them each time.
template <class Packer>
struct Packed {
  Packer packer;

  template <class T, int WIDTH>
  struct Open {
    const Packer& packer;
    int64_t row, rows;
    const T* panels(T* to, int64_t k0, int64_t k) {
      packer.template pack<WIDTH>(to, row, rows, k0, k);
      return to;
    }
  };
  int64_t scratch(const Problem&) const { return 0; }
  template <class T, int WIDTH>
  Open<T, WIDTH> open(const Block&, int64_t row, int64_t rows, void*) const {
    return {packer, row, rows};
  }
};

// Panels packed beforehand, chunk by chunk of kc, for rows that begin at a multiple of WIDTH.
template <class T, int WIDTH>
struct Prepacked {
  const T* data;
  int64_t padded;  // rows, a multiple of WIDTH

  template <class, int>
  struct Open {
    const T* data;
    int64_t padded, row;
    const T* panels(T*, int64_t k0, int64_t k) { return data + padded * k0 + row * k; }
  };
  int64_t scratch(const Problem&) const { return 0; }
  template <class, int>
  Open<T, WIDTH> open(const Block&, int64_t row, int64_t, void*) const {
    return {data, padded, row};
  }
};

RF_INLINE int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// The loop nest. A epilogue with `promotes` gets a tile for each chunk of kc terms (to add it to something wider);
// without, one for the whole sum, which is then one chain of fused multiply-adds in T.
template <class T, class A, class B, class Epilogue>
static void product(const Problem& p, const A& a, const B& b, const Epilogue& c, int threads) {
  const int64_t row_blocks = larger(1, blocks(p.m, p.mc)), col_blocks = blocks(p.n, p.nc),
                chunks = larger(1, blocks(p.k, p.kc));
  const int64_t tasks = p.slabs * row_blocks * col_blocks;
  const int64_t mc = blocks(smaller(p.mc, p.m), MR) * MR, nc = blocks(smaller(p.nc, p.n), NR<T>) * NR<T>,
                kc = smaller(p.kc, p.k);
  const bool chained = !Epilogue::promotes && chunks > 1;
  const int64_t sizes[6] = {
      aligned(mc * kc * sizeof(T)), aligned(nc * kc * sizeof(T)), chained ? aligned(mc * nc * sizeof(T)) : 0,
      aligned(a.scratch(p)),        aligned(b.scratch(p)),        aligned(c.scratch(p))};
  int64_t offsets[7] = {};
  for (int s = 0; s < 6; ++s) offsets[s + 1] = offsets[s] + sizes[s];
  threads = static_cast<int>(smaller(threads, tasks));
  if (threads == 0) return;
  const Scratch memory(threads * offsets[6]);
#pragma omp parallel num_threads(threads)
  {
    char* own = static_cast<char*>(memory.data()) + omp_get_thread_num() * offsets[6];
    T *a_buffer = reinterpret_cast<T*>(own), *b_buffer = reinterpret_cast<T*>(own + offsets[1]);
    T* partial = reinterpret_cast<T*>(own + offsets[2]);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t col = task % col_blocks * p.nc, row = task / col_blocks % row_blocks * p.mc;
      const int64_t slab = task / col_blocks / row_blocks;
      const Block block{slab, row, smaller(p.mc, p.m - row), col, smaller(p.nc, p.n - col)};
      auto left = a.template open<T, MR>(block, block.row, block.rows, own + offsets[3]);
      auto right = b.template open<T, NR<T>>(block, block.col, block.cols, own + offsets[4]);
      auto epilogue = c.open(block, own + offsets[5]);
      const int64_t begin = slab * chunks / p.slabs, end = (slab + 1) * chunks / p.slabs;
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t k0 = chunk * p.kc, k = smaller(p.kc, p.k - k0);
        const T* right_panels = right.panels(b_buffer, k0, k);
        const T* left_panels = left.panels(a_buffer, k0, k);
        const Chain chain{Epilogue::promotes || chunk == begin, Epilogue::promotes || chunk + 1 == end};
        sweep<T>(left_panels, right_panels, block.rows, block.cols, k, partial, chain, epilogue);
      }
      epilogue.close();
    }
  }
}

// The product where B is worth packing once for all rows of C: for a block of its rows at a time, at most 32 MiB.
template <class T, class A, class PackB, class Epilogue>
static void product_prepacked(int64_t m, int64_t n, int64_t k, const A& a, const PackB& b, const Epilogue& c,
                              int threads) {
  constexpr int64_t kc = 1024, mc = 96, fewest_tasks = 16;
  const int64_t width =
      larger(1, smaller(96, (int64_t{32} << 20) / static_cast<int64_t>(sizeof(T)) / NR<T> / larger(k, 1)));
  for (int64_t j = 0; j < n; j += width * NR<T>) {
    const int64_t cols = smaller(width * NR<T>, n - j), panels = blocks(cols, NR<T>), padded = panels * NR<T>;
    const Scratch memory(padded * k * static_cast<int64_t>(sizeof(T)));
    T* packed = static_cast<T*>(memory.data());
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t panel = 0; panel < panels; ++panel)
      for (int64_t k0 = 0; k0 < k; k0 += kc) {
        const int64_t length = smaller(kc, k - k0), row = panel * NR<T>;
        b.template pack<NR<T>>(packed + padded * k0 + row * length, j + row, smaller(NR<T>, cols - row), k0, length);
      }
    const int64_t pieces = smaller(panels, larger(1, fewest_tasks / larger(1, blocks(m, mc))));
    const Problem problem{m, cols, k, mc, blocks(panels, pieces) * NR<T>, kc};
    product<T>(problem, a, Prepacked<T, NR<T>>{packed, padded}, c.from_column(j), threads);
  }
}

}  // namespace rf::RF_ISA
