// SPDX-License-Identifier: BSD-3-Clause
// The CUDA kernels. Their types are those of the table that kernels.cu fills with them.
#pragma once

#include "../kernels.h"

namespace rf::cuda {

using Table = KernelsOn<Stream>;

__typeof__(*Table::gaussian) gaussian;
__typeof__(*Table::uniform) uniform;
__typeof__(*Table::cross_covariance) cross_covariance;
__typeof__(*Table::sample_project_align) sample_project_align;

}  // namespace rf::cuda
