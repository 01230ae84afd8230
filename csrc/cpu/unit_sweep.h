// SPDX-License-Identifier: BSD-3-Clause
// All tiles of a block of C on the matrix unit. Both operands are first written as tiles: the rows of A a few hundred
// at a time, B a few panels at a time, unless it has been written before.
#pragma once

#include "matrix_unit.h"

namespace rf::RF_ISA {

#if defined(RF_MATRIX_UNIT)
constexpr bool kHasUnit = true;
#else
constexpr bool kHasUnit = false;
#endif
template <class T>
constexpr bool kOnUnit = kHasUnit && sizeof(T) == 4;  // float32 and pairs of bfloat16 numbers
template <class T>
constexpr bool kFloatsOnUnit = kOnUnit<T> && kElements<T> == 1;

// Calls own(Type<T>{}) with the type T of the products of numbers of `dtype`, or avx512() if the kernels of that level
// compute them. They do for float32 at "highest": multiply-adds have the accuracy of six products on the unit, and take
// less time where other programs use the unit, too.
template <class Own, class Avx512>
RF_INLINE void with_unit(DType dtype, Precision precision, Own own, Avx512 avx512) {
  with_products(dtype, [&]<class T>(Type<T> type) {
    if constexpr (!kOwn<T>)
      avx512();
    else if (kFloatsOnUnit<T> && precision == Precision::highest)
      avx512();
    else
      own(type);
  });
}

// Most rows of A that are written as tiles at a time, and of B for a number of products. Both fit into the second-level
// cache.
constexpr int64_t kUnitBlock = 8 * kUnitRows;
template <class T>
RF_INLINE int64_t unit_cols(int count) {
  return 24 / right_terms(count) * NR<T>;
}

// Panels of B as tiles, and for each panel the rows with numbers beyond the range of the terms. Where the unit is not
// used there are none, and they need no memory.
template <class T>
struct UnitPanels {
  uint32_t* tiles = nullptr;
  uint64_t* outside = nullptr;
  int64_t apart = 0;  // 32-bit numbers from one panel to the next
  int count = 6;      // of products

  static int count_of(Products products) { return kElements<T> == 2 ? 1 : products.count; }
  static int64_t size(int64_t k, int count) { return unit_steps<T>(k) * right_terms(count) * kPanelTiles * kTileSize; }
  static int64_t bytes(int64_t cols, int64_t k, Products products) {
    return kOnUnit<T> ? blocks(blocks(cols, NR<T>) * (size(k, count_of(products)) * 4 + 8), 64) * 64 : 0;
  }
  // Panels in memory of so many bytes.
  static UnitPanels in(void* memory, int64_t cols, int64_t k, Products products) {
    if (!kOnUnit<T>) return {};
    const int count = count_of(products);
    uint32_t* const tiles = static_cast<uint32_t*>(memory);
    const int64_t apart = size(k, count);
    return {tiles, reinterpret_cast<uint64_t*>(tiles + blocks(cols, NR<T>) * apart), apart, count};
  }

