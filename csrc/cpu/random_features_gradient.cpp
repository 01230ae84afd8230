// SPDX-License-Identifier: BSD-3-Clause
// random_features_gradient: the gradients of u and shift, from the gradient of the features. Nothing of size N x n is
// stored.
#include "derivative.h"
#include "kernels_cpu.h"
#include "random_features.h"

namespace rf::RF_ISA {
namespace {

// Epilogue: adds tiles to panels of k rows.
template <class T>
struct AddToPanels {
  T* to;
  int64_t k;

  int64_t skips(int64_t, int64_t) const { return 0; }
  template <int V>
  void tile(int64_t i, int64_t j, int64_t rows, int64_t, const Accumulators<T, V>& acc) {
    T* panel = to + j * k + i * NR<T>;
    for (int64_t r = 0; r < rows; ++r)
      for (int v = 0; v < V; ++v) {
        T* at = panel + r * NR<T> + v * kWidth<T>;
        store<T, kWidth<T>>(at, load<T, kWidth<T>>(at) + acc[r][v]);
      }
  }
};

// Epilogue: receives s = u G^T. Turns panels of the gradient with respect to phi' into panels of the gradient with
// respect to s.
template <class T>
struct ThroughActivation {
  const Features& f;
  T* to;
  int64_t k;
  const T *shift, *square;  // shift of the first column, square of the first row

  int64_t skips(int64_t, int64_t) const { return 0; }
  template <int V>
  void tile(int64_t i, int64_t j, int64_t rows, int64_t, const Accumulators<T, V>& acc) {
    TileRows<T, V> tile(acc);
    finish(i, j, rows, tile.numbers[0], V * kWidth<T>);
  }
  RF_APART void finish(int64_t i, int64_t j, int64_t rows, T* s, int64_t width) {
    constexpr int N = kWidth<T>;
    T* panel = to + j * k + i * NR<T>;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < width; c += N)
        store<T, N>(s + r * width + c, load<T, N>(s + r * width + c) + load<T, N>(shift + j + c));
    if (square != nullptr) {
      T phi[MR * NR<T>];
      memcpy(phi, s, static_cast<size_t>(rows * width) * sizeof(T));
      activate(phi, rows * width, f.activation, f.negative_slope, f.scale);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width; ++c) panel[r * NR<T> + c] += 2 * square[i + r] * phi[r * width + c];
    }
    differentiate(s, rows * width, f.activation, f.negative_slope, f.scale);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < width; c += N) {
        T* at = panel + r * NR<T> + c;
        store<T, N>(at, load<T, N>(at) * load<T, N>(s + r * width + c));
      }
  }
};

// The same for moduli of pairs. The real parts of s are stored in `further`. With the imaginary parts, the gradient
// with respect to the real parts of s replaces that of phi', and that of the imaginary parts replaces `further`.
template <class T>
struct ThroughModulus {
  const Features& f;
  T *to, *further;
  int64_t k;
  const T *shift, *square;
  Part part;

  int64_t skips(int64_t, int64_t) const { return 0; }
  template <int V>
  void tile(int64_t i, int64_t j, int64_t rows, int64_t, const Accumulators<T, V>& acc) {
    TileRows<T, V> tile(acc);
    finish(i, j, rows, tile.numbers[0], V * kWidth<T>);
  }
  RF_APART void finish(int64_t i, int64_t j, int64_t rows, const T* tile, int64_t width) {
    constexpr int N = kWidth<T>;
    const Full<T> scale = splat<T, N>(static_cast<T>(f.scale));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < width; c += N) {
        const int64_t at = j * k + (i + r) * NR<T> + c;
        const Full<T> s = load<T, N>(tile + r * width + c) + load<T, N>(shift + j + c);
        if (part == Part::real) {
          store<T, N>(further + at, s);
          continue;
        }
        Full<T> real[1] = {load<T, N>(further + at)}, imaginary[1] = {s}, upstream[1] = {load<T, N>(to + at)};
        if (square != nullptr) {
          Full<T> size[1];
          moduli<T, 1>(size, real, imaginary);
          upstream[0] += splat<T, N>(2 * square[i + r]) * scale * size[0];
        }
        upstream[0] *= scale;
        through_moduli<T, 1>(upstream, real, imaginary);
        store<T, N>(to + at, real[0]);
        store<T, N>(further + at, imaginary[0]);
      }
  }
};

// Packs the gradient with respect to the features of neurons [k0, k0 + k), without its products, as panels of samples.
template <class T>
void pack_upstream(T* to, const Upstream& upstream, int64_t begin, int64_t count, int64_t k0, int64_t k) {
  if (upstream.given.data != nullptr) {
    pack_panels(SamplePacker<T>{merged(upstream.given)}, to, begin, count, k0, k);
  } else {
    memset(to, 0, static_cast<size_t>(blocks(count, NR<T>) * NR<T> * k) * sizeof(T));
  }
  if (upstream.total == nullptr) return;
  const T* total = static_cast<const T*>(upstream.total) + k0;
  for (int64_t j = 0; j < count; j += NR<T>)
    for (int64_t p = 0; p < k; ++p)
      for (int c = 0; c < NR<T>; ++c) *to++ += total[p];
}

