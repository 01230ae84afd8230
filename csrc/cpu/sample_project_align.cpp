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
  const auto multiply = [&](const auto& epilogue) {
    product_prepacked<T>(n, p.channels, columns, left, ChannelPacker<T>{merged(p)}, epilogue, threads, products);
  };
  typedef Sum<T> S;
  const S factor = static_cast<S>(scale);
  if (dtype == (sizeof(S) == 8 ? DType::f64 : DType::f32))
    multiply(Store<S, S>{static_cast<S*>(out), ld, factor});
  else
    multiply(StoreAs<S>{out, dtype, ld, factor});
}

}  // namespace

void sample_project_align(void* out, DType dtype, int64_t n, int64_t ld, Samples p, DType generated, Address at,
                          double scale, Precision precision, int threads) {
  // A G of bfloat16 numbers has one term.
  const bool once = precision == Precision::high && generated == DType::bf16;
  const Products products = once ? Products{2} : products_of(precision);
  const auto run = [&]<class T>(Type<T>) {
    if constexpr (kOwn<T>)
      multiply_rows<T>(out, dtype, n, ld, p, generated, at, scale, products, threads);
    else
      vectors::sample_project_align(out, dtype, n, ld, p, generated, at, scale, precision, threads);
  };
#if defined(__AVX512BF16__)
  if (p.dtype == DType::bf16) return run(Type<bf16_pair>{});
#endif
  with_products(p.dtype, run);
}

}  // namespace rf::RF_ISA
