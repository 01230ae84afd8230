// SPDX-License-Identifier: BSD-3-Clause
// Products of tiles on tensor cores: d (16, 8) += a (16, terms) b (terms, 8). Lane 4 g + t holds
//   of d: rows g (numbers 0, 1) and g + 8 (numbers 2, 3), columns 2 t and 2 t + 1;
//   of a: words 0 and 2 of row g, words 1 and 3 of row g + 8; words 0 and 1 hold the same terms, and so do 2 and 3;
//   of b: two words of column g; word 0 holds the terms of words 0 and 1 of a, word 1 those of words 2 and 3.
//
// float32 numbers are split. A number is the sum of some numbers of a shorter type, the nearest one first, and a
// product of two numbers is the sum of the products of these. The product of both second ones is left out.
#pragma once

#include <concepts>

#include "../compiler.h"
#include "numbers.h"

namespace rf::cuda {

// For numbers of 16 bits, two in a word.
template <class T>
RF_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (__is_same(T, bf16))
    mma_bf16(d, a, b);
  else
    mma_f16(d, a, b);
}
template <class T>
RF_DEVICE uint32_t pack(float low, float high) {
  if constexpr (__is_same(T, bf16))
    return pack_bf16(low, high);
  else
    return pack_f16(low, high);
}

// float64: terms t of four, at rows g and g + 8 of a.
RF_DEVICE void add_products(double (&d)[4], const double (&a)[2], double b) {
  RF_UNROLL
  for (int half = 0; half < 2; ++half) {
    double sum[2] = {d[2 * half], d[2 * half + 1]};
    mma_f64(sum, a[half], b);
    d[2 * half] = sum[0], d[2 * half + 1] = sum[1];
  }
}

// float32 as the sum of two numbers of tf32. Together they are x to 2^-22, for |x| below 2^80. An infinite x becomes a
// finite number with an infinite rest, so that its products have the right sign.
struct InTf32 {
  static constexpr int kInWord = 1, kTerms = 8;  // numbers of a word, terms of a product
  static RF_DEVICE void split(const float (&x)[1], uint32_t (&words)[2]) {
    // As to_tf32 rounds a finite number, in two instructions.
    words[0] = (__float_as_uint(fminf(fmaxf(x[0], -0x1p80f), 0x1p80f)) + 0x1000u) & 0xffffe000u;
    words[1] = to_tf32(x[0] - __uint_as_float(words[0]));
  }
  static RF_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_tf32(d, a, b); }
};

// float32 as the sum of one or two numbers of bf16. An infinite number may give NaN.
struct InBf16 {
  static constexpr int kInWord = 2, kTerms = 16;
  static RF_DEVICE void split(const float (&x)[2], uint32_t (&words)[1]) { words[0] = pack_bf16(x[0], x[1]); }
  static RF_DEVICE void split(const float (&x)[2], uint32_t (&words)[2]) {
    words[0] = pack_bf16(x[0], x[1]);
    words[1] = pack_bf16(x[0] - __uint_as_float(words[0] << 16), x[1] - __uint_as_float(words[0] & 0xffff0000u));
  }
  static RF_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_bf16(d, a, b); }
};

// How float32 numbers are split: `kInWord` of them into a word of each part.
template <class W>
concept Way = requires(const float (&x)[W::kInWord], uint32_t (&words)[2], float (&d)[4], const uint32_t (&a)[4],
                       const uint32_t (&b)[2]) {
  { W::kTerms } -> std::convertible_to<int>;
  W::split(x, words);
  W::mma(d, a, b);
};

// Splits numbers, `kWords` words of them in kParts parts; number(w, n) is number n of word w.
template <Way W, int kParts, int kWords, class Number>
RF_DEVICE void split_words(uint32_t (&parts)[kParts][kWords], const Number& number) {
  RF_UNROLL
  for (int w = 0; w < kWords; ++w) {
    float x[W::kInWord];
    uint32_t words[kParts];
    RF_UNROLL
    for (int n = 0; n < W::kInWord; ++n) x[n] = number(w, n);
    W::split(x, words);
    RF_UNROLL
    for (int n = 0; n < kParts; ++n) parts[n][w] = words[n];
  }
}

// d += the sum of kSteps products of numbers in kOfA and kOfB parts. The small products come first.
template <Way W, int kSteps, int kOfA, int kOfB>
RF_DEVICE void add_products(float (&d)[4], const uint32_t (&a)[kSteps][kOfA][4], const uint32_t (&b)[kSteps][kOfB][2]) {
  if constexpr (kOfA > 1) {
    RF_UNROLL
    for (int s = 0; s < kSteps; ++s) W::mma(d, a[s][1], b[s][0]);
  }
  if constexpr (kOfB > 1) {
    RF_UNROLL
    for (int s = 0; s < kSteps; ++s) W::mma(d, a[s][0], b[s][1]);
  }
  RF_UNROLL
  for (int s = 0; s < kSteps; ++s) W::mma(d, a[s][0], b[s][0]);
}

}  // namespace rf::cuda
