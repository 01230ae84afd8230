// SPDX-License-Identifier: BSD-3-Clause
// The kernels' one interface: every instruction-set level of the CPU fills a table of these functions, and so does
// CUDA.
#pragma once

#include <cstdint>

namespace rf {

enum class DType : int { f32, f64, bf16, f16 };

// sigma, in the order of rainbow_fast/ops/activations.py
enum class Activation : int { identity, relu, abs, leaky_relu, tanh, erf, gelu, silu, sign, step, cos };

// Samples of `channels` numbers: maps of `lines` lines of `positions` positions, at data[image * s_image + channel *
// s_channel + line * s_line + position * s_position]; sample (image * lines + line) * positions + position. Also a
// plain matrix: rows are images, columns channels, one line of one position. Strides in elements.
struct Samples {
  void* data;
  DType dtype;
  int64_t images, channels, lines, positions;
  int64_t s_image, s_channel, s_line, s_position;
};

// Where a tile of G begins.
struct Address {
  int64_t seed, stream, row, col;
};

// Rows of G: generated from an address, or explicit where `given.data` is set. `given.images` rows, `given.channels`
// columns.
struct Rows {
  Samples given;
  Address address;
};

// phi' = scale sigma(u G^T + shift), shift one number a sample (none where null)
struct Features {
  Samples u;
  const void* shift;
  Rows g;
  Activation activation;
  double negative_slope, scale;
};

// One side of a covariance: samples, from which `shift` is taken off (one number a channel; none where null), and where
// the sums of what remains are added, one number a channel (nowhere where null).
struct Side {
  Samples samples;
  const void* shift;
  double* total;
};

// Several second sides, beside each other: each of the images, lines and positions of the first side. They are the
// kernel's to change.
struct Sides {
  Side* first;
  int64_t count;
};

// x = phi' a^T over the first neurons, as many as `a` has channels; its images are the channels of x.
struct Projection {
  Samples x, a;
};
struct Projections {
  const Projection* data;
  int64_t count;
};

// The gradient of phi' (sample, neuron): given, if not null, + total[neuron] + 2 square[neuron] phi' + sum of x a.
struct Upstream {
  Samples given;
  const void *total, *square;
  Projections products;
};

// Positions [begin, end) of one axis of x, which taps [tap, tap + taps) of a kernel visit alike, with those `step`
// further on in y, where taps shifted by `shift` stand.
struct Piece {
  int64_t shift, step, begin, end, tap, taps;
};
struct Pieces {
  const Piece* first;
  int64_t count;
};

// A stream of a CUDA device, and memory there that a kernel may write to until it ends.
struct Stream {
  int device;
  void* handle;  // cudaStream_t
  void* workspace;
  int64_t bytes;
};

// Each function writes into given memory. `Run` is the number of threads on a CPU, which changes no bit, and a Stream
// on a GPU, where a call returns once its kernels are in line; GPUs of one generation give the same bits.
template <class Run>
struct KernelsOn {
  void (*gaussian)(void* out, DType dtype, int64_t rows, int64_t cols, int64_t ld, Address at, Run run);
  void (*cross_covariance)(double* out, int64_t ld, Side x, Sides y, bool symmetric, Activation activation,
                           double negative_slope, Run run);
  // G is rounded to `generated`: the dtype of p; or bf16 with a p of float32 that is a sum of two of bf16, or, in CUDA,
  // is taken as one.
  void (*sample_project_align)(void* out, DType dtype, int64_t n, int64_t ld, Samples p, DType generated, Address at,
                               double scale, Run run);
  void (*random_features)(Samples out, const Features& features, Run run);
  // Of x less x_center (one number a channel) and phi' less center (one a neuron); 0 where null.
  void (*random_features_covariance)(double* out, double* total, double* square, Samples x, const void* x_center,
                                     const void* center, const Features& features, Run run);
  void (*random_features_projection)(Projections projections, const Features& features, Run run);
};

struct Kernels : KernelsOn<int> {
  void (*patch_covariance)(double* out, int64_t ld, Samples x, Samples y, Pieces lines, Pieces columns, int64_t k,
                           bool symmetric, int threads);
  void (*polar)(void* out, double* statistics, const void* m, DType dtype, int64_t batch, int64_t rows, int64_t cols,
                int64_t s_batch, int64_t s_row, int64_t s_col, double rtol, int threads);
  void (*polar_multiply)(const double* q, const double* m, double* out, int64_t rows, int64_t inner, int64_t cols,
                         int threads);
  void (*random_features_gradient)(Samples u, void* shift, const Upstream& upstream, const Features& features,
                                   int threads);
};

namespace cuda {
extern const KernelsOn<Stream> kernels;
// The CUDA toolkit of this build, and the newest that the driver takes (0: no driver): 13000 for 13.0.
int toolkit_version();
int driver_version();
}  // namespace cuda

#define RF_LEVEL(level)         \
  namespace level {             \
  extern const Kernels kernels; \
  }
RF_LEVEL(baseline)
RF_LEVEL(avx2)
RF_LEVEL(avx512)
RF_LEVEL(avx512_bf16)
#undef RF_LEVEL

// Asks for large pages behind memory that is about to be written for the first time: where a page is touched first
// costs more than most kernels' arithmetic. Does nothing below 4 MiB, or where the system has no such call.
void advise_huge_pages(void* data, int64_t bytes);

[[noreturn]] void out_of_memory();  // throws std::bad_alloc

// 64-byte aligned memory for the length of a kernel's call; std::bad_alloc where there is none.
class Scratch {
 public:
  explicit Scratch(int64_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

}  // namespace rf