template <class T>
void differentiate_features(const Samples& grad_u, T* grad_shift, const Upstream& upstream, const Features& f,
                            int threads) {
  const int64_t n = f.g.given.images, r = rank(f);
  const Projections all = upstream.products;
  const T* square = static_cast<const T*>(upstream.square);
  Sizes sizes{0, 0, (1 + f.paired) * (r + 1)};
  sizes.further = f.paired;
  const Products products = products_of(f.precision, true);
  for (int64_t p = 0; p < all.count; ++p) {
    sizes.x += all.data[p].a.images;
    sizes.tiles += (blocks(all.data[p].a.images, kSpan<T>) + 1) * kSpan<T>;  // one more, for masks
    sizes.terms = larger(sizes.terms, all.data[p].a.images);
    sizes.left = larger(sizes.left, packed_size<T>(kNeurons, all.data[p].a.images));
  }
  for_blocks_of_samples<T>(f, sizes, threads, [&](const Buffers<T>& own, int64_t begin, int64_t count) {
    const int64_t padded = blocks(count, NR<T>) * NR<T>;
    T* x = own.x;
    char* tiles = own.x_tiles;
    for (int64_t p = 0; p < all.count; ++p) {
      const int64_t d = all.data[p].a.images;
      pack_panels(SamplePacker<T>{merged(all.data[p].x)}, x, begin, count, 0, d);
      UnitPanels<T>::in(tiles, count, d, products).write_all(x, NR<T> * d, count, d);
      x += padded * d, tiles += UnitPanels<T>::bytes(count, d, products);
    }
    if (n == 0) memset(own.sums, 0, static_cast<size_t>(sizes.sums * count) * 8);
    for (int64_t k0 = 0; k0 < n; k0 += kNeurons) {
      const int64_t k = smaller(kNeurons, n - k0);
      pack_upstream(own.phi, upstream, begin, count, k0, k);
      x = own.x, tiles = own.x_tiles;
      for (int64_t p = 0; p < all.count; ++p) {
        const Samples& a = all.data[p].a;
        const UnitPanels<T> panels = UnitPanels<T>::in(tiles, count, a.images, products);
        const int64_t there = smaller(k, a.channels - k0);
        if (there > 0) {
          const int64_t ld = column_stride<T>(there);
          ChannelPacker<T>{merged(a)}.pack(own.left, ld, k0, there, 0, a.images);
          sweep_in_chunks(RowsOf<T>{own.left, 1, ld}, x, there, count, a.images, own.partial,
                          AddToPanels<T>{own.phi, k}, products, panels);
        }
        x += padded * a.images, tiles += UnitPanels<T>::bytes(count, a.images, products);
      }
      const int64_t ld = column_stride<T>(k);
      RowPacker<T>{f.g}.pack(own.g, ld, k0, k, 0, r);
      const T* const squares = square == nullptr ? nullptr : square + k0;
      for_parts(f, [&](Part part) {
        const PackedSamples<T>& mine = own.of(part);
        const auto through = [&](const auto& epilogue) {
          sweep_in_chunks(RowsOf<T>{own.g, 1, ld}, mine.u, k, count, r, own.partial, epilogue, products, mine.tiles);
        };
        if (part == Part::whole)
          through(ThroughActivation<T>{f, own.phi, k, mine.shift, squares});
        else
          through(ThroughModulus<T>{f, own.phi, own.further, k, mine.shift, squares, part});
      });
      for (int64_t p = 0; p < k; ++p) own.g[r * ld + p] = 1;  // a row of ones: the sums for the shift
      const RowsOf<T> rows{own.g, ld, 1};
      const Aside<T> aside{nullptr, kOnUnit<T> ? own.partial : nullptr, products};
      for_parts(f, [&](Part part) {
        const bool second = part == Part::imaginary;
        double* const sums = own.sums + second * (r + 1) * count;
        for (int64_t j = 0; j < count; j += kGroup<T>)
          sweep_whole(rows, (second ? own.further : own.phi) + j * k, NR<T> * k, r + 1, smaller(kGroup<T>, count - j),
                      k, aside, AddTiles<T>{sums + j, count, k0 == 0});
      });
    }
    for_parts(f, [&](Part part) {
      const double* const sums = own.sums + (part == Part::imaginary) * (r + 1) * count;
      store_samples<T>(part_of<T>(merged(grad_u), part), begin, begin + count, sums);
      T* const to = grad_shift + (part == Part::imaginary);
      for (int64_t s = 0; s < count; ++s) to[(begin + s) * (1 + f.paired)] = static_cast<T>(sums[r * count + s]);
    });
  });
}

}  // namespace

void random_features_gradient(Samples u, void* shift, const Upstream& upstream, const Features& features, int threads) {
  with_unit(
      features.u.dtype, features.precision,
      [&]<class T>(Type<T>) {
        differentiate_features<T>(u, static_cast<T*>(shift), upstream, with_merged(features), threads);
      },
      [&] { vectors::random_features_gradient(u, shift, upstream, features, threads); });
}

}  // namespace rf::RF_ISA
