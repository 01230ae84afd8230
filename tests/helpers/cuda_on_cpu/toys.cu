// SPDX-License-Identifier: BSD-3-Clause
// Toy kernels. Each uses one function of device.h, rightly or in a way that must be found.
#include "../../../csrc/cuda/numbers.h"

namespace rf::cuda {
namespace {

// --- one warp ---

// 0: bf16, 1: f16, 2: tf32. Each lane has four words of a, two of b and four numbers of d.
__global__ void product(float* d, const uint32_t* a, const uint32_t* b, int type) {
  const int lane = threadIdx.x;
  float sum[4];
  uint32_t x[4], y[2];
  for (int k = 0; k < 4; ++k) sum[k] = d[4 * lane + k], x[k] = a[4 * lane + k];
  for (int k = 0; k < 2; ++k) y[k] = b[2 * lane + k];
  if (type == 0) mma_bf16(sum, x, y);
  if (type == 1) mma_f16(sum, x, y);
  if (type == 2) mma_tf32(sum, x, y);
  for (int k = 0; k < 4; ++k) d[4 * lane + k] = sum[k];
}

__global__ void product_f64(double* d, const double* a, const double* b) {
  const int lane = threadIdx.x;
  double sum[2] = {d[2 * lane], d[2 * lane + 1]};
  mma_f64(sum, a[lane], b[lane]);
  d[2 * lane] = sum[0];
  d[2 * lane + 1] = sum[1];
}

// Four matrices (8, 8), whose rows lie 48 bytes apart and `shift` numbers off.
__global__ void matrices(uint32_t* out, const uint16_t* in, bool transposed, int shift) {
  uint16_t* const row = shared_memory<uint16_t>() + 24 * threadIdx.x + shift;
  for (int k = 0; k < 8; ++k) row[k] = in[8 * threadIdx.x + k];
  warp_barrier();
  uint32_t r[4];
  if (transposed)
    load_matrices_transposed(r, row);
  else
    load_matrices(r, row);
  for (int k = 0; k < 4; ++k) out[4 * threadIdx.x + k] = r[k];
}

template <class T>
__global__ void shuffles(T* out, const T* in, const int* source) {
  const int lane = threadIdx.x;
  out[lane] = shuffle(in[lane], source[lane]);
  out[kWarp + lane] = shuffle_xor(in[lane], 11);
}

// --- conversions, one number for each thread ---

__global__ void narrow(uint32_t* out, const float* in) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const float x = in[i];
  out[3 * i] = pack_bf16(x, -x);
  out[3 * i + 1] = pack_f16(x, -x);
  out[3 * i + 2] = to_tf32(x);
}

__global__ void widen_all(float* out, const uint16_t* in) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  out[2 * i] = widen(reinterpret_cast<const bf16*>(in)[i]);
  out[2 * i + 1] = widen(reinterpret_cast<const f16*>(in)[i]);
}

// --- asynchronous copies, and what can be wrong with them ---

enum Fault { none, no_wait, no_barrier, overwrites };

// Mirrors `in` (steps, 256) in pieces of four: thread t writes what thread 63 - t has copied.
__global__ void pipeline(float* out, const float* in, int steps, int fault) {
  const int t = threadIdx.x;
  float* const buffers = shared_memory<float>();
  const auto fetch = [&](int step) {
    if (step < steps) copy_async(buffers + step % 2 * 256 + 4 * t, in + step * 256 + 4 * t);
    commit_copies();
  };
  fetch(0);
  for (int step = 0; step < steps; ++step) {
    fetch(step + 1);
    if (fault != no_wait) wait_for_copies<1>();
    if (fault != no_barrier) barrier();
    for (int k = 0; k < 4; ++k) out[step * 256 + 4 * t + k] = buffers[step % 2 * 256 + 4 * (63 - t) + k];
    if (fault != overwrites) barrier();
  }
}

// Lane i copies i / 2 of 16 bytes, `shift` bytes off.
__global__ void partial(uint8_t* out, const uint8_t* in, int shift) {
  uint8_t* const own = shared_memory<uint8_t>() + 16 * threadIdx.x;
  copy_async(own + shift, in + 16 * threadIdx.x, threadIdx.x / 2);
  commit_copies();
  wait_for_copies<0>();
  for (int k = 0; k < 16; ++k) out[16 * threadIdx.x + k] = own[k];
}

// max(x, 0) of words with two numbers of 16 bits.
__global__ void positive(uint32_t* bf16s, uint32_t* f16s) {
  bf16s[threadIdx.x] = relu_bf16(bf16s[threadIdx.x]);
  f16s[threadIdx.x] = relu_f16(f16s[threadIdx.x]);
}

// --- blocks ---

// Warp w sums its threads' numbers over the 32 lanes, w + 1 times, and thread 0 adds up the warps.
__global__ void folds(float* out) {
  __shared__ float sums[4];
  const int warp = threadIdx.x / kWarp;
  float x = 1;
  for (int fold = 0; fold <= warp; ++fold)
    for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  if (threadIdx.x % kWarp == 0) sums[warp] = x;
  barrier();
  if (threadIdx.x == 0) out[blockIdx.x] = sums[0] + sums[1] + sums[2] + sums[3];
}

