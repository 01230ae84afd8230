// SPDX-License-Identifier: BSD-3-Clause
// patch_covariance: sums of x[q] y[q + step]^T over rectangles of positions q. Each sum is computed once, and then
// added to all blocks of taps that it belongs to. y is packed once for all steps, which are offsets into its panels. x
// is read where it lies.
#include <string.h>

#include "epilogue.h"
#include "kernels_cpu.h"

namespace rf::RF_ISA {
namespace {

constexpr int64_t kTerms = 256;       // most terms of a sum before it is promoted to float64
constexpr int64_t kPositions = 8192;  // packed at a time: 2 MiB for a panel of floats

// The size of the equal parts that `size` is divided into, at most about `most`.
int64_t even(int64_t size, int64_t most) { return blocks(size, blocks(size, larger(1, most))); }

// Rows of A over a rectangle of `lines` by `positions` positions. The sum runs over this rectangle in several maps;
// `corner` is its first position in the first map. In the panels of B, the next map is b_map positions further on and
// the next line is b_line positions further on. The last tile reads the last MR channels, some of which another tile
// may have read as well.
template <class T>
struct Rectangle {
  RowsOf<T> corner;
  int64_t last, s_map, s_line, b_map, b_line, lines, positions;

  Rectangle from(int64_t i) const {
    Rectangle moved = *this;
    moved.corner = corner.from(smaller(i, last));
    return moved;
  }
};

// The micro-kernel for maps [begin, end), line by line.
template <class T, int V>
RF_INLINE void multiply(int64_t begin, int64_t end, const Rectangle<T>& a, const T* b, Accumulators<T, V>& acc) {
  for (int64_t map = begin; map < end; ++map)
    for (int64_t line = 0; line < a.lines; ++line) {
      const RowsOf<T> rows{a.corner.a + map * a.s_map + line * a.s_line, a.corner.s_row, a.corner.s_k};
      multiply<T, V>(0, a.positions, rows, b + (map * a.b_map + line * a.b_line) * NR<T>, acc);
    }
}

bool has_tap(const Piece& piece, int64_t tap) { return tap >= piece.tap && tap < piece.tap + piece.taps; }

// Lines [top, bottom) of `maps` maps of x, from `map` on, and the lines [above, below) of y that their taps can reach.
struct Batch {
  int64_t map, maps, top, bottom, above, below;
};

// The sums of all rectangles. A rectangle is a piece of the lines and a piece of the columns. Its sum is a matrix with
// `rows` rows, and with the channels of y as columns.
template <class T>
struct Sums {
  Samples x, y;
  Pieces lines, columns;
  bool symmetric;
  int64_t rows, count, size;  // rows of a sum, number of rectangles, numbers in a sum
  double* data;

  const Piece& line(int64_t r) const { return lines.first[r / columns.count]; }
  const Piece& column(int64_t r) const { return columns.first[r % columns.count]; }
  double* sum(int64_t r) const { return data + r * size; }
  int64_t columns_of(int64_t panel) const { return smaller(NR<T>, y.channels - panel * NR<T>); }
  // The row of a sum that belongs to a channel of x. The rows of the last tile are the last rows of the sum.
  int64_t row(int64_t channel) const {
    return channel < rows - MR || rows == MR ? channel : channel + rows - x.channels;
  }
  // The step of a rectangle. Its sign says which part of a symmetric result is computed: all where it is positive, the
  // upper triangle where it is zero, nothing where it is negative.
  int64_t step(int64_t r) const { return line(r).step != 0 ? line(r).step : column(r).step; }

  void pack(T* to, const Batch& batch, int64_t panel, int64_t begin, int64_t length) const {
    const int64_t first = (batch.map * y.lines + batch.above) * y.positions;
    ChannelPacker<T>{merged(y)}.pack(to + begin * NR<T>, NR<T>, panel * NR<T>, columns_of(panel), first + begin,
                                     length);
  }

