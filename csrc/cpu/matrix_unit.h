// SPDX-License-Identifier: BSD-3-Clause
// Products on the matrix unit (Intel AMX): tiles of 16 rows of 64 bytes, and one instruction that multiplies two tiles
// of bfloat16 numbers and adds to a tile of float32 sums.
//
// Pairs of bfloat16 numbers go to the unit as they are. A float32 number x is written as the sum of three bfloat16
// numbers x1 + x2 + x3, each the rest of the one before, rounded: 24 bits in all, so that the sum is exact. Six of the
// nine products are taken, x1 y1, x1 y2, x2 y1, x2 y2, x1 y3, x3 y1; the other three are below 2^-24 |x y|, as the
// rounding of a float32 product is. With two terms the first three products are taken: what is left out of the terms
// and of the products is below 3 2^-16 |x y|. With one term it is below 2^-7 |x y|.
//
// The instructions stand behind names, with a twin in plain C++ that gives the same bits (RF_MATRIX_UNIT_EMULATED).
#pragma once

#include "micro_kernel.h"

namespace rf::RF_ISA {

constexpr int kTile = 16;                 // rows of a tile, and 32-bit numbers in each of them
constexpr int kTileSize = kTile * kTile;  // 32-bit numbers in a tile
constexpr int kUnitRows = 3 * kTile;      // rows of C that are computed at a time

// Which products of terms of two float32 numbers x and y are taken: the first `count` (6, 3, 2 or 1) of x1 y1, x1 y2,
// x2 y1, x2 y2, x1 y3, x3 y1. Two are enough if x is a bfloat16 number. If A and B are `swapped`, the products are
// added in the order that they have with B on the left.
struct Products {
  int count = 6;
  bool swapped = false;
};
constexpr Products products_of(Precision precision, bool swapped = false) {
  return {precision == Precision::highest ? 6 : precision == Precision::high ? 3 : 1, swapped};
}

// The terms of the products, and how many terms of each side `count` products need.
constexpr int kLeftTerm[6] = {0, 0, 1, 1, 0, 2}, kRightTerm[6] = {0, 1, 0, 1, 2, 0};
constexpr int left_terms(int count) { return count == 6 ? 3 : count == 3 ? 2 : 1; }
constexpr int right_terms(int count) { return count == 6 ? 3 : count == 1 ? 1 : 2; }

// A tile has kTile pairs along the sum: so many numbers of type T.
template <class T>
constexpr int kSpan = 2 * kTile / kElements<T>;
template <class T>
RF_INLINE int64_t unit_steps(int64_t k) {
  return blocks(k, kSpan<T>);
}

constexpr int kPanelTiles = NR<float> / kTile;

#if defined(RF_MATRIX_UNIT)
static_assert(kUnitRows % MR == 0 && kLanes == kTile);

// The eight tile registers. They are set up when the object begins, and given back when it ends.
class TileUnit {
 public:
#if defined(RF_MATRIX_UNIT_EMULATED)
  template <int I>
  RF_INLINE void zero(TileUnit& unit) {
    for (vu& row : unit.tiles_[I]) row = vu{};
  }
  template <int I>
  RF_INLINE void load(TileUnit& unit, const void* from, int64_t stride) {
    for (int r = 0; r < kTile; ++r)
      unit.tiles_[I][r] =
          RF_ISA::load<uint32_t, kTile>(reinterpret_cast<const uint32_t*>(static_cast<const char*>(from) + r * stride));
  }
  template <int I>
  RF_INLINE void store(TileUnit& unit, void* to, int64_t stride) {
    for (int r = 0; r < kTile; ++r)
      RF_ISA::store<uint32_t, kTile>(reinterpret_cast<uint32_t*>(static_cast<char*>(to) + r * stride),
                                     unit.tiles_[I][r]);
  }
  // The even and the odd numbers of the pairs are summed apart, then together, then added to C. Numbers and results
  // below the smallest normal float32 are zero.
  template <int C, int A, int B>
  RF_INLINE void multiply(TileUnit& unit) {
    for (int m = 0; m < kTile; ++m) {
      vf even{}, odd{};
      for (int k = 0; k < kTile; ++k) {
        const vu left = vu{} + unit.tiles_[A][m][k], right = unit.tiles_[B][k];
        even = flushed(fma(flushed((vf)(left << 16)), flushed((vf)(right << 16)), even));
        odd = flushed(fma(flushed((vf)(left & 0xffff0000u)), flushed((vf)(right & 0xffff0000u)), odd));
      }
      unit.tiles_[C][m] = (vu)flushed(flushed((vf)unit.tiles_[C][m]) + flushed(even + odd));
    }
  }

