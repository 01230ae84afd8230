// SPDX-License-Identifier: BSD-3-Clause
// cross_covariance: the product of channels by channels over samples, tiles of a few hundred samples promoted to
// float64.
#include <string.h>

#include "epilogue.h"
#include "kernels_cpu.h"

namespace rf::RF_ISA {
namespace {

template <class T>
void accumulate(double* out, int64_t ld, const Samples& x, const Samples& y, bool symmetric, int threads) {
  const int64_t d = x.channels, m = y.channels, samples = x.images * x.positions;
  Problem problem{d, m, samples, 128, 5 * NR<T>, 256};
  problem.slabs = slabs_for(blocks(d, problem.mc) * blocks(m, problem.nc), blocks(samples, problem.kc));
  const Packed<ChannelPacker<T>> left{{merged(x)}}, right{{merged(y)}};
  if (problem.slabs == 1 && !symmetric) {
    product<T>(problem, left, right, Promote<T>{out, ld, 0}, threads);
    return;
  }
  const Scratch memory(problem.slabs * d * m * 8);
  double* parts = static_cast<double*>(memory.data());
  memset(parts, 0, static_cast<size_t>(problem.slabs * d * m) * 8);
  product<T>(problem, left, right, Promote<T>{parts, m, d * m, symmetric}, threads);
  if (symmetric)
    for (int64_t slab = 0; slab < problem.slabs; ++slab)
      for (int64_t i = 0; i < d; ++i)
        for (int64_t j = 0; j < i; ++j) parts[(slab * d + i) * d + j] = parts[(slab * d + j) * d + i];
  add_slabs(out, ld, parts, problem.slabs, d, m, threads);
}

}  // namespace

void cross_covariance(double* out, int64_t ld, Samples x, Samples y, bool symmetric, int threads) {
  if (x.dtype == DType::f64) {
    accumulate<double>(out, ld, x, y, symmetric, threads);
  } else {
    accumulate<float>(out, ld, x, y, symmetric, threads);
  }
}

}  // namespace rf::RF_ISA
