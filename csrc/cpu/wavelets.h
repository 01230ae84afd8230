// SPDX-License-Identifier: BSD-3-Clause
// The separable filters of wavelet_modulus for a group of maps in the lanes of vectors: along lines, then along
// columns. Taps u and -u of an even filter multiply a sum of two pixels, those of an odd filter a difference. The
// transposed passes add to the pixels that the passes read.
#pragma once

#include "lanes_of_maps.h"
#include "moduli.h"

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

}  // namespace rf::RF_ISA