 private:
  RF_INLINE vf flushed(vf x) { return (vf)((vu)x & (((vu)x & 0x7f800000u) == 0 ? vu{} + 0x80000000u : ~vu{})); }
  vu tiles_[8][kTile];
#else
  TileUnit() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const shape;
    asm volatile("ldtilecfg %0" : : "m"(shape));
  }
  ~TileUnit() { asm volatile("tilerelease"); }
  TileUnit(const TileUnit&) = delete;
  TileUnit& operator=(const TileUnit&) = delete;

  template <int I>
  RF_INLINE void zero(TileUnit&) {
    asm volatile("tilezero %%tmm%c0" : : "i"(I));
  }
  template <int I>
  RF_INLINE void load(TileUnit&, const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(I));
  }
  template <int I>
  RF_INLINE void store(TileUnit&, void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(I) : "memory");
  }
  template <int C, int A, int B>
  RF_INLINE void multiply(TileUnit&) {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
#endif
};

// The next term of 2 x 16 numbers, as pairs; the numbers become what is left. INTERLEAVED: pair i is (x[i], y[i]).
// Otherwise x and then y lie in order.
template <bool INTERLEAVED>
RF_INLINE vu next_term(vf& x, vf& y) {
  if constexpr (INTERLEAVED) {
    const vu pairs = rounded_pairs(x, y);
    x -= (vf)(pairs << 16);
    y -= (vf)(pairs & 0xffff0000u);
    return pairs;
  } else {
    const __m512i pairs = (__m512i)_mm512_cvtne2ps_pbh((__m512)y, (__m512)x);
    x -= (vf)((vu)_mm512_cvtepu16_epi32(_mm512_castsi512_si256(pairs)) << 16);
    y -= (vf)((vu)_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(pairs, 1)) << 16);
    return (vu)pairs;
  }
}

// The first `count` numbers of a row or column, `stride` apart, and zeros.
template <class T, bool RELU>
RF_INLINE Full<T> first_numbers(const T* from, int64_t stride, int64_t count) {
  Full<T> x{};
  if (stride == 1) {
    x = (Full<T>)_mm512_maskz_loadu_epi32(static_cast<__mmask16>((1ull << larger(0, smaller(kTile, count))) - 1), from);
  } else {
    for (int64_t l = 0; l < smaller(kTile, count); ++l) x[l] = from[l * stride];
  }
  if constexpr (RELU) return positive_part(x);
  return x;
}

// The lanes in which infinity or NaN is left after all terms: x is infinite, above the largest bfloat16 number, or NaN.
RF_INLINE uint64_t beyond(vf x, vf y) {
  constexpr int nan = 0x81, infinity = 0x18;
  return _mm512_fpclass_ps_mask((__m512)x, nan | infinity) | _mm512_fpclass_ps_mask((__m512)y, nan | infinity);
}

// Writes up to 16 rows of A over k terms as tiles. The tiles of two terms of a step are `apart` numbers apart. Returns
// the rows with numbers beyond the range of the terms.
template <int terms, class T, bool RELU>
static uint64_t write_left(uint32_t* to, int64_t apart, const RowsOf<T, RELU>& a, int64_t rows, int64_t k) {
  constexpr int span = kSpan<T>;
  const auto column = [&](int64_t p) { return first_numbers<T, RELU>(a.a + p * a.s_k, a.s_row, p < k ? rows : 0); };
  const auto row = [&](int64_t r, int64_t p) {
    return first_numbers<T, RELU>(a.a + r * a.s_row + p * a.s_k, a.s_k, k - p);
  };
  uint64_t outside = 0;
  for (int64_t p = 0; p < k; p += span, to += terms * apart) {
    if (a.s_row != 1) {
      for (int64_t r = 0; r < rows; ++r) {
        uint32_t* const at = to + r * kTile;
        if constexpr (kElements<T> == 2) {
          store<uint32_t, kTile>(at, row(r, p));
        } else {
          vf x = row(r, p), y = row(r, p + kTile);
          RF_UNROLL
          for (int t = 0; t < terms; ++t) store<uint32_t, kTile>(at + t * apart, next_term<false>(x, y));
          outside |= static_cast<uint64_t>(beyond(x, y) != 0) << r;
        }
      }
      continue;
    }
    vu pairs[terms][kTile];
    RF_UNROLL
    for (int q = 0; q < kTile; ++q) {
      if constexpr (kElements<T> == 2) {
        pairs[0][q] = column(p + q);
      } else {
        vf x = column(p + 2 * q), y = column(p + 2 * q + 1);
        RF_UNROLL
        for (int t = 0; t < terms; ++t) pairs[t][q] = next_term<true>(x, y);
        outside |= beyond(x, y);
      }
    }
    RF_UNROLL
    for (int t = 0; t < terms; ++t) {
      transpose<uint32_t, kTile>(pairs[t]);
      RF_UNROLL
      for (int r = 0; r < kTile; ++r) store<uint32_t, kTile>(to + t * apart + r * kTile, pairs[t][r]);
    }
  }
  return outside;
}