  // Writes a panel of B, `cols` of whose rows count, over k terms.
  void write([[maybe_unused]] int64_t place, [[maybe_unused]] const T* b, [[maybe_unused]] int64_t cols,
             [[maybe_unused]] int64_t k) const {
#if defined(RF_MATRIX_UNIT)
    if constexpr (kOnUnit<T>) {
      const int terms = right_terms(count);
      const auto write = terms == 3 ? write_right<3, T> : terms == 2 ? write_right<2, T> : write_right<1, T>;
      outside[place] = write(tiles + place * apart, b, cols, k);
    }
#endif
  }
  // Writes all panels. Those of B are `panel` numbers apart.
  void write_all(const T* b, int64_t panel, int64_t cols, int64_t k) const {
    if (!kOnUnit<T>) return;
    for (int64_t j = 0; j < cols; j += NR<T>) write(j / NR<T>, b + j / NR<T> * panel, smaller(NR<T>, cols - j), k);
  }
  // The same panels from term k0 on, a multiple of kSpan.
  UnitPanels from(int64_t k0) const {
    return kOnUnit<T> ? UnitPanels{tiles + size(k0, count), outside, apart, count} : *this;
  }
};

// Where a sweep keeps its sums if they go on (null if they do not), and its memory for the matrix unit (null: the sweep
// computes in registers), which takes these products of terms. `panels` are those of B, if they have been written. In
// registers, the block that the sums are kept for has `tall` rows of tiles.
template <class T>
struct Aside {
  Sum<T>* sums = nullptr;
  void* unit = nullptr;
  Products products = {};
  UnitPanels<T> panels = {};
  int64_t tall = 0;
};

// The bytes of memory for the matrix unit, in which a sweep of so many rows, columns and terms writes its operands; 0
// if it computes in registers. With 0 columns, B has been written.
template <class T>
RF_INLINE int64_t sweep_bytes(int64_t rows, int64_t cols, int64_t k, Products products) {
  if (!kOnUnit<T>) return 0;
  const int count = UnitPanels<T>::count_of(products);
  const int64_t high = blocks(smaller(rows, kUnitBlock), kUnitRows) * kUnitRows / kTile;
  const int64_t left = high * unit_steps<T>(k) * left_terms(count) * kTileSize;
  const int64_t there = rows > kUnitBlock ? cols : smaller(unit_cols<T>(count), cols);
  return (2 * kUnitRows * NR<T> + left) * 4 + UnitPanels<T>::bytes(there, k, products);
}

#if defined(RF_MATRIX_UNIT)

// Gives the epilogue MR rows of sums.
template <class T, int V, class Epilogue>
__attribute__((noinline)) static void give(const float* c, int64_t i, int64_t j, int64_t rows, int64_t cols,
                                           Epilogue& epilogue) {
  Accumulators<T, V> acc;
  RF_UNROLL
  for (int t = 0; t < MR * V; ++t) acc[t / V][t % V] = load<float, kTile>(c + t / V * NR<T> + t % V * kTile);
  epilogue.template tile<V>(i, j, rows, cols, acc);
}

// Computes the sums of rows and columns with numbers beyond the range of the terms by multiply-adds, on from `before`
// if it is not null.
template <class Rows>
__attribute__((noinline)) static void multiply_beyond(const Rows& a, const float* b, int64_t rows, int64_t cols,
                                                      int64_t k, uint64_t outside_rows, uint64_t outside_cols,
                                                      const float* before, float* c) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < cols; ++j) {
      if (!(outside_rows >> r & 1) && !(outside_cols >> j & 1)) continue;
      float sum = before == nullptr ? 0 : before[r * NR<float> + j];
      for (int64_t p = 0; p < k; ++p)
        sum = __builtin_fmaf(Rows::at(a, p, static_cast<int>(r))[0], b[p * NR<float> + j], sum);
      c[r * NR<float> + j] = sum;
    }
}

// The functions for a number of products, and for rows of one form.
template <class T, bool RELU>
struct UnitWay {
  decltype(&RF_ISA::write_left<1, T, RELU>) write_left;
  decltype(&multiply_tiles<1, 1>) multiply[3];  // for one, two and three tiles of rows
};
template <int COUNT, class T, bool RELU>
constexpr UnitWay<T, RELU> kUnitWay = {RF_ISA::write_left<left_terms(COUNT), T, RELU>,
                                       {multiply_tiles<COUNT, 1>, multiply_tiles<COUNT, 2>, multiply_tiles<COUNT, 3>}};
template <class T, bool RELU>
static const UnitWay<T, RELU>& unit_way([[maybe_unused]] int count, const RowsOf<T, RELU>&) {
  if constexpr (kElements<T> == 1) {
    if (count == 6) return kUnitWay<6, T, RELU>;
    if (count == 3) return kUnitWay<3, T, RELU>;
    if (count == 2) return kUnitWay<2, T, RELU>;
  }
  return kUnitWay<1, T, RELU>;
}

