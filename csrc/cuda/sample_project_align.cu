// SPDX-License-Identifier: BSD-3-Clause
// sample_project_align: a matrix product on tensor cores. Its left operand G is generated, in the layout of the
// registers, and kept in shared memory while the block goes through the columns of P.
//
// Cost of out = scale G P, of shape (n, m) and rank r: 2 n r m flops, and about 42 instructions for each of the n r
// numbers of G. Bytes: P is read once for each strip of rows, from the second-level cache; out is written once. Lower
// bounds for (n, r, m) = (8192, 256, 4608), 19 Gflop, on an H100 (3.35 TB/s) and an A100 (2.0 TB/s):
//   bf16, 75 MB of out: by memory 25 and 38 us, by tensor cores 20 us (989 TF) and 62 us (312 TF); generation, 3 and 5
//     us, is paid once for each strip;
//   float32, as three products of tf32: 117 us (495 TF) and 372 us (156 TF);
//   float32 with P in two terms of bf16: 45 us (by memory) and 124 us;
//   float64: 290 us (67 TF) and 990 us (19.5 TF).
//
// A block has 8 warps; a multiprocessor runs one block (below 256 registers). It has at most 162 KiB of shared memory:
// 128 KiB of G, and a pipeline of rows of P. 128 KiB of G are 512 columns of 128 rows in 16 bits, or of 64 rows in
// float32; a GPU with 99 KiB keeps half of them. To generate the fragments again for each tile of 256 columns would
// cost 2.5 times as much as the product of the tile (328 clocks against 128 on an H100). So a strip is generated once
// for all columns; only if r is above 512 (256 on a GPU with 99 KiB), it is generated for every tile. Sums of 16 bits
// stay inside the tensor cores, which round towards zero: by a model, W' shrinks by 1e-9 r.
#include "generate.h"
#include "kernels_cuda.h"
#include "products.h"

namespace rf::cuda {
namespace {

constexpr const char* kName = "sample_project_align";
constexpr int kWarps = 8;
constexpr int kStep = 16;         // terms between two barriers
constexpr int kChunk = 512 / 16;  // steps whose part of G is kept; half of them if a block has only 99 KiB
constexpr int64_t kBlocks = 512;  // blocks to be made, by dividing the columns, if there are fewer strips of rows
constexpr int kMostStrips = 65535;

// A lane makes four columns of G in a row, 4 t .. 4 t + 3 of 16, for each of the rows g and g + 8 of a tile. They are
// used as the terms that the lane holds of a fragment. Rows of P are put into the same order when they are copied to
// shared memory.

// Four words of a lane, of a tile of 16 x 16 numbers of G.
typedef Four<uint32_t> Unit;

// 16 bits: the four columns of a lane are terms 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of one product.
template <class T>
struct Tile {
  static constexpr int kRows = 128, kCols = 256, kRowTiles = 4, kColTiles = 8, kStages = 4, kUnits = 1, kPad = 8;
  typedef T Element;
  typedef float F;
  F sums[kRowTiles][kColTiles][4];

