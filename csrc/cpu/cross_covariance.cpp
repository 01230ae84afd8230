// SPDX-License-Identifier: BSD-3-Clause
// cross_covariance: the product of channels by channels, summed over samples. Sums of 256 to 1024 samples are promoted
// to float64. While samples are packed into panels, the activation is applied, the shift is subtracted and the
// sums are taken.
#include <string.h>

#include "activation.h"
#include "epilogue.h"
#include "kernels_cpu.h"

namespace rf::RF_ISA {
namespace {

// Rows are the channels of several sides, one side after the other. Each side is filled up to whole vectors of rows. k
// runs over samples.
template <class T>
struct SidePacker {
  Sides sides;
  Activation activation;
  double negative_slope;

  // Calls f(side, its first row, its channels).
  template <class F>
  void for_sides(F f) const {
    int64_t row = 0;
    for (int64_t s = 0; s < sides.count; ++s) {
      const Side& side = sides.first[s];
      f(side, row, side.samples.channels);
      row += blocks(side.samples.channels, kWidth<T>) * kWidth<T>;
    }
  }
  int64_t rows() const {
    int64_t end = 0;
    for_sides([&](const Side&, int64_t row, int64_t channels) { end = row + channels; });
    return end;
  }
  bool centers() const { return sides.first[0].shift != nullptr; }

  // Calls f(side, first channel, offset from `row`, number of channels) for the part of each side in rows
  // [row, row + rows).
  template <class F>
  void for_parts(int64_t row, int64_t rows, F f) const {
    for_sides([&](const Side& side, int64_t first, int64_t channels) {
      const int64_t from = larger(first, row), count = smaller(first + channels, row + rows) - from;
      if (count > 0) f(side, from - first, from - row, count);
    });
  }

  void pack(T* to, int64_t ld, int64_t row, int64_t rows, int64_t k0, int64_t k, double* sums) const {
    for_parts(row, rows, [&](const Side& side, int64_t from, int64_t at, int64_t count) {
      ChannelPacker<T>{side.samples}.pack(to + at, ld, from, count, k0, k);
    });
    if (activation != Activation::identity) activate(to, ld * k, activation, negative_slope, 1.0);
    if constexpr (kElements<T> == 1) {
      if (!centers()) return;
      for_parts(row, rows, [&](const Side& side, int64_t from, int64_t at, int64_t count) {
        center(to + at, ld, count, k, static_cast<const T*>(side.shift) + from,
               sums == nullptr ? nullptr : sums + row + at);
      });
    }
  }

  // Whether columns [k0, k0 + k) can be read where they are: at most max(x, 0) is applied to them, they have the type
  // T, and they lie side by side.
  bool in_place(int64_t k0, int64_t k) const {
    const Samples& x = sides.first[0].samples;
    if (kElements<T> == 2)  // the matrix unit reads pairs
      return kOnUnit<T> && activation == Activation::identity && x.s_position == 1 && x.positions % 2 == 0 &&
             x.s_channel % 2 == 0 && k0 % (x.positions / 2) + k <= x.positions / 2;
    return kElements<T> == 1 && !centers() && (activation == Activation::identity || activation == Activation::relu) &&
           (x.dtype == DType::f32) == (sizeof(T) == 4) && x.dtype != DType::bf16 && x.dtype != DType::f16 &&
           (x.s_position == 1 || x.s_channel == 1) && k0 % x.positions + k <= x.positions;
  }
  const T* address(int64_t row, int64_t k0) const {
    const Samples& x = sides.first[0].samples;
    const T* found = nullptr;
    with_source<T>(x.dtype, [&]<class S>(Type<S>) {
      for_pieces<S, kElements<T>>(x, k0, k0 + 1, [&](int64_t, const S* src, int64_t) {
        found = reinterpret_cast<const T*>(src + row * x.s_channel);
      });
    });
    return found;
  }

  Ahead ahead(int64_t row, int64_t rows, int64_t k0, int64_t k, int64_t parts) const {
    return ChannelPacker<T>{sides.first[0].samples}.ahead(row, rows, k0, k, parts);
  }
};

// Source: sides, read where they lie if possible. Several blocks pack the same rows; only the first of them takes their
// sums. `sums` is (slabs, rows).
template <class T, bool LEFT>
struct SideSource {
  const SidePacker<T>& packer;
  double* sums;
  int64_t rows;

  template <class>
  struct Open {
    const SidePacker<T>& packer;
    int64_t row, size;
    double* sums;

