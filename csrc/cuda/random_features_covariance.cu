// SPDX-License-Identifier: BSD-3-Clause
// random_features_covariance: sums of x^T phi', phi' and phi'^2 over samples. A block holds 64 neurons. It makes their
// G once, and goes through its part of the samples, 32 at a time. The first product leaves the features in the
// registers from which the second product takes them.
#include "kernels_cuda.h"
#include "random_features.h"

namespace rf::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int64_t kFewest = 1024;  // samples of a part

// Where sums go: out (d, n), total (n), square (n). Each part of the samples has its own sums, `stride` numbers after
// those of the part before. If there is only one part, `stride` is 0 and its sums are added to what is there.
struct Sums {
  double *out, *total, *square;
  int64_t stride;
};

template <class T, class W>
struct Covariance {
  typedef W Way;
  static constexpr bool kSamplesPass = true;
  typedef Room<T, true> Place;
  Source<T> source;
  Samples x;
  const T *x_center, *center;  // of channels and of neurons; null: none
  Sums to;
  int64_t length;  // samples of a part
  Product product;
  double moments[2][2] = {};  // of rows g and g + 8: total and square

  RF_DEVICE int64_t first_channel() const { return static_cast<int64_t>(blockIdx.y) * kChannels; }
  RF_DEVICE int channels() const { return smaller(x.channels - first_channel(), kChannels); }

  RF_DEVICE void range(int64_t& begin, int64_t& end) const {
    const int64_t samples = count(x);
    begin = blockIdx.z * length;
    end = begin + length < samples ? begin + length : samples;
  }
  RF_DEVICE void begin(Place&) {}
  RF_DEVICE void note(Place& room, int64_t sample, int slot) const {
    room.other[slot][threadIdx.x] = offset(x, sample);
  }
  // Calls f(address, channel, sample, whether it exists) for those numbers of a tile of x that belong to this thread.
  template <class F>
  RF_DEVICE void for_own(Place& room, int64_t sample, F f) const {
    const bool along = x.s_channel == 1;
    const int channels = this->channels(), rows = (channels + kUnit - 1) / kUnit * kUnit;
    const int there = smaller(count(x) - sample, kColumns);
#pragma unroll 1
    for (int i = threadIdx.x; i < rows * kColumns; i += blockDim.x) {
      const int c = along ? i % 8 + i / (8 * kColumns) * 8 : i / kColumns, s = along ? i / 8 % kColumns : i % kColumns;
      f(room.second + c * kPitch + s, c, s, c < channels && s < there);
    }
  }
  RF_DEVICE void fetch(Place& room, int64_t sample, int slot) const {
    for_own(room, sample, [&](T* target, int c, int s, bool there) {
      if (there)
        copy_number(target, static_cast<const T*>(x.data) + room.other[slot][s] + (first_channel() + c) * x.s_channel);
      else
        *target = 0;
    });
  }
  // Subtracts the center of each neuron from its features. It handles one row of neurons at a time, because registers
  // are few.
  RF_DEVICE void take_off(T (&phi)[kTiles][4], int64_t neuron, int64_t sample) const {
    int64_t begin, end;
    range(begin, end);
    const int there = smaller(end - sample, kColumns);
    RF_UNROLL
    for (int half = 0; half < 2; ++half) {
      if (neuron + 8 * half >= source.rows.given.images * source.rows.given.positions) continue;
      const T off = center[neuron + 8 * half];
      RF_UNROLL
      for (int j = 0; j < kTiles; ++j) RF_UNROLL
      for (int k = 0; k < 2; ++k)
        if (8 * j + 2 * static_cast<int>(threadIdx.x % 4) + k < there) phi[j][2 * half + k] -= off;
    }
  }
  RF_DEVICE void take(Place& room, T (&phi)[kTiles][4], int64_t neuron, int64_t sample, int) {
    if (center != nullptr) take_off(phi, neuron, sample);
    if (blockIdx.y == 0) {
      RF_UNROLL
      for (int k = 0; k < 2; ++k) {
        T sum = 0, square = 0;
        RF_UNROLL
        for (int j = 0; j < kTiles; ++j) RF_UNROLL
        for (int e = 0; e < 2; ++e) {
          const T value = phi[j][2 * k + e];
          sum += value;
          square += value * value;
        }
        moments[k][0] += static_cast<double>(sum);
        moments[k][1] += static_cast<double>(square);
      }
    }
    wait_for_copies<1>();
    if (x_center != nullptr)  // each thread changes only what it copied itself, which has arrived
      for_own(room, sample, [&](T* at, int c, int, bool there) {
        if (there) *at -= x_center[first_channel() + c];
      });
    barrier();
    product.template add<Way>(phi, room.second, (1u << ((channels() + kUnit - 1) / kUnit)) - 1);
    barrier();
  }
  RF_DEVICE void put(double* to, double value) const { *to = this->to.stride == 0 ? *to + value : value; }
  RF_DEVICE void end(Place&, int64_t neuron) const {
    const int64_t n = source.rows.given.images * source.rows.given.positions, part = blockIdx.z * to.stride;
    const int channels = this->channels(), t = threadIdx.x % 4;
    RF_UNROLL
    for (int k = 0; k < 2; ++k) RF_UNROLL
    for (int m = 0; m < 2; ++m) {
      double sum = moments[k][m];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      if (blockIdx.y == 0 && t == 0 && neuron + 8 * k < n)
        put((m == 0 ? to.total : to.square) + part + neuron + 8 * k, sum);
    }
    RF_UNROLL
    for (int c = 0; c < kChannels / 8; ++c) RF_UNROLL
    for (int k = 0; k < 4; ++k) {
      const int channel = 8 * c + 2 * t + k % 2;
      const int64_t i = neuron + 8 * (k / 2);
      if (channel < channels && i < n) put(to.out + part + (first_channel() + channel) * n + i, product.sums[c][k]);
    }
  }
};