  static RF_DEVICE int place(int j) { return 2 * (j >> 2) + (j & 1) + 4 * (j & 2); }
  static RF_DEVICE void keep(Unit* unit, const float (&a)[4], const float (&b)[4]) {
    *unit = {{pack<T>(a[0], a[1]), pack<T>(b[0], b[1]), pack<T>(a[2], a[3]), pack<T>(b[2], b[3])}};
  }
  RF_DEVICE void multiply(const Unit* g, const T* p, int pitch, int lane) {
    Unit a[kRowTiles];
    RF_UNROLL
    for (int i = 0; i < kRowTiles; ++i) a[i] = g[i * kWarp];
    p += (lane & 15) * pitch + (lane >> 4) * 8;
    RF_UNROLL
    for (int j = 0; j < kColTiles; j += 2) {
      uint32_t b[4];
      load_matrices_transposed(b, p + j * 8);
      const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
      RF_UNROLL
      for (int i = 0; i < kRowTiles; ++i) {
        mma<T>(sums[i][j], a[i].values, left);
        mma<T>(sums[i][j + 1], a[i].values, right);
      }
    }
  }
};

RF_DEVICE int place_of_quarters(int j) { return 4 * (j & 3) + (j >> 2); }

// Stores two units of float32 numbers. The first one holds columns 4 t and 4 t + 1.
RF_DEVICE void keep_whole(Unit* unit, const float (&a)[4], const float (&b)[4]) {
  RF_UNROLL
  for (int s = 0; s < 2; ++s)
    unit[s * kWarp] = {{__float_as_uint(a[2 * s]), __float_as_uint(b[2 * s]), __float_as_uint(a[2 * s + 1]),
                        __float_as_uint(b[2 * s + 1])}};
}

// float32, with kOfG parts of G and kOfP of P. In bf16, one product has all 16 terms of a step, each as above; G is
// kept in its parts, and sums stay inside the tensor cores. In tf32, G is kept as it is. Tensor cores truncate when
// they add, so that only sums of 16 terms are left to them.
template <Way W, int kOfG, int kOfP>
struct SplitTile {
  static constexpr int kRows = kOfG == 1 ? 128 : 64, kCols = kOfG == 1 ? 128 : 256, kRowTiles = kRows / 32,
                       kColTiles = kCols / 32, kStages = kOfG == 1 ? 4 : 2, kUnits = kOfG, kPad = 8;
  static constexpr int kSteps = kStep / W::kTerms;
  static constexpr bool kWhole = kSteps == 2;  // of G
  typedef float Element;
  typedef float F;
  F sums[kRowTiles][kColTiles][4];

  static RF_DEVICE int place(int j) { return place_of_quarters(j); }
  static RF_DEVICE void keep(Unit* unit, const float (&a)[4], const float (&b)[4]) {
    if constexpr (kWhole) {
      keep_whole(unit, a, b);
    } else {
      uint32_t parts[kOfG][4];
      split_words<W>(parts, [&](int w, int n) { return (w & 1) == 0 ? a[(w & 2) + n] : b[(w & 2) + n]; });
      RF_UNROLL
      for (int n = 0; n < kOfG; ++n) unit[n * kWarp] = {{parts[n][0], parts[n][1], parts[n][2], parts[n][3]}};
    }
  }
  static RF_DEVICE void load(uint32_t (&a)[kSteps][kOfG][4], const Unit* g) {
    RF_UNROLL
    for (int u = 0; u < kUnits; ++u) {
      const Unit unit = g[u * kWarp];
      if constexpr (kWhole) {
        split_words<W>(a[u], [&](int w, int) { return __uint_as_float(unit.values[w]); });
      } else {
        RF_UNROLL
        for (int k = 0; k < 4; ++k) a[0][u][k] = unit.values[k];
      }
    }
  }
  RF_DEVICE void multiply(const Unit* g, const float* p, int pitch, int lane) {
    uint32_t a[kRowTiles][kSteps][kOfG][4];
    RF_UNROLL
    for (int i = 0; i < kRowTiles; ++i) load(a[i], g + i * kUnits * kWarp);
    p += (lane & 3) * pitch + (lane >> 2);
    RF_UNROLL
    for (int j = 0; j < kColTiles; ++j) {
      uint32_t b[kSteps][kOfP][2];
      RF_UNROLL
      for (int s = 0; s < kSteps; ++s)
        split_words<W>(b[s],
                       [&](int w, int n) { return p[(s * W::kTerms + 4 * (w * W::kInWord + n)) * pitch + j * 8]; });
      RF_UNROLL
      for (int i = 0; i < kRowTiles; ++i) {
        if constexpr (kWhole) {
          float sum[4] = {};
          add_products<W>(sum, a[i], b);
          RF_UNROLL
          for (int k = 0; k < 4; ++k) sums[i][j][k] += sum[k];
        } else {
          add_products<W>(sums[i][j], a[i], b);
        }
      }
    }
  }
};

template <>
struct Tile<float> : SplitTile<InTf32, 2, 2> {};

template <>
struct Tile<double> {
  static constexpr int kRows = 64, kCols = 128, kRowTiles = 2, kColTiles = 4, kStages = 2, kUnits = 2, kPad = 4;
  typedef double Element;
  typedef double F;
  F sums[kRowTiles][kColTiles][4];