    void pack(T* to, int64_t ld, int64_t i, int64_t count, int64_t k0, int64_t k) const {
      packer.pack(to, ld, i, count, k0, k, sums);
    }
    const T* panels(T* to, int64_t k0, int64_t k) {
      pack_panels(*this, to, row, size, k0, k);
      return to;
    }
    template <class F>
    int64_t rows(T* to, int64_t i, int64_t count, int64_t k0, int64_t k, F f) {
      const Samples& x = packer.sides.first[0].samples;
      const int64_t whole = !packer.in_place(k0, k) ? 0 : kOnUnit<T> ? size - i : (size - i) / MR * MR;
      if (whole == 0) {
        count = smaller(count, size - i);
        const int64_t ld = column_stride<T>(count);
        pack(to, ld, row + i, count, k0, k);
        f(RowsOf<T>{to, 1, ld}, count);
        return count;
      }
      const T* from = packer.address(row + i, k0);
      constexpr int E = kElements<T>;  // pairs lie side by side
      if (E == 1 && packer.activation == Activation::relu)
        f(RowsOf<T, E == 1>{from, x.s_channel, x.s_position}, whole);
      else
        f(RowsOf<T>{from, x.s_channel / E, x.s_position}, whole);
      return whole;
    }
    Ahead ahead(int64_t k0, int64_t k, int64_t steps) const { return packer.ahead(row, size, k0, k, steps); }
  };
  int64_t scratch(const Problem&) const { return 0; }
  template <class>
  Open<T> open(const Block& block, int64_t row, int64_t count, void*) const {
    const bool first = sums != nullptr && (LEFT ? block.col : block.row) == 0;
    return {packer, row, count, first ? sums + block.slab * rows : nullptr};
  }
};

// Source: sides that were packed beforehand. Nothing is left to prefetch; the type is that of the other source.
template <class T>
struct PackedSides : Prepacked<T> {
  template <class>
  struct Open : Prepacked<T>::template Open<T> {
    Ahead ahead(int64_t, int64_t, int64_t) const { return {}; }
  };
  template <class>
  Open<T> open(const Block&, int64_t row, int64_t, void*) const {
    return {{*this, row}};
  }
};

// The size of the equal blocks that `size` is divided into: a multiple of `unit`, at most about `most`.
int64_t even(int64_t size, int64_t unit, int64_t most) {
  return larger(1, blocks(blocks(size, unit), larger(1, blocks(size, most)))) * unit;
}

template <class T>
void accumulate(double* out, int64_t ld, const SidePacker<T>& left, const SidePacker<T>& right, int64_t columns,
                bool symmetric, Precision precision, int threads) {
  const int64_t d = left.rows(), m = right.rows();
  // A panel of B has at most 32 KiB and stays in the first-level cache; floats on the matrix unit gain nothing from
  // that. An eighth of the second-level cache holds panels, on the unit a quarter. Half of it holds rows of A, the
  // float64 sums, and, if several chunks are promoted together, their sums.
  constexpr int64_t size = sizeof(T), height = kHeight<T>;
  constexpr int64_t kc = kFloatsOnUnit<T> || 256 * NR<T> * size <= 1 << 15 ? 256 : 128;
  constexpr int64_t promoted = kFloatsOnUnit<T> ? 4 : 256 / kc;
  constexpr int64_t per_sum = 8 + (promoted > 1 ? static_cast<int64_t>(sizeof(Sum<T>)) : 0);
  const int64_t cache = caches().second, share = cache / (kOnUnit<T> ? 4 : 8);
  const int64_t panels = fitting(share, kc * NR<T> * size, 1, kOnUnit<T> ? 6 : 4);
  const int64_t most_rows = fitting(cache / 2, kc * size + per_sum * panels * NR<T>, 8 * MR, 86 * MR);
  Problem problem{d, m, columns, even(d, height, most_rows + height), even(m, NR<T>, panels * NR<T>), kc};
  problem.strip = kStrip;
  problem.products = products_of(precision);
  problem.promoted = promoted;
  // The slabs decide bits, so they do not depend on the caches.
  problem.slabs = slabs_for(blocks(d, even(d, MR, 258)) * blocks(m, even(m, NR<T>, 2 * NR<T>)), blocks(columns, kc));
  problem.joined = !symmetric && joins(problem.slabs, blocks(d, problem.mc) * blocks(m, problem.nc), threads);
  // The blocks of one side are added to the result as soon as they are complete.
  const bool one = problem.slabs == 1, direct = !symmetric && right.sides.count == 1 && (one || problem.joined);
  const bool centers = left.centers();
  // Rows of the parts are not a power of two apart: such rows share few sets of a cache.
  const int64_t slabs = problem.slabs, across = blocks(m, 8) * 8 + 8, numbers = direct ? 0 : d * across;
  const int64_t sums = centers ? d + m : 0, written = problem.joined ? 1 : slabs;
  const Scratch memory((written * numbers + slabs * sums) * 8);
  double *parts = static_cast<double*>(memory.data()), *left_sums = parts + written * numbers;
  double* right_sums = left_sums + slabs * d;
  memset(parts, 0, static_cast<size_t>(written * numbers + slabs * sums) * 8);
  const Promote<Sum<T>> in_triangles{parts, across, numbers, symmetric};
  const Collect<Sum<T>> sum{direct ? out : parts,
                            direct ? ld : across,
                            numbers,
                            slabs,
                            problem.joined,
                            direct,
                            symmetric ? &in_triangles : nullptr};
  // Every block reads all samples. If they do not fit into the third-level cache, the sum is computed in parts whose
  // samples fit.
  const int64_t fits = larger(1, threads * caches().third / 2 / ((d + m) * size) / (kc * promoted)) * kc * promoted,
                part = direct && one ? fits : columns;
  const SideSource<T, true> rows{left, centers ? left_sums : nullptr, d};
  const SideSource<T, false> cols{right, centers && !symmetric ? right_sums : nullptr, m};
  const bool once = direct && one && blocks(d, problem.mc) > 1;  // panels are packed for several blocks of rows
  const int64_t padded = blocks(m, NR<T>) * NR<T>;
  const Scratch memory_of_panels(once ? Prepacked<T>::bytes(padded, smaller(part, columns), kc, problem.products) : 0);
  for (problem.from = 0; problem.from < columns; problem.from += part) {
    problem.k = smaller(part, columns - problem.from);
    if (!once) {
      product<T>(problem, rows, cols, sum, threads);
      continue;
    }
    const Prepacked<T> packed =
        Prepacked<T>::in(memory_of_panels.data(), padded, problem.k, kc, problem.products, problem.from);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t row = 0; row < m; row += NR<T>)
      for (int64_t k0 = 0; k0 < problem.k; k0 += kc) {
        const int64_t k = smaller(kc, problem.k - k0);
        const int64_t at = problem.from + k0, there = smaller(NR<T>, m - row);
        right.pack(packed.at(row, at, k), NR<T>, row, there, at, k, cols.sums);
        packed.write_tiles(row, there, at, k);
      }
    product<T>(problem, rows, PackedSides<T>{packed}, sum, threads);
  }
  const auto add_totals = [&](const SidePacker<T>& packer, const double* found, int64_t rows) {
    packer.for_sides([&](const Side& side, int64_t row, int64_t channels) {
      add_slabs(side.total, channels, {found + row, slabs, rows, rows}, 1, channels, 1);
    });
  };
  if (centers) add_totals(left, left_sums, d);
  if (centers && !symmetric) add_totals(right, right_sums, m);
  if (direct) return;
  if (symmetric)
    for (int64_t slab = 0; slab < slabs; ++slab)
      for (int64_t i = 0; i < d; ++i)
        for (int64_t j = 0; j < i; ++j) parts[slab * numbers + i * across + j] = parts[slab * numbers + j * across + i];
  right.for_sides([&](const Side&, int64_t row, int64_t channels) {
    add_slabs(out, ld, {parts + row, written, numbers, across}, d, channels, threads);
    out += channels;
  });
}

// Joins lines into fewer and longer ones. A pair must hold the same samples on all sides. Lines with an odd number of
// samples end in half a pair, so they are joined on all sides or on none.
void join_lines(Side& x, Sides y, bool pairs) {
  bool joins = merged_lines(x.samples).lines == 1;
  for (int64_t s = 0; s < y.count; ++s) joins = joins && merged_lines(y.first[s].samples).lines == 1;
  const int64_t length = x.samples.positions * (joins ? x.samples.lines : 1);
  const auto join = [&](Samples& samples) {
    if (!pairs || length % 2 == 0 || length == 1)
      samples = merged(samples);
    else if (joins)
      samples = merged_lines(samples);
  };
  join(x.samples);
  for (int64_t s = 0; s < y.count; ++s) join(y.first[s].samples);
}

template <class T>
void accumulate_as(double* out, int64_t ld, Side x, Sides y, bool symmetric, Activation activation, double slope,
                   Precision precision, int threads) {
  join_lines(x, y, kElements<T> == 2);
  const Samples& samples = x.samples;
  const SidePacker<T> left{{&x, 1}, activation, slope}, right{y, activation, slope};
  const int64_t columns = samples.images * samples.lines * blocks(samples.positions, kElements<T>);
  accumulate<T>(out, ld, left, right, columns, symmetric, precision, threads);
}

}  // namespace

void cross_covariance(double* out, int64_t ld, Side x, Sides y, bool symmetric, Activation activation,
                      double negative_slope, Precision precision, int threads) {
  const auto run = [&]<class T>(Type<T>) {
    accumulate_as<T>(out, ld, x, y, symmetric, activation, negative_slope, precision, threads);
  };
#if defined(__AVX512BF16__)
  const bool exact = activation == Activation::identity || activation == Activation::relu;
  if (x.samples.dtype == DType::bf16 && exact && x.shift == nullptr) return run(Type<bf16_pair>{});
#endif
  with_unit(x.samples.dtype, precision, run, [&] {
    vectors::cross_covariance(out, ld, x, y, symmetric, activation, negative_slope, precision, threads);
  });
}

}  // namespace rf::RF_ISA
