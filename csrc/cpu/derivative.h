// SPDX-License-Identifier: BSD-3-Clause
// The derivatives of the non-linearities. On vectors of floats they use the polynomials of activation.h. At a corner
// they are what rainbow_fast/ops/activations.py says.
#pragma once

#include "activation.h"

namespace rf::RF_ISA {

RF_INLINE vf tanh_derivative(vf x) {
  const vf e = exp_negative(-2.0f * magnitude(x)), below = 1.0f + e;
  return 4.0f * e / (below * below);
}

RF_INLINE vf erf_derivative(vf x) {
  const vf a = magnitude(x), z = select(a > 13.0f, vf{} + 13.0f, a);
  const vf high = (vf)((vu)z & 0xfffff000u), low = z - high;
  const vf value = times(vf{} + 0x1.20dd76p+0f, exponential(-high * high, -low * (z + high)));
  return select(a > 13.0f, vf{}, value);
}

// Phi(x) + x Phi'(x). The value at -x is one minus the value at x.
RF_INLINE vf gelu_derivative(vf x) {
  const vf a = magnitude(x), z = select(a > 14.5f, vf{} + 14.5f, a);
  vf lost;
  const vf factor = 0.5f * scaled_erfc(z, lost);
  Exponential e = exp_minus_half_square(z);
  const vf density = times(z * 0x1.988454p-2f, e);
  e.rest += lost;
  const vf negative = select(a > 14.5f, x * 0.0f, times(factor, e) - density);
  return select(x < 0.0f, negative, 1.0f - negative);
}

// t (1 + x (1 - t)), t = 1 / (1 + e^-x)
RF_INLINE vf silu_derivative(vf x) {
  const vf e = exp_negative(-magnitude(x)), large = 1.0f / (1.0f + e), small = e * large;
  const vf t = select(x < 0.0f, small, large), rest = select(x < 0.0f, large, small);
  return t * fma(select(small == 0.0f, vf{}, x), rest, vf{} + 1.0f);
}

// values[i] = scale * f'(values[i])
static inline void differentiate(float* values, int64_t count, Activation activation, double slope, double scale) {
  const float s = static_cast<float>(scale), a = static_cast<float>(slope);
  switch (activation) {
    case Activation::identity:
      return map(values, count, s, [](vf) { return vf{} + 1.0f; });
    case Activation::relu:
    case Activation::leaky_relu: {
      const float below = activation == Activation::relu ? 0.0f : a;
      return map(values, count, s, [below](vf x) { return select(x > 0.0f, vf{} + 1.0f, vf{} + below); });
    }
    case Activation::abs:
      return map(values, count, s, [](vf x) { return sign_(x); });
    case Activation::tanh:
      return map(values, count, s, [](vf x) { return tanh_derivative(x); });
    case Activation::erf:
      return map(values, count, s, [](vf x) { return erf_derivative(x); });
    case Activation::gelu:
      return map(values, count, s, [](vf x) { return gelu_derivative(x); });
    case Activation::silu:
      return map(values, count, s, [](vf x) { return silu_derivative(x); });
    case Activation::sign:
    case Activation::step:
      return map(values, count, s, [](vf) { return vf{}; });
    case Activation::cos:
      return map(values, count, s, [](vf x) { return cosine<1>(x); });
  }
}

static inline void differentiate(double* values, int64_t count, Activation activation, double a, double s) {
  constexpr double half_root = 0.70710678118654752440;
  switch (activation) {
    case Activation::identity:
      return map(values, count, s, [](double) { return 1.0; });
    case Activation::relu:
      return map(values, count, s, [](double x) { return x > 0 ? 1.0 : 0.0; });
    case Activation::abs:
      return map(values, count, s, [](double x) { return x > 0 ? 1 : x < 0 ? -1 : x; });
    case Activation::leaky_relu:
      return map(values, count, s, [a](double x) { return x > 0 ? 1 : a; });
    case Activation::tanh:
      return map(values, count, s, [](double x) {
        const double t = ::tanh(x);
        return (1 - t) * (1 + t);
      });
    case Activation::erf:
      return map(values, count, s, [](double x) { return 1.12837916709551257390 * ::exp(-x * x); });
    case Activation::gelu:
      return map(values, count, s, [](double x) {
        return 0.5 * ::erfc(-x * half_root) + 0.39894228040143267794 * x * ::exp(-0.5 * x * x);
      });
    case Activation::silu:
      return map(values, count, s, [](double x) {
        const double e = ::exp(-::fabs(x)), large = 1 / (1 + e), small = e * large, y = small == 0 ? 0 : x;
        return x < 0 ? small * (1 + y * large) : large * (1 + y * small);
      });
    case Activation::sign:
    case Activation::step:
      return map(values, count, s, [](double) { return 0.0; });
    case Activation::cos:
      return map(values, count, s, [](double x) { return -::sin(x); });
  }
}

}  // namespace rf::RF_ISA
