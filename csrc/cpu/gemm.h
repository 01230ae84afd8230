// SPDX-License-Identifier: BSD-3-Clause
// The matrix product C[i, j] = sum_p A[i, p] B[j, p], on which the kernels are built: micro-kernels, and one loop nest
// around them. Sources say where the rows of A and of B come from, and an epilogue says where the tiles of C go.
//
// Every element of C is summed over p in an order that only the sizes decide. So neither the tile that it falls into
// nor the number of threads changes its bits.
#pragma once

#include <omp.h>

#include "../caches.h"
#include "unit_sweep.h"

namespace rf::RF_ISA {

// Rows of C that are computed together.
template <class T>
constexpr int64_t kHeight = kOnUnit<T> ? kUnitRows : MR;

// How many sums a block of C has between two parts of a long sum, on the matrix unit or in registers.
template <class T>
RF_INLINE int64_t kept_sums(int64_t rows, int64_t cols, bool on_unit = kOnUnit<T>) {
  const int64_t height = on_unit ? kHeight<T> : MR;
  return blocks(rows, height) * height * blocks(cols, NR<T>) * NR<T>;
}

// All tiles of a block of C, on the matrix unit or in registers. The panels of B are `panel` numbers apart.
template <class T, class Rows, class Epilogue, class Ahead>
static void sweep_apart(const Rows& a, const T* b, int64_t panel, int64_t top, int64_t rows, int64_t cols, int64_t k,
                        Aside<T> aside, Chain chain, Epilogue& epilogue, Ahead& ahead) {
#if defined(RF_MATRIX_UNIT)
  if constexpr (kOnUnit<T>)
    if (aside.unit != nullptr) return sweep_unit(a, b, panel, top, rows, cols, k, aside, chain, epilogue, ahead);
#endif
  sweep_panels(a, b, panel, top, rows, cols, k, aside.sums, aside.tall, chain, epilogue, ahead);
}

// The same for panels that lie side by side.
template <class T, class Rows, class Epilogue, class Ahead>
static void sweep(const Rows& a, const T* b, int64_t top, int64_t rows, int64_t cols, int64_t k, Aside<T> aside,
                  Chain chain, Epilogue& epilogue, Ahead& ahead) {
  sweep_apart(a, b, k * NR<T>, top, rows, cols, k, aside, chain, epilogue, ahead);
}

// The same for whole sums, without prefetching.
template <class T, class Epilogue>
static void sweep_whole(const RowsOf<T>& a, const T* b, int64_t panel, int64_t rows, int64_t cols, int64_t k,
                        Aside<T> aside, Epilogue epilogue) {
  NothingAhead nothing;
  sweep_apart(a, b, panel, 0, rows, cols, k, aside, Chain{}, epilogue, nothing);
}

// Terms of a long sum at a time, so that a panel of B stays in the second-level cache. It changes no bits.
constexpr int64_t kTermsAtATime = 256;

// How many numbers of memory `sweep_in_chunks` takes.
template <class T>
RF_INLINE int64_t partial_size(int64_t rows, int64_t cols, int64_t k, Products products) {
  return (k > kTermsAtATime ? kept_sums<T>(rows, cols) : 0) +
         sweep_bytes<T>(rows, 0, smaller(k, kTermsAtATime), products) / static_cast<int64_t>(sizeof(Sum<T>));
}

// The same, for long sums. Each element is still one chain of multiply-adds. For the unit B has been written as tiles.
template <class T, class Epilogue>
static void sweep_in_chunks(const RowsOf<T>& a, const T* b, int64_t rows, int64_t cols, int64_t k, Sum<T>* memory,
                            Epilogue epilogue, Products products, const UnitPanels<T>& panels) {
  NothingAhead nothing;
  const bool kept = k > kTermsAtATime;
  Sum<T>* const unit = memory + (kept ? kept_sums<T>(rows, cols) : 0);
  for (int64_t k0 = 0; k0 == 0 || k0 < k; k0 += kTermsAtATime) {
    const RowsOf<T> some{a.a + k0 * a.s_k, a.s_row, a.s_k};
    const Chain chain{k0 == 0, k0 + kTermsAtATime >= k};
    const Aside<T> aside{kept ? memory : nullptr, kOnUnit<T> ? unit : nullptr, products, panels.from(k0),
                         blocks(rows, MR)};
    sweep_apart(some, b + k0 * NR<T>, k * NR<T>, 0, rows, cols, smaller(kTermsAtATime, k - k0), aside, chain, epilogue,
                nothing);
  }
}

// What one task computes: rows and columns of C, over part `slab` of the sum.
struct Block {
  int64_t slab, row, rows, col, cols;
};

// How many things of `each` bytes fit into `bytes`, at least `least` and at most `most`: block sizes from the caches.
RF_INLINE int64_t fitting(int64_t bytes, int64_t each, int64_t least, int64_t most) {
  return larger(least, smaller(most, bytes / each));
}

constexpr int64_t kStrip = 96 / MR * MR;  // rows of A that are packed at a time, for epilogues that promote

struct Problem {
  int64_t m, n, k;       // C is m x n, sums have k terms
  int64_t mc, nc, kc;    // block sizes
  int64_t slabs = 1;     // parts of the sum; each is its own task unless they are joined
  int64_t strip = mc;    // rows of A that are packed at a time
  bool joined = false;   // whether one task computes all slabs of a block, one after the other
  int64_t from = 0;      // terms of the sources before the first one of the sums
  bool unit = true;      // whether the matrix unit may be used
  Products products{};   // of terms, on the unit
  int64_t promoted = 1;  // chunks whose sums in T are promoted together, if the epilogue promotes
};

template <class T, class Packer>
static void pack_panels(const Packer& packer, T* to, int64_t row, int64_t rows, int64_t k0, int64_t k) {
  for (int64_t i = 0; i < rows; i += NR<T>, to += NR<T> * k)
    packer.pack(to, NR<T>, row + i, smaller(NR<T>, rows - i), k0, k);
}

// A source is opened on the rows of a block.
// On the right, panels(to, k0, k) returns the panels of these rows over [k0, k0 + k). It makes them in `to`, unless
// they exist already.
// On the left, rows(to, i, count, k0, k, f) calls f(RowsOf, number) for some rows from i on, and returns their number.
// The rows are read where they lie, or made in `to`; at most `count` rows are made. For the matrix unit, they are all
// rows of the block. Otherwise the number is a multiple of MR, unless they are the last ones.
// For both, ahead(k0, k, steps) returns an object whose step() prefetches what the source will read.
// This source packs its rows each time.
template <class Packer>
struct Packed {
  Packer packer;

