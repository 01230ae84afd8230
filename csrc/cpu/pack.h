// SPDX-License-Identifier: BSD-3-Clause
// Packers. Only they know what an operand of a matrix product is made of: channels, samples or the generator. pack(to,
// ld, row, rows, k0, k) writes rows [row, row + rows) of columns [k0, k0 + k). Row i of column p, counted from `row`
// and k0, goes to to[p * ld + i]. The last vector of rows is written whole.
#pragma once

#include <stddef.h>

#include "generate.h"
#include "samples.h"

namespace rf::RF_ISA {

// Rows are channels; k runs over samples.
template <class T>
struct ChannelPacker {
  Samples x;

  void pack(T* to, int64_t ld, int64_t row, int64_t rows, int64_t k0, int64_t k) const {
    with_source<T>(x.dtype, [&]<class S>(Type<S>) {
      for_pieces<S, kElements<T>>(x, k0, k0 + k, [&](int64_t column, const S* src, int64_t length) {
        pack_strided(to + (column - k0) * ld, ld, src + row * x.s_channel, rows, length, x.s_channel, x.s_position);
      });
    });
  }
  Ahead ahead(int64_t row, int64_t rows, int64_t k0, int64_t k, int64_t parts) const {
    return {x, kElements<T>, row, rows, k0, k, parts};
  }
};

// Subtracts `shift`, one number for each row, from `rows` rows. Adds the sums of the differences to `sums`, if not
// null.
template <class T>
static void center(T* block, int64_t ld, int64_t rows, int64_t k, const T* shift, double* sums) {
  constexpr int N = kWidth<T>;
  for (int64_t i = 0; i < rows; i += N) {
    const int64_t there = smaller(N, rows - i);
    T numbers[N] = {};
    __builtin_memcpy(numbers, shift + i, static_cast<size_t>(there) * sizeof(T));
    const Full<T> off = load<T, N>(numbers);
    Full<T> sum{};
    for (int64_t p = 0; p < k; ++p) {
      const Full<T> x = load<T, N>(block + p * ld + i) - off;
      store<T, N>(block + p * ld + i, x);
      sum += x;
    }
    if (sums == nullptr) continue;
    for (int64_t l = 0; l < there; ++l) sums[i + l] += sum[l];
  }
}

// ChannelPacker, less `shift`, one number for each channel. A null shift subtracts nothing.
template <class T>
struct CenteredPacker {
  Samples x;
  const T* shift;

  void pack(T* to, int64_t ld, int64_t row, int64_t rows, int64_t k0, int64_t k) const {
    ChannelPacker<T>{x}.pack(to, ld, row, rows, k0, k);
    if (shift != nullptr) center(to, ld, rows, k, shift + row, nullptr);
  }
  Ahead ahead(int64_t row, int64_t rows, int64_t k0, int64_t k, int64_t parts) const {
    return ChannelPacker<T>{x}.ahead(row, rows, k0, k, parts);
  }
};

// Rows are samples; k runs over channels.
template <class T>
struct SamplePacker {
  Samples x;

  void pack(T* to, int64_t ld, int64_t row, int64_t rows, int64_t k0, int64_t k) const {
    constexpr int N = kWidth<T>;
    with_source<T>(x.dtype, [&]<class S>(Type<S>) {
      for (int64_t i = 0; i < rows; i += N) {
        const int64_t wanted = smaller(N, rows - i);
        const S* address[N];
        bool one_piece = false;
        for_pieces<S>(x, row + i, row + i + wanted, [&](int64_t sample, const S* src, int64_t length) {
          one_piece = length == wanted;
          for (int64_t j = 0; j < length; ++j)
            address[sample - row - i + j] = src + k0 * x.s_channel + j * x.s_position;
        });
        if (one_piece) {
          pack_strided(to + i, ld, address[0], wanted, k, x.s_position, x.s_channel);
          continue;
        }
        for (int64_t p = 0; p < k; ++p) {
          T values[N] = {};
          for (int64_t j = 0; j < wanted; ++j) values[j] = widen(address[j][p * x.s_channel]);
          store<T, N>(to + p * ld + i, load<T, N>(values));
        }
      }
    });
  }
  NothingAhead ahead(int64_t, int64_t, int64_t, int64_t, int64_t) const { return {}; }
};

// Rounds values of G to `dtype`, where that is narrower than float.
RF_INLINE vf rounded(vf g, DType dtype) {
  if (dtype == DType::bf16) {
    bf16 narrow[kLanes];
    store_as<kLanes, float>(narrow, g);
    return load_as<float, kLanes>(narrow);
  }
  if (dtype == DType::f16) {
    f16 narrow[kLanes];
    store_as<kLanes, float>(narrow, g);
    return load_as<float, kLanes>(narrow);
  }
  return g;
}

// Rows are rows of G rounded to `dtype`, generated where they are needed; k runs over columns. Further rows of G fill
// up the last vector of rows, and a further column fills up a last pair.
template <class T>
struct GaussianPacker {
  Address at;
  DType dtype = DType::f32;

  void pack(T* to, int64_t ld, int64_t row, int64_t rows, int64_t k0, int64_t k) const {
    constexpr int E = kElements<T>, N = kWidth<T>;
    const int64_t first = at.col + k0 * E;
    for (int64_t i = 0; i < rows; i += kLanes) {
      const RowCounter counter = row_counter(at.row + row + i);
      [[maybe_unused]] vf held{};
      for (int64_t q = first >> 2; 4 * q < first + k * E; ++q) {
        vf g[4];
        generate(at, counter, {vq{} + static_cast<uint64_t>(q), vq{} + static_cast<uint64_t>(q)}, g);
        RF_UNROLL
        for (int w = 0; w < 4; ++w) {
          const int64_t p = 4 * q + w - first;
          if (p < 0 || p >= k * E) continue;
          T* target = to + p / E * ld + i;
          if constexpr (E == 2) {
#if defined(__AVX512BF16__)
            if (p % 2 == 0)
              held = g[w];
            else
              store<T, N>(target, rounded_pairs(held, g[w]));
#endif
          } else if constexpr (N == kLanes) {
            store<T, N>(target, rounded(g[w], dtype));
          } else {
            const vf value = rounded(g[w], dtype);
            store<T, N>(target, __builtin_convertvector(lower_half(value), Full<T>));
            if (i + N < rows) store<T, N>(target + N, __builtin_convertvector(upper_half(value), Full<T>));
          }
        }
      }
    }
  }
  NothingAhead ahead(int64_t, int64_t, int64_t, int64_t, int64_t) const { return {}; }
};

// Rows of G, generated or explicit, as `rows` says.
template <class T>
struct RowPacker {
  Rows rows;

  void pack(T* to, int64_t ld, int64_t row, int64_t count, int64_t k0, int64_t k) const {
    if (rows.given.data != nullptr)
      SamplePacker<T>{merged(rows.given)}.pack(to, ld, row, count, k0, k);
    else
      GaussianPacker<T>{rows.address}.pack(to, ld, row, count, k0, k);
  }
  NothingAhead ahead(int64_t, int64_t, int64_t, int64_t, int64_t) const { return {}; }
};

}  // namespace rf::RF_ISA
