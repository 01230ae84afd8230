// SPDX-License-Identifier: BSD-3-Clause
// The most multiply-adds per second that a core can do: independent chains of multiply-adds in registers, and for
// bfloat16 products of tiles on the matrix unit, where the CPU has one. floor.py compiles it for the machine at hand.
// It shares nothing with the kernels that are compared with it.
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

[[maybe_unused]] constexpr int64_t kTilesShare = 16;  // products of tiles take longer: fewer in a round

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

#if defined(__AMX_BF16__)
// Four chains of products of tiles with numbers in them: products of zeros need less power, and run faster.
double run_bf16(int64_t rounds, double a, double b) {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const shape;
  alignas(64) static uint16_t numbers[2][512];
  for (int i = 0; i < 512; ++i) {  // between a and 2 a, and between b and 2 b, with any sign
    numbers[0][i] =
        static_cast<uint16_t>(__builtin_bit_cast(uint32_t, static_cast<float>(a * (1 + i % 97 / 97.0))) >> 16);
    numbers[1][i] =
        static_cast<uint16_t>(__builtin_bit_cast(uint32_t, static_cast<float>(b * (1 + i % 89 / 89.0))) >> 16);
    if (i % 3 == 1) numbers[i % 2][i] |= 0x8000;
  }
  asm volatile("ldtilecfg %0" : : "m"(shape));
  asm volatile(
      "tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3\n"
      "tileloadd (%0,%2,1), %%tmm6\n tileloadd (%1,%2,1), %%tmm7"
      :
      : "r"(numbers[0]), "r"(numbers[1]), "r"(int64_t{64})
      : "memory");
  for (int64_t i = 0; i < rounds / kTilesShare; ++i)
    asm volatile(
        "tdpbf16ps %%tmm7, %%tmm6, %%tmm0\n tdpbf16ps %%tmm7, %%tmm6, %%tmm1\n"
        "tdpbf16ps %%tmm7, %%tmm6, %%tmm2\n tdpbf16ps %%tmm7, %%tmm6, %%tmm3"
        :
        :);
  asm volatile("tilerelease");
  return 0;
}
int64_t flops_bf16() { return 4 * 16 * 16 * 32 * 2 / kTilesShare; }
#elif defined(__AVX512BF16__)
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
