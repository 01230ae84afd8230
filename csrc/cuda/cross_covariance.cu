// SPDX-License-Identifier: BSD-3-Clause
// cross_covariance: the product of channels by channels over samples, on tensor cores. Tensor cores truncate when they
// add. So they sum at most 64 terms (32 in float16, 8 in float32). Their sums are added in float32, and the float32
// sums are added in float64. In the arithmetic of an A100, sums of positive numbers come out too small by 1.5e-7 of
// their value.
//
// Cost for N samples of d and m channels: 2 N d m flops (half of them if symmetric). Bytes: each side is read once for
// each tile of the other side, mostly from the second-level cache; d m numbers are written, and as many for every slab
// of samples. Lower bounds for N = 10^6, d = m = 512, on an H100 (3.35 TB/s) and an A100 (2.0 TB/s):
//   bf16: by tensor cores 0.53 ms (989 TF) and 1.7 ms (312 TF), by memory 0.61 and 1.0 ms;
//   float32, as three products of tf32: 3.2 ms (495 TF) and 10 ms (156 TF);
//   float64: 7.8 ms (67 TF) and 27 ms (19.5 TF).
// For N = 10^6, d = m = 64 in bf16: 76 and 128 us, by memory.
//
// A block has 8 warps and 80 KiB of shared memory: four stages of the two sides. A multiprocessor runs one block (below
// 256 registers). The slabs depend on the shapes and on the workspace alone, and are added in their order. So the bits
// depend neither on the run nor on the number of multiprocessors.
#include "covariance_tile.h"
#include "kernels_cuda.h"
#include "operand.h"

namespace rf::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp, kStagers = kThreads / 2, kStages = 4;
constexpr int64_t kBlocks = 512;                   // blocks that are wanted
constexpr int64_t kLeast = 1024, kUnit = 128;      // samples of a slab: their least number, and a divisor of it
constexpr int64_t kMostBytes = int64_t{64} << 20;  // bytes of all slabs

// Where sums go: to the slab of their samples, or directly to the result, where they are added. If symmetric, only the
// sums on and above the diagonal go to slabs; in the result they go to both of their places.
struct Sums {
  double* data;
  int64_t ld, slab;  // slab: distance from one slab to the next, 0 for the result
  bool symmetric;
};

// Adds the sums of a warp to `to`, and sets them to zero. `rows` and `cols` of the warp's tile are inside the result.
// If `first`, the sums are stored instead of added.
template <class F, int kRowTiles, int kColTiles>
RF_DEVICE void add(const Sums& to, bool first, int64_t row, int64_t col, int rows, int cols,
                   F (&sums)[kRowTiles][kColTiles][4]) {
  const int lane = threadIdx.x % kWarp, r = lane / 4, c = lane % 4 * 2;
  double* const data = to.data + blockIdx.y * to.slab;
  double *const here = data + (row + r) * to.ld + col + c, *const mirrored = data + (col + c) * to.ld + row + r;
  const bool mirrors = to.symmetric && to.slab == 0;
  const int64_t above = to.symmetric ? col + c - row - r : int64_t{1} << 30;  // the diagonal
  RF_UNROLL
  for (int i = 0; i < kRowTiles; ++i) RF_UNROLL
  for (int j = 0; j < kColTiles; ++j) RF_UNROLL
  for (int k = 0; k < 4; ++k) {
    const int down = i * 16 + (k >> 1) * 8, right = j * 8 + (k & 1);
    if (r + down < rows && c + right < cols && down - right <= above) {
      double& sum = here[down * to.ld + right];
      sum = (first ? 0.0 : sum) + sums[i][j][k];
      if (mirrors && down - right < above) mirrored[right * to.ld + down] += sums[i][j][k];
    }
    sums[i][j][k] = 0;
  }
}

// The numbers in one side's stage.
template <class Shape>
constexpr int kStage =
    Shape::kChannels * Shape::kAlong > Shape::kSamples* Shape::kAcross ? Shape::kChannels * Shape::kAlong
                                                                       : Shape::kSamples * Shape::kAcross;

template <class T>
struct Both {
  Operand<T> side[2];
};

