// SPDX-License-Identifier: BSD-3-Clause
// Element types in memory, and vectors loaded from and stored to them. Rounding is to nearest even.
#pragma once

#include "../kernels.h"
#include "simd.h"

namespace rf::RF_ISA {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

constexpr bool is_bf16(const void*) { return false; }
constexpr bool is_bf16(const bf16*) { return true; }

RF_INLINE uint32_t word(float x) {
  uint32_t w;
  __builtin_memcpy(&w, &x, 4);
  return w;
}
RF_INLINE float real(uint32_t w) {
  float x;
  __builtin_memcpy(&x, &w, 4);
  return x;
}

RF_INLINE float widen(float x) { return x; }
RF_INLINE double widen(double x) { return x; }
RF_INLINE float widen(bf16 x) { return real(static_cast<uint32_t>(x.bits) << 16); }
RF_INLINE float widen(f16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00u) return real(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  return real(sign | word(real(rest << 13) * 0x1p112f));  // the product rescales subnormals exactly
}

RF_INLINE void narrow(double x, double& to) { to = x; }
RF_INLINE void narrow(double x, float& to) { to = static_cast<float>(x); }
RF_INLINE void narrow(float x, double& to) { to = x; }
RF_INLINE void narrow(float x, float& to) { to = x; }
RF_INLINE void narrow(float x, bf16& to) {
  const uint32_t w = word(x);
  to.bits = (w & 0x7fffffffu) > 0x7f800000u ? static_cast<uint16_t>(w >> 16 | 0x40u)
                                            : static_cast<uint16_t>((w + 0x7fffu + (w >> 16 & 1u)) >> 16);
}
RF_INLINE void narrow(float x, f16& to) {
  const uint32_t w = word(x), sign = w >> 16 & 0x8000u, rest = w & 0x7fffffffu;
  uint32_t h;
  if (rest > 0x7f800000u) {
    h = 0x7e00u;
  } else if (rest >= 0x477ff000u) {  // rounds to 65536 or above
    h = 0x7c00u;
  } else if (rest < 0x38800000u) {  // subnormal: the sum's last place is that of a subnormal half
    h = word(real(rest) + 0.5f) - 0x3f000000u;
  } else {
    h = (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13;
  }
  to.bits = static_cast<uint16_t>(sign | h);
}
RF_INLINE void narrow(double x, bf16& to) { narrow(static_cast<float>(x), to); }
RF_INLINE void narrow(double x, f16& to) { narrow(static_cast<float>(x), to); }

// Loads the first `count` of N elements; the rest are zeros. The address sanitizer cannot check masked loads, so they
// are not used under it.
template <class T, int N>
RF_INLINE Vector<T, N> load_first(const T* p, int64_t count) {
  if (count >= N) return load<T, N>(p);
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
  if constexpr (sizeof(T) * N == 64 && sizeof(T) == 2)
    return (Vector<T, N>)_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << count) - 1), p);
  if constexpr (sizeof(T) * N == 64 && sizeof(T) == 4)
    return (Vector<T, N>)_mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << count) - 1), p);
  if constexpr (sizeof(T) * N == 64 && sizeof(T) == 8)
    return (Vector<T, N>)_mm512_maskz_loadu_epi64(static_cast<__mmask8>((1u << count) - 1), p);
  if constexpr (sizeof(T) * N == 32 && sizeof(T) == 2)
    return (Vector<T, N>)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p);
#endif
  T buffer[N] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return load<T, N>(buffer);
}

// Loads the first `count` of N elements of S as a vector of T; the rest are zeros.
template <class T, int N, class S>
RF_INLINE Vector<T, N> load_as(const S* p, int64_t count = N) {
  if constexpr (sizeof(S) == sizeof(T)) {
    return load_first<T, N>(reinterpret_cast<const T*>(p), count);
  } else if constexpr (sizeof(S) == 4 || sizeof(S) == 8) {
    return __builtin_convertvector((load_first<S, N>(p, count)), Vector<T, N>);
  } else {
    const auto halves = load_first<uint16_t, N>(&p->bits, count);
    if constexpr (is_bf16(static_cast<S*>(nullptr))) {
      return (Vector<float, N>)(__builtin_convertvector(halves, Vector<uint32_t, N>) << 16);
    } else {
#if defined(__AVX512F__)
      if constexpr (N == 16) return (Vector<float, 16>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)halves);
#endif
#if defined(__F16C__)
      if constexpr (N == 8) return (Vector<float, 8>)_mm256_cvtph_ps((__m128i)halves);
#endif
      Vector<float, N> v;
      RF_UNROLL
      for (int i = 0; i < N; ++i) v[i] = widen(f16{halves[i]});
      return v;
    }
  }
}

