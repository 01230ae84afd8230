// SPDX-License-Identifier: BSD-3-Clause
// The caches of the machine. Kernels take the sizes of their blocks from them: they change the speed, and no bits.
#pragma once

#include <cstdint>

namespace rf {

// Bytes that one core has: its first-level data cache, its second-level cache, and its share of the third-level cache.
struct Caches {
  int64_t first, second, third;
};

Caches caches();
// Makes the kernels believe in other caches, from the next call on.
void set_caches(Caches other);

}  // namespace rf
