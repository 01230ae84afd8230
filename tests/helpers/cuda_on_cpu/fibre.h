// SPDX-License-Identifier: BSD-3-Clause
// Fibres: stacks that take turns on one thread. make_fibre returns a context, and switch_fibre stores one.
#pragma once

#include <cstdint>
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace rf::cuda::emulated {

#ifdef __x86_64__

// Continues in `to`, and stores in *from where to continue later: the stack, with the registers that a call preserves
// on it.
extern "C" void rf_switch_fibre(void** from, void* to);
asm(R"(
.text
.type rf_switch_fibre, @function
.hidden rf_switch_fibre
.globl rf_switch_fibre
rf_switch_fibre:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size rf_switch_fibre, . - rf_switch_fibre
)");

inline void switch_fibre(void** from, void* to) { rf_switch_fibre(from, to); }

// A fibre that begins with `start`, which must not return. Its stack ends at `top` (aligned to 64 bytes).
inline void* make_fibre(void* top, void (*start)()) {
  uint64_t* const end = static_cast<uint64_t*>(top);
  end[-1] = 0;  // the address that start would return to
  end[-2] = reinterpret_cast<uint64_t>(start);
  for (int i = 3; i <= 8; ++i) end[-i] = 0;
  return end - 8;
}

#else

inline void switch_fibre(void** from, void* to) {
  ucontext_t here;
  *from = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}

inline void* make_fibre(void* top, void (*start)()) {
  constexpr uint64_t kStack = 128 * 1024;
  ucontext_t* const context = static_cast<ucontext_t*>(top) - 1;
  getcontext(context);
  context->uc_link = nullptr;
  context->uc_stack.ss_sp = reinterpret_cast<unsigned char*>(context) - kStack;
  context->uc_stack.ss_size = kStack;
  makecontext(context, start, 0);
  return context;
}

#endif

}  // namespace rf::cuda::emulated
