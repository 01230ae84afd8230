// SPDX-License-Identifier: BSD-3-Clause
// What ThreadSanitizer is told in a build for it (RF_TSAN): each thread of a block is a thread to it, and a switch from
// one to the next orders nothing. Only barriers do, so that a missing one is a data race in whatever order the threads
// run. Shuffles and products order nothing either, as on a GPU. Blocks run one after another and are ordered, so races
// between blocks are not found. In other builds all of this is empty.
//
// Kernels are instrumented. The emulation is not: it touches the memory of all lanes, and says here what a lane does.
#pragma once

#include "machine.h"

#ifdef RF_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fibre, unsigned flags);
void __tsan_acquire(void* object);
void __tsan_release(void* object);
void __tsan_ignore_thread_begin();
void __tsan_ignore_thread_end();
void __tsan_read_range(void* from, unsigned long bytes);
void __tsan_write_range(void* to, unsigned long bytes);
}
#endif

namespace rf::cuda::emulated {

#ifdef RF_TSAN

// Objects that a release and an acquire order. Threads that meet at a barrier again may be there before others have
// left it, so that two objects take turns.
struct Ordering {
  static constexpr unsigned kNoSync = 1;
  void* home = nullptr;
  void* fibres[kMostThreads] = {};
  char begins, ends, of_block[2], of_warp[kMostThreads / kLanes][2];

  void launch(int threads) {
    home = __tsan_get_current_fiber();
    for (int i = 0; i < threads; ++i)
      if (!fibres[i]) fibres[i] = __tsan_create_fiber(0);
  }
  void to(const Lane& lane) { __tsan_switch_to_fiber(fibres[lane.index.x], kNoSync); }
  void to_home() { __tsan_switch_to_fiber(home, kNoSync); }
  void block_begins() { __tsan_release(&begins); }
  void block_ends() { __tsan_acquire(&ends); }
  void lane_begins() { __tsan_acquire(&begins); }
  void lane_ends() { __tsan_release(&ends); }
  // What the last lane does for all of a warp, in the registers of the others.
  void performs() { __tsan_ignore_thread_begin(); }
  void performed() { __tsan_ignore_thread_end(); }
  char* object(const Lane& lane, const Collective& what) {
    if (&what == &block_barrier) return &of_block[lane.block_barriers % 2];
    if (&what == &warp_barrier) return &of_warp[lane.index.x / kLanes][lane.warp_barriers % 2];
    return nullptr;
  }
  void arrives(const Lane& lane, const Collective& what) {
    if (char* const met = object(lane, what)) __tsan_release(met);
  }
  void leaves(Lane& lane, const Collective& what) {
    if (char* const met = object(lane, what)) __tsan_acquire(met);
    lane.block_barriers += &what == &block_barrier;
    lane.warp_barriers += &what == &warp_barrier;
  }
};
inline void lane_reads(const void* from, int bytes) {
  __tsan_read_range(const_cast<void*>(from), static_cast<unsigned long>(bytes));
}
inline void lane_writes(void* to, int bytes) { __tsan_write_range(to, static_cast<unsigned long>(bytes)); }

#else

struct Ordering {
  void launch(int) {}
  void to(const Lane&) {}
  void to_home() {}
  void block_begins() {}
  void block_ends() {}
  void lane_begins() {}
  void lane_ends() {}
  void performs() {}
  void performed() {}
  void arrives(const Lane&, const Collective&) {}
  void leaves(Lane&, const Collective&) {}
};
inline void lane_reads(const void*, int) {}
inline void lane_writes(void*, int) {}

#endif

}  // namespace rf::cuda::emulated
