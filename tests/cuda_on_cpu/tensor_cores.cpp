// SPDX-License-Identifier: BSD-3-Clause
// What the 32 lanes of a warp do together. Layouts: csrc/cuda/device.h.
#include <cstring>

#include "../../csrc/kernels.h"
#include "emulation.h"

#ifdef __x86_64__
#define RF_FAST __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define RF_FAST
#endif

namespace rf::cuda::emulated {
namespace {

typedef double Row __attribute__((vector_size(64)));  // of d: eight columns

template <class T>
const T* words(const void* p) {
  return static_cast<const T*>(p);
}

float low(uint32_t word, __nv_bfloat16) { return std::bit_cast<float>(word << 16); }
float high(uint32_t word, __nv_bfloat16) { return std::bit_cast<float>(word & 0xffff0000); }
float half(uint32_t word) {
  __half x;
  x.bits = static_cast<uint16_t>(word);
  return x;
}
float low(uint32_t word, __half) { return half(word); }
float high(uint32_t word, __half) { return half(word >> 16); }
float tf32(uint32_t word) { return std::bit_cast<float>(word & 0xffffe000); }

// The float next to x towards zero.
float truncate(double x) {
  const float y = static_cast<float>(std::bit_cast<double>(std::bit_cast<uint64_t>(x) & ~uint64_t{0x1fffffff}));
  // below 2^-126 the last line has rounded
  return std::fabs(static_cast<double>(y)) > std::fabs(x) && std::fabs(x) < 1 ? std::nextafter(y, 0.0f) : y;
}

// d (16, 8) += a (16, terms) b (terms, 8)
template <int kTerms>
inline __attribute__((always_inline)) void multiply(Lane* lanes, const double (&a)[16][kTerms],
                                                    const double (&b)[kTerms][8]) {
  alignas(64) double d[16][8];
  for (int i = 0; i < kLanes; ++i) {
    const float* const mine = static_cast<const float*>(lanes[i].out);
    for (int k = 0; k < 4; ++k) d[i / 4 + 8 * (k / 2)][2 * (i % 4) + k % 2] = mine[k];
  }
  Row columns[kTerms];
  std::memcpy(columns, b, sizeof columns);
  for (auto& row : d) {
    const auto& terms = a[&row - d];
    Row sum;
    std::memcpy(&sum, row, sizeof sum);
    for (int k = 0; k < kTerms; ++k) sum += terms[k] * columns[k];
    std::memcpy(row, &sum, sizeof sum);
  }
  for (int i = 0; i < kLanes; ++i) {
    float* const mine = static_cast<float*>(lanes[i].out);
    for (int k = 0; k < 4; ++k) mine[k] = truncate(d[i / 4 + 8 * (k / 2)][2 * (i % 4) + k % 2]);
  }
}

template <class T>
inline __attribute__((always_inline)) void multiply_16_bits(Lane* lanes) {
  double a[16][16], b[16][8];
  for (int i = 0; i < kLanes; ++i) {
    const int g = i / 4, t = i % 4;
    const auto* const x = words<uint32_t>(lanes[i].in[0]);
    const auto* const y = words<uint32_t>(lanes[i].in[1]);
    for (int k = 0; k < 4; ++k) {
      a[g + 8 * (k % 2)][2 * t + 8 * (k / 2)] = low(x[k], T{});
      a[g + 8 * (k % 2)][2 * t + 8 * (k / 2) + 1] = high(x[k], T{});
    }
    for (int k = 0; k < 2; ++k) {
      b[2 * t + 8 * k][g] = low(y[k], T{});
      b[2 * t + 8 * k + 1][g] = high(y[k], T{});
    }
  }
  multiply(lanes, a, b);
}

RF_FAST void multiply_bf16(Lane* lanes) { multiply_16_bits<__nv_bfloat16>(lanes); }
RF_FAST void multiply_f16(Lane* lanes) { multiply_16_bits<__half>(lanes); }
RF_FAST void multiply_tf32(Lane* lanes) {
  double a[16][8], b[8][8];
  for (int i = 0; i < kLanes; ++i) {
    const int g = i / 4, t = i % 4;
    for (int k = 0; k < 4; ++k) a[g + 8 * (k % 2)][t + 4 * (k / 2)] = tf32(words<uint32_t>(lanes[i].in[0])[k]);
    for (int k = 0; k < 2; ++k) b[t + 4 * k][g] = tf32(words<uint32_t>(lanes[i].in[1])[k]);
  }
  multiply(lanes, a, b);
}

RF_FAST void multiply_f64(Lane* lanes) {
  double a[8][4], b[4][8];
  for (int i = 0; i < kLanes; ++i) {
    a[i / 4][i % 4] = *words<double>(lanes[i].in[0]);
    b[i % 4][i / 4] = *words<double>(lanes[i].in[1]);
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
      static_cast<uint32_t*>(lanes[i].out)[k] = words<uint32_t>(lanes[8 * k + i / 4].in[0])[i % 4];
}

void load_transposed(Lane* lanes) {
  for (int i = 0; i < kLanes; ++i)
    for (int k = 0; k < 4; ++k) {
      const auto entry = [&](int row) { return uint32_t{words<uint16_t>(lanes[8 * k + row].in[0])[i / 4]}; };
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
