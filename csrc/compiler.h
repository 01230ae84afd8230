// SPDX-License-Identifier: BSD-3-Clause
// The words that differ between GCC, clang and nvcc.
#pragma once

#ifdef __CUDACC__
#define RF_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define RF_HOST_DEVICE inline __attribute__((always_inline))
#endif

// A function that stays one: it is neither inlined nor copied for constant arguments.
#if defined(__GNUC__) && !defined(__clang__)
#define RF_APART __attribute__((noinline, noclone))
#else
#define RF_APART __attribute__((noinline))
#endif

// Unrolls the loop that follows, which has a constant number of steps.
#if defined(__CUDACC__) || defined(__clang__)
#define RF_UNROLL _Pragma("unroll")
#else
#define RF_UNROLL _Pragma("GCC unroll 24")
#endif