  template <class T>
  struct Open {
    const Packer& packer;
    int64_t row, size;
    const T* panels(T* to, int64_t k0, int64_t k) {
      pack_panels(packer, to, row, size, k0, k);
      return to;
    }
    template <class F>
    int64_t rows(T* to, int64_t i, int64_t count, int64_t k0, int64_t k, F f) {
      count = smaller(count, size - i);
      const int64_t ld = column_stride<T>(count);
      packer.pack(to, ld, row + i, count, k0, k);
      f(RowsOf<T>{to, 1, ld}, count);
      return count;
    }
    auto ahead(int64_t k0, int64_t k, int64_t steps) const { return packer.ahead(row, size, k0, k, steps); }
  };
  int64_t scratch(const Problem&) const { return 0; }
  template <class T>
  Open<T> open(const Block&, int64_t row, int64_t rows, void*) const {
    return {packer, row, rows};
  }
};

// A right source of panels that were packed beforehand, in chunks of kc terms, and for the unit written as tiles. Its
// rows begin at a multiple of NR.
template <class T>
struct Prepacked {
  T* data;
  char* tiles;
  int64_t padded, kc;  // padded: rows, a multiple of NR
  Products products;
  int64_t from = 0;  // the first term that was packed

  static int64_t bytes(int64_t padded, int64_t k, int64_t kc, Products products) {
    return padded * k * static_cast<int64_t>(sizeof(T)) +
           blocks(k, kc) * UnitPanels<T>::bytes(padded, smaller(k, kc), products);
  }
  static Prepacked in(void* memory, int64_t padded, int64_t k, int64_t kc, Products products, int64_t from = 0) {
    T* const data = static_cast<T*>(memory);
    return {data, reinterpret_cast<char*>(data + padded * k), padded, kc, products, from};
  }
  T* at(int64_t row, int64_t k0, int64_t k) const { return data + padded * (k0 - from) + row * k; }
  UnitPanels<T> tiles_at(int64_t k0, int64_t k) const {
    const int64_t chunk = UnitPanels<T>::bytes(padded, kc, products);
    return UnitPanels<T>::in(tiles + (k0 - from) / kc * chunk, padded, k, products);
  }
  // Writes a panel, which has been packed, as tiles.
  void write_tiles(int64_t row, int64_t rows, int64_t k0, int64_t k) const {
    tiles_at(k0, k).write(row / NR<T>, at(row, k0, k), rows, k);
  }

