// SPDX-License-Identifier: BSD-3-Clause
// The separable filters of wavelet_modulus for a group of maps in the lanes of vectors: along lines, then along
// columns. Taps u and -u of an even filter multiply a sum of two pixels, those of an odd filter a difference. The
// transposed passes add to the pixels that the passes read.
#pragma once

#include "lanes_of_maps.h"

namespace rf::RF_ISA {

enum Filter { kG, kC, kHC, kS, kHS, kPhi, kFilters };  // in the order of struct Bank

// The low-pass, then the real and the imaginary parts of the wavelets at 45, 0, -45 and -90 degrees.
enum Response { kLow, kReal, kImaginary = kReal + 4, kResponses = kImaginary + 4 };

// The filters along one pixel's line are those before phi, and phi if it has numbers of its own.
template <bool OWN>
constexpr int kAlongLines = OWN ? kFilters : kPhi;

template <class T>
RF_INLINE Full<T> get(const T* p) {
  return load<T, kWidth<T>>(p);
}
template <class T>
RF_INLINE void put(T* p, Full<T> v) {
  store<T, kWidth<T>>(p, v);
}
template <class T>
RF_INLINE void add(T* p, Full<T> v) {
  put(p, get(p) + v);
}
template <class T>
RF_INLINE Full<T> all(T x) {
  return splat<T, kWidth<T>>(x);
}

// The side of the output for a side of the input.
RF_INLINE int64_t side_after(int64_t side, int64_t stride) { return 2 * ((side + 2) / 2 - 1) / stride; }

// Fills the table of the pixels that an axis of the output reads: entry v * (2 reach + 1) + reach + u is the pixel that
// tap u multiplies, times `step`.
static void fill_places(int64_t* places, int64_t side, const Bank& bank, int64_t step) {
  const int64_t whole = 2 * ((side + 2) / 2 + 1), period = 2 * (side - 1);
  for (int64_t v = 0; v < side_after(side, bank.stride); ++v)
    for (int64_t u = -bank.reach; u <= bank.reach; ++u) {
      const int64_t padded = ((2 + bank.stride * v - u) % whole + whole) % whole - (whole - side) / 2;
      const int64_t place = (padded % period + period) % period;
      *places++ = smaller(place, period - place) * step;
    }
}

// Calls f(u) for taps 1 to `reach`. If REACH is not 0 it is this number, and the loop is unrolled.
template <int REACH, class F>
RF_INLINE void for_taps(int64_t reach, F f) {
  if constexpr (REACH > 0) {
    RF_UNROLL
    for (int64_t u = 1; u <= REACH; ++u) f(u);
  } else {
    for (int64_t u = 1; u <= reach; ++u) f(u);
  }
}

// A row of pixels [x, x + COUNT), filtered along lines. `at` is the middle of a line's entries in the table of places.
template <class T, bool OWN, int REACH, int COUNT>
RF_INLINE void along_lines(T* to, const T* z, const int64_t* at, const T* taps, int64_t reach) {
  constexpr int N = kWidth<T>, F = kAlongLines<OWN>;
  Full<T> sum[COUNT][kFilters];
  RF_UNROLL
  for (int x = 0; x < COUNT; ++x) {
    const Full<T> middle = get(z + at[0] + x * N);
    RF_UNROLL
    for (int f = 0; f < F; ++f) sum[x][f] = f == kS || f == kHS ? Full<T>{} : middle * all(taps[f]);
  }
  for_taps<REACH>(reach, [&](int64_t u) {
    const T* tap = taps + u * kFilters;
    RF_UNROLL
    for (int x = 0; x < COUNT; ++x) {
      const Full<T> after = get(z + at[u] + x * N), before = get(z + at[-u] + x * N);
      const Full<T> even = after + before, odd = after - before;
      RF_UNROLL
      for (int f = 0; f < F; ++f) sum[x][f] = fma(f == kS || f == kHS ? odd : even, all(tap[f]), sum[x][f]);
    }
  });
  RF_UNROLL
  for (int x = 0; x < COUNT; ++x) {
    RF_UNROLL
    for (int f = 0; f < F; ++f) put(to + (x * F + f) * N, sum[x][f]);
  }
}

// The responses of one output pixel, from the pixels of its line filtered along lines.
template <class T, bool OWN, int REACH>
RF_INLINE void along_columns(Full<T> (&to)[kResponses], const T* line, const int64_t* at, const T* taps, int64_t reach,
                             T beta) {
  constexpr int N = kWidth<T>;
  const T* middle = line + at[0];
  const Full<T> g = all(taps[kG]), c = all(taps[kC]), hc = all(taps[kHC]);
  Full<T> gg = get(middle + kG * N) * g, gc = get(middle + kG * N) * c, gs{}, cg = get(middle + kC * N) * g;
  Full<T> sg = get(middle + kS * N) * g, cc = get(middle + kHC * N) * hc, cs{}, sc = get(middle + kHS * N) * hc, ss{};
  Full<T> low{};
  if constexpr (OWN) low = get(middle + kPhi * N) * all(taps[kPhi]);
  for_taps<REACH>(reach, [&](int64_t u) {
    const T *tap = taps + u * kFilters, *after = line + at[u], *before = line + at[-u];
    const auto even = [&](int f) { return get(after + f * N) + get(before + f * N); };
    const auto odd = [&](int f) { return get(after + f * N) - get(before + f * N); };
    const Full<T> even_g = even(kG), even_hc = even(kHC), even_hs = even(kHS);
    gg = fma(even_g, all(tap[kG]), gg);
    gc = fma(even_g, all(tap[kC]), gc);
    gs = fma(odd(kG), all(tap[kS]), gs);
    cg = fma(even(kC), all(tap[kG]), cg);
    sg = fma(even(kS), all(tap[kG]), sg);
    cc = fma(even_hc, all(tap[kHC]), cc);
    cs = fma(odd(kHC), all(tap[kHS]), cs);
    sc = fma(even_hs, all(tap[kHC]), sc);
    ss = fma(odd(kHS), all(tap[kHS]), ss);
    if constexpr (OWN) low = fma(even(kPhi), all(tap[kPhi]), low);
  });
  const Full<T> mean = cc - all(beta) * gg;
  to[kLow] = OWN ? low : gg;
  to[kReal] = mean - ss, to[kReal + 1] = cg, to[kReal + 2] = mean + ss, to[kReal + 3] = gc;
  to[kImaginary] = sc + cs, to[kImaginary + 1] = sg, to[kImaginary + 2] = sc - cs, to[kImaginary + 3] = -gs;
}

// The transpose of along_columns: adds to the pixels of the line.
template <class T, bool OWN, int REACH>
RF_INLINE void add_along_columns(T* line, const Full<T> (&from)[kResponses], const int64_t* at, const T* taps,
                                 int64_t reach, T beta) {
  constexpr int N = kWidth<T>;
  const Full<T> cc = from[kReal] + from[kReal + 2], ss = from[kReal + 2] - from[kReal];
  const Full<T> cs = from[kImaginary] - from[kImaginary + 2], sc = from[kImaginary] + from[kImaginary + 2];
  const Full<T> cg = from[kReal + 1], sg = from[kImaginary + 1], gc = from[kReal + 3], gs = -from[kImaginary + 3];
  const Full<T> gg = OWN ? -all(beta) * cc : from[kLow] - all(beta) * cc;
  T* middle = line + at[0];
  add(middle + kG * N, gg * all(taps[kG]) + gc * all(taps[kC]));
  add(middle + kC * N, cg * all(taps[kG]));
  add(middle + kHC * N, cc * all(taps[kHC]));
  add(middle + kS * N, sg * all(taps[kG]));
  add(middle + kHS * N, sc * all(taps[kHC]));
  if constexpr (OWN) add(middle + kPhi * N, from[kLow] * all(taps[kPhi]));
  for_taps<REACH>(reach, [&](int64_t u) {
    const T* tap = taps + u * kFilters;
    T *after = line + at[u], *before = line + at[-u];
    const auto add_both = [&](int f, Full<T> even, Full<T> odd) {
      add(after + f * N, even + odd);
      add(before + f * N, even - odd);
    };
    const auto add_even = [&](int f, Full<T> even) {
      add(after + f * N, even);
      add(before + f * N, even);
    };
    add_both(kG, fma(gc, all(tap[kC]), gg * all(tap[kG])), gs * all(tap[kS]));
    add_even(kC, cg * all(tap[kG]));
    add_both(kHC, cc * all(tap[kHC]), cs * all(tap[kHS]));
    add_even(kS, sg * all(tap[kG]));
    add_both(kHS, sc * all(tap[kHC]), ss * all(tap[kHS]));
    if constexpr (OWN) add_even(kPhi, from[kLow] * all(tap[kPhi]));
  });
}

// The transpose of along_lines, for one pixel: adds to the pixels of a column.
template <class T, bool OWN, int REACH>
RF_INLINE void add_along_lines(T* z, const T* from, const int64_t* at, const T* taps, int64_t reach) {
  constexpr int N = kWidth<T>;
  Full<T> x[kFilters];
  RF_UNROLL
  for (int f = 0; f < kAlongLines<OWN>; ++f) x[f] = get(from + f * N);
  const auto even = [&](const T* tap) {
    const Full<T> sum = fma(x[kHC], all(tap[kHC]), fma(x[kC], all(tap[kC]), x[kG] * all(tap[kG])));
    if constexpr (OWN)
      return fma(x[kPhi], all(tap[kPhi]), sum);
    else
      return sum;
  };
  add(z + at[0], even(taps));
  for_taps<REACH>(reach, [&](int64_t u) {
    const T* tap = taps + u * kFilters;
    const Full<T> sum = even(tap), difference = fma(x[kHS], all(tap[kHS]), x[kS] * all(tap[kS]));
    add(z + at[u], sum + difference);
    add(z + at[-u], sum - difference);
  });
}

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
