// SPDX-License-Identifier: BSD-3-Clause
// The work of one group of maps of wavelet_modulus and of its gradient: where its numbers lie, and its memory.
#pragma once

#include "wavelets.h"

namespace rf::RF_ISA {

constexpr int64_t kBlockBytes = 32768;  // of the outputs of a group that are in work at a time: they stay in the cache

// A call: sizes, tables of places and taps, which all groups share.
template <class T>
struct WaveletCall {
  const WaveletMaps& maps;
  const Bank& bank;
  int64_t height, width;          // of the output
  int64_t numbers, channels;      // of a pixel of the output; of its channels for one of z
  int64_t lines;                  // of the output in work at a time
  const int64_t *rows, *columns;  // tables of places
  const T* taps;

  static int64_t table(int64_t side, const Bank& bank) { return side_after(side, bank.stride) * (2 * bank.reach + 1); }
  static int64_t shared_bytes(const WaveletMaps& maps, const Bank& bank) {
    return 8 * (table(maps.z.lines, bank) + table(maps.z.positions, bank)) +
           (bank.reach + 1) * kFilters * static_cast<int64_t>(sizeof(T));
  }

  WaveletCall(const WaveletMaps& of, const Bank& with, void* memory) : maps(of), bank(with) {
    constexpr int64_t N = kWidth<T>;
    height = side_after(of.z.lines, with.stride);
    width = side_after(of.z.positions, with.stride);
    numbers = of.skip || of.parts == 2 ? 2 : 1;
    channels = of.skip ? 10 : 5;
    lines = larger(1, smaller(height, kBlockBytes / (channels * width * numbers * vector_bytes())));
    int64_t* tables = static_cast<int64_t*>(memory);
    fill_places(tables, of.z.lines, with, of.z.positions * of.parts * N);
    rows = tables + with.reach;
    tables += table(of.z.lines, with);
    fill_places(tables, of.z.positions, with, of.parts * filters() * N);
    columns = tables + with.reach;
    T* rounded = reinterpret_cast<T*>(tables + table(of.z.positions, with));
    for (int64_t i = 0; i < (with.reach + 1) * kFilters; ++i) rounded[i] = static_cast<T>(with.taps[i]);
    taps = rounded;
  }

  static constexpr int64_t vector_bytes() { return kWidth<T> * static_cast<int64_t>(sizeof(T)); }
  int64_t filters() const { return bank.own_low ? kFilters : kPhi; }
  int64_t pixels() const { return maps.z.lines * maps.z.positions * maps.parts; }  // numbers of a map of z
  int64_t plane() const { return height * width * numbers; }                       // of a channel of the output
  int64_t line() const { return maps.z.positions * maps.parts * filters(); }       // of a filtered line
  int64_t groups() const { return blocks(maps.z.images * maps.z.channels, kWidth<T>); }
  const int64_t* row(int64_t i) const { return rows + i * (2 * bank.reach + 1); }
  const int64_t* column(int64_t j) const { return columns + j * (2 * bank.reach + 1); }

  // The images and channels of the maps of a group.
  struct Group {
    int64_t image[kLanes], channel[kLanes], count;
  };
  Group group(int64_t number) const {
    Group maps_of;
    const int64_t first = number * kWidth<T>, c = maps.z.channels;
    maps_of.count = smaller(kWidth<T>, maps.z.images * c - first);
    for (int64_t l = 0, image = first / c, channel = first % c; l < kWidth<T>; ++l) {
      maps_of.image[l] = image;
      maps_of.channel[l] = channel;
      if (l + 1 < maps_of.count && ++channel == c) ++image, channel = 0;
    }
    return maps_of;
  }

  // The addresses of the maps of a group: `at(image, channel)` is that of one map.
  template <class S, class At>
  static MapsInMemory<S> addresses(const Group& of, At at) {
    MapsInMemory<S> memory;
    memory.count = of.count;
    for (int64_t l = 0; l < kWidth<T>; ++l) memory.map[l] = at(of.image[l], of.channel[l]);
    return memory;
  }

