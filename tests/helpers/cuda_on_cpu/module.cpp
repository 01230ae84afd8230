// SPDX-License-Identifier: BSD-3-Clause
// What csrc/bind.cpp needs besides the kernels of CUDA, and functions that only tests call.
#include "../../../csrc/kernels.h"
#include "machine.h"

namespace rf::baseline {
const Kernels kernels = {};  // no kernel of the CPU here
}

extern "C" __attribute__((visibility("default"))) void rf_set_order(unsigned seed) {
  rf::cuda::emulated::set_order(seed);
}

extern "C" __attribute__((visibility("default"))) void rf_set_most_shared(int64_t bytes) {
  rf::cuda::emulated::most_shared = bytes;
}
