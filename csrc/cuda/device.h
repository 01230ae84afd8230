// SPDX-License-Identifier: BSD-3-Clause
// Functions for what a GPU has and C++ lacks: matrix products of a warp, asynchronous copies, shuffles, launches.
// Kernels use these functions and CUDA's own words (threadIdx, __shared__, ...), but no assembly. So
// tests/helpers/cuda_on_cpu can define the same functions for a CPU, and run the very same kernels there.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../kernels.h"

namespace rf::cuda {

constexpr int kWarp = 32;
constexpr int64_t kPlainShared = 48 * 1024;  // bytes of shared memory that a block has by default

[[noreturn]] inline void refuse_shared(const char* name, int64_t wanted, int64_t most) {
  throw std::runtime_error("rainbow_fast: the CUDA kernel " + std::string(name) + " was not launched: it takes " +
                           std::to_string(wanted) + " bytes of shared memory, and a block of this device has " +
                           std::to_string(most) + ": use backend='triton' or backend='reference'");
}

}  // namespace rf::cuda

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define RF_DEVICE __device__ __forceinline__
#else
#include "emulation.h"  // tests/helpers/cuda_on_cpu
#endif

namespace rf::cuda {

#ifdef __CUDACC__

// d += a b for a 16 x 8 tile of d, over 16 terms. Lane 4 g + t holds
//   of d: rows g (numbers 0, 1) and g + 8 (numbers 2, 3), columns 2 t and 2 t + 1;
//   of a: rows g (words 0, 2) and g + 8 (words 1, 3), terms 2 t and 2 t + 1 (words 0, 1) and 8 more (words 2, 3);
//   of b: column g, terms 2 t and 2 t + 1 (word 0) and 8 more (word 1).
// The first term of a word is in its low half.
RF_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
RF_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same over 8 terms of tf32, one in each word. Lane 4 g + t holds
//   of a: rows g (words 0, 2) and g + 8 (words 1, 3), terms t (words 0, 1) and t + 4 (words 2, 3);
//   of b: column g, terms t (word 0) and t + 4 (word 1).
RF_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += a b for an 8 x 8 tile of d over 4 terms, in float64. Lane 4 g + t holds row g, columns 2 t and 2 t + 1 of d; row
// g, term t of a; column g, term t of b.
RF_DEVICE void mma_f64(double (&d)[2], double a, double b) {
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(d[0]), "+d"(d[1])
      : "d"(a), "d"(b));
}

// Rounds x to the ten bits of tf32, to nearest, ties away from zero. Returns the bits of a float.
RF_DEVICE uint32_t to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

// Two numbers in one word, rounded to nearest even, the first in the low half.
RF_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
RF_DEVICE uint32_t pack_f16(float low, float high) {
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

// max(x, 0) of both halves of a word; NaN stays.
RF_DEVICE uint32_t relu_bf16(uint32_t x) {
  uint32_t y;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(x), "r"(0));
  return y;
}
RF_DEVICE uint32_t relu_f16(uint32_t x) {
  uint32_t y;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(y) : "r"(x), "r"(0));
  return y;
}

RF_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Loads four matrices of 8 x 8 numbers of 16 bits from shared memory. Lanes 8 k .. 8 k + 7 give the addresses of the
// eight rows of matrix k (16 bytes each, aligned to 16). Word k of lane 4 g + t receives row g, columns 2 t and 2 t + 1
// of matrix k; transposed: column g, rows 2 t and 2 t + 1.
RF_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
RF_DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// Copies 16 bytes asynchronously; both addresses are aligned to 16 bytes. Bytes from `bytes` on are not read but set to
// zero. The copy is done once the group that it is committed with has been waited for. Other threads see it after a
// barrier.
RF_DEVICE void copy_async(void* shared, const void* global, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
RF_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all but the last `kPending` groups of this thread are done.
template <int kPending>
RF_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

template <class T>
RF_DEVICE T shuffle(T x, int lane) {
  return __shfl_sync(0xffffffffu, x, lane);
}
template <class T>
RF_DEVICE T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}

// Returns x in a way that the compiler cannot see through. In a loop, what follows from it is computed anew each time.
// Before a loop, it is computed once and kept in a register.
RF_DEVICE int forget(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

RF_DEVICE void barrier() { __syncthreads(); }
RF_DEVICE void warp_barrier() { __syncwarp(); }

// The dynamic shared memory of the block, aligned to 128 bytes.
template <class T>
RF_DEVICE T* shared_memory() {
  extern __shared__ __align__(128) unsigned char rf_shared[];
  return reinterpret_cast<T*>(rf_shared);
}

inline void check(cudaError_t error, const char* name) {
  if (error != cudaSuccess)
    throw std::runtime_error("rainbow_fast: the CUDA kernel " + std::string(name) +
                             " was not launched: " + cudaGetErrorString(error));
}

// Bytes of shared memory that a block may take: 163 KiB on an A100, 227 KiB on an H100, 99 KiB on a GeForce.
inline int64_t most_shared(const char* name, const Stream& stream) {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device), name);
  return bytes;
}

// Queues a kernel on the stream. An error names the kernel by `name`. The caller's current device stays the same.
template <class... Formal, class... Actual>
void launch(const char* name, void (*kernel)(Formal...), dim3 grid, int threads, int64_t shared_bytes,
            const Stream& stream, Actual... actual) {
  // The limit is set to all that a block may have: another thread may be about to launch the same kernel with more
  // shared memory than this one.
  const int64_t most = shared_bytes > kPlainShared ? most_shared(name, stream) : kPlainShared;
  if (shared_bytes > most) refuse_shared(name, shared_bytes, most);
  int before = 0;
  check(cudaGetDevice(&before), name);
  if (before != stream.device) check(cudaSetDevice(stream.device), name);
  cudaError_t error = cudaSuccess;
  if (most > kPlainShared)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most));
  if (error == cudaSuccess) {
    kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream.handle)>>>(static_cast<Formal>(actual)...);
    error = cudaGetLastError();
  }
  if (before != stream.device) cudaSetDevice(before);
  check(error, name);
}

#endif  // __CUDACC__

}  // namespace rf::cuda
