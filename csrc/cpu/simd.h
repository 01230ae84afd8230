// SPDX-License-Identifier: BSD-3-Clause
// Vectors of one instruction-set level: the vector types of GCC and clang, and intrinsics where the language has no
// word (fused multiply-add, square root, 32-bit products, half precision).
#pragma once

#include <cstdint>

#include "../compiler.h"
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define RF_INLINE static inline __attribute__((always_inline))

namespace rf::RF_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;  // floats in a vector
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
  typedef T unaligned __attribute__((vector_size(N * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <class T, int N>
using Vector = typename VectorOf<T, N>::type;

template <class T>
constexpr int kWidth = kLanes * 4 / static_cast<int>(sizeof(T));
template <class T>
using Full = Vector<T, kWidth<T>>;

template <class T, int N>
RF_INLINE Vector<T, N> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T, N>::unaligned*>(p);
}
template <class T, int N>
RF_INLINE void store(T* p, Vector<T, N> v) {
  *reinterpret_cast<typename VectorOf<T, N>::unaligned*>(p) = v;
}

// x in every lane. The difference is folded away: x - 0 is x, also for -0.
template <class T, int N>
RF_INLINE Vector<T, N> splat(T x) {
  return x - Vector<T, N>{};
}

// a * b + c, rounded once where the level has the instruction
template <class V>
RF_INLINE V fma(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64 && sizeof(a[0]) == 4) return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  if constexpr (sizeof(V) == 64 && sizeof(a[0]) == 8) return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#endif
#if defined(__FMA__)
  if constexpr (sizeof(V) == 32 && sizeof(a[0]) == 4) return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  if constexpr (sizeof(V) == 32 && sizeof(a[0]) == 8) return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#endif
#if defined(__aarch64__)
  if constexpr (sizeof(V) == 16 && sizeof(a[0]) == 4)
    return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
  if constexpr (sizeof(V) == 16 && sizeof(a[0]) == 8)
    return (V)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#endif
  return a * b + c;
}

// max(x, 0), where NaN stays
template <class V>
RF_INLINE V positive_part(V x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64 && sizeof(x[0]) == 4) return (V)_mm512_maskz_max_ps(0xffff, __m512{}, (__m512)x);
  if constexpr (sizeof(V) == 64 && sizeof(x[0]) == 8) return (V)_mm512_maskz_max_pd(0xff, __m512d{}, (__m512d)x);
#endif
#if defined(__aarch64__)
  if constexpr (sizeof(V) == 16 && sizeof(x[0]) == 4) return (V)vmaxq_f32((float32x4_t)x, float32x4_t{});
  if constexpr (sizeof(V) == 16 && sizeof(x[0]) == 8) return (V)vmaxq_f64((float64x2_t)x, float64x2_t{});
#endif
  return x <= 0 ? V{} : x;
}

// Two bfloat16 numbers, the first in the low half: one lane of the instruction that multiplies them.
typedef uint32_t bf16_pair;

template <class T>
struct AccumulatorOf {
  typedef T type;
};
template <>
struct AccumulatorOf<bf16_pair> {
  typedef float type;
};
// The type in which products of T are summed.
template <class T>
using Sum = typename AccumulatorOf<T>::type;

// a * b + c
RF_INLINE Full<float> multiply_add(Full<float> a, Full<float> b, Full<float> c) { return fma(a, b, c); }
RF_INLINE Full<double> multiply_add(Full<double> a, Full<double> b, Full<double> c) { return fma(a, b, c); }
#if defined(__AVX512BF16__)
RF_INLINE Full<float> multiply_add(Full<bf16_pair> a, Full<bf16_pair> b, Full<float> c) {
  return (Full<float>)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
}
#endif

typedef Full<float> vf;
typedef Full<uint32_t> vu;
typedef Full<int32_t> vi;
typedef Vector<uint64_t, kLanes / 2> vq;

// A list of lanes as a type: a shuffle takes constants.
template <int... L>
struct Lanes {};
template <int N, int... L>
struct FirstLanes : FirstLanes<N - 1, N - 1, L...> {};
template <int... L>
struct FirstLanes<0, L...> {
  typedef Lanes<L...> type;
};
template <class V>
constexpr int kCount = sizeof(V) / sizeof(V{}[0]);

template <int FIRST, class V, int... L>
RF_INLINE auto lanes_from(V x, Lanes<L...>) {
  return __builtin_shufflevector(x, x, (FIRST + L)...);
}
template <class V>
RF_INLINE auto lower_half(V x) {
  return lanes_from<0>(x, typename FirstLanes<kCount<V> / 2>::type{});
}
template <class V>
RF_INLINE auto upper_half(V x) {
  return lanes_from<kCount<V> / 2>(x, typename FirstLanes<kCount<V> / 2>::type{});
}

