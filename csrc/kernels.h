// SPDX-License-Identifier: BSD-3-Clause
// The interface of all kernels is a table of functions. Each instruction-set level of the CPU fills one table, and CUDA
// fills another.
#pragma once

#include <cstdint>

namespace rf {

enum class DType : int { f32, f64, bf16, f16 };

// sigma, in the order of rainbow_fast/ops/activations.py
enum class Activation : int { identity, relu, abs, leaky_relu, tanh, erf, gelu, silu, sign, step, cos };

// How float32 operands of products are taken: in full, as the sum of two bfloat16 numbers, whose product of the second
// ones is left out, or as one bfloat16 number. Sums are as exact in all three. A kernel may be more exact than this.
enum class Precision : int { highest, high, medium };

// Samples in memory, of `channels` numbers each. An image has `lines` lines of `positions` positions. Each position is
// one sample, with the number (image * lines + line) * positions + position. Its channels are at data[image * s_image +
// channel * s_channel + line * s_line + position * s_position]. Strides are in elements. A plain matrix is stored in
// the same way: its rows are images with one line of one position, its columns are channels.
struct Samples {
  void* data;
  DType dtype;
  int64_t images, channels, lines, positions;
  int64_t s_image, s_channel, s_line, s_position;
};

// Where a tile of G, or of other random numbers, begins: their seed and stream, and the first row and column of the
// tile.
struct Address {
  int64_t seed, stream, row, col;
};

// Rows of G: explicit numbers if `given.data` is set, otherwise generated from `address`. In both cases there are
// `given.images` rows and `given.channels` columns.
struct Rows {
  Samples given;
  Address address;
};

// phi' = scale sigma(u G^T + shift). `shift` has one number for each sample; null means no shift. If `paired`, each
// number of u is the real part of a pair and is followed by the imaginary part in memory, and phi' = scale |u G^T +
// shift|. `shift` then has the real parts of all samples, then the imaginary parts.
struct Features {
  Samples u;
  bool paired;
  const void* shift;
  Rows g;
  Activation activation;
  double negative_slope, scale;
  Precision precision;
};

// One side of a covariance. `shift`, one number for each channel, is subtracted from the samples; null subtracts
// nothing. The sums of the differences over the samples are added to `total`, one number for each channel; null takes
// no sums.
struct Side {
  Samples samples;
  const void* shift;
  double* total;
};

// Several second sides of one covariance. Each has the images, lines and positions of the first side. The kernel may
// change them.
struct Sides {
  Side* first;
  int64_t count;
};

// x = phi' a^T. The sum runs over the first neurons, as many as `a` has channels. The images of `a` are the channels of
// x.
struct Projection {
  Samples x, a;
};
struct Projections {
  const Projection* data;
  int64_t count;
};

// The gradient with respect to phi', for each sample and neuron: given + total[neuron] + 2 square[neuron] phi' + the
// sum of x a over `products`. Terms whose pointer is null are zero.
struct Upstream {
  Samples given;
  const void *total, *square;
  Projections products;
};

// Positions [begin, end) of one axis of x, together with the positions `step` further on in y. Taps [tap, tap + taps)
// of a kernel visit all of these positions in x. The same taps plus `shift` visit the positions in y.
struct Piece {
  int64_t shift, step, begin, end, tap, taps;
};
struct Pieces {
  const Piece* first;
  int64_t count;
};

// The 1-D filters of a bank of wavelets, which rainbow_fast/ops/wavelet_bank.py defines: g, c, hc (even), s, hs (odd)
// and phi (even). `taps` has these six numbers for tap 0, then for tap 1, and so on up to tap `reach`. `own_low` is
// false if phi is g.
struct Bank {
  const double* taps;
  int64_t reach, stride;
  bool own_low;
  double beta;
};

// The maps (N, c, H, W) of wavelet_modulus: its input z, and its output or the gradient of that, which is contiguous.
// A pixel of z has `parts` numbers beside each other: one, or two if z is complex. The output has 5 c channels, with
// `skip` 10 c channels. Its pixels have two numbers if z is complex or if `skip` is set, otherwise one.
struct WaveletMaps {
  Samples z;
  int64_t parts;
  bool skip;
  void* out;
  DType out_dtype;
};

// A stream of a CUDA device, and a workspace of `bytes` bytes on this device. A kernel may write to the workspace until
// it ends.
struct Stream {
  int device;
  void* handle;  // cudaStream_t
  void* workspace;
  int64_t bytes;
};

// Each function writes into memory that its caller has allocated. `Run` says how it runs. On a CPU it is the number of
// threads, which changes no bit of the result. On a GPU it is a Stream: a call returns once its kernels are queued, and
// GPUs of one generation give the same bits.
template <class Run>
struct KernelsOn {
  void (*gaussian)(void* out, DType dtype, int64_t rows, int64_t cols, int64_t ld, Address at, Run run);
  void (*uniform)(void* out, DType dtype, int64_t rows, int64_t cols, int64_t ld, Address at, Run run);
  void (*cross_covariance)(double* out, int64_t ld, Side x, Sides y, bool symmetric, Activation activation,
                           double negative_slope, Precision precision, Run run);
  // G is rounded to `generated`: the dtype of p, or bf16 with a p of float32. In the second case p is the sum of two
  // bf16 matrices, and CUDA rounds any other p to such a sum.
  void (*sample_project_align)(void* out, DType dtype, int64_t n, int64_t ld, Samples p, DType generated, Address at,
                               double scale, Precision precision, Run run);
};

struct Kernels : KernelsOn<int> {
  void (*random_features)(Samples out, const Features& features, int threads);
  // Subtracts x_center (one number for each channel) from x, and center (one for each neuron) from phi'; null subtracts
  // nothing. Then adds the sums of x^T phi', phi' and phi'^2 over samples to `out`, `total` and `square`.
  void (*random_features_covariance)(double* out, double* total, double* square, Samples x, const void* x_center,
                                     const void* center, const Features& features, int threads);
  void (*random_features_projection)(Projections projections, const Features& features, int threads);
  void (*patch_covariance)(double* out, int64_t ld, Samples x, Samples y, Pieces lines, Pieces columns, int64_t k,
                           bool symmetric, int threads);
  // `single`: A need only be accurate to float32, whatever its dtype
  void (*polar)(void* out, double* statistics, const void* m, DType dtype, int64_t batch, int64_t rows, int64_t cols,
                int64_t s_batch, int64_t s_row, int64_t s_col, double rtol, bool single, int threads);
  void (*polar_multiply)(const double* q, const double* m, double* out, int64_t rows, int64_t inner, int64_t cols,
                         int threads);
  // `u` and `shift` are the gradients. Those of pairs are pairs of adjacent numbers.
  void (*random_features_gradient)(Samples u, void* shift, const Upstream& upstream, const Features& features,
                                   int threads);
  void (*wavelet_modulus)(const WaveletMaps& maps, Bank bank, int threads);
  // Here maps.out is the gradient of the output. That of z, which has the dtype of z and is contiguous, goes to `to`.
  void (*wavelet_modulus_gradient)(void* to, const WaveletMaps& maps, Bank bank, int threads);
};

namespace cuda {
extern const KernelsOn<Stream> kernels;
// The version of the CUDA toolkit of this build, and the newest version that the driver supports (0 without a driver).
// 13000 stands for 13.0.
int toolkit_version();
int driver_version();
}  // namespace cuda

// The address of the table of a level is null in a build without that level.
#define RF_LEVEL(level)                               \
  namespace level {                                   \
  extern const Kernels kernels __attribute__((weak)); \
  }
RF_LEVEL(baseline)
RF_LEVEL(avx2)
RF_LEVEL(avx512)
RF_LEVEL(avx512_bf16)
RF_LEVEL(amx_emulated)
RF_LEVEL(amx)
#undef RF_LEVEL

// Asks the system for large pages for memory that is about to be written for the first time. Touching a page for the
// first time costs more than the arithmetic of most kernels. Does nothing below 4 MiB, or if the system has no such
// call.
void advise_huge_pages(void* data, int64_t bytes);

[[noreturn]] void out_of_memory();  // throws std::bad_alloc

// 64-byte aligned memory that is freed when a kernel's call ends. Throws std::bad_alloc if there is no memory.
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