  void add(int64_t r, int64_t panel, const T* packed, const Batch& batch) const {
    const Piece &l = line(r), &c = column(r);
    const int64_t top = larger(l.begin, batch.top), bottom = smaller(l.end, batch.bottom);
    if (top >= bottom) return;
    const int64_t width = even(c.end - c.begin, kTerms), height = even(bottom - top, kTerms / width);
    const int64_t maps = even(batch.maps, kTerms / (width * height)), b_map = (batch.below - batch.above) * y.positions;
    const Block block{0, 0, rows, panel * NR<T>, columns_of(panel)};
    auto epilogue = Promote<T>{sum(r), y.channels, 0, symmetric && step(r) == 0}.open(block, nullptr);
    NothingAhead nothing;
    for (int64_t map = 0; map < batch.maps; map += maps)
      for (int64_t i = top; i < bottom; i += height)
        for (int64_t j = c.begin; j < c.end; j += width) {
          const T* left = static_cast<T*>(x.data) + (batch.map + map) * x.s_image + i * x.s_line + j * x.s_position;
          const T* right = packed + (map * b_map + (i + l.step - batch.above) * y.positions + j + c.step) * NR<T>;
          const Rectangle<T> rectangle{
              {left, x.s_channel, x.s_position}, larger(0, x.channels - MR), x.s_image, x.s_line, b_map, y.positions,
              smaller(height, bottom - i),       smaller(width, c.end - j)};
          sweep<T>(rectangle, right, 0, rows, block.cols, smaller(maps, batch.maps - map), Aside<T>{}, Chain{},
                   epilogue, nothing);
        }
  }

  static int64_t mirrored(Pieces pieces, const Piece& of) {
    int64_t i = 0;
    while (pieces.first[i].step != -of.step || pieces.first[i].begin != of.begin + of.step) ++i;
    return i;
  }
  // Fills in the part of a symmetric result that was not computed, from the sum over the same samples with x and y
  // exchanged.
  void mirror(int64_t r) const {
    constexpr int64_t block = 16;
    if (step(r) > 0) return;
    const double* from = sum(mirrored(lines, line(r)) * columns.count + mirrored(columns, column(r)));
    double* to = sum(r);
    const int64_t d = x.channels;
    for (int64_t i0 = 0; i0 < d; i0 += block)
      for (int64_t j0 = 0; j0 < d; j0 += block)
        for (int64_t i = i0; i < smaller(d, i0 + block); ++i)
          for (int64_t j = j0; j < smaller(step(r) < 0 ? d : i, j0 + block); ++j)
            to[row(i) * d + j] = from[row(j) * d + i];
  }

