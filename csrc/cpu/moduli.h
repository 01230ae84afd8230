// SPDX-License-Identifier: BSD-3-Clause
// The moduli of complex numbers and their gradients, for all numbers that the type has.
#pragma once

#include "simd.h"

namespace rf::RF_ISA {

template <class T>
struct WordOf {
  typedef int32_t type;  // exponents have no sign
  static constexpr type kExponent = 0x7f800000, kOne = 1 << 23, kBias = 254 << 23;
};
template <>
struct WordOf<double> {
  typedef int64_t type;
  static constexpr type kExponent = 0x7ff0000000000000, kOne = type{1} << 52, kBias = type{2046} << 52;
};

RF_INLINE Full<double> square_root(Full<double> x) {
#if defined(__AVX512F__)
  return (Full<double>)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX2__)
  return (Full<double>)_mm256_sqrt_pd((__m256d)x);
#elif defined(__SSE2__)
  return (Full<double>)_mm_sqrt_pd((__m128d)x);
#elif defined(__aarch64__)
  return (Full<double>)vsqrtq_f64((float64x2_t)x);
#else
  for (int i = 0; i < kWidth<double>; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
#endif
}

// The inverse square root of numbers between 2^-50 and 2^50. Where the level has an instruction that approximates it to
// 2^-14, in a sixth of the time of a root, a step of Newton's squares the error.
RF_INLINE Full<float> inverse_root(Full<float> x) {
#if defined(__AVX512F__)
  const Full<float> r = (Full<float>)_mm512_rsqrt14_ps((__m512)x);
  return fma(0.5f * r, fma(-(x * r), r, Full<float>{} + 1), r);
#else
  return 1 / square_root(x);
#endif
}
RF_INLINE Full<double> inverse_root(Full<double> x) { return 1 / square_root(x); }

// The square root of such numbers.
RF_INLINE Full<float> root(Full<float> x) {
#if defined(__AVX512F__)
  const Full<float> r = (Full<float>)_mm512_rsqrt14_ps((__m512)x), y = x * r;
  return fma(fma(-y, y, x), 0.5f * r, y);
#else
  return square_root(x);
#endif
}
RF_INLINE Full<double> root(Full<double> x) { return square_root(x); }

// Whether any bit is set.
template <class V>
RF_INLINE bool any(V x) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)x, (__m512i)x) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)x, (__m256i)x);
#elif defined(__SSE2__)
  return _mm_movemask_epi8((__m128i)x) != 0;
#else
  const auto words = (Vector<uint64_t, sizeof(V) / 8>)x;
  uint64_t bits = 0;
  for (unsigned i = 0; i < sizeof(V) / 8; ++i) bits |= words[i];
  return bits != 0;
#endif
}

// Whether all numbers are between 2^-50 and 2^50. Those of which it is asked are not negative, or NaN.
template <class T, int COUNT>
RF_INLINE bool moderate(const Full<T> (&x)[COUNT]) {
  typedef Full<typename WordOf<T>::type> Words;
  constexpr auto half = WordOf<T>::kBias / 2, reach = 50 * WordOf<T>::kOne;
  Words least = (Words)x[0], most = (Words)x[0];
  RF_UNROLL
  for (int i = 1; i < COUNT; ++i) {
    least = (Words)x[i] < least ? (Words)x[i] : least;
    most = (Words)x[i] > most ? (Words)x[i] : most;
  }
  return !any((least < half - reach) | (most > half + reach));
}

// A complex number as scale (real + i imaginary), where scale is a power of two and the larger part is about one: its
// square neither overflows nor vanishes. NaN stays.
template <class T>
struct Scaled {
  Full<T> real, imaginary, scale;
};

template <class T>
RF_INLINE Scaled<T> scaled(Full<T> re, Full<T> im) {
  typedef typename WordOf<T>::type Word;
  typedef Full<Word> Words;
  constexpr Word least = WordOf<T>::kOne, most = WordOf<T>::kBias - WordOf<T>::kOne;
  const Words a = (Words)re & WordOf<T>::kExponent, b = (Words)im & WordOf<T>::kExponent;
  Words exponent = a > b ? a : b;
  exponent = exponent < least ? Words{} + least : exponent;
  exponent = exponent > most ? Words{} + most : exponent;
  const Full<T> inverse = (Full<T>)(WordOf<T>::kBias - exponent);
  return {re * inverse, im * inverse, (Full<T>)exponent};
}

template <class T>
RF_INLINE Full<T> square(Full<T> re, Full<T> im) {
  return fma(im, im, re * re);
}

// The moduli of COUNT numbers. Roots commute with scales that are powers of four: both ways give the same bits.
template <class T, int COUNT>
RF_INLINE void moduli(Full<T> (&to)[COUNT], const Full<T>* re, const Full<T>* im) {
  RF_UNROLL
  for (int t = 0; t < COUNT; ++t) to[t] = square<T>(re[t], im[t]);
  if (moderate<T, COUNT>(to)) {
    RF_UNROLL
    for (int t = 0; t < COUNT; ++t) to[t] = root(to[t]);
  } else {
    for (int t = 0; t < COUNT; ++t) {
      const Scaled<T> z = scaled<T>(re[t], im[t]);
      const Full<T> sum = square<T>(z.real, z.imaginary), modulus = root(sum == 0 ? Full<T>{} + 1 : sum) * z.scale;
      to[t] = sum == 0 ? sum : sum <= 64 ? modulus : sum;  // 0, infinity and NaN are their own roots
    }
  }
}

// The gradients with respect to both parts of COUNT numbers, if `upstream` is that with respect to their moduli; 0 at
// 0.
template <class T, int COUNT>
RF_INLINE void through_moduli(const Full<T> (&upstream)[COUNT], Full<T>* re, Full<T>* im) {
  Full<T> sums[COUNT];
  RF_UNROLL
  for (int t = 0; t < COUNT; ++t) sums[t] = square<T>(re[t], im[t]);
  if (!moderate<T, COUNT>(sums)) {
    for (int t = 0; t < COUNT; ++t) {
      const Scaled<T> z = scaled<T>(re[t], im[t]);
      re[t] = z.real;
      im[t] = z.imaginary;
      sums[t] = square<T>(z.real, z.imaginary);
      sums[t] = sums[t] == 0 ? Full<T>{} + 1 : sums[t];
    }
  }
  RF_UNROLL
  for (int t = 0; t < COUNT; ++t) {
    const Full<T> factor = upstream[t] * inverse_root(sums[t]);
    re[t] *= factor;
    im[t] *= factor;
  }
}

}  // namespace rf::RF_ISA