// Writes a panel of B, `cols` of whose rows count, over k terms as tiles. Returns the rows with numbers beyond the
// range of the terms.
template <int terms, class T>
static uint64_t write_right(uint32_t* to, const T* b, int64_t cols, int64_t k) {
  constexpr int span = kSpan<T>;
  constexpr int64_t apart = kPanelTiles * kTileSize;
  uint64_t outside = 0;
  for (int64_t p = 0; p < k; p += span, to += terms * apart)
    for (int64_t v = 0; v * kTile < cols; ++v) {
      const auto column = [&](int64_t at) { return at < k ? load<T, kTile>(b + at * NR<T> + v * kTile) : Full<T>{}; };
      for (int q = 0; q < kTile; ++q) {
        uint32_t* const at = to + v * kTileSize + q * kTile;
        if constexpr (kElements<T> == 2) {
          store<uint32_t, kTile>(at, column(p + q));
        } else {
          vf x = column(p + 2 * q), y = column(p + 2 * q + 1);
          RF_UNROLL
          for (int t = 0; t < terms; ++t) store<uint32_t, kTile>(at + t * apart, next_term<true>(x, y));
          outside |= beyond(x, y) << (v * kTile);
        }
      }
    }
  return outside;
}

// Sums of 16 R rows and 32 columns, from zero or from `c` on. Rows of c are NR numbers apart.
template <int COUNT, int R>
static void multiply_tiles(TileUnit& unit, const uint32_t* a, const uint32_t* b, int64_t steps, float* c, bool fresh,
                           bool swapped) {
  const int *const lefts = swapped ? kRightTerm : kLeftTerm, *const rights = swapped ? kLeftTerm : kRightTerm;
  constexpr int64_t ld = NR<float> * 4, down = kTile * NR<float>;
  const auto each_sum = [&](auto f) {
    f(Vectors<0>{}, c), f(Vectors<1>{}, c + kTile);
    if constexpr (R > 1) f(Vectors<2>{}, c + down), f(Vectors<3>{}, c + down + kTile);
    if constexpr (R > 2) f(Vectors<4>{}, c + 2 * down), f(Vectors<5>{}, c + 2 * down + kTile);
  };
  each_sum([&]<int I>(Vectors<I>, float* at) {
    if (fresh)
      TileUnit::zero<I>(unit);
    else
      TileUnit::load<I>(unit, at, ld);
  });
  for (int64_t step = 0; step < steps; ++step) {
    RF_UNROLL
    for (int p = 0; p < COUNT; ++p) {
      const uint32_t* left = a + (step * left_terms(COUNT) + lefts[p]) * R * kTileSize;
      const uint32_t* right = b + (step * right_terms(COUNT) + rights[p]) * kPanelTiles * kTileSize;
      TileUnit::load<6>(unit, left, 64);
      TileUnit::load<7>(unit, right, 64);
      TileUnit::multiply<0, 6, 7>(unit);
      TileUnit::load<7>(unit, right + kTileSize, 64);
      TileUnit::multiply<1, 6, 7>(unit);
      if constexpr (R > 1) {
        TileUnit::load<6>(unit, left + kTileSize, 64);
        TileUnit::multiply<3, 6, 7>(unit);
        TileUnit::load<7>(unit, right, 64);
        TileUnit::multiply<2, 6, 7>(unit);
      }
      if constexpr (R > 2) {
        TileUnit::load<6>(unit, left + 2 * kTileSize, 64);
        TileUnit::multiply<4, 6, 7>(unit);
        TileUnit::load<7>(unit, right + kTileSize, 64);
        TileUnit::multiply<5, 6, 7>(unit);
      }
    }
  }
  each_sum([&]<int I>(Vectors<I>, float* at) { TileUnit::store<I>(unit, at, ld); });
}

#endif

}  // namespace rf::RF_ISA
