// SPDX-License-Identifier: BSD-3-Clause
// The generator on a GPU. A lane of it is a float and a word. Multiplications and additions are never contracted into
// one operation, whatever the compiler's flags.
#pragma once

#include "../philox.h"
#include "device.h"

namespace rf::cuda {

struct DeviceLanes {
  typedef uint32_t Word;
  typedef float F;
  typedef uint32_t U;

  static RF_DEVICE void multiply(Word x, uint32_t m, Word& high, Word& low) {
    const uint64_t product = static_cast<uint64_t>(x) * m;
    high = static_cast<uint32_t>(product >> 32);
    low = static_cast<uint32_t>(product);
  }
  static RF_DEVICE Word exclusive_or(Word a, Word b, uint32_t k) { return a ^ b ^ k; }
  static RF_DEVICE U lanes(Word x) { return x; }

  static RF_DEVICE F constant(float x) { return x; }
  static RF_DEVICE F add(F a, F b) { return __fadd_rn(a, b); }
  static RF_DEVICE F sub(F a, F b) { return __fsub_rn(a, b); }
  static RF_DEVICE F mul(F a, F b) { return __fmul_rn(a, b); }
  static RF_DEVICE F sqrt(F a) { return __fsqrt_rn(a); }
  static RF_DEVICE F from_unsigned(U x) { return __uint2float_rn(x); }
  static RF_DEVICE F from_signed(U x) { return __int2float_rn(static_cast<int>(x)); }
  static RF_DEVICE U bits(F x) { return __float_as_uint(x); }
  static RF_DEVICE F value(U x) { return __uint_as_float(x); }
  static RF_DEVICE U subtract(U a, U b) { return a - b; }
  static RF_DEVICE U shift_left(U x, int n) { return x << n; }
  static RF_DEVICE U shift_right(U x, int n) { return x >> n; }
  static RF_DEVICE U shift_right_arithmetic(U x, int n) { return static_cast<U>(static_cast<int>(x) >> n); }
  static RF_DEVICE F flip(F x, U sign) { return value(bits(x) ^ (sign & 0x80000000u)); }
};

// Where a tile of G begins, and the keys of the generator. If this is an argument of a kernel, each round reads its
// keys from there. To compute the keys in each thread would cost more than four instructions for each number.
struct Origin : Address {
  Keys keys;
  RF_HOST_DEVICE explicit Origin(const Address& at) : Address(at), keys(keys_of(at.seed)) {}
};

// G[i, 4 q .. 4 q + 3], i and q counted from the origin of G.
RF_DEVICE void generate(const Origin& at, int64_t i, uint32_t q, float (&g)[4]) {
  gaussian4<DeviceLanes>(q, static_cast<uint32_t>(i), static_cast<uint32_t>(at.stream), tag(i), at.keys, g);
}

// The four words of the same address, for another kind of numbers.
RF_DEVICE void words(const Origin& at, int64_t i, uint32_t q, uint32_t kind, uint32_t (&x)[4]) {
  x[0] = q, x[1] = static_cast<uint32_t>(i), x[2] = static_cast<uint32_t>(at.stream), x[3] = tag(i, kind);
  Philox<DeviceLanes>::rounds(x[0], x[1], x[2], x[3], at.keys);
}

}  // namespace rf::cuda
