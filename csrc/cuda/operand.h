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

// Copies one side into its stages, one after another. A stage has Shape::kChannels channels, from `channel` on, of
// Shape::kSamples samples. With side.along, samples lie side by side and channels are Shape::kAlong apart; otherwise
// channels lie side by side and samples are Shape::kAcross apart. Samples and channels that do not exist become zeros.
// This is the part of `thread`, one of kThreads: kCopies runs of 16 bytes of each stage.
//
// As long as a stage lies inside a line, its runs are one stride apart, in memory and in the stage, and the first one
// moves by a constant from stage to stage. Only a stage that crosses the end of a line, or whose numbers are not taken
// as they are, needs the place of each sample.
template <class Shape, class T, int kThreads>
class Stager {
  static constexpr int kChannels = Shape::kChannels, kSamples = Shape::kSamples, kSize = sizeof(T),
                       kElements = 16 / kSize;
  static constexpr int kOfChannel = kSamples / kElements, kOfSample = kChannels / kElements;  // runs
  static constexpr int kCopies = kChannels * kOfChannel / kThreads;
  static constexpr int kDown = kThreads / kOfChannel, kRight = kThreads / kOfSample;  // channels, samples between runs
  static_assert(kDown * kOfChannel == kThreads && kRight * kOfSample == kThreads);

  const Operand<T>& side;
  const bool along;
  bool whole;  // like side.whole, and each run of this thread lies inside or outside the channels with all its bytes
  const int64_t positions;
  Place next;               // of the next stage
  int64_t channel;          // of the first run
  int sample;               // likewise
  int64_t left;             // samples from the next stage on
  const T* from;            // the first run of the next stage
  int64_t stride, advance;  // from run to run, and from stage to stage
  int target, pitch;        // in a stage: the first run, and the distance between runs
  int runs;                 // inside the channels, all 16 bytes of them

  // The bytes of a run that lie inside the channels.
  RF_DEVICE int inside(int run) const {
    const int64_t there = (side.x.channels - channel - (along ? run * kDown : 0)) * (along ? 16 : kSize);
    return static_cast<int>(there < 0 ? 0 : there < 16 ? there : 16);
  }
  RF_DEVICE const T* start() const {
    return static_cast<const T*>(side.x.data) + next.offset(side.x) + sample * side.x.s_position +
           channel * side.x.s_channel;
  }

  // Copies the next stage, sample by sample.
  RF_DEVICE void copy_samples(T* stage) const {
    const Samples& x = side.x;
#pragma unroll 1
    for (int run = 0; run < kCopies; ++run) {
      const int64_t c = channel + (along ? run * kDown : 0);
      const int s = sample + (along ? 0 : run * kRight);
      T* const to = stage + target + run * pitch;
      if (side.whole) {
        const int there = s < left ? inside(run) : 0;
        const T* data = static_cast<const T*>(x.data);
        if (there > 0) data += next.plus(x, s).offset(x) + c * x.s_channel;
        copy_async(to, data, there);
        continue;
      }
      struct alignas(16) Run {
        T values[kElements];
      } numbers;
      RF_UNROLL
      for (int e = 0; e < kElements; ++e) {
        const int64_t ce = along ? c : c + e;
        const int se = along ? s + e : s;
        numbers.values[e] =
            ce < x.channels && se < left ? read<T>(x, next.plus(x, se).offset(x) + ce * x.s_channel) : T(0.0f);
      }
      RF_UNROLL
      for (int e = 0; e < kElements; ++e) {
        const int64_t ce = along ? c : c + e;
        const int se = along ? s + e : s;
        if (ce < x.channels && se < left) numbers.values[e] = prepared(side, numbers.values[e], ce);
      }
      *reinterpret_cast<Run*>(to) = numbers;
    }
  }

 public:
  // For `size` samples from `begin` on.
  RF_DEVICE Stager(const Operand<T>& operand, int64_t begin, int64_t size, int64_t first_channel, int thread)
      : side(operand), along(side.along), positions(side.x.positions), next(Place::of(side.x, begin)), left(size) {
    const int c = along ? thread / kOfChannel : thread % kOfSample * kElements;
    sample = along ? thread % kOfChannel * kElements : thread / kOfSample;
    channel = first_channel + c;
    from = start();
    stride = along ? kDown * side.x.s_channel : kRight * side.x.s_position;
    advance = kSamples * side.x.s_position;
    // These are kept in registers, and not computed again for each stage.
    target = forget(along ? c * Shape::kAlong + sample : sample * Shape::kAcross + c);
    pitch = forget(along ? kDown * Shape::kAlong : kRight * Shape::kAcross);
    for (runs = 0; runs < kCopies && inside(runs) == 16;) ++runs;
    whole = side.whole && (runs == kCopies || inside(runs) == 0);
  }

  // Sets what `copy` leaves out, the runs outside the channels, to zero.
  RF_DEVICE void clear(T* stage) const {
    for (int run = whole ? runs : kCopies; run < kCopies; ++run)
      for (int e = 0; e < kElements; ++e) stage[target + run * pitch + e] = T(0.0f);
  }

  // Copies the next stage, if there is one.
  RF_DEVICE void copy(T* stage) {
    if (left <= 0) return;
    if (whole && left >= kSamples && next.position + kSamples <= positions) {
      T* to = stage + target;
      if (runs == kCopies) {
        RF_UNROLL
        for (int run = 0; run < kCopies; ++run) copy_async(to + run * pitch, from + run * stride);
      } else {
#pragma unroll 1
        for (int run = 0; run < runs; ++run) copy_async(to + run * pitch, from + run * stride);
      }
    } else {
      copy_samples(stage);
    }
    left -= kSamples;
    next.position += kSamples;
    from += advance;
    if (next.position < positions) return;
    next = next.plus(side.x, 0);
    from = start();
  }
};

}  // namespace rf::cuda