  static RF_DEVICE int place(int j) { return place_of_quarters(j); }
  static RF_DEVICE void keep(Unit* unit, const float (&a)[4], const float (&b)[4]) { keep_whole(unit, a, b); }
  RF_DEVICE void multiply(const Unit* g, const double* p, int pitch, int lane) {
    p += (lane & 3) * pitch + (lane >> 2);
    RF_UNROLL
    for (int s = 0; s < 4; ++s) {
      double b[kColTiles];
      RF_UNROLL
      for (int j = 0; j < kColTiles; ++j) b[j] = p[4 * s * pitch + j * 8];
      RF_UNROLL
      for (int i = 0; i < kRowTiles; ++i) {
        const Unit unit = g[(i * 2 + (s >> 1)) * kWarp];
        double a[2];
        RF_UNROLL
        for (int half = 0; half < 2; ++half) a[half] = __uint_as_float(unit.values[2 * (s & 1) + half]);
        RF_UNROLL
        for (int j = 0; j < kColTiles; ++j) add_products(sums[i][j], a, b[j]);
      }
    }
  }
};

// What the kernel asks of a tile.
template <class S>
concept AlignTile = requires(S tile, Unit* unit, const float (&row)[4], const typename S::Element* p) {
  { S::kRows + S::kCols + S::kRowTiles + S::kColTiles } -> std::convertible_to<int>;
  { S::kStages + S::kUnits + S::kPad } -> std::convertible_to<int>;  // stages of P, units of 16 x 16 numbers of G
  { S::place(0) } -> std::same_as<int>;                              // where a row of P stands in its step
  S::keep(unit, row, row);
  tile.multiply(unit, p, 0, 0);
  tile.sums[S::kRowTiles - 1][S::kColTiles - 1][3] = typename S::F{};
};

template <class T>
struct Matrix {
  const T* data;
  int64_t rows, cols, s_row, s_col;
  bool aligned;  // rows are contiguous, and each begins at a multiple of 16 bytes
};

struct Output {
  void* data;
  DType dtype;
  int64_t rows, ld;
};

// Stores two numbers side by side; the second one only if it is inside.
template <class T, class F>
RF_DEVICE void put(void* data, int64_t index, F a, F b, bool both) {
  const auto rounded = [](F x) {
    if constexpr (sizeof(T) == 8)
      return static_cast<T>(x);
    else
      return to<T>(static_cast<float>(x));
  };
  struct alignas(2 * sizeof(T)) Two {
    T values[2];
  };
  T* const target = static_cast<T*>(data) + index;
  if (both && reinterpret_cast<uint64_t>(target) % sizeof(Two) == 0) {
    *reinterpret_cast<Two*>(target) = {{rounded(a), rounded(b)}};
  } else {
    target[0] = rounded(a);
    if (both) target[1] = rounded(b);
  }
}

template <class F>
RF_DEVICE void put(const Output& out, int64_t row, int64_t col, F a, F b, bool both) {
  const int64_t index = row * out.ld + col;
  switch (out.dtype) {
    case DType::f32:
      return put<float>(out.data, index, a, b, both);
    case DType::f64:
      return put<double>(out.data, index, a, b, both);
    case DType::bf16:
      return put<bf16>(out.data, index, a, b, both);
    case DType::f16:
      return put<f16>(out.data, index, a, b, both);
  }
}

// Copies 16 rows of P, from `row` on (which may be below 0), and the tile's columns from `col` on. Numbers outside P
// become zeros.
template <class Shape, class T>
RF_DEVICE void stage(T* to, const Matrix<T>& p, int64_t row, int64_t col) {
  constexpr int kCols = Shape::kCols, kPitch = kCols + Shape::kPad, kThreads = kWarps * kWarp;
  if (p.aligned) {
    // A thread copies the same 16 bytes of every kDown-th row.
    constexpr int kElements = 16 / sizeof(T), kAcross = kCols / kElements, kDown = kThreads / kAcross;
    static_assert(kDown * kAcross == kThreads && kStep % kDown == 0);
    const int first = threadIdx.x / kAcross, x = threadIdx.x % kAcross * kElements;
    const int64_t left = (p.cols - col - x) * static_cast<int64_t>(sizeof(T));
    const int bytes = static_cast<int>(left < 0 ? 0 : left < 16 ? left : 16);
    const int64_t from = (row + first) * p.s_row + col + x;
    RF_UNROLL
    for (int down = 0; down < kStep; down += kDown) {
      const int64_t k = row + first + down;
      const bool inside = k >= 0 && k < p.rows && bytes > 0;
      copy_async(to + Shape::place(first + down) * kPitch + x, inside ? p.data + from + down * p.s_row : p.data,
                 inside ? bytes : 0);
    }
  } else {
    const bool along_rows = p.s_col <= p.s_row;
#pragma unroll 4
    for (int c = threadIdx.x; c < kStep * kCols; c += kThreads) {
      const int j = along_rows ? c / kCols : c % kStep, x = along_rows ? c % kCols : c / kStep;
      const int64_t k = row + j;
      const bool inside = k >= 0 && k < p.rows && col + x < p.cols;
      to[Shape::place(j) * kPitch + x] = inside ? p.data[k * p.s_row + (col + x) * p.s_col] : T(0.0f);
    }
  }
}

// blockIdx.y is a strip of rows, blockIdx.x is `tiles` tiles of columns. In 16 bits:
//
//                          a tile of 256 columns     the next tile
//                         +---------------------+---------------------+ ...
//                16 rows  |                     |                     |      stages of P in shared memory, kStages
//                         +---------------------+---------------------+      of them in turn: down a tile, then
//                16 rows  |                     |                     |      down the next one
//                         +---------------------+---------------------+ ...
//          16    16
//        +-----+-----+    +---------------------+
//   128  |  G  |  G  |    | tile of the result  |   8 warps of 64 x 64: 0, 2, 4 and 6 above 1, 3, 5 and 7
//        +-----+-----+    +---------------------+
//
// G is kept for all tiles if its rank is at most 16 `chunk`; otherwise it is generated again for each tile.
template <AlignTile Shape, class T = typename Shape::Element>
__global__ void __launch_bounds__(kWarps* kWarp, 1)
    multiply(Output out, Matrix<T> p, Origin at, typename Shape::F scale, int64_t tiles, int steps, int chunk) {
  constexpr int kTiles = Shape::kRows / 16, kPitch = Shape::kCols + Shape::kPad, kStage = kStep * kPitch;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int first_tile = warp % 2 * Shape::kRowTiles, first_col = warp / 2 * Shape::kColTiles * 8;
  Unit* const g = shared_memory<Unit>();
  T* const stages = reinterpret_cast<T*>(g + chunk * kTiles * Shape::kUnits * kWarp);
  const int64_t lead = at.col & 3, left = (p.cols + Shape::kCols - 1) / Shape::kCols - blockIdx.x * tiles;
  const int64_t begin = blockIdx.x * tiles * Shape::kCols, total = (left < tiles ? left : tiles) * steps;

  for (int64_t strip = blockIdx.y * int64_t{Shape::kRows}; strip < out.rows;
       strip += gridDim.y * int64_t{Shape::kRows}) {
    // The stage to copy next, and the stage to multiply.
    int64_t next = 0, next_col = begin, col = begin;
    int next_step = 0, step = 0, kept = 0;  // kept: steps of the chunk of G that are done
    const auto stage_next = [&] {
      if (next < total)
        stage<Shape>(stages + static_cast<uint32_t>(next) % Shape::kStages * kStage, p,
                     int64_t{next_step} * kStep - lead, next_col);
      commit_copies();
      ++next;
      if (++next_step == steps) next_step = 0, next_col += Shape::kCols;
    };
    barrier();
    for (int s = 0; s < Shape::kStages - 1; ++s) stage_next();

    Shape tile{};
    for (int64_t it = 0; it < total; ++it) {
      wait_for_copies<Shape::kStages - 2>();
      barrier();
      if (kept == 0 && (it == 0 || steps > chunk)) {
        const int count = steps - step < chunk ? steps - step : chunk;
        for (int pair = warp; pair < count * kTiles / 2; pair += kWarps) {
          const uint32_t group = static_cast<uint32_t>((at.col >> 2) + (step + pair / (kTiles / 2)) * 4 + lane % 4);
          RF_UNROLL
          for (int half = 0; half < 2; ++half) {
            const int64_t row = at.row + strip + (2 * (pair % (kTiles / 2)) + half) * 16 + lane / 4;
            float a[4], b[4];
            generate(at, row, group, a);
            generate(at, row + 8, group, b);
            Shape::keep(g + (2 * pair + half) * Shape::kUnits * kWarp + lane, a, b);
          }
        }
        barrier();
      }
      stage_next();
      tile.multiply(g + (kept * kTiles + first_tile) * Shape::kUnits * kWarp + lane,
                    stages + static_cast<uint32_t>(it) % Shape::kStages * kStage + first_col, kPitch, lane);
      if (++kept == chunk) kept = 0;
      if (++step < steps) continue;
      step = kept = 0;
      RF_UNROLL
      for (int i = 0; i < Shape::kRowTiles; ++i) RF_UNROLL
      for (int j = 0; j < Shape::kColTiles; ++j) RF_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int64_t row = strip + (first_tile + i) * 16 + half * 8 + lane / 4;
        const int64_t c = col + first_col + j * 8 + lane % 4 * 2;
        if (row < out.rows && c < p.cols)
          put(out, row, c, scale * tile.sums[i][j][2 * half], scale * tile.sums[i][j][2 * half + 1], c + 1 < p.cols);
        tile.sums[i][j][2 * half] = tile.sums[i][j][2 * half + 1] = 0;
      }
      col += Shape::kCols;
    }
  }
}

template <AlignTile Shape, class T = typename Shape::Element>
void run(void* out, DType dtype, int64_t n, int64_t ld, const Samples& p, const Address& at, double scale,
         const Stream& stream) {
  const int64_t elements = 16 / sizeof(T), units = Shape::kRows / 16 * Shape::kUnits;
  const bool aligned = (p.s_channel == 1 || p.channels == 1) && p.s_image % elements == 0 &&
                       reinterpret_cast<uint64_t>(p.data) % 16 == 0;
  const Matrix<T> matrix{static_cast<const T*>(p.data), p.images, p.channels, p.s_image, p.s_channel, aligned};
  const int64_t rank = (at.col & 3) + p.images, steps = rank > kStep ? (rank + kStep - 1) / kStep : 1;
  const int64_t strips = (n + Shape::kRows - 1) / Shape::kRows, tiles = (p.channels + Shape::kCols - 1) / Shape::kCols;
  const int64_t stages = Shape::kStages * kStep * (Shape::kCols + Shape::kPad) * static_cast<int64_t>(sizeof(T));
  const auto bytes = [&](int64_t kept) { return stages + kept * units * kWarp * 16; };
  const int64_t chunk = bytes(kChunk) <= most_shared(kName, stream) ? kChunk : kChunk / 2,
                kept = steps < chunk ? steps : chunk;
  const int64_t most = steps > kept ? tiles : (kBlocks + strips - 1) / strips, ranges = tiles < most ? tiles : most;
  const int64_t each = (tiles + ranges - 1) / ranges;
  const dim3 grid(static_cast<unsigned>((tiles + each - 1) / each),
                  static_cast<unsigned>(strips < kMostStrips ? strips : kMostStrips));
  launch(kName, multiply<Shape>, grid, kWarps * kWarp, bytes(kept), stream, Output{out, dtype, n, ld}, matrix, at,
         scale, each, steps, kept);
}

}  // namespace

void sample_project_align(void* out, DType dtype, int64_t n, int64_t ld, Samples p, DType generated, Address at,
                          double scale, Precision precision, Stream stream) {
  if (n <= 0 || p.channels <= 0) return;
  const bool splits = p.dtype == DType::f32;
  if (splits && generated == DType::bf16)
    run<SplitTile<InBf16, 1, 2>>(out, dtype, n, ld, p, at, scale, stream);
  else if (splits && precision == Precision::high)
    run<SplitTile<InBf16, 2, 2>>(out, dtype, n, ld, p, at, scale, stream);
  else if (splits && precision == Precision::medium)
    run<SplitTile<InBf16, 1, 1>>(out, dtype, n, ld, p, at, scale, stream);
  else
    with_type(p.dtype, [&]<class T>(Type<T>) { run<Tile<T>>(out, dtype, n, ld, p, at, scale, stream); });
}

}  // namespace rf::cuda
