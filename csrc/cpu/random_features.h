// SPDX-License-Identifier: BSD-3-Clause
// What the passes over random features share. They work on one block of samples at a time, and pack its projections u
// once.
#pragma once

#include <string.h>

#include "activation.h"
#include "epilogue.h"
#include "moduli.h"

namespace rf::RF_ISA {

RF_INLINE int64_t rank(const Features& f) { return f.u.channels; }

// What a product is made of: numbers, or the real or the imaginary parts of pairs.
enum class Part { whole, real, imaginary };

// Calls body(part) for the parts of u, the real one first.
template <class F>
RF_INLINE void for_parts(const Features& f, F body) {
  if (!f.paired) return body(Part::whole);
  body(Part::real);
  body(Part::imaginary);
}

template <class T>
Samples part_of(Samples u, Part part) {
  if (part == Part::imaginary) u.data = static_cast<T*>(u.data) + 1;
  return u;
}

// The shift of all samples; null means no shift.
template <class T>
const T* shift_of(const Features& f, Part part) {
  const T* const shift = static_cast<const T*>(f.shift);
  return shift != nullptr && part == Part::imaginary ? shift + count(f.u) : shift;
}

static inline Features with_merged(const Features& f) {
  Features g = f;
  g.u = merged(f.u);
  return g;
}

constexpr int64_t kNeurons = 240;  // neurons of a chunk; its sums in T are then promoted

// Samples whose phi is multiplied at a time: as many as are kept as tiles in the second-level cache.
template <class T>
constexpr int64_t kGroup = (kOnUnit<T> ? 8 : 1) * NR<T>;

// The sizes that decide how much memory a pass needs.
struct Sizes {
  int64_t left;         // numbers of the largest packed operand that is multiplied with a chunk or with x
  int64_t x;            // channels of all x
  int64_t sums;         // rows of sums
  int64_t tiles = 0;    // channels of all x as tiles, each x filled up to whole tiles
  int64_t terms = 0;    // of the longest sum over channels
  int64_t further = 0;  // whether there is a second array of the size of phi
};

// u and shift of a block of samples, as panels; one part of them if they are pairs.
template <class T>
struct PackedSamples {
  T *shift, *u;
  UnitPanels<T> tiles;
};

// The memory of one thread. For a block of samples: panels of shift, u and x, phi of a chunk of neurons, and sums. For
// a chunk of neurons: the operands g and left. g has room for one more row, rounded up to whole tiles. `further` has
// the real parts of s, then the gradients of the imaginary parts, if u are pairs.
template <class T>
struct Buffers {
  PackedSamples<T> parts[2];
  T *g, *phi, *further, *left, *x;
  char* x_tiles;
  Sum<T>* partial;
  double* sums;
  int64_t bytes;

  const PackedSamples<T>& of(Part part) const { return parts[part == Part::imaginary]; }

