// SPDX-License-Identifier: BSD-3-Clause
// Maps in the lanes of vectors: number e of a group of maps is one vector, whose lane l belongs to map l. Arithmetic
// then needs no shuffles, whatever the size of a map.
#pragma once

#include <string.h>

#include "strided.h"

namespace rf::RF_ISA {

// Where the maps of a group lie. Lanes without a map of their own read the last map, and write nothing.
template <class S>
struct MapsInMemory {
  S* map[kLanes];
  int64_t count;
};

// Reads numbers [begin, begin + length) of each map, which are contiguous.
template <class T, class S>
__attribute__((noinline)) static void read_lanes(T* to, const MapsInMemory<S>& from, int64_t begin, int64_t length) {
  constexpr int N = kWidth<T>;
  for (int64_t e = 0; e < length; e += N) {
    const int64_t there = smaller(N, length - e);
    Vector<T, N> v[N];
    RF_UNROLL
    for (int l = 0; l < N; ++l) v[l] = load_as<T, N>(from.map[l] + begin + e, there);
    transpose<T, N>(v);
    for (int64_t i = 0; i < there; ++i) store<T, N>(to + (e + i) * N, v[i]);
  }
}

// Reads `parts` numbers of each map, from number `begin` on: one vector for each.
template <class T, class S>
RF_INLINE void read_pixel(T* to, const MapsInMemory<S>& from, int64_t begin, int64_t parts) {
  constexpr int N = kWidth<T>;
  for (int64_t part = 0; part < parts; ++part)
    for (int l = 0; l < N; ++l) to[part * N + l] = widen(from.map[l][begin + part]);
}

// Writes numbers [begin, begin + length) of each map.
template <class T, class S>
__attribute__((noinline)) static void write_lanes(const MapsInMemory<S>& to, int64_t begin, int64_t length,
                                                  const T* from) {
  constexpr int N = kWidth<T>;
  for (int64_t e = 0; e < length; e += N) {
    const int64_t there = smaller(N, length - e);
    Vector<T, N> v[N];
    for (int64_t i = 0; i < N; ++i) v[i] = i < there ? load<T, N>(from + (e + i) * N) : Vector<T, N>{};
    transpose<T, N>(v);
    for (int64_t l = 0; l < to.count; ++l) {
      S* const at = to.map[l] + begin + e;
      if (there == N) {
        store_as<N, T>(at, v[l]);
      } else {
        S numbers[N];
        store_as<N, T>(numbers, v[l]);
        memcpy(at, numbers, static_cast<size_t>(there) * sizeof(S));
      }
    }
  }
}

}  // namespace rf::RF_ISA
