// SPDX-License-Identifier: BSD-3-Clause
// random_features_projection: phi' a^T, for several a at once. A block holds 128 samples, and goes through the neurons,
// 32 at a time. The first product leaves the features in the registers from which the second product takes them. The
// channels of all a stand in one row of places; each a begins at a multiple of 16.
#include "kernels_cuda.h"
#include "random_features.h"

namespace rf::cuda {
namespace {

constexpr const char* kName = "random_features_projection";
constexpr int kMost = 8;  // most projections of a launch

struct Several {
  Projection items[kMost];
  int count;
};

inline int64_t places(const Samples& a) { return blocks(a.images, kUnit) * kUnit; }

template <class T, class W>
struct Project {
  typedef W Way;
  static constexpr bool kSamplesPass = false;
  typedef Room<T, false> Place;
  Source<T> source;
  Several all;
  Product product;

  RF_DEVICE void range(int64_t& begin, int64_t& end) const { begin = 0, end = count(source.columns.given); }
  RF_DEVICE void note(Place&, int64_t, int) const {}
  RF_DEVICE int64_t first_place() const { return static_cast<int64_t>(blockIdx.y) * kChannels; }

  // Each thread writes the lines of its own places.
  RF_DEVICE void begin(Place& room) {
    for (int c = threadIdx.x; c < kChannels; c += blockDim.x) {
      room.lines[c] = {nullptr, 0, 0};
      if (c % kUnit == 0) room.targets[c / kUnit].channels = 0;
    }
    int64_t first = -first_place();
    RF_UNROLL
    for (int p = 0; p < kMost; ++p) {
      if (p >= all.count) break;
      const Samples &a = all.items[p].a, &x = all.items[p].x;
#pragma unroll 1
      for (int c = threadIdx.x; c < kChannels; c += blockDim.x) {
        const int64_t channel = c - first;
        if (channel < 0 || channel >= a.images) continue;
        room.lines[c] = {static_cast<const T*>(a.data) + channel * a.s_image, a.s_channel, a.channels};
        if (c % kUnit == 0) {
          Samples target = x;
          target.data = static_cast<T*>(x.data) + channel * x.s_channel;
          target.channels = x.channels - channel;
          room.targets[c / kUnit] = target;
        }
      }
      first += (a.images + kUnit - 1) / kUnit * kUnit;
    }
  }
  RF_DEVICE void fetch(Place& room, int64_t neuron, int) const {
    for (int i = threadIdx.x; i < kChannels * kColumns; i += blockDim.x) {
      const int c = i / kColumns, k = i % kColumns;
      const Line<T> line = room.lines[c];
      T* const target = room.second + c * kPitch + k;
      if (neuron + k < line.terms)
        copy_number(target, line.data + (neuron + k) * line.stride);
      else
        *target = 0;
    }
  }
  RF_DEVICE void take(const Place& room, const T (&phi)[kTiles][4], int64_t, int64_t neuron, int) {
    uint32_t active = 0;
    RF_UNROLL
    for (int c = 0; c < kChannels / kUnit; ++c) active |= (room.lines[c * kUnit].terms > neuron ? 1u : 0u) << c;
    wait_for_copies<1>();
    barrier();
    product.template add<Way>(phi, room.second, active);
    barrier();
  }
  // Stores the sums, unit by unit through shared memory, so that a warp writes along memory.
  RF_DEVICE void end(Place& room, int64_t sample) const {
    const int rows = static_cast<int>(blockDim.x) / kWarp * kWarpRows, pitch = rows + 4;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * rows;
    const int there = smaller(count(source.rows.given) - first, rows), row = static_cast<int>(sample - first);
    static_assert(kUnit * (kMostRows + 4) <= kChannels * kPitch);
#pragma unroll 1
    for (int unit = 0; unit < kChannels / kUnit; ++unit) {
      barrier();
      RF_UNROLL
      for (int c = 0; c < kChannels / 8; ++c)
        if (c * 8 / kUnit == unit) {
          RF_UNROLL
          for (int k = 0; k < 4; ++k)
            room.second[(c * 8 % kUnit + 2 * (threadIdx.x % 4) + k % 2) * pitch + row + 8 * (k / 2)] =
                static_cast<T>(product.sums[c][k]);
        }
      barrier();
      const Samples& x = room.targets[unit];
      const int channels = smaller(x.channels, kUnit);
      const bool along = x.s_channel == 1;
#pragma unroll 1
      for (int i = threadIdx.x; i < kUnit * rows; i += blockDim.x) {
        const int s = along ? i / kUnit : i % rows, c = along ? i % kUnit : i / rows;
        if (s < there && c < channels)
          static_cast<T*>(x.data)[offset(x, first + s) + c * x.s_channel] = room.second[c * pitch + s];
      }
    }
  }
};

template <class T, class Way>
void project(Projections projections, const Features& features, const Stream& stream) {
  Features f = features;
  const int64_t n = f.g.given.images, r = f.u.channels, samples = count(f.u);
  if (f.g.given.data == nullptr && n * r > 0 && n * r * static_cast<int64_t>(sizeof(T)) <= stream.bytes) {
    gaussian(stream.workspace, f.u.dtype, n, r, r, f.g.address, stream);
    f.g.given = {stream.workspace, f.u.dtype, n, r, 1, 1, r, 1, 0, 0};
  }
  const int warps = samples > kMostRows && fits<T, Project<T, Way>>(kName, kMostWarps, r, stream) ? kMostWarps : 4;
  const auto launch_form = [&](const Several& all, int64_t neurons) {
    int64_t channels = 0;
    for (int p = 0; p < all.count; ++p) channels += places(all.items[p].a);
    if (channels == 0) return;
    Features those = f;
    those.g.given.images = neurons;
    launch_pass<T>(kName, Project<T, Way>{source<T>(those, rows_of_samples(f.u), rows_of_g(those)), all, {}},
                   dim3(static_cast<unsigned>(blocks(samples, warps * kWarpRows)),
                        static_cast<unsigned>(blocks(channels, kChannels))),
                   warps, stream);
  };
  // If an a ends inside a step of 32 neurons, it is launched alone. The features of the neurons after its end may not
  // be finite, and zeros in a would not keep them out of the sums.
  Several together{};
  for (int64_t p = 0; p < projections.count; ++p) {
    const Projection item{merged(projections.data[p].x), projections.data[p].a};
    if (item.a.channels < n && item.a.channels % kColumns != 0) {
      launch_form({{item}, 1}, item.a.channels);
      continue;
    }
    together.items[together.count++] = item;
    if (together.count == kMost) {
      launch_form(together, n);
      together.count = 0;
    }
  }
  launch_form(together, n);
}

}  // namespace

void random_features_projection(Projections projections, const Features& features, Stream stream) {
  if (count(features.u) == 0) return;
  with_way(features, [&]<class T, class Way>(Type<T>, Type<Way>) { project<T, Way>(projections, features, stream); });
}

}  // namespace rf::cuda