  template <class>
  struct Open {
    const Prepacked& all;
    int64_t row;
    const T* panels(T*, int64_t k0, int64_t k) { return all.at(row, k0, k); }
    UnitPanels<T> tiles(int64_t k0, int64_t k) const {
      UnitPanels<T> mine = all.tiles_at(k0, k);
      mine.tiles += row / NR<T> * mine.apart;
      mine.outside += row / NR<T>;
      return mine;
    }
    NothingAhead ahead(int64_t, int64_t, int64_t) const { return {}; }
  };
  int64_t scratch(const Problem&) const { return 0; }
  template <class>
  Open<T> open(const Block&, int64_t row, int64_t, void*) const {
    return {*this, row};
  }
};

RF_INLINE int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// The loop nest. An epilogue with `promotes` receives a tile for each chunk of kc terms, to add it to wider numbers.
// Any other epilogue receives one tile for the whole sum, which is then one chain of fused multiply-adds in T.
template <class T, class A, class B, class Epilogue>
static void product(const Problem& p, const A& a, const B& b, const Epilogue& c, int threads) {
  const int64_t row_blocks = larger(1, blocks(p.m, p.mc)), col_blocks = blocks(p.n, p.nc),
                chunks = larger(1, blocks(p.k, p.kc));
  const int64_t slabs_each = p.joined ? p.slabs : 1, tasks = p.slabs / slabs_each * row_blocks * col_blocks;
  const bool on_unit = kOnUnit<T> && p.unit;
  const int64_t strip = smaller(on_unit ? p.mc : p.strip, p.m), mc = blocks(smaller(p.mc, p.m), MR) * MR,
                nc = blocks(smaller(p.nc, p.n), NR<T>) * NR<T>, kc = smaller(p.kc, p.k);
  const bool chained = (!Epilogue::promotes || p.promoted > 1) && chunks > 1;
  constexpr bool written = requires { b.write_tiles(0, 0, 0, 0); };  // B, as tiles
  const int64_t sizes[7] = {aligned(packed_size<T>(strip, kc) * sizeof(T)),
                            aligned(nc * kc * sizeof(T)),
                            chained ? aligned(kept_sums<T>(mc, nc, on_unit) * sizeof(Sum<T>)) : 0,
                            aligned(a.scratch(p)),
                            aligned(b.scratch(p)),
                            aligned(c.scratch(p)),
                            on_unit ? aligned(sweep_bytes<T>(mc, written ? 0 : nc, kc, p.products)) : 0};
  int64_t offsets[8] = {};
  for (int s = 0; s < 7; ++s) offsets[s + 1] = offsets[s] + sizes[s];
  threads = static_cast<int>(smaller(threads, tasks));
  if (threads == 0) return;
  const Scratch memory(threads * offsets[7]);
#pragma omp parallel num_threads(threads)
  {
    char* own = static_cast<char*>(memory.data()) + omp_get_thread_num() * offsets[7];
    T *a_buffer = reinterpret_cast<T*>(own), *b_buffer = reinterpret_cast<T*>(own + offsets[1]);
    Sum<T>* partial = reinterpret_cast<Sum<T>*>(own + offsets[2]);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t col = task % col_blocks * p.nc, row = task / col_blocks % row_blocks * p.mc;
      const int64_t first = task / col_blocks / row_blocks * slabs_each;
      for (int64_t slab = first; slab < first + slabs_each; ++slab) {
        const Block block{slab, row, smaller(p.mc, p.m - row), col, smaller(p.nc, p.n - col)};
        auto left = a.template open<T>(block, block.row, block.rows, own + offsets[3]);
        auto right = b.template open<T>(block, block.col, block.cols, own + offsets[4]);
        auto epilogue = c.open(block, own + offsets[5]);
        const int64_t begin = slab * chunks / p.slabs, end = (slab + 1) * chunks / p.slabs;
        for (int64_t chunk = begin; chunk < end; ++chunk) {
          const int64_t k0 = p.from + chunk * p.kc, rest = p.from + p.k - k0, k = smaller(p.kc, rest);
          const T* right_panels = right.panels(b_buffer, k0, k);
          const int64_t age = Epilogue::promotes ? (chunk - begin) % p.promoted : chunk - begin;
          const Chain chain{age == 0, chunk + 1 == end || (Epilogue::promotes && age + 1 == p.promoted)};
          const int64_t next = chunk + 1 < end ? smaller(p.kc, rest - k) : 0;
          const int64_t steps = blocks(block.rows, MR) * blocks(block.cols, NR<T>) * blocks(k, kStep);
          Both ahead{left.ahead(k0 + k, next, steps), right.ahead(k0 + k, next, steps)};
          Aside<T> aside{chained ? partial : nullptr, on_unit ? own + offsets[6] : nullptr, p.products, {}, mc / MR};
          if constexpr (kOnUnit<T> && written)
            if (on_unit) aside.panels = right.tiles(k0, k);
          for (int64_t i = 0, rows; i < block.rows; i += rows)
            rows = left.rows(a_buffer, i, strip, k0, k, [&](const auto& some, int64_t count) {
              sweep(some, right_panels, i, count, block.cols, k, aside, chain, epilogue, ahead);
            });
          if constexpr (requires { epilogue.end_chunk(); })
            if (chain.last) epilogue.end_chunk();
        }
        epilogue.close();
      }
    }
  }
}

