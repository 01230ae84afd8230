// SPDX-License-Identifier: BSD-3-Clause
// sample_project_align: a matrix product whose left packer generates G.
#include "epilogue.h"
#include "kernels_cpu.h"

namespace rf::RF_ISA {
namespace {

template <class T>
void multiply_rows(void* out, DType dtype, int64_t n, int64_t ld, const Samples& p, DType generated, Address at,
                   double scale, Products products, int threads) {
  const Packed<GaussianPacker<T>> left{{at, generated}};
  const int64_t columns = blocks(count(p), kElements<T>);
  with_type(dtype, [&]<class S>(Type<S>) {
    const Store<Sum<T>, S> epilogue{static_cast<S*>(out), ld, static_cast<Sum<T>>(scale)};
    product_prepacked<T>(n, p.channels, columns, left, ChannelPacker<T>{merged(p)}, epilogue, threads, products);
  });
}

}  // namespace

void sample_project_align(void* out, DType dtype, int64_t n, int64_t ld, Samples p, DType generated, Address at,
                          double scale, Precision precision, int threads) {
  // A G of bfloat16 numbers has one term.
  const bool once = precision == Precision::high && generated == DType::bf16;
  const Products products = once ? Products{2} : products_of(precision);
  const auto run = [&]<class T>(Type<T>) {
    multiply_rows<T>(out, dtype, n, ld, p, generated, at, scale, products, threads);
  };
#if defined(__AVX512BF16__)
  if (p.dtype == DType::bf16) return run(Type<bf16_pair>{});
#endif
  if (p.dtype == DType::f64)
    run(Type<double>{});
  else
    run(Type<float>{});
}

}  // namespace rf::RF_ISA
