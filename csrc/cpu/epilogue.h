// SPDX-License-Identifier: BSD-3-Clause
// Epilogues: where the tiles of a product go.
//
// An epilogue is opened on a block and receives its tiles as tile<V>(i, j, rows, cols, acc). (i, j) is counted from the
// corner of the block, and only the first `rows` x `cols` numbers of the tile count. skips(i, j) returns how many
// columns of the tile, from its first one, are not needed. An epilogue with `promotes` receives a tile for every chunk
// of the sum. Two members are optional: touch(i, j), called shortly before a tile, prefetches where it will go, and
// end_chunk() is called after the tiles of a chunk.
#pragma once

#include "gemm.h"

namespace rf::RF_ISA {

// A tile in memory: edges of C are written from there, by code that all sizes of tiles share.
template <class T, int V>
struct TileRows {
  T numbers[MR][V * kWidth<T>];

  explicit TileRows(const Accumulators<T, V>& acc) {
    RF_UNROLL
    for (int t = 0; t < MR * V; ++t) store<T, kWidth<T>>(numbers[t / V] + t % V * kWidth<T>, acc[t / V][t % V]);
  }
};

// to[r * ld + c] = scale * numbers[r * width + c]
template <class T, class S>
RF_APART static void store_rows(S* to, int64_t ld, const T* numbers, int64_t width, int64_t rows, int64_t cols,
                                T scale) {
  constexpr int N = kWidth<T>;
  for (int64_t r = 0; r < rows; ++r, to += ld, numbers += width) {
    int64_t c = 0;
    for (; c + N <= cols; c += N) store_as<N, T>(to + c, load<T, N>(numbers + c) * scale);
    for (; c < cols; ++c) narrow(numbers[c] * scale, to[c]);
  }
}

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
      S* const to = out + i * ld + j;
      if (cols < V * N) {
        const TileRows<T, V> tile(acc);
        return store_rows(to, ld, tile.numbers[0], V * N, rows, cols, scale);
      }
      RF_UNROLL
      for (int t = 0; t < MR * V; ++t) {
        const int r = t / V, v = t % V;
        if (r >= rows) return;
        store_as<N, T>(to + r * ld + v * N, acc[r][v] * scale);
      }
    }
    void close() {}
  };
  Store from_column(int64_t j) const { return {out + j, ld, scale}; }
  int64_t scratch(const Problem&) const { return 0; }
  Open open(const Block& block, void*) const { return {out + block.row * ld + block.col, ld, scale}; }
};

// The same in the element type `dtype`. Tiles take a way through memory, so that types share the code around them.
template <class T>
struct StoreAs {
  static constexpr bool promotes = false;
  void* out;
  DType dtype;
  int64_t ld;
  T scale;
  int64_t first_col = 0;

  struct Open {
    const StoreAs& to;
    int64_t corner;
    int64_t skips(int64_t, int64_t) const { return 0; }
    template <int V>
    void tile(int64_t i, int64_t j, int64_t rows, int64_t cols, const Accumulators<T, V>& acc) {
      const TileRows<T, V> tile(acc);
      with_type(to.dtype, [&]<class S>(Type<S>) {
        store_rows(static_cast<S*>(to.out) + corner + i * to.ld + j, to.ld, tile.numbers[0], V * kWidth<T>, rows, cols,
                   to.scale);
      });
    }
    void close() {}
  };
  StoreAs from_column(int64_t j) const { return {out, dtype, ld, scale, first_col + j}; }
  int64_t scratch(const Problem&) const { return 0; }
  Open open(const Block& block, void*) const { return {*this, block.row * ld + first_col + block.col}; }
};

