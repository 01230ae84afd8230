// SPDX-License-Identifier: BSD-3-Clause
// sample_project_align: a matrix product whose left packer generates G.
#include "epilogue.h"
#include "kernels_cpu.h"

namespace rf::RF_ISA {
namespace {

template <class T>
void multiply_rows(void* out, DType dtype, int64_t n, int64_t ld, const Samples& p, Address at, double scale,
                   int threads) {
  const Packed<GaussianPacker<T>> left{{at}};
  with_type(dtype, [&]<class S>(Type<S>) {
    const Store<T, S> epilogue{static_cast<S*>(out), ld, static_cast<T>(scale)};
    product_prepacked<T>(n, p.channels, p.images, left, ChannelPacker<T>{merged(p)}, epilogue, threads);
  });
}

}  // namespace

void sample_project_align(void* out, DType dtype, int64_t n, int64_t ld, Samples p, Address at, double scale,
                          int threads) {
  if (p.dtype == DType::f64) {
    multiply_rows<double>(out, dtype, n, ld, p, at, scale, threads);
  } else {
    multiply_rows<float>(out, dtype, n, ld, p, at, scale, threads);
  }
}

}  // namespace rf::RF_ISA
