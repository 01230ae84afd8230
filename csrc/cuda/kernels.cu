// SPDX-License-Identifier: BSD-3-Clause
#include "device.h"
#include "kernels_cuda.h"

namespace rf::cuda {

extern const KernelsOn<Stream> kernels;
const KernelsOn<Stream> kernels = {gaussian, uniform, cross_covariance, sample_project_align};

int toolkit_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace rf::cuda