// Adds the first `count` numbers of a vector to numbers of type S, or if they are the `first` ones stores them there.
template <class T, class S>
RF_INLINE void add_promoted(S* to, const Full<T>& value, int64_t count = kWidth<T>, bool first = false) {
  constexpr int D = kWidth<S>;
  const auto put = [=](S* at, const Full<S>& v) { store<S, D>(at, first ? v : load<S, D>(at) + v); };
  if (count < kWidth<T>) {
    for (int64_t l = 0; l < count; ++l) to[l] = first ? value[l] : to[l] + value[l];
  } else if constexpr (sizeof(T) == sizeof(S)) {
    put(to, value);
  } else {
    put(to, __builtin_convertvector(lower_half(value), Full<S>));
    put(to + D, __builtin_convertvector(upper_half(value), Full<S>));
  }
}

// out[i, j] += C[i, j] in S, or if the sums are the `first` ones out[i, j] = C[i, j]
template <class T, class S = double>
struct AddTiles {
  S* out;
  int64_t ld;
  bool first;
  int64_t skips(int64_t, int64_t) const { return 0; }
  void touch(int64_t i, int64_t j) const {
    if (first) return;
    const char* at = reinterpret_cast<const char*>(out + i * ld + j);
    for (int r = 0; r < MR; ++r, at += ld * static_cast<int64_t>(sizeof(S)))
      for (int64_t b = 0; b < NR<T> * static_cast<int64_t>(sizeof(S)); b += 64) __builtin_prefetch(at + b, 1, 3);
  }
  template <int V>
  void tile(int64_t i, int64_t j, int64_t rows, int64_t cols, const Accumulators<T, V>& acc) {
    S* const to = out + i * ld + j;
    if (cols < V * kWidth<T>) {
      const TileRows<T, V> tile(acc);
      return add_edge(to, tile.numbers[0], V * kWidth<T>, rows, cols);
    }
    if (first)
      add_whole<true>(to, rows, acc);
    else
      add_whole<false>(to, rows, acc);
  }
  template <bool FIRST, int V>
  void add_whole(S* to, int64_t rows, const Accumulators<T, V>& acc) const {
    RF_UNROLL
    for (int t = 0; t < MR * V; ++t) {
      const int r = t / V, v = t % V;
      if (r >= rows) return;
      add_promoted<T>(to + r * ld + v * kWidth<T>, acc[r][v], kWidth<T>, FIRST);
    }
  }
  RF_APART void add_edge(S* to, const T* numbers, int64_t width, int64_t rows, int64_t cols) const {
    for (int64_t r = 0; r < rows; ++r, to += ld, numbers += width)
      for (int64_t c = 0; c < cols; c += kWidth<T>)
        add_promoted<T>(to + c, load<T, kWidth<T>>(numbers + c), cols - c, first);
  }
};

// How many columns of a tile of a symmetric C lie below the diagonal, if its first one is `below` columns before it.
template <class T>
RF_INLINE int64_t skipped(bool symmetric, int64_t below) {
  return symmetric ? smaller(larger(below, 0), NR<T>) : 0;
}

// out[slab, i, j] += C[i, j] in S. Of a symmetric C only the tiles that meet the upper triangle are added.
template <class T, class S = double>
struct Promote {
  static constexpr bool promotes = true;
  S* out;
  int64_t ld, slab_stride;
  bool symmetric = false;
  int64_t first_col = 0;

  struct Open {
    S* out;
    int64_t ld, diagonal;  // columns j < i + diagonal lie below the diagonal
    bool symmetric;
    int64_t skips(int64_t i, int64_t j) const { return skipped<T>(symmetric, i + diagonal - j); }
    template <int V>
    void tile(int64_t i, int64_t j, int64_t rows, int64_t cols, const Accumulators<T, V>& acc) {
      AddTiles<T, S>{out, ld, false}.template tile<V>(i, j, rows, cols, acc);
    }
    void close() {}
  };
  Promote from_column(int64_t j) const { return {out + j, ld, slab_stride, symmetric, first_col + j}; }
  int64_t scratch(const Problem&) const { return 0; }
  Open open(const Block& block, void*) const {
    const int64_t corner = block.slab * slab_stride + block.row * ld + block.col;
    return {out + corner, ld, block.row - block.col - first_col, symmetric};
  }
};

