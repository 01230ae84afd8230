// SPDX-License-Identifier: BSD-3-Clause
// Kernels that are not written yet.
#include <stdexcept>

#include "../../csrc/cuda/kernels_cuda.h"

namespace rf::cuda {

#define RF_ABSENT __attribute__((weak))
RF_ABSENT void cross_covariance(double*, int64_t, Side, Sides, bool, Activation, double, Stream) {
  throw std::runtime_error("cross_covariance is not in this build");
}
RF_ABSENT void sample_project_align(void*, DType, int64_t, int64_t, Samples, Address, double, Stream) {
  throw std::runtime_error("sample_project_align is not in this build");
}
RF_ABSENT void random_features(Samples, const Features&, Stream) {
  throw std::runtime_error("random_features is not in this build");
}
RF_ABSENT void random_features_covariance(double*, double*, double*, Samples, const Features&, Stream) {
  throw std::runtime_error("random_features_covariance is not in this build");
}
RF_ABSENT void random_features_projection(Projections, const Features&, Stream) {
  throw std::runtime_error("random_features_projection is not in this build");
}

}  // namespace rf::cuda
