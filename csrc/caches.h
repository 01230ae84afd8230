// SPDX-License-Identifier: BSD-3-Clause
// The sizes of the caches of the machine, from which kernels choose block sizes. They change the speed, and no bits.
#pragma once

#include <cstdint>

namespace rf {

// Bytes: the second-level cache, and the third-level cache divided by the logical CPUs that share it.
struct Caches {
  int64_t second, third;
};

Caches caches();
// Replaces the sizes, from the next call of a kernel on.
void set_caches(Caches other);

}  // namespace rf
