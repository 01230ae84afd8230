// SPDX-License-Identifier: BSD-3-Clause
// The words that differ between GCC, clang and nvcc.
#pragma once

#ifdef __CUDACC__
#define RF_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define RF_HOST_DEVICE inline __attribute__((always_inline))
#endif

// Unrolls the loop that follows, which has a constant number of steps.
#if defined(__CUDACC__) || defined(__clang__)
#define RF_UNROLL _Pragma("unroll")
#else
#define RF_UNROLL _Pragma("GCC unroll 24")
#endif