// sweep_panels on the unit, for sums of few terms. aside.unit has sweep_bytes<T>(rows, cols, k) bytes.
template <class T, class Rows, class Epilogue, class Ahead>
static void sweep_unit(const Rows& a, const T* b, int64_t panel, int64_t top, int64_t rows, int64_t cols, int64_t k,
                       const Aside<T>& aside, Chain chain, Epilogue& epilogue, Ahead& ahead) {
  constexpr int64_t size = kUnitRows * NR<T>;
  const int count = UnitPanels<T>::count_of(aside.products);
  const auto& way = unit_way(count, a);
  const int64_t steps = unit_steps<T>(k), across = blocks(cols, NR<T>), swept = unit_cols<T>(count);
  const int64_t left_size = steps * left_terms(count) * kUnitRows / kTile * kTileSize;
  const bool again = rows > kUnitBlock, written = aside.panels.tiles != nullptr;  // again: B is swept several times
  float* const own = static_cast<float*>(aside.unit);
  uint32_t* const left = reinterpret_cast<uint32_t*>(own + 2 * size);
  UnitPanels<T> panels = aside.panels;
  if (!written) {
    void* const memory = left + blocks(smaller(rows, kUnitBlock), kUnitRows) * left_size;
    panels = UnitPanels<T>::in(memory, again ? cols : smaller(swept, cols), k, aside.products);
  }
  for (int64_t first = 0; first < rows; first += kUnitBlock) {
    const int64_t last = smaller(rows, first + kUnitBlock);
    uint64_t outside_rows[kUnitBlock / kUnitRows] = {};
    for (int64_t i = first; i < last; i += kUnitRows) {
      const int64_t high = smaller(kUnitRows, last - i), tiles = blocks(high, kTile), at = (i - first) / kUnitRows;
      for (int64_t r = 0; r < tiles; ++r)
        outside_rows[at] |= way.write_left(left + at * left_size + r * kTileSize, tiles * kTileSize,
                                           a.from(i + r * kTile), smaller(kTile, high - r * kTile), k)
                            << (r * kTile);
    }
    TileUnit unit;
    for (int64_t start = 0; start < cols; start += swept) {
      const int64_t stop = smaller(cols, start + swept);
      const auto place = [&](int64_t j) { return (written || again ? j : j - start) / NR<T>; };
      for (int64_t j = start; j < stop && !written && (first == 0 || !again); j += NR<T>)
        panels.write(place(j), b + j / NR<T> * panel, smaller(NR<T>, cols - j), k);
      asm volatile("" : : : "memory");
      for (int64_t i = first; i < last; i += kUnitRows)
        for (int64_t j = start; j < stop; j += NR<T>) {
          const int64_t high = smaller(kUnitRows, last - i), at = (i - first) / kUnitRows;
          const int64_t width = smaller(NR<T>, cols - j);
          const uint64_t outside = outside_rows[at], outside_cols = panels.outside[place(j)];
          const uint32_t* const right = panels.tiles + place(j) * panels.apart;
          float* const c = aside.sums == nullptr ? own : aside.sums + (i / kUnitRows * across + j / NR<T>)*size;
          const bool exceeds = outside != 0 || outside_cols != 0;
          if (exceeds && !chain.first) __builtin_memcpy(own + size, c, size * sizeof(float));
          if (epilogue.skips(top + i, j) < width)
            for (int64_t half = 0; half < blocks(width, 2 * kTile); ++half)
              way.multiply[blocks(high, kTile) - 1](unit, left + at * left_size, right + half * 2 * kTileSize, steps,
                                                    c + half * 2 * kTile, chain.first, aside.products.swapped);
          if constexpr (kElements<T> == 1)
            if (exceeds)
              multiply_beyond(a.from(i), b + j / NR<T> * panel, high, width, k, outside, outside_cols,
                              chain.first ? nullptr : own + size, c);
          for (int64_t r = 0; r < high; r += MR) {
            for (int64_t s = 0; s < k; s += kStep) Ahead::step(ahead);
            if (!chain.last) continue;
            const int64_t skipped = epilogue.skips(top + i + r, j) / kTile * kTile, wide = width - skipped;
            const auto run = [&]<int V>(Vectors<V>) {
              give<T, V>(c + r * NR<T> + skipped, top + i + r, j + skipped, smaller(MR, high - r), wide, epilogue);
            };
            if (wide > 3 * kTile)
              run(Vectors<4>{});
            else if (wide > 2 * kTile)
              run(Vectors<3>{});
            else if (wide > kTile)
              run(Vectors<2>{});
            else if (wide > 0)
              run(Vectors<1>{});
          }
        }
    }
  }
}

#endif

}  // namespace rf::RF_ISA
