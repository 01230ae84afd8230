// SPDX-License-Identifier: BSD-3-Clause
// Matrices in memory, and matrix products written into them by the loop nest that all kernels share. T is the type of
// the products: double or float.
#pragma once

#include "epilogue.h"

namespace rf::RF_ISA {

// A matrix with entry (i, j) at data[i * s_row + j * s_col].
template <class S>
struct Strided {
  S* data;
  int64_t s_row, s_col;

  Strided from(int64_t i, int64_t j) const { return {data + i * s_row + j * s_col, s_row, s_col}; }
  Strided transposed() const { return {data, s_col, s_row}; }
};
using Matrix = Strided<double>;

// Packs a matrix whose rows are the rows of an operand.
template <class S>
struct MatrixPacker {
  Strided<S> x;

  template <class T>
  void pack(T* to, int64_t ld, int64_t row, int64_t rows, int64_t k0, int64_t k) const {
    pack_strided(to, ld, x.from(row, k0).data, rows, k, x.s_row, x.s_col);
  }
  NothingAhead ahead(int64_t, int64_t, int64_t, int64_t, int64_t) const { return {}; }
};

// The left source of a product. Rows of its type are read where they lie, except for the last rows, which do not fill a
// tile. The CPUs that have a matrix unit read columns faster once they are packed: columns that lie apart are on many
// pages.
template <class S>
struct MatrixRows {
  MatrixPacker<S> packer;

  template <class T>
  struct Open : Packed<MatrixPacker<S>>::template Open<T> {
    template <class F>
    int64_t rows(T* to, int64_t i, int64_t count, int64_t k0, int64_t k, F f) {
      const int64_t whole = (this->size - i) / MR * MR;
      if constexpr (sizeof(S) == sizeof(T))
        if (whole > 0 && (!kHasUnit || this->packer.x.s_col == 1)) {
          const auto x = this->packer.x.from(this->row + i, k0);
          f(RowsOf<T>{x.data, x.s_row, x.s_col}, whole);
          return whole;
        }
      return Packed<MatrixPacker<S>>::template Open<T>::rows(to, i, count, k0, k, f);
    }
  };
  int64_t scratch(const Problem&) const { return 0; }
  template <class T>
  Open<T> open(const Block&, int64_t row, int64_t rows, void*) const {
    return {{packer, row, rows}};
  }
};

// out = scale * C, or out += scale * C if `adds`. Of a symmetric C only the upper triangle is computed; the lower
// triangle is its mirror image.
template <class T>
struct Into {
  static constexpr bool promotes = false;
  T* out;
  int64_t ld;
  T scale = 1;
  bool adds = false, symmetric = false;
  int64_t first_col = 0;

  Into from_column(int64_t j) const { return {out, ld, scale, adds, symmetric, j}; }
  int64_t scratch(const Problem&) const { return 0; }
  struct Open;
  Open open(const Block& block, void*) const;
};

template <class T>
struct Into<T>::Open {
  Into to;
  int64_t row, col;

  int64_t skips(int64_t i, int64_t j) const { return to.symmetric ? smaller(larger(row + i - col - j, 0), NR<T>) : 0; }
  template <int V>
  void tile(int64_t i, int64_t j, int64_t rows, int64_t cols, const Accumulators<T, V>& acc) {
    constexpr int W = kWidth<T>;
    i += row, j += col;
    const bool mirrors = to.symmetric && i + rows <= j, crosses = to.symmetric && !mirrors;
    T* corner = to.out + i * to.ld + j;
    for (int v = 0; v < V; ++v, j += W, corner += W, cols -= W) {
      if (rows == MR && cols >= W && !crosses) {
        Full<T> value[MR];
        RF_UNROLL
        for (int r = 0; r < MR; ++r) {
          value[r] = acc[r][v] * to.scale;
          if (to.adds) value[r] += load<T, W>(corner + r * to.ld);
          store<T, W>(corner + r * to.ld, value[r]);
        }
        if (!mirrors) continue;
        if constexpr (MR <= W) {
          Full<T> mirror[W] = {};
          RF_UNROLL
          for (int r = 0; r < MR; ++r) mirror[r] = value[r];
          transpose<T, W>(mirror);
          RF_UNROLL
          for (int l = 0; l < W; ++l) __builtin_memcpy(to.out + (j + l) * to.ld + i, &mirror[l], MR * sizeof(T));
        } else {
          for (int l = 0; l < W; ++l)
            for (int r = 0; r < MR; ++r) to.out[(j + l) * to.ld + i + r] = value[r][l];
        }
        continue;
      }
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t l = 0; l < smaller(W, cols); ++l) {
          if (crosses && j + l < i + r) continue;
          T* const at = corner + r * to.ld + l;
          *at = acc[r][v][l] * to.scale + (to.adds ? *at : T{0});
          if (to.symmetric) to.out[(j + l) * to.ld + i + r] = *at;
        }
    }
  }
  void close() {}
};

