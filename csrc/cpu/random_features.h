// SPDX-License-Identifier: BSD-3-Clause
// What the passes over random features share. They work on one block of samples at a time, and pack its projections u
// once.
#pragma once

#include <string.h>

#include "activation.h"
#include "epilogue.h"

namespace rf::RF_ISA {

template <class T>
T shift_at(const Features& f, int64_t sample) {
  return f.shift == nullptr ? T{0} : static_cast<const T*>(f.shift)[sample];
}

RF_INLINE int64_t rank(const Features& f) { return f.u.channels; }

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
  int64_t left;       // numbers of the largest packed operand that is multiplied with a chunk or with x
  int64_t x;          // channels of all x
  int64_t sums;       // rows of sums
  int64_t tiles = 0;  // channels of all x as tiles, each x filled up to whole tiles
  int64_t terms = 0;  // of the longest sum over channels
};

// The memory of one thread. For a block of samples: panels of shift, u and x, phi of a chunk of neurons, and sums. For
// a chunk of neurons: the operands g and left. g has room for one more row, rounded up to whole tiles.
template <class T>
struct Buffers {
  T *shift, *u, *g, *phi, *left, *x;
  char *u_tiles, *x_tiles;
  UnitPanels<T> u_panels;
  Sum<T>* partial;
  double* sums;
  int64_t bytes;

  Buffers(void* memory, int64_t samples, int64_t r, const Sizes& sizes, Products products) {
    const int64_t begin = reinterpret_cast<int64_t>(memory);
    int64_t at = begin;
    const auto take = [&at]<class S>(S*& to, int64_t count) {
      to = reinterpret_cast<S*>(at);
      at += aligned(count * static_cast<int64_t>(sizeof(S)));
    };
    take(shift, samples);
    take(u, samples * r);
    take(g, column_stride<T>(kNeurons) * blocks(r + 1, MR) * MR);
    take(phi, samples * kNeurons);
    take(left, sizes.left);
    take(x, samples * sizes.x);
    take(u_tiles, UnitPanels<T>::bytes(samples, r, products));
    take(x_tiles, UnitPanels<T>::bytes(samples, sizes.tiles, products));
    u_panels = UnitPanels<T>::in(u_tiles, samples, r, products);
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
  const int64_t widest = fitting(caches().second * 5 / 8, panel, 1, 32);  // the panels of phi
  const int64_t samples = count(f.u), r = rank(f);
  // G is made once for each block: as few blocks as keep the threads equally busy.
  const int64_t tasks_each = threads == 1 ? 1 : kOnUnit<T> ? 2 : 4;
  const int64_t block = larger(1, smaller(widest, blocks(samples, NR<T>) / (tasks_each * threads))) * NR<T>;
  const Products products = products_of(f.precision, true);
  const int64_t tasks = blocks(samples, block), bytes = Buffers<T>(nullptr, block, r, sizes, products).bytes;
  threads = static_cast<int>(smaller(threads, tasks));
  if (threads == 0) return;
  const Scratch memory(threads * bytes);
#pragma omp parallel num_threads(threads)
  {
    const Buffers<T> own(static_cast<char*>(memory.data()) + omp_get_thread_num() * bytes, block, r, sizes, products);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t begin = task * block, count = smaller(block, samples - begin);
      for (int64_t s = 0; s < block; ++s) own.shift[s] = s < count ? shift_at<T>(f, begin + s) : T{0};
      pack_panels(SamplePacker<T>{f.u}, own.u, begin, count, 0, r);
      own.u_panels.write_all(own.u, NR<T> * r, count, r);
      body(own, begin, count);
    }
  }
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
