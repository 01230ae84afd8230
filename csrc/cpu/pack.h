// SPDX-License-Identifier: BSD-3-Clause
// Packers: an operand of a matrix product as panels [k][WIDTH], WIDTH of its rows side by side, zeros where it ends.
// What an operand is made of (strided memory, samples of a map, the generator) is known here and nowhere else.
#pragma once

#include "convert.h"
#include "generate.h"

namespace rf::RF_ISA {

RF_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
RF_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
RF_INLINE int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

// v[i][j] <-> v[j][i]
template <class T, int N>
RF_INLINE void transpose(Vector<T, N> (&v)[N]) {
#pragma GCC unroll 4
  for (int h = 1; h < N; h *= 2) {
    decltype(v[0] < v[0]) low{}, high{};
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) low[j] = j & h ? N + j - h : j, high[j] = j & h ? N + j : j + h;
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      if (i & h) continue;
      const Vector<T, N> a = v[i], b = v[i + h];
      v[i] = __builtin_shuffle(a, b, low);
      v[i + h] = __builtin_shuffle(a, b, high);
    }
  }
}

// panel[p][i] = src[i * s_row + p * s_k] for i < rows <= WIDTH, p < k
template <int WIDTH, class T, class S>
static void pack_strided(T* panel, const S* src, int64_t rows, int64_t k, int64_t s_row, int64_t s_k) {
  constexpr int N = WIDTH % kWidth<T> == 0 ? kWidth<T> : WIDTH;
  if (s_row == 1 && rows == WIDTH) {
    for (int64_t p = 0; p < k; ++p)
#pragma GCC unroll 8
      for (int i = 0; i < WIDTH; i += N) store<T, N>(panel + p * WIDTH + i, load_as<T, N>(src + p * s_k + i));
  } else if (s_k == 1) {
    const int64_t whole_rows = rows / N * N, whole_k = k / N * N;
    for (int64_t i = 0; i < whole_rows; i += N)
      for (int64_t p = 0; p < whole_k; p += N) {
        Vector<T, N> v[N];
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) v[j] = load_as<T, N>(src + (i + j) * s_row + p);
        transpose<T, N>(v);
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) store<T, N>(panel + (p + j) * WIDTH + i, v[j]);
      }
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t p = i < whole_rows ? whole_k : 0; p < k; ++p) panel[p * WIDTH + i] = widen(src[i * s_row + p]);
  } else {
    for (int64_t p = 0; p < k; ++p)
      for (int64_t i = 0; i < rows; ++i) panel[p * WIDTH + i] = widen(src[i * s_row + p * s_k]);
  }
}

template <int WIDTH, class T>
RF_INLINE void pad(T* panel, int64_t rows, int64_t k) {
  if (rows == WIDTH) return;
  for (int64_t p = 0; p < k; ++p)
    for (int64_t i = rows; i < WIDTH; ++i) panel[p * WIDTH + i] = 0;
}

// The same samples in as few images as their strides allow: (N, d) and channels_last are one image of many positions.
RF_INLINE Samples merged(const Samples& x) {
  if (x.positions == 1) return {x.data, x.dtype, 1, x.channels, x.images, 0, x.s_channel, x.s_image};
  if (x.images == 1 || x.s_image == x.positions * x.s_position)
    return {x.data, x.dtype, 1, x.channels, x.images * x.positions, 0, x.s_channel, x.s_position};
  return x;
}

// Calls f(first sample, address, length) for the pieces of samples [begin, end) that lie in one image.
template <class S, class F>
RF_INLINE void for_pieces(const Samples& x, int64_t begin, int64_t end, F f) {
  while (begin < end) {
    const int64_t image = begin / x.positions, position = begin % x.positions;
    const int64_t length = smaller(end - begin, x.positions - position);
    f(begin, static_cast<S*>(x.data) + image * x.s_image + position * x.s_position, length);
    begin += length;
  }
}