  Buffers(void* memory, int64_t samples, const Features& f, const Sizes& sizes, Products products) {
    const int64_t r = rank(f);
    const int64_t begin = reinterpret_cast<int64_t>(memory);
    int64_t at = begin;
    const auto take = [&at]<class S>(S*& to, int64_t count) {
      to = reinterpret_cast<S*>(at);
      at += aligned(count * static_cast<int64_t>(sizeof(S)));
    };
    for_parts(f, [&](Part part) {
      PackedSamples<T>& mine = parts[part == Part::imaginary];
      char* tiles;
      take(mine.shift, samples);
      take(mine.u, samples * r);
      take(tiles, UnitPanels<T>::bytes(samples, r, products));
      mine.tiles = UnitPanels<T>::in(tiles, samples, r, products);
    });
    take(g, column_stride<T>(kNeurons) * blocks(r + 1, MR) * MR);
    take(phi, samples * kNeurons);
    take(further, samples * kNeurons * sizes.further);
    take(left, sizes.left);
    take(x, samples * sizes.x);
    take(x_tiles, UnitPanels<T>::bytes(samples, sizes.tiles, products));
    const int64_t unit = sweep_bytes<T>(larger(r + 1, sizes.left / kNeurons), kGroup<T>, kNeurons, products);
    take(partial, larger(partial_size<T>(kNeurons, samples, larger(r, sizes.terms), products),
                         unit / static_cast<int64_t>(sizeof(Sum<T>))));
    take(sums, samples * sizes.sums);
    bytes = at - begin;
  }
};

// Calls body(buffers, first sample, number of samples) for each block of samples. Its u and shift are packed as right
// panels.
template <class T, class F>
static void for_blocks_of_samples(const Features& f, const Sizes& sizes, int threads, F body) {
  constexpr int64_t panel = kNeurons * NR<T> * sizeof(T);
  const int64_t widest = fitting(caches().second * 5 / 8 / (1 + sizes.further), panel, 1, 32);  // the panels of phi
  const int64_t samples = count(f.u), r = rank(f);
  // G is made once for each block: as few blocks as keep the threads equally busy.
  const int64_t tasks_each = threads == 1 ? 1 : kOnUnit<T> ? 2 : 4;
  const int64_t block = larger(1, smaller(widest, blocks(samples, NR<T>) / (tasks_each * threads))) * NR<T>;
  const Products products = products_of(f.precision, true);
  const int64_t tasks = blocks(samples, block), bytes = Buffers<T>(nullptr, block, f, sizes, products).bytes;
  threads = static_cast<int>(smaller(threads, tasks));
  if (threads == 0) return;
  const Scratch memory(threads * bytes);
#pragma omp parallel num_threads(threads)
  {
    const Buffers<T> own(static_cast<char*>(memory.data()) + omp_get_thread_num() * bytes, block, f, sizes, products);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t begin = task * block, count = smaller(block, samples - begin);
      for_parts(f, [&](Part part) {
        const PackedSamples<T>& mine = own.of(part);
        const T* const shift = shift_of<T>(f, part);
        for (int64_t s = 0; s < block; ++s) mine.shift[s] = shift != nullptr && s < count ? shift[begin + s] : T{0};
        pack_panels(SamplePacker<T>{part_of<T>(f.u, part)}, mine.u, begin, count, 0, r);
        mine.tiles.write_all(mine.u, NR<T> * r, count, r);
      });
      body(own, begin, count);
    }
  }
}

// Epilogue: stores features as panels of the next product, k rows each. Rows of C are samples and columns are neurons,
// or the other way round. The real parts of pairs are stored as they are; with the imaginary parts they are features.
template <class T>
struct FeaturePanels {
  bool rows_are_samples;
  const Features& f;
  T* to;
  int64_t k;
  const T* shift;  // of the first sample; readable for a whole panel
  Part part;
  const T* center = nullptr;  // subtracted from the features of neurons, which are columns; likewise