// The same product, for a B that is worth packing once for all rows of C. Blocks of its rows are packed, at most 32 MiB
// at a time.
template <class T, class A, class PackB, class Epilogue>
static void product_prepacked(int64_t m, int64_t n, int64_t k, const A& a, const PackB& b, const Epilogue& c,
                              int threads, Products products) {
  constexpr int64_t kc = kOnUnit<T> ? 256 : 1024, fewest_tasks = 16;
  const int64_t most = kOnUnit<T> ? 2 * kStrip : 4 * kStrip;  // as tiles they take more room
  const int64_t mc = fitting(caches().second * 3 / 8, kc * static_cast<int64_t>(sizeof(T)), kStrip, most);
  const int64_t width =
      larger(1, smaller(96, (int64_t{32} << 20) / static_cast<int64_t>(sizeof(T)) / NR<T> / larger(k, 1)));
  for (int64_t j = 0; j < n; j += width * NR<T>) {
    const int64_t cols = smaller(width * NR<T>, n - j), panels = blocks(cols, NR<T>), padded = panels * NR<T>;
    const Scratch memory(Prepacked<T>::bytes(padded, k, kc, products));
    const Prepacked<T> packed = Prepacked<T>::in(memory.data(), padded, k, kc, products);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t panel = 0; panel < panels; ++panel)
      for (int64_t k0 = 0; k0 < k; k0 += kc) {
        const int64_t length = smaller(kc, k - k0), row = panel * NR<T>;
        b.pack(packed.at(row, k0, length), NR<T>, j + row, smaller(NR<T>, cols - row), k0, length);
        packed.write_tiles(row, smaller(NR<T>, cols - row), k0, length);
      }
    const int64_t pieces = smaller(panels, larger(1, fewest_tasks / larger(1, blocks(m, mc))));
    Problem problem{m, cols, k, mc, blocks(panels, pieces) * NR<T>, kc};
    problem.products = products;
    product<T>(problem, a, packed, c.from_column(j), threads);
  }
}

}  // namespace rf::RF_ISA
