// SPDX-License-Identifier: BSD-3-Clause
// random_features: sigma(u G^T + shift). The features alone are a product with an epilogue; the fused passes are
// products in which they are an operand, made a block at a time by a source that is itself a small product.
#include <string.h>

#include "activation.h"
#include "epilogue.h"
#include "kernels_cpu.h"

namespace rf::RF_ISA {
namespace {

template <class T>
T shift_at(const Features& f, int64_t sample) {
  return f.shift == nullptr ? T{0} : static_cast<const T*>(f.shift)[sample];
}

// Epilogue: features to strided memory. Rows of C are samples and columns neurons, or the other way round.
template <class T, bool ROWS_ARE_SAMPLES>
struct StoreFeatures {
  static constexpr bool promotes = false;
  Samples out;
  const Features& f;
  int64_t column;  // of C, where the columns of the product at hand begin

  struct Open {
    const StoreFeatures& to;
    int64_t row, col;
    bool skips(int64_t, int64_t) const { return false; }
    template <int V>
    void tile(int64_t i, int64_t j, int64_t rows, int64_t cols, const Accumulators<T, V>& acc) {
      constexpr int width = V * kWidth<T>;
      const Features& f = to.f;
      T values[MR][width];
      for (int64_t r = 0; r < rows; ++r) {
        for (int v = 0; v < V; ++v) store<T, kWidth<T>>(values[r] + v * kWidth<T>, acc[r][v]);
        if (f.shift != nullptr)
          for (int64_t c = 0; c < cols; ++c)
            values[r][c] += shift_at<T>(f, ROWS_ARE_SAMPLES ? row + i + r : col + j + c);
        activate(values[r], cols, f.activation, f.negative_slope, f.scale);
      }
      if constexpr (ROWS_ARE_SAMPLES) {
        for_pieces<T>(to.out, row + i, row + i + rows, [&](int64_t sample, T* target, int64_t length) {
          for (int64_t s = 0; s < length; ++s)
            put(target + s * to.out.s_position + (col + j) * to.out.s_channel, to.out.s_channel,
                values[sample - row - i + s], cols);
        });
      } else {
        for_pieces<T>(to.out, col + j, col + j + cols, [&](int64_t sample, T* target, int64_t length) {
          for (int64_t r = 0; r < rows; ++r)
            put(target + (row + i + r) * to.out.s_channel, to.out.s_position, values[r] + (sample - col - j), length);
        });
      }
    }
    void close() {}
  };

  RF_INLINE void put(T* target, int64_t stride, const T* values, int64_t count) {
    if (stride == 1) {
      memcpy(target, values, static_cast<size_t>(count) * sizeof(T));
    } else {
      for (int64_t c = 0; c < count; ++c) target[c * stride] = values[c];
    }
  }
  StoreFeatures from_column(int64_t j) const { return {out, f, column + j}; }
  int64_t scratch(const Problem&) const { return 0; }
  Open open(const Block& block, void*) const { return {*this, block.row, column + block.col}; }
};

// Epilogue: u G^T + shift as panels of the next product, k rows each.
template <class T, bool ROWS_ARE_SAMPLES>
struct PreactivationPanels {
  T* to;
  int64_t k;
  const T* shift;  // of the first row, or of the first column; readable for a whole panel

  bool skips(int64_t, int64_t) const { return false; }
  template <int V>
  void tile(int64_t i, int64_t j, int64_t rows, int64_t, const Accumulators<T, V>& acc) {
    T* panel = to + j * k + i * NR<T>;
    for (int64_t r = 0; r < rows; ++r)
      for (int v = 0; v < V; ++v) {
        const int64_t at = v * kWidth<T>;
        Full<T> value = acc[r][v];
        if (shift != nullptr)
          value += ROWS_ARE_SAMPLES ? splat<T, kWidth<T>>(shift[i + r]) : load<T, kWidth<T>>(shift + j + at);
        store<T, kWidth<T>>(panel + r * NR<T> + at, value);
      }
  }
};

template <class T>
void activate_panels(T* panels, int64_t k, int64_t cols, const Features& f) {
  for (int64_t j = 0; j < cols; j += NR<T>, panels += k * NR<T>) {
    const int64_t width = smaller(NR<T>, cols - j);
    if (width == NR<T>) {
      activate(panels, k * NR<T>, f.activation, f.negative_slope, f.scale);
    } else {
      for (int64_t p = 0; p < k; ++p) activate(panels + p * NR<T>, width, f.activation, f.negative_slope, f.scale);
    }
  }
}

int64_t rank(const Features& f) { return f.u.channels; }

// Source: rows are neurons, k runs over samples. G is made once for a block of neurons. The sums of the features fall
// off on the way: each feature is made once.
template <class T>
struct FeaturesOverSamples {
  const Features& f;
  double *total, *square;  // (slabs, n)
  int64_t n;

