// SPDX-License-Identifier: BSD-3-Clause
// The non-linearities on a GPU, a few units in the last place from float64. They are CUDA's functions, except for a
// cosine of our own, whose reduction of the angle needs no local memory. At zeros, infinities and NaN they agree with
// plain PyTorch.
#pragma once

#include "../compiler.h"
#include "device.h"

namespace rf::cuda {

// An angle less the nearest multiple of pi / 2; `quarters` is this multiple.
template <class F>
struct Angle {
  F rest;
  int quarters;
};

// Reduces |x| >= 1, as exactly as float64 can hold it. The table is 2 / pi: a word before the point, and 1,216 bits
// after it. Only those bits matter whose products with x are not multiples of whole turns.
RF_DEVICE Angle<double> reduce_far(double x) {
  static __constant__ const uint64_t two_over_pi[20] = {
      0x0000000000000000u, 0xa2f9836e4e441529u, 0xfc2757d1f534ddc0u, 0xdb6295993c439041u, 0xfe5163abdebbc561u,
      0xb7246e3a424dd2e0u, 0x06492eea09d1921cu, 0xfe1deb1cb129a73eu, 0xe88235f52ebb4484u, 0xe99c7026b45f7e41u,
      0x3991d639835339f4u, 0x9c845f8bbdf9283bu, 0x1ff897ffde05980fu, 0xef2f118b5a0a6d1fu, 0x6d367ecf27cb09b7u,
      0x4f463f669e5fea2du, 0x7527bac7ebe5f17bu, 0x3d0739f78a5292eau, 0x6bfb5fb11f8d5d08u, 0x56033046fc7b6babu};
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(x));
  const uint64_t mantissa = (bits & 0xfffffffffffffu) | 0x10000000000000u;
  const int first = static_cast<int>(bits >> 52 & 0x7ff) - 1075 - 2 + 64, word = first >> 6, shift = first & 63;
  uint64_t part[3];  // of 2 / pi: two bits before the point and 190 after it
  RF_UNROLL
  for (int k = 0; k < 3; ++k)
    part[k] =
        shift == 0 ? two_over_pi[word + k] : two_over_pi[word + k] << shift | two_over_pi[word + k + 1] >> (64 - shift);
  const uint64_t carried = __umul64hi(mantissa, part[2]), low = mantissa * part[1] + carried;
  const uint64_t high = mantissa * part[0] + __umul64hi(mantissa, part[1]) + (low < carried ? 1 : 0);
  const uint64_t quarters = (high + (uint64_t{1} << 61)) >> 62;
  const int64_t rest = static_cast<int64_t>(high - (quarters << 62));
  return {(static_cast<double>(rest) * 0x1p-62 + static_cast<double>(low) * 0x1p-126) * 0x1.921fb54442d18p+0,
          static_cast<int>(quarters)};
}

RF_DEVICE float cosine(float x) {
  constexpr float sin_[3] = {-0x1.555544p-3f, 0x1.1107p-7f, -0x1.992f58p-13f};
  constexpr float cos_[3] = {0x1.55554ap-5f, -0x1.6c0bf2p-10f, 0x1.99d8d6p-16f};
  const float a = fabsf(x);
  Angle<float> angle;
  if (a < 0x1p16f) {
    const float shifted = a * 0x1.45f306p-1f + 0x1.8p23f, n = shifted - 0x1.8p23f;
    float r = __fmaf_rn(n, -0x1.921fb6p+0f, a);  // exact
    r = __fmaf_rn(n, 0x1.777a5cp-25f, r);
    angle = {__fmaf_rn(n, 0x1.ee59dap-50f, r), static_cast<int>(__float_as_uint(shifted))};
  } else {
    if (!(a < __uint_as_float(0x7f800000u))) return x - x;
    const Angle<double> far = reduce_far(a);
    angle = {static_cast<float>(far.rest), far.quarters};
  }
  const float r = angle.rest, z = r * r;
  const float s = __fmaf_rn(r * z, __fmaf_rn(__fmaf_rn(sin_[2], z, sin_[1]), z, sin_[0]), r);
  const float c = __fmaf_rn(z * z, __fmaf_rn(__fmaf_rn(cos_[2], z, cos_[1]), z, cos_[0]), 1.0f - 0.5f * z);
  const float y = (angle.quarters & 1) != 0 ? s : c;
  return ((angle.quarters + 1) & 2) != 0 ? -y : y;
}

RF_DEVICE double cosine(double x) {
  const double a = fabs(x);
  Angle<double> angle;
  if (a < 0x1p20) {
    const double shifted = a * 0x1.45f306dc9c883p-1 + 0x1.8p52, n = shifted - 0x1.8p52;
    double r = __fma_rn(n, -0x1.921fb54442d18p+0, a);
    r = __fma_rn(n, -0x1.1a62633145c07p-54, r);
    angle = {__fma_rn(n, 0x1.f1976b7ed8fbcp-110, r), static_cast<int>(__double_as_longlong(shifted))};
  } else {
    if (!(a < __longlong_as_double(0x7ff0000000000000))) return x - x;
    angle = reduce_far(a);
  }
  // Taylor's series: the terms that are left out are below 3e-18.
  constexpr double sin_[8] = {-1.0 / 6,        1.0 / 120,        -1.0 / 5040,          1.0 / 362880,
                              -1.0 / 39916800, 1.0 / 6227020800, -1.0 / 1307674368000, 1.0 / 355687428096000};
  constexpr double cos_[7] = {1.0 / 24,        -1.0 / 720,         1.0 / 40320,         -1.0 / 3628800,
                              1.0 / 479001600, -1.0 / 87178291200, 1.0 / 20922789888000};
  const double r = angle.rest, z = r * r;
  double s = sin_[7], c = cos_[6];
  RF_UNROLL
  for (int k = 6; k >= 0; --k) s = __fma_rn(s, z, sin_[k]);
  RF_UNROLL
  for (int k = 5; k >= 0; --k) c = __fma_rn(c, z, cos_[k]);
  const double y = (angle.quarters & 1) != 0 ? __fma_rn(r * z, s, r) : __fma_rn(z * z, c, 1.0 - 0.5 * z);
  return ((angle.quarters + 1) & 2) != 0 ? -y : y;
}

RF_DEVICE float normal_cdf(float x) { return normcdff(x); }
RF_DEVICE double normal_cdf(double x) { return normcdf(x); }

template <class F>
RF_DEVICE F silu(F x) {
  const F e = exp(-fabs(x));
  return (x < 0 ? x * e : x) / (1 + e);
}

// sigma(x); the order is that of ACTIVATIONS in rainbow_fast/ops/activations.py
template <class F>
RF_DEVICE F activate(F x, Activation activation, F negative_slope) {
  switch (activation) {
    case Activation::identity:
      return x;
    case Activation::relu:
      return x <= 0 ? 0 : x;
    case Activation::abs:
      return fabs(x);
    case Activation::leaky_relu:
      return x > 0 ? x : negative_slope * x;
    case Activation::tanh:
      return tanh(x);
    case Activation::erf:
      return erf(x);
    case Activation::gelu:
      return x * normal_cdf(x);
    case Activation::silu:
      return silu(x);
    case Activation::sign:
      return x > 0 ? 1 : x < 0 ? -1 : x;
    case Activation::step:
      return x > 0 ? 1 : 0;
    case Activation::cos:
      return cosine(x);
  }
  return x;
}

}  // namespace rf::cuda
