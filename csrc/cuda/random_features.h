// SPDX-License-Identifier: BSD-3-Clause
// What the three forms of random features share. A block keeps a strip of rows, and goes through the columns, 32 at a
// time. Each warp computes the features of 16 rows and these columns in registers. Rows are neurons and columns are
// samples, or the other way round. A form receives each tile of features, and keeps what it computes from the tile.
//
// If a strip of all r terms fits into shared memory, it is made once. Otherwise 64 terms of it are made at a time,
// again for every 32 columns. Columns come in stages of 64 terms: one stage is loaded while the one before is
// multiplied.
//
// Flops: 2 N n r for the features, and 2 N n d for a second product. A block has 128 channels of the second product;
// for further channels the features are made again. In float32 there are three products of tf32, so that 6 N n (r + d)
// flops run at 495 TF on an H100 and at 156 TF on an A100. float64 runs at 67 and 19.5 TF. An H100 is said to reach
// 60 % of these rates with mma instructions.
// Second-level cache: a strip reads all columns, r + d numbers each. These are 192 flops of tf32 for each byte with 128
// rows, and 96 with 64 rows.
// Registers: below 256, so that a multiprocessor has 8 warps, as one block or two; 121 to 168 without a second product.
// Shared memory: 42 to 46 KiB, and the strip, 34 KiB for 64 rows of 128 terms in float32. float64 needs twice as much.
// Two blocks of 4 warps fit up to r = 128 on an A100 and up to 256 on an H100; in float64 one block fits. A strip of 64
// rows is kept up to r = 448 (in float64 up to 128). For a larger r, making G again takes about 1.5 times as long as
// multiplying with it.
#pragma once

#include "activation.h"
#include "rows.h"

namespace rf::cuda {

constexpr int kColumns = 32;                       // columns of a tile
constexpr int kTiles = kColumns / 8;               // products side by side
constexpr int kWarpRows = 16;                      // rows of a warp
constexpr int kMostWarps = 8;                      // most warps of a block
constexpr int kMostRows = kWarpRows * kMostWarps;  // most rows of a strip
constexpr int kStagePitch = kDepth + kPad, kPitch = kColumns + kPad;
constexpr int kChannels = 128;  // channels of the second product of a block
constexpr int kRing = 4;        // tiles whose columns are noted
static_assert(kRing * kColumns == kMostRows);
constexpr int64_t kMostShared = 163 * 1024;  // most bytes of a block, if the device has as much: those of an A100
constexpr int64_t kBlocks = 1056;            // enough to fill 132 multiprocessors several times

template <class T>
struct Source {
  Rows rows, columns;
  const T* shift;
  Activation activation;
  T slope, scale;
  bool kept;  // whether the whole strip of rows is kept
};

constexpr int kUnit = 16;  // channels that are multiplied, or left out, together

// A channel of the second operand.
template <class T>
struct Line {
  const T* data;
  int64_t stride, terms;
};

// The shared memory of a block, except for the strip, which follows it.
template <class T, bool kSamplesPass>
struct alignas(128) Room {
  T stages[2][kColumns * kStagePitch];
  T second[kChannels * kPitch];
  Line<T> lines[kSamplesPass ? 1 : kChannels];  // of the second operand, if columns are neurons
  Samples targets[kSamplesPass ? 1 : kChannels / kUnit];
  int64_t row[kMostRows];                                   // where the rows are
  int64_t column[kRing][kColumns], other[kRing][kColumns];  // where the columns are, and what the form notes for them
  T shift[kMostRows];                                       // shift of the rows, or of the noted columns
};

template <class T, class Form>
int64_t shared_bytes(int warps, int64_t r, bool kept) {
  const int64_t row = kept ? blocks(r < 1 ? 1 : r, kDepth) * kDepth + kPad : 2 * kStagePitch;
  return static_cast<int64_t>(sizeof(typename Form::Place)) + warps * kWarpRows * row * static_cast<int64_t>(sizeof(T));
}

// s = sigma(s). If sigma is long, it is applied to a few numbers at a time, in a loop that moves the numbers through s,
// so that registers are indexed by constants.
template <class T>
RF_DEVICE void activate_all(T (&s)[kTiles][4], Activation activation, T slope) {
  if (activation <= Activation::leaky_relu || activation == Activation::sign || activation == Activation::step) {
    const auto each = [&](auto f) {
      RF_UNROLL
      for (int k = 0; k < 4 * kTiles; ++k) s[k / 4][k % 4] = f(s[k / 4][k % 4]);
    };
    switch (activation) {
      case Activation::relu:
        return each([](T x) { return activate(x, Activation::relu, T{0}); });
      case Activation::abs:
        return each([](T x) { return activate(x, Activation::abs, T{0}); });
      case Activation::leaky_relu:
        return each([slope](T x) { return activate(x, Activation::leaky_relu, slope); });
      case Activation::sign:
        return each([](T x) { return activate(x, Activation::sign, T{0}); });
      case Activation::step:
        return each([](T x) { return activate(x, Activation::step, T{0}); });
      default:
        return;
    }
  }
  constexpr int at_once = sizeof(T) == 8 ? 1 : 2;
#pragma unroll 1
  for (int turn = 0; turn < 4 * kTiles; turn += at_once) {
    T made[at_once];
    RF_UNROLL
    for (int k = 0; k < at_once; ++k) made[k] = activate(s[k / 4][k % 4], activation, slope);
    RF_UNROLL
    for (int k = 0; k < 4 * kTiles - at_once; ++k) s[k / 4][k % 4] = s[(k + at_once) / 4][(k + at_once) % 4];
    RF_UNROLL
    for (int k = 0; k < at_once; ++k) s[kTiles - 1][4 - at_once + k] = made[k];
  }
}

// The second product: sums (16 rows, kChannels) += phi (16, kColumns) second^T, in float64.
struct Product {
  double sums[kChannels / 8][4] = {};

