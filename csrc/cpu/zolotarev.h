// SPDX-License-Identifier: BSD-3-Clause
// Zolotarev's rational function x (1 + sum_j weight_j / (x^2 + pole_j)), of type (2 r + 1, 2 r) for r poles. Among
// these functions it is nearest to a constant on [l, 1]. With one pole it is the step of QDWH. Source: Nakatsukasa and
// Freund, SIAM Review 58 (2016), 461-493.
#pragma once

#include <math.h>

#include "pack.h"

namespace rf::RF_ISA {

constexpr int kMostPoles = 4;

struct Rational {
  int count;
  double pole[kMostPoles], weight[kMostPoles];
  double scale;  // multiplies the whole function

  double of(double x) const {
    double sum = 1;
    for (int j = 0; j < count; ++j) sum += weight[j] / (x * x + pole[j]);
    return scale * x * sum;
  }
};

// On [l, 1] the function has its least value at l and its largest value at 1. It is scaled so that the largest value is
// 1.
static Rational zolotarev(double l, int count) {
  // Jacobi's sn / cn at i K' / (2 r + 1), complementary modulus l, by descending Landen transformations
  double a[32], c[32], b = l;
  int n = 0;
  a[0] = 1;
  c[0] = sqrt(1 - l * l);
  for (; n < 31 && c[n] > 1e-17; ++n) {
    a[n + 1] = (a[n] + b) / 2;
    c[n + 1] = (a[n] - b) / 2;
    b = sqrt(a[n] * b);
  }
  double node[2 * kMostPoles];
  for (int i = 0; i < 2 * count; ++i) {
    double angle = ldexp(M_PI / 2, n) * (i + 1) / (2 * count + 1);
    for (int m = n; m > 0; --m) angle = (angle + asin(c[m] / a[m] * sin(angle))) / 2;
    node[i] = l * l * tan(angle) * tan(angle);
  }
  Rational f{count, {}, {}, 1};
  for (int j = 0; j < count; ++j) {
    const double pole = node[2 * j];
    double weight = -1;
    for (int k = 0; k < count; ++k) {
      weight *= pole - node[2 * k + 1];
      if (k != j) weight /= pole - node[2 * k];
    }
    f.pole[j] = pole;
    f.weight[j] = weight;
  }
  f.scale = 1 / f.of(1);
  return f;
}

// The function with the fewest poles whose values on [l, 1] are within `deviation` of 1, or with kMostPoles.
static Rational to_one(double l, double deviation) {
  Rational f = zolotarev(l, 1);
  for (int count = 2; (1 - f.of(l)) / 2 > deviation && count <= kMostPoles; ++count) f = zolotarev(l, count);
  f.scale *= 2 / (1 + f.of(l));
  return f;
}

}  // namespace rf::RF_ISA
