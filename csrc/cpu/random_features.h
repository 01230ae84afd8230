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

// The sizes that decide how much memory a pass needs.
struct Sizes {
  int64_t left;  // rows of the longest operand that is multiplied with a chunk
  int64_t x;     // channels of all x
  int64_t sums;  // rows of sums
};

// The memory of one thread. For a block of samples: panels of shift, u and x, phi of a chunk of neurons, and sums. For
// a chunk of neurons: the operands g and left. g has room for one more row, rounded up to whole tiles.
template <class T>
struct Buffers {
  T *shift, *u, *g, *phi, *left, *x;
  double* sums;
  int64_t bytes;

  Buffers(void* memory, int64_t samples, int64_t r, const Sizes& sizes) {
    const int64_t begin = reinterpret_cast<int64_t>(memory);
    int64_t at = begin;
    const auto take = [&at]<class S>(S*& to, int64_t count) {
      to = reinterpret_cast<S*>(at);
      at += aligned(count * static_cast<int64_t>(sizeof(S)));
    };
    take(shift, samples);
    take(u, samples * r);
    take(g, whole_vectors<T>(kNeurons) * blocks(r + 1, MR) * MR);
    take(phi, samples * kNeurons);
    take(left, packed_size<T>(sizes.left, kNeurons));
    take(x, samples * sizes.x);
    take(sums, samples * sizes.sums);
    bytes = at - begin;
  }
};

// Calls body(buffers, first sample, number of samples) for each block of samples. Its u and shift are packed as right
// panels.
template <class T, class F>
static void for_blocks_of_samples(const Features& f, const Sizes& sizes, int threads, F body) {
  constexpr int64_t fewest_tasks = 16, widest = 10;
  const int64_t samples = count(f.u), r = rank(f);
  const int64_t block = larger(1, smaller(widest, blocks(samples, NR<T>) / fewest_tasks)) * NR<T>;
  const int64_t tasks = blocks(samples, block), bytes = Buffers<T>(nullptr, block, r, sizes).bytes;
  threads = static_cast<int>(smaller(threads, tasks));
  if (threads == 0) return;
  const Scratch memory(threads * bytes);
#pragma omp parallel num_threads(threads)
  {
    const Buffers<T> own(static_cast<char*>(memory.data()) + omp_get_thread_num() * bytes, block, r, sizes);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t begin = task * block, count = smaller(block, samples - begin);
      for (int64_t s = 0; s < block; ++s) own.shift[s] = s < count ? shift_at<T>(f, begin + s) : T{0};
      pack_panels(SamplePacker<T>{f.u}, own.u, begin, count, 0, r);
      memset(own.sums, 0, static_cast<size_t>(sizes.sums * count) * 8);
      body(own, begin, count);
    }
  }
}

// out[sample, channel] = sums[channel, sample - begin] for samples [begin, end)
template <class T>
static void store_samples(const Samples& out, int64_t begin, int64_t end, const double* sums) {
  for_pieces<T>(out, begin, end, [&](int64_t sample, T* target, int64_t length) {
    if (out.s_position == 1) {
      for (int64_t c = 0; c < out.channels; ++c) {
        const double* from = sums + c * (end - begin) + sample - begin;
        T* to = target + c * out.s_channel;
        for (int64_t s = 0; s < length; ++s) to[s] = static_cast<T>(from[s]);
      }
      return;
    }
    const bool channels_last = out.s_channel == 1;
    const int64_t outer = channels_last ? length : out.channels, inner = channels_last ? out.channels : length;
    for (int64_t a = 0; a < outer; ++a)
      for (int64_t b = 0; b < inner; ++b) {
        const int64_t channel = channels_last ? b : a, s = channels_last ? a : b;
        target[channel * out.s_channel + s * out.s_position] =
            static_cast<T>(sums[channel * (end - begin) + sample - begin + s]);
      }
  });
}

}  // namespace rf::RF_ISA