  // Adds to the result's row for tap (u, v) of a channel of x. `taps` has room for a (k k, channels of y) matrix.
  void spread(double* out, double* taps, int64_t channel, int64_t u, int64_t v, int64_t k) const {
    const int64_t m = y.channels;
    memset(taps, 0, static_cast<size_t>(k * k * m) * 8);
    for (int64_t l = 0; l < lines.count; ++l) {
      if (!has_tap(lines.first[l], u)) continue;
      for (int64_t c = 0; c < columns.count; ++c) {
        if (!has_tap(columns.first[c], v)) continue;
        const double* from = sum(l * columns.count + c) + row(channel) * m;
        double* to = taps + ((u + lines.first[l].shift) * k + v + columns.first[c].shift) * m;
        for (int64_t j = 0; j < m; ++j) to[j] += from[j];
      }
    }
    for (int64_t j = 0; j < m; ++j)
      for (int64_t tap = 0; tap < k * k; ++tap) out[j * k * k + tap] += taps[tap * m + j];
  }
};

template <class T>
void accumulate(double* out, int64_t ld, Samples x, const Samples& y, Pieces lines, Pieces columns, int64_t k,
                bool symmetric, int threads) {
  // x is copied, with channels last, if its numbers must be widened or its channels are too few for a tile.
  const bool copied = x.channels < MR || (sizeof(T) == 4 && x.dtype != DType::f32);
  const int64_t s_copy = whole_vectors<T>(larger(MR, x.channels)), line = x.positions * s_copy;
  const Scratch copy(copied ? x.images * x.lines * line * static_cast<int64_t>(sizeof(T)) : 0);
  T* const copies = static_cast<T*>(copy.data());
  if (copied) {
#pragma omp parallel for num_threads(threads)
    for (int64_t l = 0; l < x.images * x.lines; ++l)
      ChannelPacker<T>{x}.pack(copies + l * line, s_copy, 0, x.channels, l * x.positions, x.positions);
    x = {copies, DType{}, x.images, x.channels, x.lines, x.positions, x.lines * line, 1, line, s_copy};
  }
  const int64_t rows = blocks(x.channels, MR) * MR, m = y.channels, panels = blocks(m, NR<T>);
  const int64_t count = lines.count * columns.count, size = rows * m, taps = k * k * m;
  int64_t reach = 0;
  for (int64_t i = 0; i < lines.count; ++i) reach = larger(reach, lines.first[i].step);
  // A batch is several maps, or several lines of one map.
  const int64_t maps = smaller(x.images, larger(1, kPositions / (x.lines * x.positions)));
  const int64_t height = smaller(x.lines, larger(2 * reach + 1, kPositions / x.positions));
  const int64_t panel_size = maps * smaller(x.lines, height + 2 * reach) * x.positions * NR<T>;
  const Scratch sums_memory(count * size * 8), taps_memory(threads * taps * 8);
  const Scratch panels_memory(panels * panel_size * static_cast<int64_t>(sizeof(T)));
  T* packed = static_cast<T*>(panels_memory.data());
  const Sums<T> sums{x, y, lines, columns, symmetric, rows, count, size, static_cast<double*>(sums_memory.data())};
#pragma omp parallel num_threads(threads)
  {
#pragma omp for
    for (int64_t r = 0; r < count; ++r) memset(sums.sum(r), 0, static_cast<size_t>(size) * 8);
    for (int64_t map = 0; map < x.images; map += maps)
      for (int64_t top = 0; top < x.lines; top += height) {
        const int64_t bottom = smaller(x.lines, top + height);
        const Batch batch{map,    smaller(maps, x.images - map), top,
                          bottom, larger(0, top - reach),        smaller(x.lines, bottom + reach)};
        const int64_t positions = batch.maps * (batch.below - batch.above) * x.positions;
        const int64_t parts = blocks(positions, kTerms);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < panels * parts; ++task) {
          const int64_t panel = task / parts, begin = task % parts * kTerms;
          sums.pack(packed + panel * panel_size, batch, panel, begin, smaller(kTerms, positions - begin));
        }
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < count * panels; ++task) {
          const int64_t r = task / panels, panel = task % panels;
          if (!symmetric || sums.step(r) >= 0) sums.add(r, panel, packed + panel * panel_size, batch);
        }
      }
    if (symmetric) {
#pragma omp for schedule(dynamic)
      for (int64_t r = 0; r < count; ++r) sums.mirror(r);
    }
    double* own = static_cast<double*>(taps_memory.data()) + omp_get_thread_num() * taps;
#pragma omp for
    for (int64_t row = 0; row < x.channels * k * k; ++row)
      sums.spread(out + row * ld, own, row / (k * k), row / k % k, row % k, k);
  }
}

}  // namespace

void patch_covariance(double* out, int64_t ld, Samples x, Samples y, Pieces lines, Pieces columns, int64_t k,
                      bool symmetric, int threads) {
  if (x.dtype == DType::f64)
    accumulate<double>(out, ld, x, y, lines, columns, k, symmetric, threads);
  else
    accumulate<float>(out, ld, x, y, lines, columns, k, symmetric, threads);
}

}  // namespace rf::RF_ISA
