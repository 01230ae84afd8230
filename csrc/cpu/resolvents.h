// SPDX-License-Identifier: BSD-3-Clause
// Rational functions of a symmetric matrix R by its resolvents (R + pole)^-1. All matrices are d x d and have the row
// stride of R.
#pragma once

#include "cholesky.h"
#include "zolotarev.h"

namespace rf::RF_ISA {

// y = (r + pole)^-1, from the upper triangle of r. Returns false if r + pole is not positive definite.
template <class T>
static bool resolvent(Strided<T> r, double pole, Strided<T> y, int64_t d, int threads) {
  for_each(d, threads, [&](int64_t i) {
    for (int64_t j = i * r.s_row; j < i * r.s_row + d; ++j) y.data[j] = r.data[j];
    y.data[i * r.s_row + i] += static_cast<T>(pole);
  });
  if (!factor(y, d, threads)) return false;
  invert_factored(y, d, threads);
  return true;
}

// y[0], y[1], ... = (r + pole)^-1 for each pole of f. Each thread computes one of them as long as there is one for
// every thread; then all threads share each of the rest.
template <class T>
static bool resolvents(Strided<T> r, const Rational& f, const Strided<T>* y, int64_t d, int threads) {
  const int alone = threads == 1 ? 0 : f.count / threads * threads;
  bool right[kMostPoles];
  for_each(alone, threads, [&](int64_t p) { right[p] = resolvent(r, f.pole[p], y[p], d, 1); });
  for (int p = alone; p < f.count; ++p) right[p] = resolvent(r, f.pole[p], y[p], d, threads);
  bool all = true;
  for (int p = 0; p < f.count; ++p) all = all && right[p];
  return all;
}

// Combines the resolvents y: y[0] becomes Z(R), where f(x) = x Z(x^2), and y[1] becomes R Z(R) if `product`. This takes
// no matrix product, since R (R + pole)^-1 = 1 - pole (R + pole)^-1.
template <class T>
static void combine(Strided<T> r, const Rational& f, const Strided<T>* y, int64_t d, bool product, int threads) {
  constexpr int W = kWidth<T>;
  const int64_t ld = r.s_row;
  T weight[kMostPoles], shifted[kMostPoles], scale = static_cast<T>(f.scale);
  double at_zero = 0;
  for (int p = 0; p < f.count; ++p) {
    weight[p] = static_cast<T>(f.weight[p]);
    shifted[p] = static_cast<T>(f.pole[p]);
    at_zero += f.weight[p];
  }
  for_each(d, threads, [&](int64_t i) {
    for (int64_t j = i * ld; j < i * ld + d; j += W) {
      Full<T> z = {}, w = {};
      if (product) w = load<T, W>(r.data + j);
      for (int p = 0; p < f.count; ++p) {
        const Full<T> term = weight[p] * load<T, W>(y[p].data + j);
        z += term;
        w -= shifted[p] * term;
      }
      store<T, W>(y[0].data + j, scale * z);
      if (product) store<T, W>(y[1].data + j, scale * w);
    }
    y[0].data[i * ld + i] += scale;
    if (product) y[1].data[i * ld + i] += scale * static_cast<T>(at_zero);
  });
}

}  // namespace rf::RF_ISA
