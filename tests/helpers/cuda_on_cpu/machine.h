// SPDX-License-Identifier: BSD-3-Clause
// A GPU on one thread: every thread of a block is a fibre, and the fibres take turns.
//
// The lanes of a warp run one after another. Each runs up to its next collective (a shuffle, a matrix product, a
// barrier). The last lane that arrives performs it for all 32, and the next turn begins. At a barrier of the block the
// next warp runs; after the last warp, the first one runs again. So a warp may run any number of collectives between
// two barriers. It is an error if the lanes do not all arrive at the same one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace rf::cuda::emulated {

constexpr int kLanes = 32, kMostThreads = 1024;  // of a warp, of a block

struct Lane;

// What a warp does together: `perform` receives its 32 lanes.
struct Collective {
  const char* name;
  void (*perform)(Lane* lanes);
};

constexpr int kCopied = 16;  // bytes of a copy

struct Copy {
  void* to;
  const void* from;
  int bytes;  // bytes from `bytes` on are zeros
};

// A thread of the block.
struct Lane {
  void* context;  // where it continues
  Lane* next;     // the next lane of the warp; null: the turn ends with this one
  uint3 index;    // threadIdx
  const Collective* waits_for;
  void* out;  // the result of the collective, in memory of the lane
  const void* in[2];
  int source, bytes;                       // of a shuffle
  std::vector<Copy> copies;                // copies that were not waited for, oldest first
  std::vector<int> groups;                 // number of copies in each committed group
  int in_group;                            // number of copies in the group that is not committed yet
  unsigned block_barriers, warp_barriers;  // number of barriers that it has left

  int lane() const { return static_cast<int>(index.x % kLanes); }
};

extern Lane* here;  // the lane whose turn it is
extern uint3 block;
extern dim3 block_size, grid_size;
extern unsigned char* dynamic_shared;
extern int64_t most_shared;  // bytes of a block

extern const Collective block_barrier, warp_barrier;

// Waits for the other lanes of the warp, or for those of the block at its barrier.
void join(const Collective& collective);

// Ends the launch with an error that names the kernel, the block and the thread.
void fail(const std::string& what);

// Fails unless p is aligned and [p, p + bytes) is shared memory.
void expect_shared(const void* p, int bytes, const char* what);

// As expect_shared, and the lane reads these bytes now.
void reads_shared(const void* p, int bytes, const char* what);

void copy_async(void* shared, const void* global, int bytes);
void commit_copies();
void wait_for_copies(int pending);

// Runs body(argument) in every thread of every block. Throws std::runtime_error.
void run(const char* name, dim3 grid, int threads, int64_t shared_bytes, void (*body)(const void*),
         const void* argument);

// The order of blocks, warps and lanes: 0 forward, 1 backward, otherwise one drawn from this seed.
void set_order(unsigned seed);

}  // namespace rf::cuda::emulated