  template <class>
  struct Open {
    const Features& f;
    int64_t neurons;
    T *g, *u;
    double *total, *square;
    NothingAhead ahead(int64_t, int64_t, int64_t) const { return {}; }

    const T* panels(T* to, int64_t sample, int64_t k) {
      const int64_t r = rank(f);
      const int64_t ld = whole_vectors<T>(k);
      SamplePacker<T>{f.u}.pack(u, ld, sample, k, 0, r);
      const T* shift = f.shift == nullptr ? nullptr : static_cast<const T*>(f.shift) + sample;
      PreactivationPanels<T, true> epilogue{to, k, shift};
      sweep<T>(u, ld, g, k, neurons, r, epilogue);
      activate_panels(to, k, neurons, f);
      for (int64_t j = 0; j < neurons; j += NR<T>)
        add_sums(to + j * k, k, smaller(NR<T>, neurons - j), total + j, square + j);
      return to;
    }

    static void add_sums(const T* panel, int64_t k, int64_t width, double* total, double* square) {
      Full<T> sum[NV] = {}, squares[NV] = {};
      for (int64_t p = 0; p < k; ++p)
        for (int v = 0; v * kWidth<T> < width; ++v) {
          const Full<T> x = load<T, kWidth<T>>(panel + p * NR<T> + v * kWidth<T>);
          sum[v] += x;
          squares[v] = fma(x, x, squares[v]);
        }
      for (int v = 0; v * kWidth<T> < width; ++v) {
        add_promoted<T>(total + v * kWidth<T>, sum[v], width - v * kWidth<T>);
        add_promoted<T>(square + v * kWidth<T>, squares[v], width - v * kWidth<T>);
      }
    }
  };

  int64_t g_bytes(const Problem& p) const {
    return aligned(blocks(smaller(p.nc, p.n), NR<T>) * NR<T> * rank(f) * static_cast<int64_t>(sizeof(T)));
  }
  int64_t scratch(const Problem& p) const {
    return g_bytes(p) + whole_vectors<T>(p.kc) * rank(f) * static_cast<int64_t>(sizeof(T));
  }
  template <class>
  Open<T> open(const Block& block, int64_t neuron, int64_t neurons, void* memory) const {
    T* g = static_cast<T*>(memory);
    pack_panels(RowPacker<T>{f.g}, g, neuron, neurons, 0, rank(f));
    const int64_t at = block.slab * n + neuron;
    return {f, neurons, g, g + blocks(neurons, NR<T>) * NR<T> * rank(f), total + at, square + at};
  }
};

// Source: rows are samples, k runs over neurons. u is packed once for a block of samples.
template <class T>
struct FeaturesOverNeurons {
  const Features& f;

  template <class>
  struct Open {
    const Features& f;
    int64_t samples;
    T *u, *g, *shift;
    NothingAhead ahead(int64_t, int64_t, int64_t) const { return {}; }

    const T* panels(T* to, int64_t neuron, int64_t k) {
      const int64_t ld = whole_vectors<T>(k);
      RowPacker<T>{f.g}.pack(g, ld, neuron, k, 0, rank(f));
      PreactivationPanels<T, false> epilogue{to, k, f.shift == nullptr ? nullptr : shift};
      sweep<T>(g, ld, u, k, samples, rank(f), epilogue);
      activate_panels(to, k, samples, f);
      return to;
    }
  };

  int64_t scratch(const Problem& p) const {
    const int64_t padded = blocks(smaller(p.nc, p.n), NR<T>) * NR<T>, neurons = whole_vectors<T>(p.kc);
    return (padded * rank(f) + neurons * rank(f) + padded) * static_cast<int64_t>(sizeof(T));
  }
  template <class>
  Open<T> open(const Block&, int64_t sample, int64_t samples, void* memory) const {
    const int64_t padded = blocks(samples, NR<T>) * NR<T>;
    T* shift = static_cast<T*>(memory);
    T* u = shift + padded;
    for (int64_t s = 0; s < padded; ++s) shift[s] = s < samples ? shift_at<T>(f, sample + s) : T{0};
    pack_panels(SamplePacker<T>{f.u}, u, sample, samples, 0, rank(f));
    return {f, samples, u, u + padded * rank(f), shift};
  }
};

// Epilogue: out[sample, channel] = C[channel, sample], summed in float64 over chunks of neurons.
template <class T>
struct StoreProjection {
  static constexpr bool promotes = true;
  Samples out;

  struct Open : Promote<T>::Open {  // promotes into scratch memory, (rows, cols) of its block
    const Samples& samples;
    Block block;

