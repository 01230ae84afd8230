// SPDX-License-Identifier: BSD-3-Clause
// The non-linearities. On vectors of floats they are polynomials of our own, at most 4 units in the last place from
// float64 on every level; doubles go through the C library. The polynomials are minimax fits with a relative error
// below 4e-9.
#pragma once

#include <math.h>

#include "pack.h"

namespace rf::RF_ISA {

template <int N>
RF_INLINE vf polynomial(const float (&c)[N], vf x) {
  vf value = vf{} + c[N - 1];
  RF_UNROLL
  for (int k = N - 2; k >= 0; --k) value = fma(value, x, vf{} + c[k]);
  return value;
}

RF_INLINE vf select(vi mask, vf a, vf b) { return mask ? a : b; }
RF_INLINE vf magnitude(vf x) { return (vf)((vu)x & 0x7fffffffu); }
RF_INLINE vf with_sign_of(vf x, vf sign) { return (vf)((vu)x | ((vu)sign & 0x80000000u)); }

// (1 + rest) * half * power. `half` and `power` are powers of two. They are multiplied last, so that a subnormal result
// is rounded only once.
struct Exponential {
  vf rest, half, power;
};

RF_INLINE vf times(vf x, const Exponential& e) { return fma(x, e.rest, x) * e.half * e.power; }

// e^(x + low) for -170 <= x <= 0 and a small low
RF_INLINE Exponential exponential(vf x, vf low) {
  constexpr float p[5] = {0x1.fffffcp-2f, 0x1.55549p-3f, 0x1.5558f6p-5f, 0x1.123a8ep-7f, 0x1.6a2316p-10f};
  constexpr float magic = 0x1.8p23f;
  const vf shifted = (x + low) * 0x1.715476p+0f + magic;
  const vf n = shifted - magic;
  const vf r = fma(n, vf{} - 0x1.63p-1f, x) +  // the high part of ln 2 has 9 bits: its product with n is exact
               fma(n, vf{} + 0x1.bd0106p-13f, low);
  const vi exponent = (vi)shifted - 0x4b400000, half = exponent >> 1;
  return {fma(r * r, polynomial(p, r), r), (vf)((half + 127) << 23), (vf)((exponent - half + 127) << 23)};
}

// e^x for x <= 0; 0 below -104. NaN stays NaN.
RF_INLINE vf exp_negative(vf x) { return times(vf{} + 1.0f, exponential(select(x < -104.0f, vf{} - 104.0f, x), vf{})); }

// e^(-x^2 / 2). x^2 is computed in two parts, so that its rounding does not enter the result.
RF_INLINE Exponential exp_minus_half_square(vf x) {
  const vf high = (vf)((vu)x & 0xfffff000u), low = x - high;
  return exponential(-0.5f * high * high, -0.5f * low * (x + high));
}

// e^(z^2) erfc(z) for 0 <= z <= 10.3, with x = root2 * z. The last rounding of the polynomial is returned in `lost`:
// the result times 1 + lost is more exact.
RF_INLINE vf scaled_erfc(vf x, vf& lost) {
  constexpr float p[10] = {-0x1.88cdp-4f,   -0x1.1382cep-5f, 0x1.777f08p-4f,  -0x1.5971d2p-4f,  0x1.8b9c7ap-5f,
                           -0x1.13b92cp-6f, 0x1.db972ep-10f, 0x1.73a048p-10f, -0x1.1e7392p-11f, -0x1.8accep-13f};
  constexpr float root2 = 0x1.6a09e6p+0f, first = 0x1.c5a32ap-1f, first_low = -0x1.29c2eep-27f;
  const vf t = (x - 3 * root2) / (x + 3 * root2), rest = t * polynomial(p, t), value = first + rest;
  lost = (rest - (value - first) + first_low) * (2 * root2 - 2.0f * value);  // the factor is 1 / value, nearly
  return value / (x + root2 / 2);
}

RF_INLINE vf tanh_(vf x) {
  constexpr float p[5] = {-0x1.555532p-2f, 0x1.110726p-3f, -0x1.b83c5ap-5f, 0x1.52269cp-6f, -0x1.75e1d4p-8f};
  const vf a = magnitude(x), e = exp_negative(-2.0f * a), z = x * x;
  return select(a < 0.625f, fma(x * z, polynomial(p, z), x), with_sign_of((1.0f - e) / (1.0f + e), x));
}

// erf(x) / x, from square = x^2 <= 1
RF_INLINE vf erf_series(vf square) {
  constexpr float p[7] = {0x1.20dd74p+0f, -0x1.81273ep-2f,  0x1.ce2cf8p-4f, -0x1.b7f910p-6f,
                          0x1.5405c0p-8f, -0x1.a3f75ap-11f, 0x1.496b10p-14f};
  return polynomial(p, square);
}

RF_INLINE vf erf_(vf x) {
  const vf a = magnitude(x), z = select(a > 10.0f, vf{} + 10.0f, a);
  vf lost;
  const vf tail = exp_negative(-z * z) * scaled_erfc(z * 0x1.6a09e6p+0f, lost);
  return select(a < 1.0f, x * erf_series(x * x), with_sign_of(1.0f - tail, x));
}

RF_INLINE vf gelu_(vf x) {
  const vf a = magnitude(x), z = select(a > 14.5f, vf{} + 14.5f, a);
  vf lost;
  const vf factor = 0.5f * scaled_erfc(z, lost);
  Exponential e = exp_minus_half_square(z);  // factor * e is Phi(-|x|)
  e.rest += lost;
  const vf near = x * fma(x * 0x1.6a09e6p-2f, erf_series(0.5f * x * x), vf{} + 0.5f);
  const vf negative = select(a > 14.5f, x * 0.0f, times(x * factor, e)), positive = x * (1.0f - times(factor, e));
  return select(a < 0.5f, near, select(x < 0.0f, negative, positive));
}

RF_INLINE vf silu_(vf x) {
  const vf a = magnitude(x), z = select(a > 120.0f, vf{} + 120.0f, a);
  const Exponential e = exponential(-z, vf{});
  const vf below = 1.0f + times(vf{} + 1.0f, e);
  const vf negative = select(a > 120.0f, x * 0.0f, times(x / below, e));
  return select(x < 0.0f, negative, x / below);
}

// cos(x + QUARTERS pi / 2)
template <int QUARTERS>
RF_INLINE vf cosine(vf x) {
  constexpr float sin_[3] = {-0x1.555544p-3f, 0x1.1107p-7f, -0x1.992f58p-13f};
  constexpr float cos_[3] = {0x1.55554ap-5f, -0x1.6c0bf2p-10f, 0x1.99d8d6p-16f};
  typedef Full<double> vd;
  vf r;
  vi quadrant;
  for (int half = 0; half < 2; ++half) {
    const vd wide = __builtin_convertvector(half ? upper_half(x) : lower_half(x), vd);
    const vd shifted = wide * 0x1.45f306dc9c883p-1 + 0x1.8p52, n = shifted - 0x1.8p52;
    const vq integer = (vq)shifted;                                          // n is in its low bits
    const vd rest = wide - n * 0x1.921fb544p+0 - n * 0x1.0b4611a626331p-34;  // n times 33 bits of pi / 2 is exact
    for (int l = 0; l < kLanes / 2; ++l) {
      r[half * kLanes / 2 + l] = static_cast<float>(rest[l]);
      quadrant[half * kLanes / 2 + l] = static_cast<int32_t>(integer[l] + QUARTERS);
    }
  }
  const vf z = r * r;
  const vf s = fma(r * z, polynomial(sin_, z), r), c = fma(z * z, polynomial(cos_, z), 1.0f - 0.5f * z);
  vf y = select((quadrant & 1) != 0, s, c);
  y = (vf)((vu)y ^ ((vu)((quadrant + 1) & 2) << 30));
  for (int l = 0; l < kLanes; ++l)
    if (!(__builtin_fabsf(x[l]) < 0x1p20f)) y[l] = QUARTERS == 0 ? ::cosf(x[l]) : -::sinf(x[l]);  // n has too many bits
  return y;
}

RF_INLINE vf sign_(vf x) {
  return select(x > 0.0f, vf{} + 1.0f, select(x < 0.0f, vf{} - 1.0f, x));  // NaN and zeros stay as they are
}

// values[i] = scale * f(values[i])
template <class F>
RF_INLINE void map(float* values, int64_t count, float scale, F f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store<float, kLanes>(values + i, scale * f(load<float, kLanes>(values + i)));
  if (i == count) return;
  float tail[kLanes] = {};
  for (int64_t l = i; l < count; ++l) tail[l - i] = values[l];
  store<float, kLanes>(tail, scale * f(load<float, kLanes>(tail)));
  for (int64_t l = i; l < count; ++l) values[l] = tail[l - i];
}

template <class F>
RF_INLINE void map(double* values, int64_t count, double scale, F f) {
  for (int64_t i = 0; i < count; ++i) values[i] = scale * f(values[i]);
}

static inline void activate(float* values, int64_t count, Activation activation, double slope, double scale) {
  const float s = static_cast<float>(scale), a = static_cast<float>(slope);
  switch (activation) {
    case Activation::identity:
      return map(values, count, s, [](vf x) { return x; });
    case Activation::relu:
      return map(values, count, s, [](vf x) { return select(x <= 0.0f, vf{}, x); });
    case Activation::abs:
      return map(values, count, s, [](vf x) { return magnitude(x); });
    case Activation::leaky_relu:
      return map(values, count, s, [a](vf x) { return select(x > 0.0f, x, a * x); });
    case Activation::tanh:
      return map(values, count, s, [](vf x) { return tanh_(x); });
    case Activation::erf:
      return map(values, count, s, [](vf x) { return erf_(x); });
    case Activation::gelu:
      return map(values, count, s, [](vf x) { return gelu_(x); });
    case Activation::silu:
      return map(values, count, s, [](vf x) { return silu_(x); });
    case Activation::sign:
      return map(values, count, s, [](vf x) { return sign_(x); });
    case Activation::step:
      return map(values, count, s, [](vf x) { return select(x > 0.0f, vf{} + 1.0f, vf{}); });
    case Activation::cos:
      return map(values, count, s, [](vf x) { return cosine<0>(x); });
  }
}

static inline void activate(double* values, int64_t count, Activation activation, double a, double s) {
  constexpr double half_root = 0.70710678118654752440;
  switch (activation) {
    case Activation::identity:
      return map(values, count, s, [](double x) { return x; });
    case Activation::relu:
      return map(values, count, s, [](double x) { return x <= 0 ? 0 : x; });
    case Activation::abs:
      return map(values, count, s, [](double x) { return ::fabs(x); });
    case Activation::leaky_relu:
      return map(values, count, s, [a](double x) { return x > 0 ? x : a * x; });
    case Activation::tanh:
      return map(values, count, s, [](double x) { return ::tanh(x); });
    case Activation::erf:
      return map(values, count, s, [](double x) { return ::erf(x); });
    case Activation::gelu:
      return map(values, count, s, [](double x) { return 0.5 * x * ::erfc(-x * half_root); });
    case Activation::silu:
      return map(values, count, s, [](double x) { return x / (1 + ::exp(-x)); });
    case Activation::sign:
      return map(values, count, s, [](double x) { return x > 0 ? 1 : x < 0 ? -1 : x; });
    case Activation::step:
      return map(values, count, s, [](double x) { return x > 0 ? 1.0 : 0.0; });
    case Activation::cos:
      return map(values, count, s, [](double x) { return ::cos(x); });
  }
}

// For pairs of bfloat16 the activation is always max(x, 0). NaN stays NaN.
static inline void activate(bf16_pair* values, int64_t count, Activation, double, double) {
  typedef Vector<int16_t, 2 * kLanes> Halves;
  for (int64_t i = 0; i < count; i += kLanes) {
    const Halves x = (Halves)load<bf16_pair, kLanes>(values + i);
    store<bf16_pair, kLanes>(values + i, (vu)(x & ((x > 0) | ((x & 0x7fff) > 0x7f80))));
  }
}

}  // namespace rf::RF_ISA