  int64_t skips(int64_t, int64_t) const { return 0; }
  template <int V>
  void tile(int64_t i, int64_t j, int64_t rows, int64_t cols, const Accumulators<T, V>& acc) {
    T* panel = to + j * k + i * NR<T>;
    if (part == Part::imaginary) {
      TileRows<T, V> tile(acc);
      take_moduli<V>(panel, tile.numbers[0], i, j, rows);
      return finish(panel, j, rows, cols, V);
    }
    RF_UNROLL
    for (int t = 0; t < MR * V; ++t) {
      const int r = t / V, at = t % V * kWidth<T>;
      if (r >= rows) break;
      Full<T> value = acc[r][t % V];
      if (shift != nullptr)
        value += rows_are_samples ? splat<T, kWidth<T>>(shift[i + r]) : load<T, kWidth<T>>(shift + j + at);
      store<T, kWidth<T>>(panel + r * NR<T> + at, value);
    }
    if (part != Part::real) finish(panel, j, rows, cols, V);
  }
  // Replaces the real parts of pairs by moduli.
  template <int V>
  RF_APART void take_moduli(T* panel, const T* imaginary, int64_t i, int64_t j, int64_t rows) {
    constexpr int N = kWidth<T>;
    for (int64_t r = 0; r < rows; ++r, panel += NR<T>, imaginary += V * N) {
      Full<T> re[V], im[V], size[V];
      RF_UNROLL
      for (int v = 0; v < V; ++v) {
        re[v] = load<T, N>(panel + v * N), im[v] = load<T, N>(imaginary + v * N);
        if (shift != nullptr) im[v] += rows_are_samples ? splat<T, N>(shift[i + r]) : load<T, N>(shift + j + v * N);
      }
      moduli<T, V>(size, re, im);
      RF_UNROLL
      for (int v = 0; v < V; ++v) store<T, N>(panel + v * N, size[v]);
    }
  }
  // Turns `vectors` vectors of each row into features. They are in the first-level cache.
  RF_APART void finish(T* panel, int64_t j, int64_t rows, int64_t cols, int vectors) {
    if (cols == NR<T>) {  // only rows of the full width lie side by side
      activate(panel, rows * NR<T>, f.activation, f.negative_slope, f.scale);
    } else {
      for (int64_t r = 0; r < rows; ++r) activate(panel + r * NR<T>, cols, f.activation, f.negative_slope, f.scale);
    }
    constexpr int N = kWidth<T>;
    if (center == nullptr) return;
    for (int64_t r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) {
        T* const at = panel + r * NR<T> + v * N;
        store<T, N>(at, load<T, N>(at) - load<T, N>(center + j + v * N));
      }
  }
};

// Makes the features of neurons [k0, k0 + k) as panels of a block of samples.
template <class T>
static void make_panels(const Features& f, const Buffers<T>& own, int64_t count, int64_t k0, int64_t k,
                        Products products) {
  const int64_t ld = column_stride<T>(k);
  RowPacker<T>{f.g}.pack(own.g, ld, k0, k, 0, rank(f));
  for_parts(f, [&](Part part) {
    const PackedSamples<T>& mine = own.of(part);
    sweep_in_chunks(RowsOf<T>{own.g, 1, ld}, mine.u, k, count, rank(f), own.partial,
                    FeaturePanels<T>{false, f, own.phi, k, mine.shift, part}, products, mine.tiles);
  });
}

// to[s * ld + c] = from[c * s_row + s] for up to N channels and N samples
template <class T>
__attribute__((noinline)) static void store_transposed(T* to, int64_t ld, const double* from, int64_t s_row,
                                                       int64_t channels, int64_t samples) {
  constexpr int N = kWidth<T>;
  Vector<T, N> v[N];
  RF_UNROLL
  for (int c = 0; c < N; ++c) v[c] = c < channels ? load_as<T, N>(from + c * s_row, samples) : Full<T>{};
  transpose<T, N>(v);
  if (channels >= N && samples >= N) {
    RF_UNROLL
    for (int s = 0; s < N; ++s) store<T, N>(to + s * ld, v[s]);
    return;
  }
  T values[N * N];
  RF_UNROLL
  for (int s = 0; s < N; ++s) store<T, N>(values + s * N, v[s]);
  for (int64_t s = 0; s < smaller(N, samples); ++s)
    memcpy(to + s * ld, values + s * N, static_cast<size_t>(smaller(N, channels)) * sizeof(T));
}

// out[sample, channel] = sums[channel, sample - begin] for samples [begin, end)
template <class T>
static void store_samples(const Samples& out, int64_t begin, int64_t end, const double* sums) {
  constexpr int N = kWidth<T>;
  for_pieces<T>(out, begin, end, [&](int64_t sample, T* target, int64_t length) {
    const double* from = sums + sample - begin;
    if (out.s_channel == 1) {
      for (int64_t s = 0; s < length; s += N)
        for (int64_t c = 0; c < out.channels; c += N)
          store_transposed(target + s * out.s_position + c, out.s_position, from + c * (end - begin) + s, end - begin,
                           out.channels - c, length - s);
      return;
    }
    for (int64_t c = 0; c < out.channels; ++c, from += end - begin, target += out.s_channel)
      for (int64_t s = 0; s < length; ++s) target[s * out.s_position] = static_cast<T>(from[s]);
  });
}

}  // namespace rf::RF_ISA
