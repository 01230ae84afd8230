// SPDX-License-Identifier: BSD-3-Clause
// The most multiply-adds per second that a core can do: independent chains of multiply-adds in registers.
// floor.py compiles it for the machine at hand. It shares nothing with the kernels that are compared with it.
#include <cstdint>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kChains = 24;  // as many as the registers hold: at least latency times throughput
#elif defined(__AVX__)
constexpr int kBytes = 32, kChains = 12;
#else
constexpr int kBytes = 16, kChains = 12;
#endif

template <class T>
double multiply_add(int64_t rounds, T a, T b) {
  typedef T V __attribute__((vector_size(kBytes)));
  V c[kChains];
  for (int k = 0; k < kChains; ++k) c[k] = V{} + static_cast<T>(k);
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 24
    for (int k = 0; k < kChains; ++k) c[k] = c[k] * a + b;
  double sum = 0;
  for (const V& v : c) sum += v[0];
  return sum;
}

}  // namespace

// Each does `rounds` rounds of `flops_X()` floating-point operations; a multiply-add counts as two.
extern "C" {
double run_f32(int64_t rounds, double a, double b) {
  return multiply_add<float>(rounds, static_cast<float>(a), static_cast<float>(b));
}
int64_t flops_f32() { return 2 * kChains * kBytes / 4; }

double run_f64(int64_t rounds, double a, double b) { return multiply_add<double>(rounds, a, b); }
int64_t flops_f64() { return 2 * kChains * kBytes / 8; }

#ifdef __AVX512BF16__
double run_bf16(int64_t rounds, double a, double b) {
  const __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(a), _mm512_set1_ps(b));
  const __m512bh y = _mm512_cvtne2ps_pbh(_mm512_set1_ps(b), _mm512_set1_ps(a));
  __m512 c[kChains];
  for (int k = 0; k < kChains; ++k) c[k] = _mm512_set1_ps(k);
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 24
    for (int k = 0; k < kChains; ++k) c[k] = _mm512_dpbf16_ps(c[k], x, y);
  double sum = 0;
  for (const __m512& v : c) sum += v[0];
  return sum;
}
int64_t flops_bf16() { return 2 * kChains * 32; }
#else
double run_bf16(int64_t rounds, double a, double b) { return run_f32(rounds, a, b); }
int64_t flops_bf16() { return flops_f32(); }
#endif
}