template <bool kValue>
struct Constant {};
// Calls f with `value` as a constant of the compiler.
template <class F>
RF_DEVICE void with_constant(bool value, const F& f) {
  if (value)
    f(Constant<true>{});
  else
    f(Constant<false>{});
}
// The view of a lane whose first number is at `at`.
template <class Shape, class T, bool kAlong, bool kRelu>
RF_DEVICE auto view(const T* at, Constant<kAlong>, Constant<kRelu>) {
  return View<T, kAlong ? Shape::kAlong : 1, kAlong ? 1 : Shape::kAcross, kRelu>{at};
}

// blockIdx.x is a tile of the result, row after row; blockIdx.y is a slab of `each` samples. One half of the threads
// copies the stages of x, the other half those of y. In 16 bits:
//
//       the stages in shared memory, in turn          the tile of the result, and its warps
//          it     it + 1   it + 2   it + 3                y: 0     32     64     96    128
//       +--------+--------+--------+--------+           x  +------+------+------+------+
//   x   | 128 by |        |        |        |           0  |  0   |  2   |  4   |  6   |
//       | 32     |        |        |        |              |      |      |      |      |
//       +--------+--------+--------+--------+          64  +------+------+------+------+
//   y   | 128 by |        |        |        |              |  1   |  3   |  5   |  7   |
//       | 32     |        |        |        |              |      |      |      |      |
//       +--------+--------+--------+--------+         128  +------+------+------+------+
//       multi-    arrived  on the   copied            each warp has 4 x 4 products of 16 x 8 channels for
//       plied              way      from now on       each 16 samples of the stage
//
// Channels by samples: a side's stage has rows of 32 samples, 40 numbers apart, if samples lie side by side in memory
// (`along`), and otherwise rows of 128 channels, 136 numbers apart.
template <class T, TileOf<T> Shape>
__global__ void __launch_bounds__(kThreads, 1)
    multiply(Sums to, Both<T> sides, bool relu, int64_t samples, int64_t each, int64_t col_tiles) {
  const int64_t row = blockIdx.x / col_tiles * Shape::kChannels, col = blockIdx.x % col_tiles * Shape::kChannels;
  if (to.symmetric && row > col) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int own_row = warp % 2 * Shape::kRowTiles * 16, own_col = warp / 2 * Shape::kColTiles * 8;
  const int rows = static_cast<int>(min(sides.side[0].x.channels - row, int64_t{Shape::kChannels})) - own_row;
  const int cols = static_cast<int>(min(sides.side[1].x.channels - col, int64_t{Shape::kChannels})) - own_col;
  const int64_t begin = blockIdx.y * each, size = min(samples - begin, each);
  const int64_t total = (size + Shape::kSamples - 1) / Shape::kSamples;
  T* const stages = shared_memory<T>();

  const int mine = threadIdx.x / kStagers;
  Stager<Shape, T, kStagers> stager(sides.side[mine], begin, size, mine == 0 ? row : col, threadIdx.x % kStagers);
  // The stages of both sides, and the lane's first number in them.
  const auto side_of = [&](int64_t it, int side) {
    return stages + (static_cast<uint32_t>(it) % kStages * 2 + side) * kStage<Shape>;
  };
  for (int it = 0; it < kStages; ++it) stager.clear(side_of(it, mine));
  const bool along_x = sides.side[0].along, along_y = sides.side[1].along;
  const int left = forget(Shape::first(along_x, false, lane) + own_row * (along_x ? Shape::kAlong : 1));
  const int right = forget(Shape::first(along_y, true, lane) + own_col * (along_y ? Shape::kAlong : 1));

  Shape tile{};
  bool first = to.slab != 0;
  int age = 0;  // number of stages in the sums
#pragma unroll 1
  for (int64_t it = 1 - kStages; it < total; ++it) {
    if (it >= 0) {
      wait_for_copies<kStages - 2>();
      barrier();
    }
    stager.copy(side_of(it + kStages - 1, mine));
    commit_copies();
    if (it < 0 || rows <= 0 || cols <= 0) continue;
    with_constant(along_x, [&](auto x) {
      with_constant(along_y, [&](auto y) {
        with_constant(relu, [&](auto positive) {
          tile.multiply(view<Shape>(side_of(it, 0) + left, x, positive),
                        view<Shape>(side_of(it, 1) + right, y, positive));
        });
      });
    });
    ++age;
    const bool full = it + 1 == total || age == Shape::kFlush;
    if (full || age % Shape::kPromote == 0) tile.promote();
    if (!full) continue;
    add(to, first, row + own_row, col + own_col, rows, cols, tile.sums);
    first = false, age = 0;
  }
}

