// SPDX-License-Identifier: BSD-3-Clause
// Those of CUDA's own words that the kernels use, in C++.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "machine.h"

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __constant__
#define __shared__ static __attribute__((section("rf_shared")))

#define threadIdx (::rf::cuda::emulated::here->index)
#define blockIdx (::rf::cuda::emulated::block)
#define blockDim (::rf::cuda::emulated::block_size)
#define gridDim (::rf::cuda::emulated::grid_size)

// --- numbers of 16 bits, rounded to nearest even ---

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float x) {
    const uint32_t b = std::bit_cast<uint32_t>(x);
    bits = static_cast<uint16_t>(x != x ? 0x7fff : (b + 0x7fff + (b >> 16 & 1)) >> 16);
  }
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

struct __half {
  uint16_t bits;
  __half() = default;
  __half(float x) {
    const uint32_t b = std::bit_cast<uint32_t>(x), size = b & 0x7fffffff;
    uint32_t y = 0x7c00;
    if (size < 0x38800000)  // below 2^-14: the sum with 1/2 has the step of the subnormal numbers
      y = std::bit_cast<uint32_t>(std::bit_cast<float>(size) + 0.5f) - 0x3f000000;
    else if (size < 0x477ff000)  // below 65520
      y = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
    bits = static_cast<uint16_t>(x != x ? 0x7fff : y | (b >> 16 & 0x8000));
  }
  operator float() const {
    const uint32_t size = bits & 0x7fff, sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    const float x =
        size < 0x7c00 ? std::bit_cast<float>(size << 13) * 0x1p112f : std::bit_cast<float>(0x7f800000 | size << 13);
    return std::bit_cast<float>(std::bit_cast<uint32_t>(x) | sign);
  }
};

inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline float __half2float(__half x) { return x; }

// --- arithmetic ---

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}

template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
inline double normcdf(double x) { return 0.5 * std::erfc(-0.70710678118654752440 * x); }
inline float normcdff(float x) { return static_cast<float>(normcdf(static_cast<double>(x))); }

// --- what a warp and a block do together ---

inline void __syncthreads() { ::rf::cuda::emulated::join(::rf::cuda::emulated::block_barrier); }
inline void __syncwarp() { ::rf::cuda::emulated::join(::rf::cuda::emulated::warp_barrier); }

// --- the host ---

enum cudaError_t { cudaSuccess };
#define CUDART_VERSION 13000
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
