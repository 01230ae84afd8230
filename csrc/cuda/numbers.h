// SPDX-License-Identifier: BSD-3-Clause
// The element types, and the conversions between them.
#pragma once

#include "device.h"

namespace rf::cuda {

typedef __nv_bfloat16 bf16;
typedef __half f16;

template <class T>
struct Type {};

// Calls f(Type<T>{}) with the type T that `dtype` names.
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

// x rounded to nearest even.
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

}  // namespace rf::cuda