    void close() {
      for_pieces<T>(samples, block.col, block.col + block.cols, [&](int64_t sample, T* target, int64_t length) {
        const double* from = this->out + (sample - block.col);
        const bool channels_last = samples.s_channel == 1;
        const int64_t outer = channels_last ? length : block.rows, inner = channels_last ? block.rows : length;
        for (int64_t a = 0; a < outer; ++a)
          for (int64_t b = 0; b < inner; ++b) {
            const int64_t channel = channels_last ? b : a, s = channels_last ? a : b;
            target[(block.row + channel) * samples.s_channel + s * samples.s_position] =
                static_cast<T>(from[channel * block.cols + s]);
          }
      });
    }
  };
  int64_t scratch(const Problem& p) const { return smaller(p.mc, p.m) * smaller(p.nc, p.n) * 8; }
  Open open(const Block& block, void* memory) const {
    memset(memory, 0, static_cast<size_t>(block.rows * block.cols) * 8);
    return {{static_cast<double*>(memory), block.cols, 0, false}, out, block};
  }
};

template <class T>
void store_features(const Samples& out, const Features& f, int threads) {
  const int64_t samples = count(f.u), n = f.g.given.images, r = rank(f);
  if (out.s_channel == 1) {
    product_prepacked<T>(samples, n, r, Packed<SamplePacker<T>>{{f.u}}, RowPacker<T>{f.g},
                         StoreFeatures<T, true>{out, f, 0}, threads);
  } else {
    product_prepacked<T>(n, samples, r, Packed<RowPacker<T>>{{f.g}}, SamplePacker<T>{f.u},
                         StoreFeatures<T, false>{out, f, 0}, threads);
  }
}

template <class T>
void covariance(double* out, double* total, double* square, const Samples& x, const Features& f, int threads) {
  const int64_t d = x.channels, n = f.g.given.images, samples = count(x);
  Problem problem{d, n, samples, larger(d, 1), 5 * NR<T>, 240};
  problem.slabs = slabs_for(blocks(n, problem.nc), blocks(samples, problem.kc));
  const int64_t slabs = problem.slabs;
  const Packed<ChannelPacker<T>> left{{x}};
  if (slabs == 1) {
    product<T>(problem, left, FeaturesOverSamples<T>{f, total, square, n}, Promote<T>{out, n, 0}, threads);
    return;
  }
  const Scratch memory(slabs * (d + 2) * n * 8);
  double* parts = static_cast<double*>(memory.data());
  double *totals = parts + slabs * d * n, *squares = totals + slabs * n;
  memset(parts, 0, static_cast<size_t>(slabs * (d + 2) * n) * 8);
  product<T>(problem, left, FeaturesOverSamples<T>{f, totals, squares, n}, Promote<T>{parts, n, d * n}, threads);
  add_slabs(out, n, {parts, slabs, d * n, n}, d, n, threads);
  add_slabs(total, n, {totals, slabs, n, n}, 1, n, 1);
  add_slabs(square, n, {squares, slabs, n, n}, 1, n, 1);
}

template <class T>
void projection(const Samples& out, const Samples& a, const Features& f, int threads) {
  const int64_t d = a.images, n = a.channels, samples = count(f.u);
  constexpr int64_t fewest_tasks = 16, widest = 10;
  const int64_t panels = larger(1, smaller(widest, blocks(samples, NR<T>) / fewest_tasks));
  const Problem problem{d, samples, n, larger(d, 1), panels * NR<T>, 240};
  product<T>(problem, Packed<SamplePacker<T>>{{merged(a)}}, FeaturesOverNeurons<T>{f}, StoreProjection<T>{out},
             threads);
}

Features with_merged(const Features& f) {
  Features g = f;
  g.u = merged(f.u);
  return g;
}

}  // namespace

void random_features(Samples out, const Features& features, int threads) {
  const Features f = with_merged(features);
  if (f.u.dtype == DType::f64) {
    store_features<double>(merged(out), f, threads);
  } else {
    store_features<float>(merged(out), f, threads);
  }
}

void random_features_covariance(double* out, double* total, double* square, Samples x, const Features& features,
                                int threads) {
  const Features f = with_merged(features);
  if (f.u.dtype == DType::f64) {
    covariance<double>(out, total, square, merged(x), f, threads);
  } else {
    covariance<float>(out, total, square, merged(x), f, threads);
  }
}

void random_features_projection(Samples out, Samples a, const Features& features, int threads) {
  const Features f = with_merged(features);
  if (f.u.dtype == DType::f64) {
    projection<double>(merged(out), a, f, threads);
  } else {
    projection<float>(merged(out), a, f, threads);
  }
}

}  // namespace rf::RF_ISA
