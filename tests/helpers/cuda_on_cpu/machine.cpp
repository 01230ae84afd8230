// SPDX-License-Identifier: BSD-3-Clause
#include "machine.h"

#include <sys/mman.h>

#include <cstring>
#include <mutex>
#include <numeric>
#include <stdexcept>

#include "fibre.h"
#include "ordering.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes)
#endif

// Where words.h puts every __shared__ variable; null if there is none.
extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __start_rf_shared[], __stop_rf_shared[];

namespace rf::cuda::emulated {

Lane* here;
uint3 block;
dim3 block_size, grid_size;
unsigned char* dynamic_shared;
int64_t most_shared = 163 * 1024;  // an A100's

namespace {

constexpr int64_t kGuard = 4096;
constexpr unsigned char kNan = 0xff, kFence = 0xa5;  // 0xff...: a NaN of every type

const Collective leave = {"the end of the kernel", nullptr};

const char* kernel;
void (*body)(const void*);
const void* argument;
std::string error;
unsigned order;

std::vector<Lane> lanes;
std::vector<Lane*> starts;  // first lanes of the warps, in their order
size_t warp;                // which warp runs
void* home;                 // the context of run()
Ordering ordering;

std::string text(uint3 p) {
  return "(" + std::to_string(p.x) + ", " + std::to_string(p.y) + ", " + std::to_string(p.z) + ")";
}

// The numbers 0 .. count - 1 in some order: start, start + step, ... modulo count.
struct Walk {
  uint64_t count, start = 0, step = 1;

  explicit Walk(uint64_t n) : count(n) {
    if (order == 1) start = step = count - 1;
    if (order > 1) {
      start = order * 0x9e3779b97f4a7c15u % count;
      for (step = order * 0xbf58476d1ce4e5b9u % count; std::gcd(step, count) != 1;) ++step;
    }
  }
  uint64_t operator[](uint64_t i) const {
    return static_cast<uint64_t>((start + static_cast<__uint128_t>(i) * step) % count);
  }
};

void go(void** from, Lane* to) {
  here = to;
  ordering.to(*to);
  switch_fibre(from, to->context);
}

void go_home(void** from) {
  ordering.to_home();
  switch_fibre(from, home);
}

void diverged(const Lane& a, const Lane& b) {
  here = const_cast<Lane*>(&b);
  fail(std::string("is at ") + b.waits_for->name + " while thread " + text(a.index) + " is at " + a.waits_for->name);
}

// Called when the last lane of a warp has arrived.
void end_turn(Lane* last) {
  Lane* const all = last - last->lane();
  const Collective* const what = last->waits_for;
  for (int k = 0; k < kLanes; ++k)
    if (all[k].waits_for != what) return diverged(*last, all[k]);
  if (what != &leave && what != &block_barrier) {
    ordering.performs();
    if (what->perform) what->perform(all);
    ordering.performed();
    return go(&last->context, starts[warp]);
  }
  const Lane& first = *starts[0];
  if (first.waits_for != what) return diverged(first, *last);
  if (++warp < starts.size()) return go(&last->context, starts[warp]);
  warp = 0;
  if (what == &block_barrier) return go(&last->context, starts[0]);
  go_home(&last->context);
}

void fibre() {
  for (;;) {
    ordering.lane_begins();
    body(argument);
    ordering.lane_ends();
    join(leave);
  }
}

// The stacks of the fibres, with a page without access below each. They begin at different lines of a page, because
// lines of one cache set would push each other out of the cache.
class Stacks {
 public:
  void* top(int i) {
    while (static_cast<int>(made_.size()) <= i) {
      void* p = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED || mprotect(p, 4096, PROT_NONE)) throw std::bad_alloc();
      made_.push_back(static_cast<unsigned char*>(p));
    }
    ASAN_UNPOISON_MEMORY_REGION(made_[i], kBytes);
    return made_[i] + kBytes - 64 * (13 * i % 64);
  }

 private:
  static constexpr size_t kBytes = 256 * 1024;
  std::vector<unsigned char*> made_;
};
Stacks stacks;

void make_lanes(int threads) {
  const Walk warps(threads / kLanes), within(kLanes);
  lanes.assign(threads, {});
  starts.clear();
  for (int w = 0; w < threads / kLanes; ++w) {
    Lane* const all = &lanes[warps[w] * kLanes];
    starts.push_back(all + within[0]);
    for (int k = 0; k + 1 < kLanes; ++k) all[within[k]].next = all + within[k + 1];
  }
  for (int i = 0; i < threads; ++i) {
    lanes[i].index = {static_cast<unsigned>(i), 0, 0};
    lanes[i].context = make_fibre(stacks.top(i), fibre);
  }
}

// Shared memory between two fences.
class Shared {
 public:
  explicit Shared(int64_t bytes) : bytes_(bytes), all_(static_cast<size_t>(bytes + 2 * kGuard + 128), kFence) {
    begin_ = all_.data() + kGuard;
    begin_ += -reinterpret_cast<uint64_t>(begin_) % 128;
    dynamic_shared = begin_;
    ASAN_POISON_MEMORY_REGION(all_.data(), begin_ - all_.data());
    ASAN_POISON_MEMORY_REGION(begin_ + bytes_, kGuard);
  }
  ~Shared() { ASAN_UNPOISON_MEMORY_REGION(all_.data(), all_.size()); }

