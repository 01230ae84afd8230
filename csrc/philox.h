// SPDX-License-Identifier: BSD-3-Clause
// The definition of G, version 1: Philox4x32-10 and a Box-Muller transform made of separately rounded + - * sqrt; and
// of uniform numbers from the same words. `S` says what a lane is: a float and a 32-bit word on a GPU, a vector of them
// on a CPU. The values do not depend on it.
#pragma once

#include <cstdint>

#include "compiler.h"

namespace rf::RF_ISA {

constexpr uint32_t kVersion = 1;
// The purpose of a random number. Kind 1 belongs to `choices` of rainbow_fast/ops/gaussian.py.
constexpr uint32_t kGaussianKind = 0, kUniformKind = 2, kUniformLowKind = 3;

// The last word of the counter of row i.
RF_HOST_DEVICE uint32_t tag(int64_t i, uint32_t kind = kGaussianKind) {
  return kVersion << 28 | kind << 24 | static_cast<uint32_t>(i >> 32);
}

// The keys of the ten rounds, two each.
struct Keys {
  uint32_t words[20];
};

RF_HOST_DEVICE Keys keys_of(int64_t seed) {
  Keys keys{};
  const uint64_t bits = static_cast<uint64_t>(seed);
  RF_UNROLL
  for (uint32_t round = 0; round < 10; ++round) {
    keys.words[2 * round] = static_cast<uint32_t>(bits) + round * 0x9E3779B9u;
    keys.words[2 * round + 1] = static_cast<uint32_t>(bits >> 32) + round * 0xBB67AE85u;
  }
  return keys;
}

template <class S>
struct Philox {
  using Word = typename S::Word;

  // Ten rounds on (c0, c1, c2, c3), in place.
  static RF_HOST_DEVICE void rounds(Word& c0, Word& c1, Word& c2, Word& c3, const Keys& keys) {
    RF_UNROLL
    for (int round = 0; round < 10; ++round) {
      Word high0, low0, high1, low1;
      S::multiply(c0, 0xD2511F53u, high0, low0);
      S::multiply(c2, 0xCD9E8D57u, high1, low1);
      c0 = S::exclusive_or(high1, c1, keys.words[2 * round]);
      c2 = S::exclusive_or(high0, c3, keys.words[2 * round + 1]);
      c1 = low1;
      c3 = low0;
    }
  }
};

template <class S>
struct BoxMuller {
  using F = typename S::F;
  using U = typename S::U;

  template <int N>
  static RF_HOST_DEVICE F polynomial(const float (&c)[N], F x) {
    F value = S::constant(c[N - 1]);
    RF_UNROLL
    for (int k = N - 2; k >= 0; --k) value = S::add(S::mul(value, x), S::constant(c[k]));
    return value;
  }

  // Two normal numbers from two words: a gives the radius; b gives the angle, shifted by an octant, and the signs.
  static RF_HOST_DEVICE void transform(U a, U b, F& g0, F& g1) {
    constexpr float log_[8] = {-0x1.fffffep-1f, 0x1.00007ap-1f, -0x1.5559dcp-2f, 0x1.ff623cp-3f,
                               -0x1.978e2ep-3f, 0x1.614c0cp-3f, -0x1.4c3d10p-3f, 0x1.9dfa6ap-4f};
    constexpr float sin_[4] = {0x1.921fb6p+0f, -0x1.4abbbap-1f, 0x1.465e92p-4f, -0x1.2d9302p-8f};
    constexpr float cos_[4] = {0x1.fffffep-1f, -0x1.3bd38cp+0f, 0x1.03ae64p-2f, -0x1.4e35dap-6f};
    const F v = S::add(S::mul(S::from_unsigned(a), S::constant(0x1p-32f)), S::constant(0x1p-33f));
    const U bits = S::bits(v);
    const U e = S::shift_right_arithmetic(S::subtract(bits, 0x3f3504f3u), 23);
    const F m = S::value(S::subtract(bits, S::shift_left(e, 23)));
    const F f = S::sub(m, S::constant(1.0f));
    const F minus_log = S::add(S::mul(f, polynomial(log_, f)), S::mul(S::from_signed(e), S::constant(-0x1.62e430p-1f)));
    const F radius = S::sqrt(minus_log);
    const F z = S::mul(S::from_signed(S::shift_left(b, 2)), S::constant(0x1p-32f));
    const F z2 = S::mul(z, z);
    const F s = S::mul(polynomial(sin_, z2), z);
    const F c = polynomial(cos_, z2);
    g0 = S::flip(S::mul(radius, S::sub(c, s)), b);
    g1 = S::flip(S::mul(radius, S::add(c, s)), S::shift_left(b, 1));
  }
};

// G[i, 4q .. 4q + 3] for each lane: c0 is q, c1 is i mod 2^32, c2 is the stream, c3 is tag(i).
template <class S>
RF_HOST_DEVICE void gaussian4(typename S::Word c0, typename S::Word c1, typename S::Word c2, typename S::Word c3,
                              const Keys& keys, typename S::F (&g)[4]) {
  Philox<S>::rounds(c0, c1, c2, c3, keys);
  BoxMuller<S>::transform(S::lanes(c0), S::lanes(c1), g[0], g[1]);
  BoxMuller<S>::transform(S::lanes(c2), S::lanes(c3), g[2], g[3]);
}

// (k + 1/2) 2^-BITS for the upper BITS bits k of each word, BITS <= 23. Every operation is exact.
template <class S, int BITS>
RF_HOST_DEVICE typename S::F midpoint(typename S::U word) {
  const auto k = S::from_signed(S::shift_right(word, 32 - BITS));
  return S::mul(S::add(k, S::constant(0.5f)), S::constant(1.0f / (1 << BITS)));
}

}  // namespace rf::RF_ISA
