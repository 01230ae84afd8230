// SPDX-License-Identifier: BSD-3-Clause
// Epilogues: where the tiles of a product go.
//
// An epilogue is opened on a block and receives its tiles as tile<V>(i, j, rows, cols, acc). (i, j) is counted from the
// corner of the block, and only the first `rows` x `cols` numbers of the tile count. skips(i, j) returns how many
// columns of the tile, from its first one, are not needed. An epilogue with `promotes` receives a tile for every chunk
// of the sum.
#pragma once

#include "gemm.h"

namespace rf::RF_ISA {

// out[i, j] = scale * C[i, j], in the element type S
template <class T, class S>
struct Store {
  static constexpr bool promotes = false;
  S* out;
  int64_t ld;
  T scale;

  struct Open {
    S* out;
    int64_t ld;
    T scale;
    int64_t skips(int64_t, int64_t) const { return 0; }
    template <int V>
    void tile(int64_t i, int64_t j, int64_t rows, int64_t cols, const Accumulators<T, V>& acc) {
      constexpr int N = kWidth<T>;
      RF_UNROLL
      for (int t = 0; t < MR * V; ++t) {
        const int r = t / V, v = t % V;
        if (r >= rows) return;
        const Full<T> value = acc[r][v] * scale;
        S* to = out + (i + r) * ld + j + v * N;
        if (cols >= (v + 1) * N) {
          store_as<N, T>(to, value);
        } else {
          for (int64_t l = 0; l < cols - v * N; ++l) narrow(value[l], to[l]);
        }
      }
    }
    void close() {}
  };
  Store from_column(int64_t j) const { return {out + j, ld, scale}; }
  int64_t scratch(const Problem&) const { return 0; }
  Open open(const Block& block, void*) const { return {out + block.row * ld + block.col, ld, scale}; }
};

// Adds the first `count` numbers of a vector to float64 numbers, or with FIRST stores them there.
template <class T, bool FIRST = false>
RF_INLINE void add_promoted(double* to, const Full<T>& value, int64_t count) {
  constexpr int D = kWidth<double>;
  const auto put = [](double* at, const Full<double>& v) { store<double, D>(at, FIRST ? v : load<double, D>(at) + v); };
  if (count < kWidth<T>) {
    for (int64_t l = 0; l < count; ++l) to[l] = FIRST ? value[l] : to[l] + value[l];
  } else if constexpr (sizeof(T) == 8) {
    put(to, value);
  } else {
    put(to, __builtin_convertvector(lower_half(value), Full<double>));
    put(to + D, __builtin_convertvector(upper_half(value), Full<double>));
  }
}

// out[i, j] += C[i, j] in float64, or with FIRST out[i, j] = C[i, j]
template <class T, bool FIRST>
struct AddTiles {
  double* out;
  int64_t ld;
  int64_t skips(int64_t, int64_t) const { return 0; }
  template <int V>
  void tile(int64_t i, int64_t j, int64_t rows, int64_t cols, const Accumulators<T, V>& acc) {
    RF_UNROLL
    for (int t = 0; t < MR * V; ++t) {
      const int r = t / V, v = t % V;
      if (r >= rows) return;
      add_promoted<T, FIRST>(out + (i + r) * ld + j + v * kWidth<T>, acc[r][v], cols - v * kWidth<T>);
    }
  }
};

// out[slab, i, j] += C[i, j] in float64. Of a symmetric C only the tiles that meet the upper triangle are added.
template <class T>
struct Promote {
  static constexpr bool promotes = true;
  double* out;
  int64_t ld, slab_stride;
  bool symmetric = false;

  struct Open {
    double* out;
    int64_t ld, diagonal;  // columns j < i + diagonal lie below the diagonal
    bool symmetric;
    int64_t skips(int64_t i, int64_t j) const { return symmetric ? smaller(larger(i + diagonal - j, 0), NR<T>) : 0; }
    template <int V>
    void tile(int64_t i, int64_t j, int64_t rows, int64_t cols, const Accumulators<T, V>& acc) {
      AddTiles<T, false>{out, ld}.template tile<V>(i, j, rows, cols, acc);
    }
    void close() {}
  };
  int64_t scratch(const Problem&) const { return 0; }
  Open open(const Block& block, void*) const {
    return {out + block.slab * slab_stride + block.row * ld + block.col, ld, block.row - block.col, symmetric};
  }
};

// The number of parts (slabs) of a long sum: enough tasks for many threads, and at least a few chunks for each.
RF_INLINE int64_t slabs_for(int64_t output_blocks, int64_t chunks) {
  constexpr int64_t tasks = 32, chunks_each = 4;
  return larger(1, smaller(blocks(tasks, larger(1, output_blocks)), chunks / chunks_each));
}

// The parts of a sum. Number (i, j) of part `slab` is at data[slab * stride + i * ld + j].
struct Parts {
  const double* data;
  int64_t slabs, stride, ld;
};

// out[i, j] += the sum of its parts, in the order of the parts
static inline void add_slabs(double* out, int64_t ld, Parts parts, int64_t rows, int64_t cols, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) {
      double sum = 0;
      for (int64_t slab = 0; slab < parts.slabs; ++slab) sum += parts.data[slab * parts.stride + i * parts.ld + j];
      out[i * ld + j] += sum;
    }
}

}  // namespace rf::RF_ISA
