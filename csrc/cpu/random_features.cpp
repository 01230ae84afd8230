// SPDX-License-Identifier: BSD-3-Clause
// random_features: sigma(u G^T + shift). The features alone are a product with an epilogue. The fused passes are
// products in which the features are an operand. A source makes them a block at a time, by a small product.
#include "random_features.h"

#include "kernels_cpu.h"

namespace rf::RF_ISA {
namespace {

template <class T>
RF_INLINE void put(T* target, int64_t stride, const T* values, int64_t count) {
  if (stride == 1) {
    memcpy(target, values, static_cast<size_t>(count) * sizeof(T));
  } else {
    for (int64_t c = 0; c < count; ++c) target[c * stride] = values[c];
  }
}

// Stores a tile. Its rows are channels from `channel` on, its columns are samples from `sample` on. In `values`, rows
// are `width` numbers apart.
template <class T>
RF_APART void put_channels(const Samples& out, int64_t channel, int64_t sample, int64_t rows, int64_t cols,
                           const T* values, int64_t width) {
  for_pieces<T>(out, sample, sample + cols, [&](int64_t at, T* target, int64_t length) {
    for (int64_t r = 0; r < rows; ++r)
      put(target + (channel + r) * out.s_channel, out.s_position, values + r * width + (at - sample), length);
  });
}

// Epilogue: stores features in strided memory. Rows of C are samples and columns are neurons, or the other way round.
template <class T>
struct StoreFeatures {
  static constexpr bool promotes = false;
  bool rows_are_samples;
  Samples out;
  const Features& f;
  int64_t column;  // column of C where the columns of the present product begin

  struct Open {
    const StoreFeatures& to;
    int64_t row, col;
    int64_t skips(int64_t, int64_t) const { return 0; }
    template <int V>
    void tile(int64_t i, int64_t j, int64_t rows, int64_t cols, const Accumulators<T, V>& acc) {
      TileRows<T, V> tile(acc);
      finish(i, j, rows, cols, tile.numbers[0], V * kWidth<T>);
    }
    RF_APART void finish(int64_t i, int64_t j, int64_t rows, int64_t cols, T* values, int64_t width) {
      const Features& f = to.f;
      for (int64_t r = 0; r < rows; ++r) {
        T* const of_row = values + r * width;
        if (f.shift != nullptr)
          for (int64_t c = 0; c < cols; ++c)
            of_row[c] += shift_of<T>(f, Part::whole)[to.rows_are_samples ? row + i + r : col + j + c];
        activate(of_row, cols, f.activation, f.negative_slope, f.scale);
      }
      if (to.rows_are_samples) {
        for_pieces<T>(to.out, row + i, row + i + rows, [&](int64_t sample, T* target, int64_t length) {
          for (int64_t s = 0; s < length; ++s)
            put(target + s * to.out.s_position + (col + j) * to.out.s_channel, to.out.s_channel,
                values + (sample - row - i + s) * width, cols);
        });
      } else {
        put_channels(to.out, row + i, col + j, rows, cols, values, width);
      }
    }
    void close() {}
  };

  StoreFeatures from_column(int64_t j) const { return {rows_are_samples, out, f, column + j}; }
  int64_t scratch(const Problem&) const { return 0; }
  Open open(const Block& block, void*) const { return {*this, block.row, column + block.col}; }
};

// Epilogue: stores a complete projection in strided memory. Rows are channels, columns are samples from `sample` on.
template <class T>
struct StoreProjection {
  Samples out;
  int64_t sample;

  int64_t skips(int64_t, int64_t) const { return 0; }
  template <int V>
  void tile(int64_t i, int64_t j, int64_t rows, int64_t cols, const Accumulators<T, V>& acc) {
    const TileRows<T, V> tile(acc);
    put_channels(out, i, sample + j, rows, cols, tile.numbers[0], V * kWidth<T>);
  }
};

constexpr int64_t kSamples = 256;  // samples of a chunk of the covariance; its sums in T are then promoted

// Source: rows are neurons, k runs over samples. G is made once for a block of neurons. Each feature is made once, so
// the sums of the features, less their center, are taken here.
template <class T>
struct FeaturesOverSamples {
  const Features& f;
  const T* center;
  double *total, *square;  // (slabs, n)
  int64_t n;