// Reads what the other warp has written, with or without a barrier before.
__global__ void neighbours(int* out, bool ordered) {
  int* const all = shared_memory<int>();
  all[threadIdx.x] = threadIdx.x;
  if (ordered) barrier();
  out[threadIdx.x] = all[(threadIdx.x + kWarp) % 64];
}

__global__ void unwritten(float* out) {
  __shared__ float fixed[64];
  if (blockIdx.x == 0) fixed[threadIdx.x] = shared_memory<float>()[threadIdx.x] = 1;  // not kept for the next block
  out += 128 * blockIdx.x + 2 * threadIdx.x;
  out[0] = fixed[threadIdx.x];
  out[1] = shared_memory<float>()[threadIdx.x];
}

// 0: a lane leaves before a shuffle, 1: it is at a barrier instead, 2: a warp leaves before a barrier
__global__ void diverges(int* out, int how) {
  if (how == 0 && threadIdx.x == 7) return;
  if (how == 1 && threadIdx.x == 7) warp_barrier();
  if (how == 2 && threadIdx.x >= kWarp) return;
  if (how < 2)
    out[threadIdx.x] = shuffle(1, 0);
  else
    barrier();
}

// 0: writes, 1: reads number `index` of 64 in dynamic shared memory; 2, 3: the same in a fixed array
__global__ void touches(int* out, int how, int index) {
  __shared__ int fixed[64];
  volatile int* const p = how < 2 ? shared_memory<int>() : fixed;
  if (threadIdx.x) return;
  if (how % 2 == 0)
    p[index] = 1;
  else
    out[0] = p[index];
}

template <class Call>
const char* said(const Call& call) {
  static std::string what;
  what.clear();
  try {
    call();
  } catch (const std::exception& error) {
    what = error.what();
  }
  return what.c_str();
}

const Stream kHere = {0, nullptr, nullptr, 0};

}  // namespace
}  // namespace rf::cuda

// Each returns the text of the error, empty if there is none.
#define RF_TOY extern "C" __attribute__((visibility("default"))) const char*
using namespace rf::cuda;

RF_TOY rf_product(float* d, const uint32_t* a, const uint32_t* b, int type) {
  return said([=] { launch("product", product, dim3(1), kWarp, 0, kHere, d, a, b, type); });
}
RF_TOY rf_product_f64(double* d, const double* a, const double* b) {
  return said([=] { launch("product_f64", product_f64, dim3(1), kWarp, 0, kHere, d, a, b); });
}
RF_TOY rf_matrices(uint32_t* out, const uint16_t* in, int transposed, int shift) {
  return said([=] { launch("matrices", matrices, dim3(1), kWarp, 32 * 48, kHere, out, in, transposed, shift); });
}
RF_TOY rf_shuffles(float* out, const float* in, const int* source) {
  return said([=] { launch("shuffles", shuffles<float>, dim3(1), kWarp, 0, kHere, out, in, source); });
}
RF_TOY rf_shuffles_f64(double* out, const double* in, const int* source) {
  return said([=] { launch("shuffles", shuffles<double>, dim3(1), kWarp, 0, kHere, out, in, source); });
}
RF_TOY rf_narrow(uint32_t* out, const float* in, int blocks) {
  return said([=] { launch("narrow", narrow, dim3(blocks), 64, 0, kHere, out, in); });
}
RF_TOY rf_widen(float* out, const uint16_t* in, int blocks) {
  return said([=] { launch("widen", widen_all, dim3(blocks), 64, 0, kHere, out, in); });
}
RF_TOY rf_pipeline(float* out, const float* in, int steps, int fault) {
  return said([=] { launch("pipeline", pipeline, dim3(1), 64, 2 * 1024, kHere, out, in, steps, fault); });
}
RF_TOY rf_partial(uint8_t* out, const uint8_t* in, int shift) {
  return said([=] { launch("partial", partial, dim3(1), kWarp, 33 * 16, kHere, out, in, shift); });
}
RF_TOY rf_positive(uint32_t* bf16s, uint32_t* f16s) {
  return said([=] { launch("positive", positive, dim3(1), kWarp, 0, kHere, bf16s, f16s); });
}
RF_TOY rf_folds(float* out, int blocks) {
  return said([=] { launch("folds", folds, dim3(blocks), 128, 0, kHere, out); });
}
RF_TOY rf_neighbours(int* out, int ordered) {
  return said([=] { launch("neighbours", neighbours, dim3(1), 64, 256, kHere, out, ordered); });
}
RF_TOY rf_unwritten(float* out, int blocks) {
  return said([=] { launch("unwritten", unwritten, dim3(blocks), 64, 256, kHere, out); });
}
RF_TOY rf_diverges(int* out, int how) {
  return said([=] { launch("diverges", diverges, dim3(2), 64, 0, kHere, out, how); });
}
RF_TOY rf_touches(int* out, int how, int index) {
  return said([=] { launch("touches", touches, dim3(1), kWarp, 256, kHere, out, how, index); });
}
RF_TOY rf_launch(int blocks, int threads, int shared_bytes) {
  return said([=] { launch("touches", touches, dim3(blocks), threads, shared_bytes, kHere, nullptr, 0, 0); });
}
