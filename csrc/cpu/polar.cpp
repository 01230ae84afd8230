// SPDX-License-Identifier: BSD-3-Clause
// polar_multiply: the float64 product Q M that carries a polar factor from the short side to the whole matrix. Its Gram
// matrices are cross_covariance's, with columns as samples.
#include "epilogue.h"
#include "kernels_cpu.h"

namespace rf::RF_ISA {

void polar_multiply(const double* q, const double* m, double* out, int64_t rows, int64_t inner, int64_t cols,
                    int threads) {
  const Samples left{const_cast<double*>(q), DType::f64, 1, inner, 1, rows, 0, 1, 0, inner};
  const Samples right{const_cast<double*>(m), DType::f64, 1, cols, 1, inner, 0, 1, 0, cols};
  product_prepacked<double>(rows, cols, inner, Packed<SamplePacker<double>>{{left}}, ChannelPacker<double>{right},
                            Store<double, double>{out, cols, 1.0}, threads);
}

}  // namespace rf::RF_ISA
