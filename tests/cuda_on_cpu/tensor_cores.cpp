// SPDX-License-Identifier: BSD-3-Clause
// What the 32 lanes of a warp do together. Layouts: csrc/cuda/device.h.
#include <cstring>

#include "../../csrc/cuda/device.h"

#ifdef __x86_64__
#define RF_FAST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define RF_FAST
#endif
#define RF_INLINE inline __attribute__((always_inline))

namespace rf::cuda::emulated {
namespace {

// Eight numbers: a row of d.
typedef uint32_t Words __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(32)));
typedef int64_t Longs __attribute__((vector_size(64)));
typedef double Row __attribute__((vector_size(64)));

template <class To, class From>
RF_INLINE To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
template <class T, class From>
RF_INLINE void store(T (&to)[8], const From& from) {
  static_assert(sizeof to == sizeof from);
  std::memcpy(to, &from, sizeof to);
}
RF_INLINE Row wide(Floats x) { return __builtin_convertvector(x, Row); }

// The terms that stand in words: of those of 16 bits the low and the high one.
struct Bf16 {
  static constexpr int kTerms = 2;
  static RF_INLINE Row term(Words w, int k) { return wide(as<Floats>(k ? w & 0xffff0000 : w << 16)); }
};
struct F16 {
  static constexpr int kTerms = 2;
  static RF_INLINE Row term(Words w, int k) {
    const Words half = k ? w >> 16 : w & 0xffff, size = half & 0x7fff;
    const Words finite = as<Words>(as<Floats>(size << 13) * 0x1p112f);
    return wide(as<Floats>((size < 0x7c00 ? finite : 0x7f800000 | size << 13) | (half & 0x8000) << 16));
  }
};
struct Tf32 {
  static constexpr int kTerms = 1;
  static RF_INLINE Row term(Words w, int) { return wide(as<Floats>(w & 0xffffe000)); }
};

// Cut off towards zero.
RF_INLINE Floats truncate(Row x) {
  constexpr int64_t kLost = 0x1fffffff, kSign = INT64_MIN;
  const Floats y = __builtin_convertvector(as<Row>(as<Longs>(x) & ~kLost), Floats);
  // Below 2^-126, where a float has fewer digits, that has rounded.
  const Row size = as<Row>(as<Longs>(x) & ~kSign), got = as<Row>(as<Longs>(wide(y)) & ~kSign);
  const Longs beyond = (got > size) & (size < 1.0);  // -1 where true
  return as<Floats>(as<Ints>(y) + __builtin_convertvector(beyond, Ints));
}

// d (16, 8) += a (16, 8) b (8, 8), of words.
template <class Type>
RF_INLINE void multiply(Lane* lanes) {
  uint32_t a[16][8], b[8][8];
  float d[16][8];
  for (int i = 0; i < kLanes; ++i) {
    const int g = i / 4, t = i % 4;
    const auto* const x = static_cast<const uint32_t*>(lanes[i].in[0]);
    const auto* const y = static_cast<const uint32_t*>(lanes[i].in[1]);
    const auto* const z = static_cast<const float*>(lanes[i].out);
    for (int k = 0; k < 4; ++k) {
      a[g + 8 * (k % 2)][t + 4 * (k / 2)] = x[k];
      d[g + 8 * (k / 2)][2 * t + k % 2] = z[k];
    }
    for (int k = 0; k < 2; ++k) b[t + 4 * k][g] = y[k];
  }
  double terms[16][Type::kTerms][8];
  Row sums[16];
  for (int row = 0; row < 16; ++row) {
    sums[row] = wide(as<Floats>(d[row]));
    for (int k = 0; k < Type::kTerms; ++k) store(terms[row][k], Type::term(as<Words>(a[row]), k));
  }
  for (int word = 0; word < 8; ++word)
    for (int k = 0; k < Type::kTerms; ++k) {
      const Row column = Type::term(as<Words>(b[word]), k);
#pragma GCC unroll 16
      for (int row = 0; row < 16; ++row) sums[row] += terms[row][k][word] * column;
    }
  for (int row = 0; row < 16; ++row) store(d[row], truncate(sums[row]));
  for (int i = 0; i < kLanes; ++i)
    for (int k = 0; k < 4; ++k) static_cast<float*>(lanes[i].out)[k] = d[i / 4 + 8 * (k / 2)][2 * (i % 4) + k % 2];
}

RF_FAST void multiply_bf16(Lane* lanes) { multiply<Bf16>(lanes); }
RF_FAST void multiply_f16(Lane* lanes) { multiply<F16>(lanes); }
RF_FAST void multiply_tf32(Lane* lanes) { multiply<Tf32>(lanes); }

RF_FAST void multiply_f64(Lane* lanes) {
  double a[8][4], b[4][8];
  for (int i = 0; i < kLanes; ++i) {
    a[i / 4][i % 4] = *static_cast<const double*>(lanes[i].in[0]);
    b[i % 4][i / 4] = *static_cast<const double*>(lanes[i].in[1]);
  }
  for (int i = 0; i < kLanes; ++i) {
    double* const d = static_cast<double*>(lanes[i].out);
    for (int c = 0; c < 2; ++c)
      for (int k = 0; k < 4; ++k) d[c] = __builtin_fma(a[i / 4][k], b[k][2 * (i % 4) + c], d[c]);
  }
}

void load(Lane* lanes) {
  for (int i = 0; i < kLanes; ++i)
    for (int k = 0; k < 4; ++k)
      static_cast<uint32_t*>(lanes[i].out)[k] = static_cast<const uint32_t*>(lanes[8 * k + i / 4].in[0])[i % 4];
}

void load_transposed(Lane* lanes) {
  for (int i = 0; i < kLanes; ++i)
    for (int k = 0; k < 4; ++k) {
      const auto entry = [&](int row) -> uint32_t {
        return static_cast<const uint16_t*>(lanes[8 * k + row].in[0])[i / 4];
      };
      static_cast<uint32_t*>(lanes[i].out)[k] = entry(2 * (i % 4)) | entry(2 * (i % 4) + 1) << 16;
    }
}

void exchange(Lane* lanes) {
  for (int i = 0; i < kLanes; ++i) {
    const void* const from = lanes[lanes[i].source].in[0];
    if (lanes[i].bytes == 4)
      std::memcpy(lanes[i].out, from, 4);
    else
      std::memcpy(lanes[i].out, from, static_cast<size_t>(lanes[i].bytes));
  }
}

}  // namespace

const Collective mma_bf16 = {"mma_bf16", multiply_bf16}, mma_f16 = {"mma_f16", multiply_f16},
                 mma_tf32 = {"mma_tf32", multiply_tf32}, mma_f64 = {"mma_f64", multiply_f64},
                 load_matrices = {"load_matrices", load},
                 load_matrices_transposed = {"load_matrices_transposed", load_transposed},
                 shuffle = {"shuffle", exchange};

}  // namespace rf::cuda::emulated