  template <class>
  struct Open {
    const Features& f;
    int64_t neurons;
    const T* center;
    T *g, *u;
    UnitPanels<T> panels_of_g;
    Sum<T>* partial;
    double *total, *square;
    Ahead ahead(int64_t k0, int64_t k, int64_t steps) const {
      return ChannelPacker<T>{f.u}.ahead(0, rank(f), k0, k, steps);
    }

    const T* panels(T* to, int64_t sample, int64_t k) {
      const int64_t r = rank(f);
      const int64_t ld = column_stride<T>(k);
      for_parts(f, [&](Part part) {
        SamplePacker<T>{part_of<T>(f.u, part)}.pack(u, ld, sample, k, 0, r);
        const T* const shift = f.shift == nullptr ? nullptr : shift_of<T>(f, part) + sample;
        sweep_in_chunks(RowsOf<T>{u, 1, ld}, g, k, neurons, r, partial,
                        FeaturePanels<T>{true, f, to, k, shift, part, center}, products_of(f.precision), panels_of_g);
      });
      for (int64_t j = 0; j < neurons; j += NR<T>) {
        const int64_t width = smaller(NR<T>, neurons - j);
        if (width == NR<T>)
          add_sums<NV>(to + j * k, k, width, total + j, square + j);
        else
          for (int64_t v = 0; v < width; v += kWidth<T>)
            add_sums<1>(to + j * k + v, k, width - v, total + j + v, square + j + v);
      }
      return to;
    }

    // Adds up V vectors of columns, few samples at a time: long sums of equal numbers are always rounded in the same
    // direction.
    template <int V>
    static void add_sums(const T* panel, int64_t k, int64_t width, double* total, double* square) {
      constexpr int64_t few = 16;
      constexpr int N = kWidth<T>;
      for (int64_t begin = 0; begin < k; begin += few) {
        Full<T> sum[V] = {}, squares[V] = {};
        for (int64_t p = begin; p < smaller(begin + few, k); ++p) RF_UNROLL
        for (int v = 0; v < V; ++v) {
          const Full<T> x = load<T, N>(panel + p * NR<T> + v * N);
          sum[v] += x;
          squares[v] = fma(x, x, squares[v]);
        }
        RF_UNROLL
        for (int v = 0; v < V; ++v) {
          add_promoted<T>(total + v * N, sum[v], width - v * N);
          add_promoted<T>(square + v * N, squares[v], width - v * N);
        }
      }
    }
  };

  static int64_t padded(int64_t neurons) { return blocks(neurons, NR<T>) * NR<T>; }
  int64_t scratch(const Problem& p) const {
    const int64_t neurons = padded(smaller(p.nc, p.n)), r = rank(f);
    const int64_t numbers = neurons * (r + 1) + packed_size<T>(kSamples, r) +
                            partial_size<T>(kSamples, neurons, r, p.products) + 2 * kWidth<T>;
    return numbers * static_cast<int64_t>(sizeof(T)) + UnitPanels<T>::bytes(neurons, r, p.products);
  }
  template <class>
  Open<T> open(const Block& block, int64_t neuron, int64_t neurons, void* memory) const {
    T *off = static_cast<T*>(memory), *g = off + padded(neurons);
    pack_panels(RowPacker<T>{f.g}, g, neuron, neurons, 0, rank(f));
    if (center != nullptr) {
      memcpy(off, center + neuron, static_cast<size_t>(neurons) * sizeof(T));
      memset(off + neurons, 0, static_cast<size_t>(padded(neurons) - neurons) * sizeof(T));
    }
    const int64_t at = block.slab * n + neuron;
    const Products products = products_of(f.precision);
    T* u = g + padded(neurons) * rank(f);
    T* partial = u + whole_vectors<T>(packed_size<T>(kSamples, rank(f)));
    T* tiles = partial + whole_vectors<T>(partial_size<T>(kSamples, padded(neurons), rank(f), products));
    const UnitPanels<T> panels = UnitPanels<T>::in(tiles, neurons, rank(f), products);
    panels.write_all(g, NR<T> * rank(f), neurons, rank(f));
    return {f, neurons, center == nullptr ? nullptr : off, g, u, panels, partial, total + at, square + at};
  }
};

// Source: rows are samples. The matrix unit reads them where they lie, if their type is T and channels or samples lie
// side by side.
template <class T>
struct SampleRows {
  SamplePacker<T> packer;