// out += the sum of the slabs, in their order.
__global__ void __launch_bounds__(kThreads) reduce(Sums out, Sums slabs, int64_t count, int64_t rows, int64_t cols) {
  const int64_t col = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (col >= cols) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    if (out.symmetric && row > col) return;
    double sum = 0;
#pragma unroll 4
    for (int64_t s = 0; s < count; ++s) sum += slabs.data[s * slabs.slab + row * slabs.ld + col];
    out.data[row * out.ld + col] += sum;
    if (out.symmetric && row < col) out.data[col * out.ld + row] += sum;
  }
}

// Sums over samples for the totals, 32 channels in a block. If the samples of a channel lie side by side, lanes are
// samples and a warp has four channels. Otherwise lanes are channels, and the warps take turns with the samples.
template <class T>
__global__ void __launch_bounds__(kThreads) total(Sums to, Operand<T> side, int64_t samples, int64_t each) {
  const Samples& x = side.x;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t begin = blockIdx.y * each, end = samples - begin < each ? samples : begin + each;
  const int64_t first = blockIdx.x * int64_t{kWarp};
  double* const sums = shared_memory<double>();  // (warps, channels); if lanes are samples, only the first row
  const auto sum = [&](int64_t channel, int from, int step) {
    double found = 0;
    if (channel >= x.channels || begin + from >= end) return found;
    Place at = Place::of(x, begin + from);
    for (int64_t k = begin + from; k < end; k += step, at = at.plus(x, step))
      found += prepared(side, read<T>(x, at.offset(x) + channel * x.s_channel), channel);
    return found;
  };
  if (side.along) {
    for (int c = warp; c < kWarp; c += kWarps) {
      double found = sum(first + c, lane, kWarp);
      for (int mask = kWarp / 2; mask > 0; mask /= 2) found += shuffle_xor(found, mask);
      if (lane == 0) sums[c] = found;
    }
  } else {
    sums[threadIdx.x] = sum(first + lane, warp, kWarps);
  }
  barrier();
  if (warp != 0 || first + lane >= x.channels) return;
  double found = sums[lane];
  if (!side.along)
    for (int w = 1; w < kWarps; ++w) found += sums[w * kWarp + lane];
  double& here = to.data[blockIdx.y * to.slab + first + lane];
  here = to.slab == 0 ? here + found : found;
}

int64_t parts(int64_t size, int64_t each) { return (size + each - 1) / each; }

// The number of samples of a slab, if `tiles` blocks work on each slab and a slab has `numbers` numbers.
int64_t slab_of(int64_t samples, int64_t tiles, int64_t numbers, const Stream& stream) {
  const int64_t bytes = stream.bytes < kMostBytes ? stream.bytes : kMostBytes;
  int64_t slabs = parts(kBlocks, tiles);
  if (slabs > samples / kLeast) slabs = samples / kLeast;
  if (slabs > bytes / (8 * numbers)) slabs = bytes / (8 * numbers);
  return slabs < 2 ? samples : parts(parts(samples, slabs), kUnit) * kUnit;
}

// Lets `kernel` compute sums of shape (rows, cols). It adds them to the result if there is one slab. Otherwise it
// writes them to slabs, which are added to the result afterwards.
template <class Kernel>
void add_slabs(const Sums& out, int64_t rows, int64_t cols, int64_t samples, int64_t each, const Stream& stream,
               const Kernel& kernel) {
  const int64_t slabs = parts(samples, each);
  if (slabs == 1) return kernel(out, 1);
  const Sums sums{static_cast<double*>(stream.workspace), cols, rows * cols, out.symmetric};
  kernel(sums, slabs);
  const dim3 grid(static_cast<unsigned>(parts(cols, kThreads)), static_cast<unsigned>(rows < 65535 ? rows : 65535));
  launch("cross_covariance", reduce, grid, kThreads, 0, stream, out, sums, slabs, rows, cols);
}

