// SPDX-License-Identifier: BSD-3-Clause
// What GCC, clang and nvcc call by different names.
#pragma once

#ifdef __CUDACC__
#define RF_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define RF_HOST_DEVICE inline __attribute__((always_inline))
#endif

// Before a loop of a constant number of rounds: all of them are written out.
#if defined(__CUDACC__) || defined(__clang__)
#define RF_UNROLL _Pragma("unroll")
#else
#define RF_UNROLL _Pragma("GCC unroll 24")
#endif
