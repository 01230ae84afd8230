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

// Splits x into what tf32 keeps of it and what tf32 keeps of the rest. Together they are x to 2^-22, for |x| below
// 2^80. An infinite x becomes a finite number with an infinite rest, so that its products have the right sign.
RF_DEVICE void split(float x, uint32_t& high, uint32_t& low) {
  high = to_tf32(fminf(fmaxf(x, -0x1p80f), 0x1p80f));
  low = to_tf32(x - __uint_as_float(high));
}

// Splits two numbers, side by side in one word: `high` has the nearest numbers in bf16, `rest` the numbers in bf16
// nearest to what is left.
RF_DEVICE void split_pair(float a, float b, uint32_t& high, uint32_t& rest) {
  high = pack_bf16(a, b);
  rest = pack_bf16(a - __uint_as_float(high << 16), b - __uint_as_float(high & 0xffff0000u));
}

// How float32 numbers are multiplied at a precision below the highest: as one bf16 number, or as the sum of two, where
// the product of both second ones is left out. An infinite number may give NaN.
template <int N>
struct InTerms {};
RF_DEVICE void split_pair(float a, float b, uint32_t (&terms)[1]) { terms[0] = pack_bf16(a, b); }
RF_DEVICE void split_pair(float a, float b, uint32_t (&terms)[2]) { split_pair(a, b, terms[0], terms[1]); }

}  // namespace rf::cuda
