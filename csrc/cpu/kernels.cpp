// SPDX-License-Identifier: BSD-3-Clause
#include "kernels_cpu.h"

namespace rf::RF_ISA {

extern const Kernels kernels;
const Kernels kernels = {{gaussian, uniform, cross_covariance, sample_project_align},
                         random_features,
                         random_features_covariance,
                         random_features_projection,
                         patch_covariance,
                         polar,
                         polar_multiply,
                         random_features_gradient,
                         wavelet_modulus,
                         wavelet_modulus_gradient};

}  // namespace rf::RF_ISA
