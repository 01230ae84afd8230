// SPDX-License-Identifier: BSD-3-Clause
// The kernels of one instruction-set level. Their types are those of the table that kernels.cpp fills with them.
#pragma once

#include "../kernels.h"

namespace rf::RF_ISA {

__typeof__(*Kernels::cross_covariance) cross_covariance;
__typeof__(*Kernels::polar) polar;
__typeof__(*Kernels::polar_multiply) polar_multiply;
__typeof__(*Kernels::sample_project_align) sample_project_align;
__typeof__(*Kernels::random_features) random_features;
__typeof__(*Kernels::random_features_covariance) random_features_covariance;
__typeof__(*Kernels::random_features_projection) random_features_projection;
__typeof__(*Kernels::random_features_gradient) random_features_gradient;

}  // namespace rf::RF_ISA

// These kernels have nothing for the matrix unit. Levels with one take those of the level below.
#if defined(RF_MATRIX_UNIT)
namespace rf::avx512_bf16 {
#else
namespace rf::RF_ISA {
#endif

__typeof__(*Kernels::gaussian) gaussian;
__typeof__(*Kernels::uniform) uniform;
__typeof__(*Kernels::patch_covariance) patch_covariance;
__typeof__(*Kernels::wavelet_modulus) wavelet_modulus;
__typeof__(*Kernels::wavelet_modulus_gradient) wavelet_modulus_gradient;

}  // namespace rf::RF_ISA

#if defined(RF_MATRIX_UNIT)
namespace rf::RF_ISA {
using avx512_bf16::gaussian, avx512_bf16::uniform, avx512_bf16::patch_covariance;
using avx512_bf16::wavelet_modulus, avx512_bf16::wavelet_modulus_gradient;
}  // namespace rf::RF_ISA
#endif