  // Only for those units of kUnit channels whose bit in `active` is set.
  template <class Way, class T>
  RF_DEVICE void add(const T (&phi)[kTiles][4], const T* second, uint32_t active) {
    constexpr int terms = Left<Way>::kTerms, steps = kColumns / terms;
    const int lane = threadIdx.x % kWarp;
    Left<Way> left[steps];
    RF_UNROLL
    for (int j = 0; j < steps; ++j) left[j] = Left<Way>::of(phi, j);
    second += lane / 4 * kPitch + 2 * (lane % 4);
    RF_UNROLL
    for (int c = 0; c < kChannels / 8; c += 2)
      if ((active >> (c * 8 / kUnit) & 1) != 0) {
        Sum<Way> sum[2];
        RF_UNROLL
        for (int j = 0; j < steps; ++j) RF_UNROLL
        for (int e = 0; e < 2; ++e) sum[e].multiply(left[j], Right<Way>::at(second + (c + e) * 8 * kPitch + terms * j));
        sum[0].add_to(sums[c]);
        sum[1].add_to(sums[c + 1]);
      }
  }
};

template <class Way, class T>
RF_DEVICE void settle(Sum<Way> (&sum)[kTiles], T (&phi)[kTiles][4]) {
  RF_UNROLL
  for (int j = 0; j < kTiles; ++j) {
    sum[j].add_to(phi[j]);
    sum[j] = {};
  }
}

template <class T, class Form>
__global__ void __launch_bounds__(kWarp* kMostWarps, 1) pass(Form form) {
  typedef typename Form::Way Way;
  const Source<T>& f = form.source;
  auto& room = *shared_memory<typename Form::Place>();
  T* const strip = reinterpret_cast<T*>(&room + 1);
  const int rows = static_cast<int>(blockDim.x) / kWarp * kWarpRows;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * kWarpRows, lane = threadIdx.x % kWarp;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * rows;
  const int there = smaller(count(f.rows.given) - first_row, rows);
  const int64_t r = f.rows.given.channels;
  const int chunks = r <= kDepth ? 1 : static_cast<int>((r + kDepth - 1) / kDepth);
  const int pitch = f.kept ? chunks * kDepth + kPad : kStagePitch;
  int64_t column, end;
  form.range(column, end);

  const auto note = [&](int64_t first, int turn) {
    const int64_t at = first + threadIdx.x;
    if (threadIdx.x >= kColumns || at >= end) return;
    room.column[turn % kRing][threadIdx.x] = f.columns.given.data == nullptr ? 0 : offset(f.columns.given, at);
    form.note(room, at, turn % kRing);
    if (Form::kSamplesPass) room.shift[turn % kRing * kColumns + threadIdx.x] = f.shift == nullptr ? T{0} : f.shift[at];
  };
  const auto make = [&](T* to, int ld, const Rows& from, const int64_t* offsets, int64_t first, int number, int inside,
                        int chunk) {
    if (from.given.data != nullptr)
      copy_rows(to, ld, from.given, offsets, number, inside, static_cast<int64_t>(chunk) * kDepth);
    else
      generate_rows(to, ld, from, first, number, inside, static_cast<int64_t>(chunk) * kDepth);
  };
  const auto fetch = [&](int64_t first, int turn, int chunk, int stage) {
    if (first < end) {
      make(room.stages[stage], kStagePitch, f.columns, room.column[turn % kRing], first, kColumns,
           smaller(end - first, kColumns), chunk);
      if (!f.kept) make(strip + stage * rows * kStagePitch, pitch, f.rows, room.row, first_row, rows, there, chunk);
    }
    commit_copies();
  };

  for (int i = threadIdx.x; i < rows; i += blockDim.x) {
    room.row[i] = f.rows.given.data == nullptr || i >= there ? 0 : offset(f.rows.given, first_row + i);
    if (!Form::kSamplesPass) room.shift[i] = f.shift == nullptr || i >= there ? T{0} : f.shift[first_row + i];
  }
  note(column, 0);
  form.begin(room);
  barrier();
  if (f.kept)
    for (int chunk = 0; chunk < chunks; ++chunk)
      make(strip + chunk * kDepth, pitch, f.rows, room.row, first_row, rows, there, chunk);
  fetch(column, 0, 0, 0);

  int stage = 0;
  for (int turn = 0; column < end; column += kColumns, ++turn) {
    form.fetch(room, column, turn % kRing);
    commit_copies();
    T phi[kTiles][4] = {};
    Sum<Way> sum[kTiles];
    for (int chunk = 0; chunk < chunks; ++chunk, stage ^= 1) {
      if (chunk == 0) {
        note(column + kColumns, turn + 1);
        wait_for_copies<1>();
      } else
        wait_for_copies<0>();
      barrier();
      if (chunk + 1 < chunks)
        fetch(column, turn, chunk + 1, stage ^ 1);
      else
        fetch(column + kColumns, turn + 1, 0, stage ^ 1);
      const T* a = strip + (f.kept ? chunk * kDepth : stage * rows * kStagePitch) + (warp_row + lane / 4) * pitch +
                   2 * (lane % 4);
      const T* b = room.stages[stage] + lane / 4 * kStagePitch + 2 * (lane % 4);
      const int terms = smaller(r - static_cast<int64_t>(chunk) * kDepth, kDepth);
      for (int term = 0; term < terms;) {
        const int stop = term + 32 < terms ? term + 32 : terms;
        for (; term < stop; term += Left<Way>::kTerms) {
          const Left<Way> left = Left<Way>::at(a + term, 8 * pitch);
          RF_UNROLL
          for (int j = 0; j < kTiles; ++j) sum[j].multiply(left, Right<Way>::at(b + j * 8 * kStagePitch + term));
        }
        if (Sum<Way>::kCutsOff) settle(sum, phi);
      }
    }
    if (!Sum<Way>::kCutsOff) settle(sum, phi);
    RF_UNROLL
    for (int j = 0; j < kTiles; ++j) RF_UNROLL
    for (int k = 0; k < 4; ++k)
      phi[j][k] += room.shift[Form::kSamplesPass ? turn % kRing * kColumns + 8 * j + 2 * (lane % 4) + k % 2
                                                 : warp_row + lane / 4 + 8 * (k / 2)];
    activate_all(phi, f.activation, f.slope);
    RF_UNROLL
    for (int j = 0; j < kTiles; ++j) RF_UNROLL
    for (int k = 0; k < 4; ++k) phi[j][k] = column + 8 * j + 2 * (lane % 4) + k % 2 < end ? f.scale * phi[j][k] : T{0};
    form.take(room, phi, first_row + warp_row + lane / 4, column, turn % kRing);
  }
  form.end(room, first_row + warp_row + lane / 4);
}

// Calls f(Type<T>{}, Type<Way>{}) for the type of u and the precision of its products.
template <class F>
void with_way(const Features& features, const F& f) {
  if (features.u.dtype == DType::f64) return f(Type<double>{}, Type<double>{});
  if (features.precision == Precision::highest) return f(Type<float>{}, Type<float>{});
  if (features.precision == Precision::high) return f(Type<float>{}, Type<InTerms<2>>{});
  f(Type<float>{}, Type<InTerms<1>>{});
}

template <class T>
Source<T> source(const Features& f, const Rows& rows, const Rows& columns) {
  return {rows,
          columns,
          static_cast<const T*>(f.shift),
          f.activation,
          static_cast<T>(f.negative_slope),
          static_cast<T>(f.scale),
          false};
}

inline Rows rows_of_samples(const Samples& u) { return {merged(u), {}}; }
inline Rows rows_of_g(const Features& f) {
  return {f.g.given.data == nullptr ? f.g.given : merged(f.g.given), f.g.address};
}

// Whether a strip of all r terms fits into shared memory. The features have the same bits either way.
template <class T, class Form>
bool fits(const char* name, int warps, int64_t r, const Stream& stream) {
  const int64_t bytes = shared_bytes<T, Form>(warps, r, true);
  return bytes <= kMostShared && bytes <= most_shared(name, stream);
}

// The strip has 16 rows for each of `warps` warps. The projection asks for 128 rows where these fit and there are
// enough of them; otherwise it is 64. The whole strip is kept where it fits.
template <class T, class Form>
void launch_pass(const char* name, Form form, dim3 grid, int warps, const Stream& stream) {
  const int64_t r = form.source.rows.given.channels;
  form.source.kept = fits<T, Form>(name, warps, r, stream);
  launch(name, pass<T, Form>, grid, kWarp * warps, shared_bytes<T, Form>(warps, r, form.source.kept), stream, form);
}

}  // namespace rf::cuda
