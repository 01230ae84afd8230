// SPDX-License-Identifier: BSD-3-Clause
// The functions of csrc/cuda/device.h on a CPU. They run the same kernels in the arithmetic of tensor cores, one thread
// after another. What is undefined on a GPU is an error here, or NaN, wherever it can be seen.
#pragma once

#include "words.h"

#define RF_DEVICE __forceinline__

namespace rf::cuda {

namespace emulated {

extern const Collective mma_bf16, mma_f16, mma_tf32, mma_f64, load_matrices, load_matrices_transposed, shuffle;

inline void join(const Collective& collective, void* out, const void* a, const void* b = nullptr) {
  here->out = out;
  here->in[0] = a;
  here->in[1] = b;
  join(collective);
}

}  // namespace emulated

// d += a b: the exact products are summed in float64 onto d, and the sum is cut off to float32 once.
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated::join(emulated::mma_bf16, d, a, b);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated::join(emulated::mma_f16, d, a, b);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated::join(emulated::mma_tf32, d, a, b);
}
// Fused multiply-adds in float64.
inline void mma_f64(double (&d)[2], double a, double b) { emulated::join(emulated::mma_f64, d, &a, &b); }

inline uint32_t to_tf32(float x) {
  return x != x ? 0x7fffffff : std::isinf(x) ? __float_as_uint(x) : (__float_as_uint(x) + 0x1000) & 0xffffe000;
}
inline uint32_t pack_bf16(float low, float high) {
  return __nv_bfloat16(low).bits | static_cast<uint32_t>(__nv_bfloat16(high).bits) << 16;
}
inline uint32_t pack_f16(float low, float high) {
  return __half(low).bits | static_cast<uint32_t>(__half(high).bits) << 16;
}

inline uint32_t relu_bf16(uint32_t x) {
  const auto relu = [](uint32_t half) { return (half & 0x7fff) > 0x7f80 ? 0x7fff : half < 0x8000 ? half : 0; };
  return relu(x & 0xffff) | relu(x >> 16) << 16;
}
inline uint32_t relu_f16(uint32_t x) {
  const auto relu = [](uint32_t half) { return (half & 0x7fff) > 0x7c00 ? 0x7fff : half < 0x8000 ? half : 0; };
  return relu(x & 0xffff) | relu(x >> 16) << 16;
}

inline void load_matrices(uint32_t (&r)[4], const void* row) {
  emulated::reads_shared(row, 16, "load_matrices reads");
  emulated::join(emulated::load_matrices, r, row);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  emulated::reads_shared(row, 16, "load_matrices_transposed reads");
  emulated::join(emulated::load_matrices_transposed, r, row);
}

inline void copy_async(void* shared, const void* global, int bytes = 16) {
  emulated::copy_async(shared, global, bytes);
}
inline void commit_copies() { emulated::commit_copies(); }
template <int kPending>
inline void wait_for_copies() {
  emulated::wait_for_copies(kPending);
}

template <class T>
inline T shuffle(T x, int lane) {
  T y;
  emulated::here->source = lane % emulated::kLanes;
  emulated::here->bytes = sizeof(T);
  emulated::join(emulated::shuffle, &y, &x);
  return y;
}
template <class T>
inline T shuffle_xor(T x, int mask) {
  return shuffle(x, emulated::here->lane() ^ mask);
}

inline void barrier() { __syncthreads(); }
inline void warp_barrier() { __syncwarp(); }
inline int forget(int x) { return x; }

template <class T>
inline T* shared_memory() {
  return reinterpret_cast<T*>(emulated::dynamic_shared);
}

inline int64_t most_shared(const char*, const Stream&) { return emulated::most_shared; }

template <class... Formal, class... Actual>
void launch(const char* name, void (*kernel)(Formal...), dim3 grid, int threads, int64_t shared_bytes, const Stream&,
            Actual... actual) {
  if (shared_bytes > emulated::most_shared) refuse_shared(name, shared_bytes, emulated::most_shared);
  const auto call = [&] { kernel(static_cast<Formal>(actual)...); };
  emulated::run(name, grid, threads, shared_bytes, [](const void* f) { (*static_cast<decltype(&call)>(f))(); }, &call);
}

}  // namespace rf::cuda
