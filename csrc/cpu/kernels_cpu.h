// SPDX-License-Identifier: BSD-3-Clause
// The kernels of one instruction-set level. Their types are those of the table that kernels.cpp fills with them.
#pragma once

#include "../kernels.h"

namespace rf {

#define RF_KERNELS_OF_PRODUCTS                             \
  __typeof__(*Kernels::cross_covariance) cross_covariance; \
  __typeof__(*Kernels::sample_project_align) sample_project_align;

#define RF_KERNELS_OF_FLOATS                                                   \
  __typeof__(*Kernels::polar) polar;                                           \
  __typeof__(*Kernels::polar_multiply) polar_multiply;                         \
  __typeof__(*Kernels::random_features) random_features;                       \
  __typeof__(*Kernels::random_features_covariance) random_features_covariance; \
  __typeof__(*Kernels::random_features_projection) random_features_projection; \
  __typeof__(*Kernels::random_features_gradient) random_features_gradient;

#define RF_KERNELS_OF_VECTORS                              \
  __typeof__(*Kernels::gaussian) gaussian;                 \
  __typeof__(*Kernels::uniform) uniform;                   \
  __typeof__(*Kernels::patch_covariance) patch_covariance; \
  __typeof__(*Kernels::wavelet_modulus) wavelet_modulus;   \
  __typeof__(*Kernels::wavelet_modulus_gradient) wavelet_modulus_gradient;

// A level above avx512 has its own products of pairs of bfloat16 numbers, and of floats if it has a matrix unit. It
// takes everything else from avx512, which is called `vectors` on every level.
#if defined(__AVX512BF16__)
namespace avx512 {
RF_KERNELS_OF_PRODUCTS RF_KERNELS_OF_FLOATS RF_KERNELS_OF_VECTORS
}  // namespace avx512
namespace RF_ISA {
namespace vectors = avx512;
using namespace avx512;
RF_KERNELS_OF_PRODUCTS
#if defined(RF_MATRIX_UNIT)
RF_KERNELS_OF_FLOATS
#endif
}  // namespace RF_ISA
#else
namespace RF_ISA {
namespace vectors = RF_ISA;
RF_KERNELS_OF_PRODUCTS RF_KERNELS_OF_FLOATS RF_KERNELS_OF_VECTORS
}  // namespace RF_ISA
#endif
#undef RF_KERNELS_OF_PRODUCTS
#undef RF_KERNELS_OF_FLOATS
#undef RF_KERNELS_OF_VECTORS

}  // namespace rf