// a0 b0 a1 b1 ...: of the low halves of a and b, or of their high ones
template <int FIRST, class V, int... L>
RF_INLINE V interleave_from(V a, V b, Lanes<L...>) {
  return __builtin_shufflevector(a, b, (FIRST + L / 2 + L % 2 * kCount<V>)...);
}
template <class V>
RF_INLINE V interleave_low(V a, V b) {
  return interleave_from<0>(a, b, typename FirstLanes<kCount<V>>::type{});
}
template <class V>
RF_INLINE V interleave_high(V a, V b) {
  return interleave_from<kCount<V> / 2>(a, b, typename FirstLanes<kCount<V>>::type{});
}

// a0 a2 ... b1 b3 ...: every other one of 2 N - 1 numbers, of which a has the first N and b the last N
template <class V, int... L>
RF_INLINE V every_other(V a, V b, Lanes<L...>) {
  return __builtin_shufflevector(a, b, (2 * L + (2 * L >= kCount<V>))...);
}

RF_INLINE vf square_root(vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (vf)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (vf)_mm_sqrt_ps((__m128)x);
#elif defined(__aarch64__)
  return (vf)vsqrtq_f32((float32x4_t)x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// Products of the low halves of 64-bit lanes.
RF_INLINE vq multiply_low_halves(vq a, vq b) {
#if defined(__AVX512F__)
  return (vq)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (vq)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (vq)_mm_mul_epu32((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
  return (vq)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// The float nearest to an unsigned word. Without the instruction, the two halves convert exactly and only their sum is
// rounded.
RF_INLINE vf from_unsigned(vu x) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtepu32_ps((__m512i)x);
#elif defined(__aarch64__)
  return (vf)vcvtq_f32_u32((uint32x4_t)x);
#else
  return __builtin_convertvector((vi)(x >> 16), vf) * 65536.0f + __builtin_convertvector((vi)(x & 0xffffu), vf);
#endif
}

// Lanes of the generator on a CPU. A Word is a vector of 32-bit words. They are stored in the low halves of the 64-bit
// lanes of two vectors, one for even words and one for odd words, so that a product needs no shuffle. The high halves
// may hold anything.
struct VectorLanes {
  struct Word {
    vq even, odd;
  };
  typedef vf F;
  typedef vu U;

  RF_INLINE void multiply(Word x, uint32_t m, Word& high, Word& low) {
    const vq factor = vq{} + m;
    low = {multiply_low_halves(x.even, factor), multiply_low_halves(x.odd, factor)};
    high = {low.even >> 32, low.odd >> 32};
  }
  RF_INLINE Word exclusive_or(Word a, Word b, uint32_t k) {
    return {a.even ^ b.even ^ uint64_t{k}, a.odd ^ b.odd ^ uint64_t{k}};
  }
  RF_INLINE U lanes(Word x) {
#if defined(__AVX512F__)
    return (U)_mm512_mask_shuffle_epi32((__m512i)x.even, 0xAAAA, (__m512i)x.odd, (_MM_PERM_ENUM)0xA0);
#else
    return (U)((x.even & 0xffffffffu) | (x.odd << 32));
#endif
  }
  RF_INLINE Word uniform(uint32_t x) { return {vq{} + x, vq{} + x}; }

  RF_INLINE F constant(float x) { return F{} + x; }
  RF_INLINE F add(F a, F b) { return a + b; }
  RF_INLINE F sub(F a, F b) { return a - b; }
  RF_INLINE F mul(F a, F b) { return a * b; }
  RF_INLINE F sqrt(F a) { return square_root(a); }
  RF_INLINE F from_unsigned(U x) { return RF_ISA::from_unsigned(x); }
  RF_INLINE F from_signed(U x) { return __builtin_convertvector((vi)x, vf); }
  RF_INLINE U bits(F x) { return (U)x; }
  RF_INLINE F value(U x) { return (F)x; }
  RF_INLINE U subtract(U a, U b) { return a - b; }
  RF_INLINE U subtract(U a, uint32_t b) { return a - b; }
  RF_INLINE U shift_left(U x, int n) { return x << n; }
  RF_INLINE U shift_right(U x, int n) { return x >> n; }
  RF_INLINE U shift_right_arithmetic(U x, int n) { return (U)((vi)x >> n); }
  RF_INLINE F flip(F x, U sign) { return (F)((U)x ^ (sign & 0x80000000u)); }
};

}  // namespace rf::RF_ISA