template <class T>
typename Into<T>::Open Into<T>::open(const Block& block, void*) const {
  return {*this, block.row, first_col + block.col};
}

// Keeps a failed allocation inside a parallel region: an exception that left the region would end the process.
// Iterations that allocate Scratch run under this class, and the exception is thrown again after the region.
class OutOfMemory {
 public:
  // Calls f(), unless memory was missing before.
  template <class F>
  void run(F f) {
    bool before;
#pragma omp atomic read
    before = found_;
    if (before) return;
    try {
      f();
    } catch (...) {
#pragma omp atomic write
      found_ = true;
    }
  }
  void rethrow() const {
    if (found_) out_of_memory();
  }

 private:
  bool found_ = false;
};

// Calls f(i) for all i < n. One thread opens no parallel region: inside another region, opening one costs as much as a
// small product.
template <class F>
static void for_each(int64_t n, int threads, F f) {
  if (threads == 1) {
    for (int64_t i = 0; i < n; ++i) f(i);
  } else {
    OutOfMemory missing;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; ++i) missing.run([&] { f(i); });
    missing.rethrow();
  }
}

// C[i, j] = sum_p a[i, p] b[p, j] for an m x n matrix C and sums of k terms. C may overwrite b, but not a. Like
// product_prepacked, but for many small products: one thread opens no parallel region. An epilogue that
// promotes receives the sums of every 64 terms.
template <class T = double, class A, class B, class Epilogue>
static void multiply(int64_t m, int64_t n, int64_t k, Strided<A> a, Strided<B> b, const Epilogue& c, int threads) {
  constexpr int64_t term = NR<T> * static_cast<int64_t>(sizeof(T)), mc = 96, worth_threads = 1 << 22;
  const int64_t kc = Epilogue::promotes ? 64 : fitting(caches().second / 4, term, 64, 1024);
  const int64_t most =
      larger(1, (int64_t{16} << 20) / (NR<T> * static_cast<int64_t>(sizeof(T)) * k)) * NR<T>;  // columns, 16 MiB packed
  if (m * n * k < worth_threads) threads = 1;
  const bool alone = threads == 1 && k <= kc;
  const Scratch memory((blocks(smaller(n, most), NR<T>) * NR<T> * k + alone * packed_size<T>(mc, k)) *
                       static_cast<int64_t>(sizeof(T)));
  T* const packed = static_cast<T*>(memory.data());
  const MatrixRows<A> left{{a}};
  const MatrixPacker<B> right{b.transposed()};
  for (int64_t j = 0; j < n; j += most) {
    const int64_t cols = smaller(most, n - j), panels = blocks(cols, NR<T>), padded = panels * NR<T>;
    const int64_t groups = threads == 1 ? 1 : 2 * threads, group = blocks(panels, groups) * NR<T>;
    for_each(blocks(cols, group), threads, [&](int64_t g) {
      const int64_t row = g * group;
      for (int64_t k0 = 0; k0 < k; k0 += kc) {
        const int64_t length = smaller(kc, k - k0);
        pack_panels(right, packed + padded * k0 + row * length, j + row, smaller(group, cols - row), k0, length);
      }
    });
    if (alone) {
      const Block block{0, 0, m, 0, cols};
      auto rows = left.template open<T>(block, 0, m, nullptr);
      auto epilogue = c.from_column(j).open(block, nullptr);
      NothingAhead nothing;
      for (int64_t i = 0, done; i < m; i += done)
        done = rows.rows(packed + padded * k, i, mc, 0, k, [&](const RowsOf<T>& some, int64_t count) {
          sweep(some, packed, i, count, cols, k, Aside<T>{}, Chain{}, epilogue, nothing);
        });
    } else {
      const int64_t pieces = smaller(panels, blocks(4 * threads, blocks(m, mc)));
      Problem problem{m, cols, k, mc, blocks(panels, pieces) * NR<T>, kc};
      problem.unit = false;
      product<T>(problem, left, Prepacked<T>{packed, nullptr, padded, kc, {}}, c.from_column(j), threads);
    }
  }
}