// A packer's pack<WIDTH>(to, row, rows, k0, k) writes blocks(rows, WIDTH) panels of k * WIDTH numbers.

// Rows are channels; k runs over samples.
template <class T>
struct ChannelPacker {
  Samples x;

  template <int WIDTH>
  void pack(T* to, int64_t row, int64_t rows, int64_t k0, int64_t k) const {
    with_source<T>(x.dtype, [&]<class S>(Type<S>) {
      for (int64_t i = 0; i < rows; i += WIDTH, to += k * WIDTH) {
        const int64_t count = smaller(WIDTH, rows - i);
        for_pieces<S>(x, k0, k0 + k, [&](int64_t sample, const S* src, int64_t length) {
          pack_strided<WIDTH>(to + (sample - k0) * WIDTH, src + (row + i) * x.s_channel, count, length, x.s_channel,
                              x.s_position);
        });
        pad<WIDTH>(to, count, k);
      }
    });
  }
};

// Rows are samples; k runs over channels.
template <class T>
struct SamplePacker {
  Samples x;

  template <int WIDTH>
  void pack(T* to, int64_t row, int64_t rows, int64_t k0, int64_t k) const {
    with_source<T>(x.dtype, [&]<class S>(Type<S>) {
      for (int64_t i = row; i < row + rows; i += WIDTH, to += k * WIDTH) {
        const int64_t count = smaller(WIDTH, row + rows - i);
        for_pieces<S>(x, i, i + count, [&](int64_t sample, const S* src, int64_t length) {
          pack_strided<WIDTH>(to + (sample - i), src + k0 * x.s_channel, length, k, x.s_position, x.s_channel);
        });
        pad<WIDTH>(to, count, k);
      }
    });
  }
};

// Rows are rows of G, generated where they are needed; k runs over columns. The last panel ends in further rows of G.
template <class T>
struct GaussianPacker {
  Address at;

  template <int WIDTH>
  void pack(T* to, int64_t row, int64_t rows, int64_t k0, int64_t k) const {
    constexpr int kHalf = kLanes / 2;
    const int64_t first = at.col + k0, padded = blocks(rows, WIDTH) * WIDTH;
    for (int64_t i = 0; i < padded; i += kLanes) {
      const RowCounter counter = row_counter(at.row + row + i);
      T* low = to + i / WIDTH * WIDTH * k + i % WIDTH;
      T* high = to + (i + kHalf) / WIDTH * WIDTH * k + (i + kHalf) % WIDTH;
      const bool both = i + kHalf < padded;
      for (int64_t q = first >> 2; 4 * q < first + k; ++q) {
        vf g[4];
        generate(at, counter, {vq{} + static_cast<uint64_t>(q), vq{} + static_cast<uint64_t>(q)}, g);
#pragma GCC unroll 4
        for (int w = 0; w < 4; ++w) {
          const int64_t p = 4 * q + w - first;
          if (p < 0 || p >= k) continue;
          if constexpr (WIDTH % kLanes == 0 && sizeof(T) == 4) {
            store<float, kLanes>(low + p * WIDTH, g[w]);
          } else {
            store_as<kHalf, float>(low + p * WIDTH, lower_half(g[w]));
            if (both) store_as<kHalf, float>(high + p * WIDTH, upper_half(g[w]));
          }
        }
      }
    }
  }
};

// Rows of G, generated or explicit, whichever `rows` holds.
template <class T>
struct RowPacker {
  Rows rows;

  template <int WIDTH>
  void pack(T* to, int64_t row, int64_t count, int64_t k0, int64_t k) const {
    if (rows.given.data != nullptr) {
      SamplePacker<T>{merged(rows.given)}.template pack<WIDTH>(to, row, count, k0, k);
    } else {
      GaussianPacker<T>{rows.address}.template pack<WIDTH>(to, row, count, k0, k);
    }
  }
};

}  // namespace rf::RF_ISA