// Stores a vector of T as N elements of S.
template <int N, class T, class S>
RF_INLINE void store_as(S* p, Vector<T, N> v) {
  if constexpr (sizeof(S) == sizeof(T)) {
    store<T, N>(reinterpret_cast<T*>(p), v);
  } else if constexpr (sizeof(S) == 4 || sizeof(S) == 8) {
    store<S, N>(p, __builtin_convertvector(v, Vector<S, N>));
  } else if constexpr (sizeof(T) == 4 && is_bf16(static_cast<S*>(nullptr))) {
#if defined(__AVX512BF16__)
    constexpr int subnormal = 0x20;  // the instruction takes subnormal numbers for zero
    if constexpr (N == 16)
      if (_mm512_fpclass_ps_mask((__m512)v, subnormal) == 0) {
        const __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
        return __builtin_memcpy(&p->bits, &rounded, sizeof(rounded)), void();
      }
#endif
    const auto w = (Vector<uint32_t, N>)v;
    const auto rounded = (w + 0x7fffu + (w >> 16 & 1u)) >> 16;
    const auto nan = (Vector<uint32_t, N>)((w & 0x7fffffffu) > 0x7f800000u);
    store<uint16_t, N>(&p->bits,
                       __builtin_convertvector((nan & (w >> 16 | 0x40u)) | (~nan & rounded), Vector<uint16_t, N>));
  } else {
#if defined(__AVX512F__)
    if constexpr (N == 16 && sizeof(T) == 4)
      return store<uint16_t, 16>(&p->bits, (Vector<uint16_t, 16>)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#endif
#if defined(__F16C__)
    if constexpr (N == 8 && sizeof(T) == 4)
      return store<uint16_t, 8>(&p->bits, (Vector<uint16_t, 8>)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#endif
    for (int i = 0; i < N; ++i) narrow(v[i], p[i]);
  }
}

template <class S>
struct Type {
  typedef S type;
};

#if defined(__AVX512BF16__)
// 2 x 16 numbers, rounded to bfloat16, as pairs (x[i], y[i]).
RF_INLINE vu rounded_pairs(vf x, vf y) {
  alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i pairs = (__m512i)_mm512_cvtne2ps_pbh((__m512)y, (__m512)x);
  return (vu)_mm512_permutexvar_epi16(_mm512_load_si512(order), pairs);
}
#endif

// Calls f(Type<S>{}) with the element type S that `dtype` names.
template <class F>
RF_INLINE void with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::f32:
      return f(Type<float>{});
    case DType::f64:
      return f(Type<double>{});
    case DType::bf16:
      return f(Type<bf16>{});
    case DType::f16:
      return f(Type<f16>{});
  }
}

// How many elements in memory make one number of an operand.
template <class T>
inline constexpr int kElements = 1;
template <>
inline constexpr int kElements<bf16_pair> = 2;

// Whether this level multiplies numbers of type T itself, not by the kernels of avx512.
template <class T>
#if defined(RF_MATRIX_UNIT)
constexpr bool kOwn = sizeof(T) == 4;
#elif defined(__AVX512BF16__)
constexpr bool kOwn = kElements<T> == 2;
#else
constexpr bool kOwn = true;
#endif

// Calls f(Type<T>{}) with the type T of the products of numbers of `dtype`: double, or float for all others.
template <class F>
RF_INLINE void with_products(DType dtype, F f) {
  if (dtype == DType::f64)
    f(Type<double>{});
  else
    f(Type<float>{});
}

// Calls f(Type<S>{}) with the element type S of an operand that is computed in T: doubles are computed in double, pairs
// of bfloat16 as pairs, all others in float.
template <class T, class F>
RF_INLINE void with_source(DType dtype, F f) {
  if constexpr (kElements<T> == 2)
    return f(Type<bf16>{});
  else if constexpr (sizeof(T) == 8)
    return f(Type<double>{});
  else if (dtype == DType::bf16)
    return f(Type<bf16>{});
  else if (dtype == DType::f16)
    return f(Type<f16>{});
  else
    return f(Type<float>{});
}

}  // namespace rf::RF_ISA
