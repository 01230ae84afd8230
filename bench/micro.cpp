// SPDX-License-Identifier: BSD-3-Clause
// The micro-kernels alone, on operands in the caches: 96 rows of A packed side by side, one panel of B, tiles dropped.
// Compiled once for each instruction-set level by micro_kernels.py.
#include <stdlib.h>
#include <string.h>

#include "cpu/gemm.h"

namespace rf::RF_ISA {
namespace {

constexpr int64_t kRows = 96, kTerms = 256;

template <class T>
struct Drop {
  int64_t skips(int64_t, int64_t) const { return 0; }
  template <int V>
  void tile(int64_t, int64_t, int64_t, int64_t, const Accumulators<T, V>& acc) {
    Full<Sum<T>> all{};
#pragma GCC unroll 24
    for (int t = 0; t < MR * V; ++t) all += acc[t / V][t % V];
    asm volatile("" : : "x"(all));
  }
};

// Flops done in `rounds` rounds.
template <class T>
double run(int64_t rounds) {
  static T* const a = static_cast<T*>(aligned_alloc(64, (kRows + NR<T>)*kTerms * sizeof(T)));
  static void* const unit =
      aligned_alloc(64, static_cast<size_t>(aligned(sweep_bytes<T>(kRows, NR<T>, kTerms, {})) + 64));
  T* const b = a + kRows * kTerms;
  memset(a, 0, (kRows + NR<T>)*kTerms * sizeof(T));
  NothingAhead nothing;
  Drop<T> dropped;
  const Aside<T> aside{nullptr, kOnUnit<T> ? unit : nullptr};
  for (int64_t r = 0; r < rounds; ++r)
    sweep(RowsOf<T>{a, 1, kRows}, b, 0, kRows, NR<T>, kTerms, aside, Chain{}, dropped, nothing);
  return 2.0 * kElements<T> * kRows * NR<T> * kTerms * static_cast<double>(rounds);
}

}  // namespace
}  // namespace rf::RF_ISA

extern "C" {
double micro_f32(int64_t rounds) { return rf::RF_ISA::run<float>(rounds); }
double micro_f64(int64_t rounds) { return rf::RF_ISA::run<double>(rounds); }
#ifdef __AVX512BF16__
double micro_bf16(int64_t rounds) { return rf::RF_ISA::run<rf::RF_ISA::bf16_pair>(rounds); }
#endif
}