// Promotes the tiles of a block to float64 in memory of the task, where they stay in the cache, and writes the block
// when it is complete: out[slab] = its sums. If slabs are joined, the sums of a block are those of its slabs, added in
// their order, and `out` has one slab. If it `adds`, out += the sums; those of a single slab go on from `out`, so that
// a sum may be computed in parts of any length. If `promote` is not null, the tiles go there instead.
template <class T>
struct Collect {
  static constexpr bool promotes = true;
  double* out;
  int64_t ld, slab_stride, slabs;
  bool joined, adds;
  const Promote<T>* promote = nullptr;

  static int64_t width(int64_t nc) { return blocks(nc, NR<T>) * NR<T> + kWidth<double>; }  // no power of two

  struct Open {
    const Collect& to;
    const Block block;
    double *sums, *whole;  // of this slab, and of all slabs so far
    int64_t ld, diagonal = 0;
    bool symmetric = false, fresh = true;  // whether no chunk has been added yet

    int64_t skips(int64_t i, int64_t j) const { return skipped<T>(symmetric, i + diagonal - j); }
    void touch(int64_t i, int64_t j) const { AddTiles<T>{sums, ld, fresh || to.promote != nullptr}.touch(i, j); }
    template <int V>
    void tile(int64_t i, int64_t j, int64_t rows, int64_t cols, const Accumulators<T, V>& acc) {
      AddTiles<T>{sums, ld, fresh}.template tile<V>(i, j, rows, cols, acc);
    }
    void end_chunk() { fresh = false; }
    void close() {
      if (to.promote != nullptr) return;
      const bool last = !to.joined || block.slab + 1 == to.slabs;
      const int64_t slab = to.joined ? 0 : block.slab;
      for (int64_t i = 0; i < block.rows; ++i) {
        const double* from = sums + i * ld;
        if (to.joined) {
          double* all = whole + i * ld;
          for (int64_t j = 0; j < block.cols; ++j) all[j] = (block.slab == 0 ? 0 : all[j]) + from[j];
          from = all;
        }
        if (!last) continue;
        double* target = to.out + slab * to.slab_stride + (block.row + i) * to.ld + block.col;
        for (int64_t j = 0; j < block.cols; ++j) target[j] = to.adds && to.joined ? target[j] + from[j] : from[j];
      }
    }
  };
  static int64_t numbers(const Problem& p) { return blocks(smaller(p.mc, p.m), MR) * MR * width(smaller(p.nc, p.n)); }
  int64_t scratch(const Problem& p) const { return promote != nullptr ? 0 : numbers(p) * (p.joined ? 2 : 1) * 8; }
  Open open(const Block& block, void* memory) const {
    if (promote != nullptr) {
      const auto there = promote->open(block, memory);
      return {*this, block, there.out, nullptr, there.ld, there.diagonal, there.symmetric, false};
    }
    const int64_t across = width(block.cols);
    double* sums = static_cast<double*>(memory);
    const bool goes_on = adds && !joined;
    for (int64_t i = 0; goes_on && i < block.rows; ++i)
      __builtin_memcpy(sums + i * across, out + (block.row + i) * ld + block.col, static_cast<size_t>(block.cols) * 8);
    return {*this, block, sums, sums + block.rows * across, across, 0, false, !goes_on};
  }
};

// The number of parts (slabs) of a long sum: enough tasks for many threads, and at least a few chunks for each.
RF_INLINE int64_t slabs_for(int64_t output_blocks, int64_t chunks) {
  constexpr int64_t tasks = 32, chunks_each = 4;
  return larger(1, smaller(blocks(tasks, larger(1, output_blocks)), chunks / chunks_each));
}

// Whether one task computes all slabs of a block: the blocks alone are tasks enough for these threads. It changes no
// bits.
RF_INLINE bool joins(int64_t slabs, int64_t output_blocks, int threads) {
  return slabs > 1 && (threads == 1 || output_blocks >= 4 * threads);
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