// Adds the parts to the result, in their order.
constexpr int kAdders = 256;
__global__ void __launch_bounds__(kAdders)
    add_parts(Sums to, const double* parts, int64_t count, int64_t d, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kAdders + threadIdx.x;
  if (i >= (d + 2) * n) return;
  double* const target = i < d * n         ? to.out + i
                         : i < (d + 1) * n ? to.total + (i - d * n)
                                           : to.square + (i - (d + 1) * n);
  double sum = *target;
  for (int64_t part = 0; part < count; ++part) sum += parts[part * to.stride + i];
  *target = sum;
}

template <class T, class Way>
void covariance(Sums sums, const Samples& x, const void* x_center, const void* center, const Features& f,
                const Stream& stream) {
  const int64_t n = f.g.given.images, d = x.channels, samples = count(x), all = (d + 2) * n;
  const int64_t strips = blocks(n, kWarps * kWarpRows), slices = blocks(d < 1 ? 1 : d, kChannels);
  int64_t parts = blocks(kBlocks, strips * slices);
  const int64_t most = stream.bytes / (all * 8);
  if (parts > blocks(samples, kFewest)) parts = blocks(samples, kFewest);
  if (parts > most) parts = most < 1 ? 1 : most;
  const int64_t length = blocks(blocks(samples, parts), kColumns) * kColumns;
  parts = blocks(samples, length);
  Sums to = sums;
  double* const workspace = static_cast<double*>(stream.workspace);
  if (parts > 1) to = {workspace, workspace + d * n, workspace + (d + 1) * n, all};
  launch_pass<T>("random_features_covariance",
                 Covariance<T, Way>{source<T>(f, rows_of_g(f), rows_of_samples(f.u)),
                                    merged(x),
                                    static_cast<const T*>(x_center),
                                    static_cast<const T*>(center),
                                    to,
                                    length,
                                    {}},
                 dim3(static_cast<unsigned>(strips), static_cast<unsigned>(slices), static_cast<unsigned>(parts)),
                 kWarps, stream);
  sums.stride = all;
  if (parts > 1)
    launch("random_features_covariance", add_parts, dim3(static_cast<unsigned>(blocks(all, kAdders))), kAdders, 0,
           stream, sums, workspace, parts, d, n);
}

}  // namespace

void random_features_covariance(double* out, double* total, double* square, Samples x, const void* x_center,
                                const void* center, const Features& features, Stream stream) {
  if (count(x) == 0 || features.g.given.images == 0) return;
  const Sums sums = {out, total, square, 0};
  with_way(features, [&]<class T, class Way>(Type<T>, Type<Way>) {
    covariance<T, Way>(sums, x, x_center, center, features, stream);
  });
}

}  // namespace rf::cuda
