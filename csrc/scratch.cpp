// SPDX-License-Identifier: BSD-3-Clause
// Memory, compiled once for all instruction-set levels: the objects of a level must hold no code that another level
// could call.
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <new>

#include "kernels.h"

namespace rf {

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
  constexpr uint64_t page = 4096, least = 4 << 20;
  const uint64_t begin = reinterpret_cast<uint64_t>(data), first = (begin + page - 1) / page * page;
  if (bytes >= static_cast<int64_t>(least))
    madvise(reinterpret_cast<void*>(first), (begin + bytes - first) / page * page, MADV_HUGEPAGE);
#endif
}

void out_of_memory() { throw std::bad_alloc(); }

// Allocates no more than `bytes`, so that the sanitizers see the end of the memory.
Scratch::Scratch(int64_t bytes) {
  if (posix_memalign(&data_, 64, static_cast<size_t>(bytes > 0 ? bytes : 1)) != 0) out_of_memory();
  advise_huge_pages(data_, bytes);
}

Scratch::~Scratch() { std::free(data_); }

}  // namespace rf
