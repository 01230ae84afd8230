// SPDX-License-Identifier: BSD-3-Clause
// What the 32 lanes of a warp do together. csrc/cuda/device.h describes the layouts.
#include <cstring>

#include "../../../csrc/cuda/device.h"

#ifdef __x86_64__
#define RF_FAST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define RF_FAST
#endif
#define RF_INLINE inline __attribute__((always_inline))

namespace rf::cuda::emulated {
namespace {

// Tensor cores add up exact products and the number that they are added to in one step. Each term is cut off where the
// largest one ends, and the sum is cut off again. An A100 cuts off at 2^-24 of the largest term and adds half of the
// terms at a time; an H100 cuts off a bit further on and adds all terms.
constexpr double kKept = 0x1p-24;

// A row of d: eight numbers.
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

// The terms in words: for 16 bits, the low and the high term of a word.
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

constexpr int64_t kSign = INT64_MIN, kExponent = 0x7ff0000000000000;
RF_INLINE Row size(Row x) { return as<Row>(as<Longs>(x) & ~kSign); }
RF_INLINE Row power_of_two(Row x) { return as<Row>(as<Longs>(x) & kExponent); }  // the largest not above |x|
RF_INLINE Row larger(Row a, Row b) { return a > b ? a : b; }

// Rounds towards zero, to a multiple of a power of two above |x| / 2^52.
RF_INLINE Row cut_off(Row x, Row step) {
  const Row big = step * 0x1p52, near = size(x) + big - big;
  const Row below = near - as<Row>(as<Longs>(step) & (near > size(x)));
  return as<Row>(as<Longs>(below) | (as<Longs>(x) & kSign));
}

// Rounds towards zero.
RF_INLINE Floats truncate(Row x) {
  constexpr int64_t kLost = 0x1fffffff;
  const Floats y = __builtin_convertvector(as<Row>(as<Longs>(x) & ~kLost), Floats);
  // Below 2^-126 a float has fewer digits, and the conversion may have rounded up.
  const Longs beyond = (size(wide(y)) > size(x)) & (size(x) < 1.0);  // -1 where true
  return as<Floats>(as<Ints>(y) + __builtin_convertvector(beyond, Ints));
}

// d (16, 8) += a (16, 8) b (8, 8), given as words: one half of the words first, then the other half.
template <class Type>
RF_INLINE void multiply(Lane* lanes) {
  constexpr int kTerms = 4 * Type::kTerms;
  uint32_t a[2][16][8] = {}, b[8][8];
  float d[16][8];
  for (int i = 0; i < kLanes; ++i) {
    const int g = i / 4, t = i % 4;
    const auto* const x = static_cast<const uint32_t*>(lanes[i].in[0]);
    const auto* const y = static_cast<const uint32_t*>(lanes[i].in[1]);
    const auto* const z = static_cast<const float*>(lanes[i].out);
    for (int k = 0; k < 4; ++k) {
      a[k / 2][g + 8 * (k % 2)][t] = x[k];
      d[g + 8 * (k / 2)][2 * t + k % 2] = z[k];
    }
    for (int k = 0; k < 2; ++k) b[t + 4 * k][g] = y[k];
  }
  for (int half = 0; half < 2; ++half) {
    Row columns[kTerms], powers[kTerms];
    for (int k = 0; k < kTerms; ++k) {
      columns[k] = Type::term(as<Words>(b[4 * half + k % 4]), k / 4);
      powers[k] = power_of_two(columns[k]);
    }
    for (int row = 0; row < 16; ++row) {
      double terms[2][8], sizes[2][8];  // the terms of four products each
      for (int k = 0; k < Type::kTerms; ++k) {
        const Row these = Type::term(as<Words>(a[half][row]), k);
        store(terms[k], these);
        store(sizes[k], power_of_two(these));
      }
      const Row c = wide(as<Floats>(d[row]));
      Row largest = power_of_two(c), exact = c;
#pragma GCC unroll 8
      for (int k = 0; k < kTerms; ++k) largest = larger(largest, sizes[k / 4][k % 4] * powers[k]);
      const Row step = largest * kKept;
      Row sum = cut_off(c, step);
#pragma GCC unroll 8
      for (int k = 0; k < kTerms; ++k) {
        const Row product = terms[k / 4][k % 4] * columns[k];
        exact += product;
        sum += cut_off(product, step);
      }
      store(d[row], truncate(exact - exact == 0 ? sum : exact));
    }
  }
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
