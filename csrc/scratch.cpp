// SPDX-License-Identifier: BSD-3-Clause
// Scratch memory, compiled once: an instruction-set level's objects hold no code that another level could call.
#include <cstdlib>
#include <new>

#include "kernels.h"

namespace rf {

Scratch::Scratch(int64_t bytes) : data_(std::aligned_alloc(64, (static_cast<size_t>(bytes) + 127) / 64 * 64)) {
  if (data_ == nullptr) throw std::bad_alloc();
}

Scratch::~Scratch() { std::free(data_); }

}  // namespace rf