  void poison() const { std::memset(begin_, kNan, static_cast<size_t>(bytes_)); }
  void check() const {
#ifndef __SANITIZE_ADDRESS__
    for (const unsigned char* p : {begin_ - kGuard, begin_ + bytes_})
      for (int64_t i = 0; i < kGuard; ++i)
        if (p[i] != kFence)
          throw std::runtime_error(std::string("CUDA kernel ") + kernel + ", block " + text(block) +
                                   ": writes to byte " + std::to_string(p + i - begin_) + " of " +
                                   std::to_string(bytes_) + " of shared memory");
#endif
  }
  bool holds(const unsigned char* p, int64_t bytes) const { return p >= begin_ && p + bytes <= begin_ + bytes_; }

 private:
  int64_t bytes_;
  std::vector<unsigned char> all_;
  unsigned char* begin_;
};
const Shared* shared;

__attribute__((no_sanitize("address"))) void poison_static_shared() {
  for (unsigned char* p = __start_rf_shared; p < __stop_rf_shared; ++p) *static_cast<volatile unsigned char*>(p) = kNan;
}

}  // namespace

const Collective block_barrier = {"barrier", nullptr};
const Collective warp_barrier = {"warp_barrier", nullptr};

void join(const Collective& collective) {
  Lane* const me = here;
  me->waits_for = &collective;
  ordering.arrives(*me, collective);
  if (me->next)
    go(&me->context, me->next);
  else
    end_turn(me);
  ordering.leaves(*me, collective);
}

void fail(const std::string& what) {
  error =
      std::string("CUDA kernel ") + kernel + ", block " + text(block) + ", thread " + text(here->index) + ": " + what;
  void* dropped;
  go_home(&dropped);
}

void expect_shared(const void* p, int bytes, const char* what) {
  const auto* const at = static_cast<const unsigned char*>(p);
  if (reinterpret_cast<uint64_t>(p) % static_cast<uint64_t>(bytes))
    fail(std::string(what) + " an address that is not aligned to " + std::to_string(bytes) + " bytes");
  if (!shared->holds(at, bytes) && (at < __start_rf_shared || at + bytes > __stop_rf_shared))
    fail(std::string(what) + " an address outside of shared memory");
}

void reads_shared(const void* p, int bytes, const char* what) {
  expect_shared(p, bytes, what);
  lane_reads(p, bytes);
}

// Until a copy has been waited for, its target holds NaN.
void copy_async(void* to, const void* from, int bytes) {
  expect_shared(to, kCopied, "copies to");
  const uint64_t rest = reinterpret_cast<uint64_t>(from) % kCopied;
  if (rest || bytes < 0 || bytes > kCopied)
    fail("copies " + std::to_string(bytes) + " of " + std::to_string(kCopied) + " bytes from an address that is " +
         std::to_string(rest) + " modulo that");
  lane_reads(from, bytes);
  lane_writes(to, kCopied);
  std::memset(to, kNan, kCopied);
  here->copies.push_back({to, from, bytes});
  ++here->in_group;
}

void commit_copies() {
  here->groups.push_back(here->in_group);
  here->in_group = 0;
}

void wait_for_copies(int pending) {
  auto& groups = here->groups;
  const auto done = static_cast<int64_t>(groups.size()) - pending;
  if (done <= 0) return;
  const int count = std::accumulate(groups.begin(), groups.begin() + done, 0);
  auto& copies = here->copies;
  for (auto c = copies.begin(); c < copies.begin() + count; ++c) {
    lane_writes(c->to, kCopied);
    std::memcpy(c->to, c->from, static_cast<size_t>(c->bytes));
    std::memset(static_cast<unsigned char*>(c->to) + c->bytes, 0, static_cast<size_t>(kCopied - c->bytes));
  }
  copies.erase(copies.begin(), copies.begin() + count);
  groups.erase(groups.begin(), groups.begin() + done);
}

void set_order(unsigned seed) { order = seed; }

void run(const char* name, dim3 grid, int threads, int64_t shared_bytes, void (*new_body)(const void*),
         const void* new_argument) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  if (threads <= 0 || threads > kMostThreads || threads % kLanes || shared_bytes < 0 || !grid.x || !grid.y || !grid.z ||
      grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error("rainbow_fast: the CUDA kernel " + std::string(name) + " was not launched: grid " +
                             text({grid.x, grid.y, grid.z}) + ", " + std::to_string(threads) + " threads, " +
                             std::to_string(shared_bytes) + " bytes of shared memory");
  kernel = name;
  body = new_body;
  argument = new_argument;
  error.clear();
  warp = 0;
  grid_size = grid;
  block_size = dim3(static_cast<unsigned>(threads));
  ordering.launch(threads);
  const Shared memory(shared_bytes);
  shared = &memory;
  make_lanes(threads);
  const Walk blocks(static_cast<uint64_t>(grid.x) * grid.y * grid.z);
  for (uint64_t i = 0; i < blocks.count; ++i) {
    const uint64_t b = blocks[i];
    block = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
             static_cast<unsigned>(b / grid.x / grid.y)};
    memory.poison();
    poison_static_shared();
    for (Lane& lane : lanes) {
      lane.copies.clear();
      lane.groups.clear();
      lane.in_group = 0;
    }
    ordering.block_begins();
    go(&home, starts[0]);
    ordering.block_ends();
    if (!error.empty()) throw std::runtime_error(error);
    memory.check();
  }
}

}  // namespace rf::cuda::emulated