  template <class>
  struct Open : Packed<SamplePacker<T>>::template Open<T> {
    template <class F>
    int64_t rows(T* to, int64_t i, int64_t count, int64_t k0, int64_t k, F f) {
      const Samples& x = this->packer.x;
      const bool same = x.dtype == (sizeof(T) == 4 ? DType::f32 : DType::f64);
      if (!kOnUnit<T> || !same || (x.s_channel != 1 && x.s_position != 1))
        return Packed<SamplePacker<T>>::template Open<T>::rows(to, i, count, k0, k, f);
      const int64_t wanted = smaller(count, this->size - i), sample = (this->row + i) % x.positions;
      int64_t there = smaller(wanted, x.positions - sample);
      if (there < wanted) there = there / kUnitRows * kUnitRows;  // sums of fewer rows take as much room
      if (there == 0) return Packed<SamplePacker<T>>::template Open<T>::rows(to, i, count, k0, k, f);
      for_pieces<T>(x, this->row + i, this->row + i + 1, [&](int64_t, const T* from, int64_t) {
        f(RowsOf<T>{from + k0 * x.s_channel, x.s_position, x.s_channel}, there);
      });
      return there;
    }
  };
  int64_t scratch(const Problem&) const { return 0; }
  template <class>
  Open<T> open(const Block&, int64_t row, int64_t rows, void*) const {
    return {{packer, row, rows}};
  }
};

// Stores the moduli of pairs, a chunk of neurons at a time.
template <class T>
void store_moduli(const Samples& out, const Features& f, int threads) {
  const int64_t n = f.g.given.images;
  for_blocks_of_samples<T>(f, Sizes{}, threads, [&](const Buffers<T>& own, int64_t begin, int64_t count) {
    for (int64_t k0 = 0; k0 < n; k0 += kNeurons) {
      const int64_t k = smaller(kNeurons, n - k0);
      make_panels(f, own, count, k0, k, products_of(f.precision, true));
      for (int64_t j = 0; j < count; j += NR<T>)
        put_channels(out, k0, begin + j, k, smaller(NR<T>, count - j), own.phi + j * k, NR<T>);
    }
  });
}

template <class T>
void store_features(const Samples& out, const Features& f, int threads) {
  const int64_t samples = count(f.u), n = f.g.given.images, r = rank(f);
  if (f.paired) {
    store_moduli<T>(out, f, threads);
  } else if (out.s_channel == 1) {
    product_prepacked<T>(samples, n, r, SampleRows<T>{{f.u}}, RowPacker<T>{f.g}, StoreFeatures<T>{true, out, f, 0},
                         threads, products_of(f.precision));
  } else {
    product_prepacked<T>(n, samples, r, Packed<RowPacker<T>>{{f.g}}, SamplePacker<T>{f.u},
                         StoreFeatures<T>{false, out, f, 0}, threads, products_of(f.precision, true));
  }
}

template <class T>
void covariance(double* out, double* total, double* square, const Samples& x, const void* x_center, const void* center,
                const Features& f, int threads) {
  const int64_t d = x.channels, n = f.g.given.images, samples = count(x);
  // Panels of features fill a third of the second-level cache.
  constexpr int64_t panel = kSamples * NR<T> * sizeof(T);
  Problem problem{d, n, samples, larger(d, 1), fitting(caches().second / 3, panel, 1, 16) * NR<T>, kSamples};
  problem.strip = kStrip;
  problem.products = products_of(f.precision);
  problem.slabs = slabs_for(blocks(n, 5 * NR<T>), blocks(samples, problem.kc));  // slabs decide bits
  problem.joined = joins(problem.slabs, blocks(n, problem.nc), threads);
  const int64_t slabs = problem.slabs, written = problem.joined ? 1 : slabs;
  const Packed<CenteredPacker<T>> left{{x, static_cast<const T*>(x_center)}};
  const T* const off = static_cast<const T*>(center);
  if (slabs == 1) {
    product<T>(problem, left, FeaturesOverSamples<T>{f, off, total, square, n}, Collect<T>{out, n, 0, 1, false, true},
               threads);
    return;
  }
  const int64_t numbers = written == 1 ? 0 : written * d * n;
  const Scratch memory((numbers + 2 * slabs * n) * 8);
  double* parts = static_cast<double*>(memory.data());
  double *totals = parts + numbers, *squares = totals + slabs * n;
  memset(totals, 0, static_cast<size_t>(2 * slabs * n) * 8);
  product<T>(problem, left, FeaturesOverSamples<T>{f, off, totals, squares, n},
             Collect<T>{written == 1 ? out : parts, n, d * n, slabs, problem.joined, written == 1}, threads);
  if (written > 1) add_slabs(out, n, {parts, slabs, d * n, n}, d, n, threads);
  add_slabs(total, n, {totals, slabs, n, n}, 1, n, 1);
  add_slabs(square, n, {squares, slabs, n, n}, 1, n, 1);
}

// Each feature is made once. It enters all projections that reach as far as its neuron. If there are several chunks of
// neurons, sums over chunks are float64. The sums of one chunk are stored panel by panel.
template <class T>
void project(Projections all, const Features& f, int threads) {
  const int64_t n = f.g.given.images;
  const bool one_chunk = 0 < n && n <= kNeurons;
  Sizes sizes{};
  int64_t most = 0;
  for (int64_t p = 0; p < all.count; ++p) {
    sizes.sums += all.data[p].a.images;
    most = larger(most, all.data[p].a.images);
  }
  if (one_chunk) sizes.sums = most;
  sizes.left = packed_size<T>(most, kNeurons);
  const Products products = products_of(f.precision, true);
  for_blocks_of_samples<T>(f, sizes, threads, [&](const Buffers<T>& own, int64_t begin, int64_t count) {
    if (n == 0) memset(own.sums, 0, static_cast<size_t>(sizes.sums * count) * 8);
    for (int64_t k0 = 0; k0 < n; k0 += kNeurons) {
      const int64_t k = smaller(kNeurons, n - k0);
      make_panels(f, own, count, k0, k, products);
      double* to = own.sums;
      for (int64_t p = 0; p < all.count; ++p) {
        const Samples &a = all.data[p].a, x = merged(all.data[p].x);
        const int64_t there = larger(0, smaller(k, a.channels - k0)), rows = column_stride<T>(a.images);
        if (there > 0) SamplePacker<T>{merged(a)}.pack(own.left, rows, 0, a.images, k0, there);
        for (int64_t j = 0; j < count; j += kGroup<T>) {  // each panel has k neurons, of which `there` count
          const int64_t width = smaller(kGroup<T>, count - j);
          const auto multiply_by_a = [&](const auto& epilogue) {
            const Aside<T> aside{nullptr, kOnUnit<T> ? own.partial : nullptr, products};
            sweep_whole(RowsOf<T>{own.left, 1, rows}, own.phi + j * k, NR<T> * k, a.images, width, there, aside,
                        epilogue);
          };
          if (one_chunk && x.s_position == 1) {
            multiply_by_a(StoreProjection<T>{x, begin + j});
          } else if (one_chunk) {
            multiply_by_a(AddTiles<T>{to, width, true});
            store_samples<T>(x, begin + j, begin + j + width, to);
          } else if (k0 == 0 || there > 0) {
            multiply_by_a(AddTiles<T>{to + j, count, k0 == 0});
          }
        }
        if (!one_chunk) to += a.images * count;
      }
    }
    if (one_chunk) return;
    const double* from = own.sums;
    for (int64_t p = 0; p < all.count; ++p) {
      store_samples<T>(merged(all.data[p].x), begin, begin + count, from);
      from += all.data[p].a.images * count;
    }
  });
}

}  // namespace

void random_features(Samples out, const Features& features, int threads) {
  with_unit(
      features.u.dtype, features.precision,
      [&]<class T>(Type<T>) { store_features<T>(merged(out), with_merged(features), threads); },
      [&] { vectors::random_features(out, features, threads); });
}

void random_features_covariance(double* out, double* total, double* square, Samples x, const void* x_center,
                                const void* center, const Features& features, int threads) {
  with_unit(
      features.u.dtype, features.precision,
      [&]<class T>(Type<T>) {
        covariance<T>(out, total, square, merged(x), x_center, center, with_merged(features), threads);
      },
      [&] { vectors::random_features_covariance(out, total, square, x, x_center, center, features, threads); });
}

void random_features_projection(Projections projections, const Features& features, int threads) {
  with_unit(
      features.u.dtype, features.precision,
      [&]<class T>(Type<T>) { project<T>(projections, with_merged(features), threads); },
      [&] { vectors::random_features_projection(projections, features, threads); });
}

}  // namespace rf::RF_ISA