  // Reads the maps z of a group: [line][position][part][lane].
  template <class S>
  void read(T* to, const Group& of) const {
    const Samples& z = maps.z;
    const auto from = addresses<const S>(of, [&](int64_t image, int64_t channel) {
      return static_cast<const S*>(z.data) + image * z.s_image + channel * z.s_channel;
    });
    const int64_t length = z.positions * maps.parts;
    if (z.s_position == maps.parts && z.s_line == length) return read_lanes<T>(to, from, 0, z.lines * length);
    for (int64_t i = 0; i < z.lines; ++i, to += length * kWidth<T>) {
      if (z.s_position == maps.parts) {
        read_lanes<T>(to, from, i * z.s_line, length);
      } else {
        for (int64_t j = 0; j < z.positions; ++j)
          read_pixel<T>(to + j * maps.parts * kWidth<T>, from, i * z.s_line + j * z.s_position, maps.parts);
      }
    }
  }

  // Calls f(maps, first number, length, tile) for the runs of contiguous numbers of the output that lines [begin, end)
  // of a group have. The tile has [channel][line][position][number][lane]; its first channel is the low-pass, and the
  // next four are neighbours in memory.
  template <class S, class F>
  void for_runs(const Group& of, int64_t begin, int64_t end, T* tile, F f) const {
    const int64_t c = maps.z.channels, length = (end - begin) * width * numbers;
    const bool whole = length == plane();
    for (int64_t half = 0; half < channels / 5; ++half)
      for (int64_t t = 0; t < (whole ? 2 : 5); ++t) {
        const auto to = addresses<S>(of, [&](int64_t image, int64_t channel) {
          const int64_t place = t == 0 ? channel : c + 4 * channel + t - 1;
          return static_cast<S*>(maps.out) + (image * channels * c + half * 5 * c + place) * plane();
        });
        f(to, begin * width * numbers, whole && t == 1 ? 4 * length : length,
          tile + (half * 5 + t) * length * kWidth<T>);
      }
  }
};

// Filters line i of a group along lines. The filtered pixels of a line are [position][part][filter][lane].
template <class T, bool OWN, int REACH>
RF_INLINE void filter_line(T* to, const T* z, const WaveletCall<T>& call, int64_t i) {
  constexpr int64_t N = kWidth<T>, F = kAlongLines<OWN>, COUNT = kLanes == 16 ? 3 : 1;
  const int64_t length = call.maps.z.positions * call.maps.parts;
  int64_t x = 0;
  for (; x + COUNT <= length; x += COUNT)
    along_lines<T, OWN, REACH, COUNT>(to + x * F * N, z + x * N, call.row(i), call.taps, call.bank.reach);
  for (; x < length; ++x)
    along_lines<T, OWN, REACH, 1>(to + x * F * N, z + x * N, call.row(i), call.taps, call.bank.reach);
}

// The responses of output pixel j of a filtered line. A complex z = x + i y has z * psi = x * psi + i (y * psi); its
// low-pass has two parts, `low`.
template <class T, bool OWN, int PARTS, int REACH>
RF_INLINE void respond(Full<T> (&to)[kResponses], Full<T> (&low)[2], const T* line, const WaveletCall<T>& call,
                       int64_t j) {
  const T beta = static_cast<T>(call.bank.beta);
  along_columns<T, OWN, REACH>(to, line, call.column(j), call.taps, call.bank.reach, beta);
  low[0] = to[kLow];
  low[1] = Full<T>{};
  if constexpr (PARTS == 2) {
    Full<T> other[kResponses];
    along_columns<T, OWN, REACH>(other, line + kAlongLines<OWN> * kWidth<T>, call.column(j), call.taps, call.bank.reach,
                                 beta);
    low[1] = other[kLow];
    RF_UNROLL
    for (int t = 0; t < 4; ++t) {
      to[kReal + t] -= other[kImaginary + t];
      to[kImaginary + t] += other[kReal + t];
    }
  }
}

// Calls f<OWN, PARTS, REACH>() of a call. REACH is 0 if it is not that of one of the named banks.
template <class F>
RF_INLINE void with_kind(const WaveletMaps& maps, const Bank& bank, F f) {
  const auto with_reach = [&]<bool OWN, int PARTS>() {
    bank.reach == 4   ? f.template operator()<OWN, PARTS, 4>()
    : bank.reach == 5 ? f.template operator()<OWN, PARTS, 5>()
                      : f.template operator()<OWN, PARTS, 0>();
  };
  if (bank.own_low)
    maps.parts == 2 ? with_reach.template operator()<true, 2>() : with_reach.template operator()<true, 1>();
  else
    maps.parts == 2 ? with_reach.template operator()<false, 2>() : with_reach.template operator()<false, 1>();
}

}  // namespace rf::RF_ISA