template <class T>
void add_total(const Side& given, const Operand<T>& side, const Stream& stream) {
  if (given.total == nullptr) return;
  const int64_t channels = side.x.channels, samples = count(side.x), tiles = parts(channels, kWarp);
  const int64_t each = slab_of(samples, tiles, channels, stream);
  add_slabs({given.total, channels, 0, false}, 1, channels, samples, each, stream, [&](const Sums& to, int64_t slabs) {
    launch("cross_covariance", total<T>, dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(slabs)), kThreads,
           kThreads * sizeof(double), stream, to, side, samples, each);
  });
}

template <class T, TileOf<T> Shape = Tile<T>>
void accumulate(double* out, int64_t ld, const Side& x, const Sides& y, bool symmetric, Activation activation,
                double negative_slope, bool shifted, const Stream& stream) {
  constexpr int64_t kChannels = Shape::kChannels;
  // Without shifts, relu is applied where the stages are read.
  const bool relu = activation == Activation::relu && !shifted;
  if (relu) activation = Activation::identity;
  const Operand<T> left = operand<T>(x, activation, negative_slope);
  const int64_t d = left.x.channels, samples = count(left.x), row_tiles = parts(d, kChannels);
  for (int64_t s = 0; s < y.count; ++s) {
    const Operand<T> right = operand<T>(y.first[s], activation, negative_slope);
    const int64_t m = right.x.channels, col_tiles = parts(m, kChannels);
    if (m == 0) continue;
    const int64_t tiles = symmetric ? row_tiles * (row_tiles + 1) / 2 : row_tiles * col_tiles;
    const int64_t each = slab_of(samples, tiles, d * m, stream);
    add_slabs({out, ld, 0, symmetric}, d, m, samples, each, stream, [&](const Sums& to, int64_t slabs) {
      launch("cross_covariance", multiply<T, Shape>,
             dim3(static_cast<unsigned>(row_tiles * col_tiles), static_cast<unsigned>(slabs)), kThreads,
             kStages * 2 * kStage<Shape> * sizeof(T), stream, to, Both<T>{{left, right}}, relu, samples, each,
             col_tiles);
    });
    out += m;
  }
  if constexpr (sizeof(T) > 2) {
    if (relu) return;  // without shifts there are no totals
    add_total(x, left, stream);
    for (int64_t s = 0; s < y.count && !symmetric; ++s)
      add_total(y.first[s], operand<T>(y.first[s], activation, negative_slope), stream);
  }
}

}  // namespace

void cross_covariance(double* out, int64_t ld, Side x, Sides y, bool symmetric, Activation activation,
                      double negative_slope, Precision precision, Stream stream) {
  if (x.samples.channels == 0 || count(x.samples) == 0) return;
  bool shifted = x.shift != nullptr || x.total != nullptr;
  for (int64_t s = 0; s < y.count; ++s) shifted |= y.first[s].shift != nullptr || y.first[s].total != nullptr;
  const bool exact = (activation == Activation::identity || activation == Activation::relu) && !shifted;
  with_type(x.samples.dtype, [&]<class T>(Type<T>) {
    if constexpr (sizeof(T) == 2)
      if (!exact) return accumulate<float>(out, ld, x, y, symmetric, activation, negative_slope, shifted, stream);
    if constexpr (__is_same(T, float)) {
      if (precision == Precision::high)
        return accumulate<T, SplitTile<InBf16, 2>>(out, ld, x, y, symmetric, activation, negative_slope, shifted,
                                                   stream);
      if (precision == Precision::medium)
        return accumulate<T, SplitTile<InBf16, 1>>(out, ld, x, y, symmetric, activation, negative_slope, shifted,
                                                   stream);
    }
    accumulate<T>(out, ld, x, y, symmetric, activation, negative_slope, shifted, stream);
  });
}

}  // namespace rf::cuda
