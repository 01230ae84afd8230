// SPDX-License-Identifier: BSD-3-Clause
// random_features: writes phi' = scale sigma(u G^T + shift) to strided memory. A block holds 64 neurons. It makes their
// G once, and goes through its part of the samples.
//
// Bytes: phi' is written once, 4 N n. Lower bounds for N = 10^4, n = 10^5 (4 GB): 1.2 ms on an H100 (3.35 TB/s) and 2.0
// ms on an A100 (2.0 TB/s) by memory; 3.1 ms (495 TF) and 9.8 ms (156 TF) by 6 N n r flops of tf32, at r = 256. In
// float64 there are twice the bytes, and 2 N n r flops: 7.6 ms (67 TF) and 26 ms (19.5 TF).
#include "kernels_cuda.h"
#include "random_features.h"

namespace rf::cuda {
namespace {

constexpr int kWarps = 4;

template <class T, class W>
struct Store {
  typedef W Way;
  static constexpr bool kSamplesPass = true;
  typedef Room<T, true> Place;
  Source<T> source;
  Samples out;
  int64_t length;  // samples of a block

  RF_DEVICE void range(int64_t& begin, int64_t& end) const {
    const int64_t samples = count(source.columns.given);
    begin = blockIdx.y * length;
    end = begin + length < samples ? begin + length : samples;
  }
  RF_DEVICE void begin(Place&) {}
  RF_DEVICE void note(Place& room, int64_t sample, int slot) const {
    room.other[slot][threadIdx.x] = offset(out, sample);
  }
  RF_DEVICE void fetch(Place&, int64_t, int) const {}
  RF_DEVICE void take(const Place& room, const T (&phi)[kTiles][4], int64_t neuron, int64_t sample, int slot) const {
    const int64_t samples = count(source.columns.given), n = source.rows.given.images * source.rows.given.positions;
    RF_UNROLL
    for (int j = 0; j < kTiles; ++j) RF_UNROLL
    for (int k = 0; k < 4; ++k) {
      const int s = 8 * j + 2 * (threadIdx.x % 4) + k % 2;
      const int64_t i = neuron + 8 * (k / 2);
      if (sample + s < samples && i < n) static_cast<T*>(out.data)[room.other[slot][s] + i * out.s_channel] = phi[j][k];
    }
  }
  RF_DEVICE void end(Place&, int64_t) const {}
};

template <class T, class Way>
void store_features(const Samples& out, const Features& f, const Stream& stream) {
  const int64_t strips = blocks(f.g.given.images, kWarps * kWarpRows), samples = count(f.u);
  const int64_t wanted = blocks(kBlocks, strips);
  const int64_t length = blocks(blocks(samples, wanted < 65535 ? wanted : 65535), 4 * kColumns) * 4 * kColumns;
  const dim3 grid(static_cast<unsigned>(strips), static_cast<unsigned>(blocks(samples, length)));
  launch_pass<T>("random_features",
                 Store<T, Way>{source<T>(f, rows_of_g(f), rows_of_samples(f.u)), merged(out), length}, grid, kWarps,
                 stream);
}

}  // namespace

void random_features(Samples out, const Features& features, Stream stream) {
  if (count(features.u) == 0 || features.g.given.images == 0) return;
  with_way(features, [&]<class T, class Way>(Type<T>, Type<Way>) { store_features<T, Way>(out, features, stream); });
}

}  // namespace rf::cuda
