// SPDX-License-Identifier: BSD-3-Clause
// Float64 matrices in memory, and sums of products into them on the loop nest of all kernels.
#pragma once

#include "epilogue.h"

namespace rf::RF_ISA {

// Entry (i, j) at data[i * s_row + j * s_col].
template <class S>
struct Strided {
  S* data;
  int64_t s_row, s_col;

  Strided from(int64_t i, int64_t j) const { return {data + i * s_row + j * s_col, s_row, s_col}; }
  Strided transposed() const { return {data, s_col, s_row}; }
};
using Matrix = Strided<double>;

// The packer of a matrix whose rows are rows of an operand. Where a column is contiguous, a few of them at a time go to
// all panels: memory is then read along lines, not down a column of pages.
template <class S>
struct MatrixPacker {
  Strided<S> x;

  template <int WIDTH>
  void pack(double* to, int64_t row, int64_t rows, int64_t k0, int64_t k) const {
    const int64_t step = x.s_row == 1 ? 16 : k;
    for (int64_t p = 0; p < k; p += step)
      for (int64_t i = 0; i < rows; i += WIDTH) {
        const int64_t count = smaller(WIDTH, rows - i), length = smaller(step, k - p);
        double* const panel = to + i * k + p * WIDTH;
        pack_strided<WIDTH>(panel, x.from(row + i, k0 + p).data, count, length, x.s_row, x.s_col);
        pad<WIDTH>(panel, count, length);
      }
  }
};

// out = scale * C, or out += scale * C; of a symmetric C the upper triangle is computed and the lower one its mirror.
struct Into {
  static constexpr bool promotes = false;
  double* out;
  int64_t ld;
  double scale = 1;
  bool adds = false, symmetric = false;
  int64_t first_col = 0;

  Into from_column(int64_t j) const { return {out, ld, scale, adds, symmetric, j}; }
  int64_t scratch(const Problem&) const { return 0; }
  struct Open;
  Open open(const Block& block, void*) const;
};

struct Into::Open {
  Into to;
  int64_t row, col;

  bool skips(int64_t i, int64_t j) const { return to.symmetric && col + j + NR<double> <= row + i; }
  template <int V>
  void tile(int64_t i, int64_t j, int64_t rows, int64_t cols, const Accumulators<double, V>& acc) {
    constexpr int W = kWidth<double>;
    i += row, j += col;
    const bool mirrors = to.symmetric && i + rows <= j, crosses = to.symmetric && !mirrors;
    double* corner = to.out + i * to.ld + j;
    for (int v = 0; v < V; ++v, j += W, corner += W, cols -= W) {
      if (rows == MR && cols >= W && !crosses) {
        Full<double> value[MR];
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) {
          value[r] = acc[r][v] * to.scale;
          if (to.adds) value[r] += load<double, W>(corner + r * to.ld);
          store<double, W>(corner + r * to.ld, value[r]);
        }
        if (!mirrors) continue;
        if constexpr (MR == W) {
          transpose<double, W>(value);
#pragma GCC unroll 8
          for (int l = 0; l < W; ++l) store<double, W>(to.out + (j + l) * to.ld + i, value[l]);
        } else {
          for (int l = 0; l < W; ++l)
            for (int r = 0; r < MR; ++r) to.out[(j + l) * to.ld + i + r] = value[r][l];
        }
        continue;
      }
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t l = 0; l < smaller(W, cols); ++l) {
          if (crosses && j + l < i + r) continue;
          double* const at = corner + r * to.ld + l;
          *at = acc[r][v][l] * to.scale + (to.adds ? *at : 0.0);
          if (to.symmetric) to.out[(j + l) * to.ld + i + r] = *at;
        }
    }
  }
  void close() {}
};

inline Into::Open Into::open(const Block& block, void*) const { return {*this, block.row, first_col + block.col}; }

// f(i) for i < n. On one thread without a parallel region: inside of another one, opening it costs as much as a small
// product.
template <class F>
static void for_each(int64_t n, int threads, F f) {
  if (threads == 1) {
    for (int64_t i = 0; i < n; ++i) f(i);
  } else {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; ++i) f(i);
  }
}

// C[i, j] = sum_p a[i, p] b[p, j], m x n, sums of k terms; b may be overwritten by C. As product_prepacked, but a is
// packed no more often than threads ask for: here many products are small, and packing costs as much as they do.
template <class A, class B, class Epilogue>
static void multiply(int64_t m, int64_t n, int64_t k, Strided<A> a, Strided<B> b, const Epilogue& c, int threads) {
  constexpr int64_t kc = 1024, mc = 96, worth_threads = 1 << 22;
  const int64_t most = larger(1, (int64_t{16} << 20) / (NR<double> * 8 * k)) * NR<double>;  // columns, 16 MiB packed
  if (m * n * k < worth_threads) threads = 1;
  const Scratch memory((blocks(smaller(n, most), NR<double>) * NR<double> * k + mc * smaller(k, kc)) * 8);
  double *const buffer = static_cast<double*>(memory.data()), *const packed = buffer + mc * smaller(k, kc);
  const MatrixPacker<A> left{a};
  const MatrixPacker<B> right{b.transposed()};
  for (int64_t j = 0; j < n; j += most) {
    const int64_t cols = smaller(most, n - j), panels = blocks(cols, NR<double>), padded = panels * NR<double>;
    const int64_t groups = threads == 1 ? 1 : 2 * threads, group = blocks(panels, groups) * NR<double>;
    for_each(blocks(cols, group), threads, [&](int64_t g) {
      const int64_t row = g * group;
      for (int64_t k0 = 0; k0 < k; k0 += kc) {
        const int64_t length = smaller(kc, k - k0);
        right.template pack<NR<double>>(packed + padded * k0 + row * length, j + row, smaller(group, cols - row), k0,
                                        length);
      }
    });
    if (threads == 1 && k <= kc) {
      for (int64_t i = 0; i < m; i += mc) {
        const int64_t rows = smaller(mc, m - i);
        left.template pack<MR>(buffer, i, rows, 0, k);
        auto epilogue = c.from_column(j).open(Block{0, i, rows, 0, cols}, nullptr);
        sweep<double>(buffer, packed, rows, cols, k, nullptr, Chain{}, epilogue);
      }
    } else {
      const int64_t pieces = smaller(panels, blocks(4 * threads, blocks(m, mc)));
      product<double>(Problem{m, cols, k, mc, blocks(panels, pieces) * NR<double>, kc}, Packed<MatrixPacker<A>>{left},
                      Prepacked<double, NR<double>>{packed, padded}, c.from_column(j), threads);
    }
  }
}

// The same for sums so long that what is packed would leave the cache: a few thousand terms at a time.
template <class A, class B>
static void multiply_long(int64_t m, int64_t n, int64_t k, Strided<A> a, Strided<B> b, Into c, int threads) {
  constexpr int64_t most = 4096;
  for (int64_t p = 0; p < k; p += most, c.adds = true)
    multiply(m, n, smaller(most, k - p), a.from(0, p), b.from(p, 0), c, threads);
}

}  // namespace rf::RF_ISA
