// SPDX-License-Identifier: BSD-3-Clause
// Copies samples into shared memory: 16 bytes at a time if they are taken as they are, otherwise one by one, through
// the activation and less their shift.
#pragma once

#include "../samples.h"
#include "activation.h"
#include "numbers.h"

namespace rf::cuda {

// A side of a product. Its type is T. It is computed in F: float for a T of 16 bits, else T.
template <class T>
struct Operand {
  typedef decltype(widen(T{})) F;
  Samples x;
  const F* shift;  // null: none
  Activation activation;
  F negative_slope;
  bool along;  // in shared memory the samples of a channel lie side by side, else the channels of a sample
  bool whole;  // in memory too, 16 aligned bytes of them are side by side, in type T, and are taken as they are
};

template <class T>
constexpr DType kDType = sizeof(T) == 8   ? DType::f64
                         : sizeof(T) == 4 ? DType::f32
                                          : DType::bf16;
template <>
constexpr DType kDType<f16> = DType::f16;

template <class T>
Operand<T> operand(const Side& side, Activation activation, double negative_slope) {
  typedef typename Operand<T>::F F;
  const Samples x = merged(side.samples);
  const auto aligned = [](int64_t count, int64_t stride) { return count == 1 || stride * sizeof(T) % 16 == 0; };
  const bool along = x.s_position == 1 || (x.s_channel != 1 && x.s_position < x.s_channel);
  const bool dense = along ? x.s_position == 1 && x.positions * sizeof(T) % 16 == 0 && aligned(x.channels, x.s_channel)
                           : x.s_channel == 1 && aligned(x.positions, x.s_position);
  const bool whole = dense && aligned(x.lines, x.s_line) && aligned(x.images, x.s_image) &&
                     reinterpret_cast<uint64_t>(x.data) % 16 == 0 && x.dtype == kDType<T> &&
                     activation == Activation::identity && side.shift == nullptr;
  return {x, static_cast<const F*>(side.shift), activation, static_cast<F>(negative_slope), along, whole};
}

// The place of a sample in memory.
struct Place {
  int64_t image, line, position;

  static RF_DEVICE Place of(const Samples& x, int64_t sample) {
    const int64_t line = sample / x.positions;
    return {line / x.lines, line % x.lines, sample % x.positions};
  }
  // Carries what `inner` has above `size` over to `outer`. This is at most 64, so that only small numbers are divided.
  static RF_DEVICE void carry(int64_t& outer, int64_t& inner, int64_t size) {
    if (inner < size) return;
    const int64_t times = size > 64 ? 1 : static_cast<uint32_t>(inner) / static_cast<uint32_t>(size);
    outer += times;
    inner -= times * size;
  }
  // The place `samples` samples further on, at most 64.
  RF_DEVICE Place plus(const Samples& x, int samples) const {
    Place there{image, line, position + samples};
    carry(there.line, there.position, x.positions);
    carry(there.image, there.line, x.lines);
    return there;
  }
  RF_DEVICE int64_t offset(const Samples& x) const {
    return image * x.s_image + line * x.s_line + position * x.s_position;
  }
};

template <class T>
RF_DEVICE T read(const Samples& x, int64_t offset) {
  if constexpr (__is_same(T, float)) {
    if (x.dtype == DType::bf16) return widen(static_cast<const bf16*>(x.data)[offset]);
    if (x.dtype == DType::f16) return widen(static_cast<const f16*>(x.data)[offset]);
  }
  return static_cast<const T*>(x.data)[offset];
}

// sigma(value) less the shift of its channel, for a value that was read. Values of 16 bits stay as they are.
template <class T>
RF_DEVICE T prepared(const Operand<T>& side, T value, int64_t channel) {
  if constexpr (sizeof(T) > 2) {
    if (side.activation != Activation::identity) value = activate(value, side.activation, side.negative_slope);
    if (side.shift != nullptr) value -= side.shift[channel];
  }
  return value;
}

// Copies Shape::kChannels channels, from `channel` on, of Shape::kSamples samples, from `at` on. `left` of these
// samples exist; the rest, and channels that do not exist, become zeros. With side.along, samples lie side by side and
// channels are Shape::kAlong apart; otherwise channels lie side by side and samples are Shape::kAcross apart. This is
// the part of `thread`, one of kThreads.
template <class Shape, class T, int kThreads>
RF_DEVICE void stage(T* to, const Operand<T>& side, const Place& at, int64_t left, int64_t channel, int thread) {
  constexpr int kChannels = Shape::kChannels, kSamples = Shape::kSamples;
  constexpr int kElements = 16 / sizeof(T), kRuns = kChannels * kSamples / kElements;
  constexpr int kOfChannel = kSamples / kElements, kOfSample = kChannels / kElements;
  const Samples& x = side.x;
  const bool along = side.along;
  const int64_t channels = x.channels - channel;
#pragma unroll 1
  for (int run = thread; run < kRuns; run += kThreads) {
    const int c = along ? run / kOfChannel : run % kOfSample * kElements;
    const int s = along ? run % kOfChannel * kElements : run / kOfSample;
    T* const target = to + (along ? c * Shape::kAlong + s : s * Shape::kAcross + c);
    if (side.whole) {
      const int64_t there = s < left ? (channels - c) * (along ? 16 : static_cast<int64_t>(sizeof(T))) : 0;
      const T* from = static_cast<const T*>(x.data);
      if (there > 0) from += at.plus(x, s).offset(x) + (channel + c) * x.s_channel;
      copy_async(target, from, static_cast<int>(there < 0 ? 0 : there < 16 ? there : 16));
      continue;
    }
    struct alignas(16) Run {
      T values[kElements];
    } found;
    RF_UNROLL
    for (int e = 0; e < kElements; ++e) {
      const int ce = along ? c : c + e, se = along ? s + e : s;
      found.values[e] =
          ce < channels && se < left ? read<T>(x, at.plus(x, se).offset(x) + (channel + ce) * x.s_channel) : T(0.0f);
    }
    RF_UNROLL
    for (int e = 0; e < kElements; ++e) {
      const int ce = along ? c : c + e, se = along ? s + e : s;
      if (ce < channels && se < left) found.values[e] = prepared(side, found.values[e], channel + ce);
    }
    *reinterpret_cast<Run*>(target) = found;
  }
}

}  // namespace rf::cuda
