// SPDX-License-Identifier: BSD-3-Clause
// The element types, and what turns one into another.
#pragma once

#include "device.h"

namespace rf::cuda {

typedef __nv_bfloat16 bf16;
typedef __half f16;

template <class T>
struct Type {};

// Calls f with the type that a DType names.
template <class F>
void with_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f32:
      return f(Type<float>{});
    case DType::f64:
      return f(Type<double>{});
    case DType::bf16:
      return f(Type<bf16>{});
    case DType::f16:
      return f(Type<f16>{});
  }
}

// Four numbers that are stored at once.
template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Four {
  T values[4];
};

// Rounded to nearest even.
template <class T>
RF_DEVICE T to(float x) {
  if constexpr (sizeof(T) == 2) {
    if constexpr (__is_same(T, bf16))
      return __float2bfloat16_rn(x);
    else
      return __float2half_rn(x);
  } else
    return static_cast<T>(x);
}

RF_DEVICE float widen(float x) { return x; }
RF_DEVICE double widen(double x) { return x; }
RF_DEVICE float widen(bf16 x) { return __bfloat162float(x); }
RF_DEVICE float widen(f16 x) { return __half2float(x); }

// What tf32 keeps of x, and what it keeps of the rest: x to 2^-22, where it is below 2^80. An infinity is the rest of a
// finite number, so that its products have the right sign.
RF_DEVICE void split(float x, uint32_t& high, uint32_t& low) {
  high = to_tf32(fminf(fmaxf(x, -0x1p80f), 0x1p80f));
  low = to_tf32(x - __uint_as_float(high));
}

// Two numbers side by side: their nearest in bf16, and those of what is left.
RF_DEVICE void split_pair(float a, float b, uint32_t& high, uint32_t& rest) {
  high = pack_bf16(a, b);
  rest = pack_bf16(a - __uint_as_float(high << 16), b - __uint_as_float(high & 0xffff0000u));
}

}  // namespace rf::cuda