// The same for long sums, a few thousand terms at a time, so that the packed operands stay in the cache.
template <class A, class B>
static void multiply_long(int64_t m, int64_t n, int64_t k, Strided<A> a, Strided<B> b, Into<double> c, int threads) {
  constexpr int64_t most = 4096;
  for (int64_t p = 0; p < k; p += most, c.adds = true)
    multiply(m, n, smaller(most, k - p), a.from(0, p), b.from(p, 0), c, threads);
}

// out = w x for a few rows w (Q x k, row-major) and a matrix x (k x n) that is read once, where it lies. x is
// contiguous along its rows or its columns.
template <int Q, class S>
static void multiply_few(int64_t n, int64_t k, const double* w, Strided<const S> x, double* out, int threads) {
  constexpr int64_t width = 512;
  constexpr int W = kWidth<double>;
  for_each(blocks(n, width), n * k < 1 << 18 ? 1 : threads, [&](int64_t block) {
    const int64_t begin = block * width, end = smaller(begin + width, n);
    if (x.s_col != 1) {
      for (int64_t j = begin; j < end; ++j) {
        const S* const column = x.from(0, j).data;
        Full<double> lanes[Q] = {};
        double sums[Q] = {};
        int64_t p = 0;
        for (; p + W <= k; p += W) {
          const Full<double> numbers = load_as<double, W>(column + p);
          RF_UNROLL
          for (int q = 0; q < Q; ++q) lanes[q] = fma(load<double, W>(w + q * k + p), numbers, lanes[q]);
        }
        for (int q = 0; q < Q; ++q) {
          for (int64_t r = p; r < k; ++r) sums[q] += w[q * k + r] * static_cast<double>(column[r]);
          for (int l = 0; l < W; ++l) sums[q] += lanes[q][l];
          out[q * n + j] = sums[q];
        }
      }
      return;
    }
    for (int q = 0; q < Q; ++q)
      for (int64_t j = begin; j < end; ++j) out[q * n + j] = 0;
    for (int64_t p = 0; p < k; p += 2) {
      const bool both = p + 1 < k;
      const S *const row = x.from(p, 0).data, *const next = both ? x.from(p + 1, 0).data : row;
      double left[Q], right[Q];
      for (int q = 0; q < Q; ++q) {
        left[q] = w[q * k + p];
        right[q] = both ? w[q * k + p + 1] : 0;
      }
      int64_t j = begin;
      for (; j + W <= end; j += W) {
        const Full<double> a = load_as<double, W>(row + j), b = load_as<double, W>(next + j);
        RF_UNROLL
        for (int q = 0; q < Q; ++q) {
          double* const to = out + q * n + j;
          const Full<double> sum = fma(splat<double, W>(left[q]), a, load<double, W>(to));
          store<double, W>(to, fma(splat<double, W>(right[q]), b, sum));
        }
      }
      for (; j < end; ++j)
        for (int q = 0; q < Q; ++q)
          out[q * n + j] += left[q] * static_cast<double>(row[j]) + right[q] * static_cast<double>(next[j]);
    }
  });
}

}  // namespace rf::RF_ISA
