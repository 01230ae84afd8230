// SPDX-License-Identifier: BSD-3-Clause
// patch_covariance: sums over rectangles of x[q] y[q + shift]^T, each once, spread over the blocks of taps that they
// belong to. y is packed once for all shifts, a shift being an offset into its panels; x is read where it lies.
#include <string.h>

#include "epilogue.h"
#include "kernels_cpu.h"

namespace rf::RF_ISA {
namespace {

constexpr int64_t kTerms = 512;               // of a sum, before it is promoted to float64
constexpr int64_t kPacked = int64_t{8} << 20;  // bytes of y that are packed at a time

// A rectangle of `lines` lines of `positions` positions in each of some maps, which the sum runs over: in x from
// `corner` on, in the packed y at the same places of maps of b_map positions in lines of b_line. Tiles hold MR rows
// each; the last one reads the last MR channels, whether or not another has read some of them.
template <class T>
struct Rectangles {
  RowsOf<T> corner;
  int64_t last, s_map, s_line, b_map, b_line, lines, positions;
  Rectangles from(int64_t i) const {
    Rectangles moved = *this;
    moved.corner = corner.from(smaller(i, last));
    return moved;
  }
};

// The micro-kernel, line by line, for maps [begin, end).
template <class T, int V>
RF_INLINE void multiply(int64_t begin, int64_t end, const Rectangles<T>& a, const T* b, Accumulators<T, V>& acc) {
  for (int64_t map = begin; map < end; ++map)
    for (int64_t line = 0; line < a.lines; ++line)
      multiply<T, V>(0, a.positions, RowsOf<T>{a.corner.a + map * a.s_map + line * a.s_line, a.corner.s_row, a.corner.s_k},
                     b + (map * a.b_map + line * a.b_line) * NR<T>, acc);
}

// Lines [top, bottom) of some maps of x, and lines [above, below) of those of y that they meet.
struct Batch {
  int64_t map, maps, top, bottom, above, below;
};

template <class T>
struct PatchCovariance {
  Samples x, y;
  Pieces lines, columns;
  bool symmetric;
  int64_t rows() const { return blocks(x.channels, MR) * MR; }
  int64_t row_of(int64_t channel) const {  // where the tiles leave it
    return channel + (channel / MR + 1 == blocks(x.channels, MR) ? rows() - x.channels : 0);
  }
  int64_t numbers() const { return rows() * y.channels; }
  // Of a symmetric result: whether a rectangle comes after its mirror image, or is its own.
  int order(const Piece& line, const Piece& column) const {
    const int64_t shift = line.shift != 0 ? line.shift : column.shift;
    return shift > 0 ? 1 : shift < 0 ? -1 : 0;
  }

  void pack(T* to, const Batch& batch, int64_t panel, int64_t begin, int64_t length) const {
    const int64_t row = panel * NR<T>;
    ChannelPacker<T>{merged(y)}.pack(to, NR<T>, row, smaller(NR<T>, y.channels - row),
                                     (batch.map * y.lines + batch.above) * y.positions + begin, length);
  }

  void add(double* sums, const T* panels, const Batch& batch, const Piece& line, const Piece& column,
           int64_t panel) const {
    const int64_t top = larger(line.begin, batch.top), bottom = smaller(line.end, batch.bottom);
    const int64_t width = smaller(kTerms, column.end - column.begin);
    const int64_t height = larger(1, smaller(kTerms / width, bottom - top));
    const int64_t maps = larger(1, smaller(kTerms / (width * height), batch.maps));
    const int64_t b_map = (batch.below - batch.above) * y.positions, col = panel * NR<T>;
    auto epilogue = Promote<T>{sums, y.channels, 0, symmetric && order(line, column) == 0}.open(
        {0, 0, rows(), col, smaller(NR<T>, y.channels - col)}, nullptr);
    NothingAhead nothing;
    for (int64_t map = 0; map < batch.maps; map += maps)
      for (int64_t l = top; l < bottom; l += height)
        for (int64_t p = column.begin; p < column.end; p += width) {
          const T* from = static_cast<const T*>(x.data) + (batch.map + map) * x.s_image + l * x.s_line + p * x.s_position;
          const T* right =
              panels + (map * b_map + (l + line.step - batch.above) * y.positions + p + column.step) * NR<T>;
          const Rectangles<T> left{{from, x.s_channel, x.s_position}, x.channels - MR, x.s_image, x.s_line, b_map,
                                   y.positions, smaller(height, bottom - l), smaller(width, column.end - p)};
          sweep<T>(left, right, 0, rows(), smaller(NR<T>, y.channels - col), smaller(maps, batch.maps - map), nullptr,
                   Chain{}, epilogue, nothing);
        }
  }
};

int64_t mirror(Pieces pieces, const Piece& of) {
  int64_t found = 0;
  while (pieces.first[found].shift != -of.shift || pieces.first[found].begin != of.begin + of.step) ++found;
  return found;
}

// Of a square matrix: its lower triangle, or all of it, as the transpose of another (or of itself).
void transpose_into(double* to, const double* from, int64_t size, bool lower, const auto& row_of) {
  constexpr int64_t block = 16;
  for (int64_t i0 = 0; i0 < size; i0 += block)
    for (int64_t j0 = 0; j0 < (lower ? i0 + block : size); j0 += block)
      for (int64_t i = i0; i < smaller(size, i0 + block); ++i)
        for (int64_t j = j0; j < smaller(lower ? i : size, j0 + block); ++j)
          to[row_of(i) * size + j] = from[row_of(j) * size + i];
}

template <class T>
void accumulate(double* out, int64_t ld, Samples x, Samples y, Pieces lines, Pieces columns, int64_t k, bool symmetric,
                int threads) {
  const PatchCovariance<T> of{x, y, lines, columns, symmetric};
  const int64_t d = x.channels, m = y.channels, panels = blocks(m, NR<T>), numbers = of.numbers();
  const int64_t rectangles = lines.count * columns.count;
  int64_t reach = 0;
  for (int64_t i = 0; i < lines.count; ++i) reach = larger(reach, lines.first[i].step);
  // Batches: whole maps, or some lines of one.
  const int64_t positions = larger(1, kPacked / (panels * NR<T> * static_cast<int64_t>(sizeof(T))));
  const int64_t maps = smaller(x.images, larger(1, positions / (x.lines * x.positions)));
  const int64_t height = smaller(x.lines, larger(2 * reach + 1, positions / x.positions));
  const int64_t packed = maps * smaller(x.lines, height + 2 * reach) * x.positions * NR<T>;  // of a panel
  const Scratch sums_memory(rectangles * numbers * 8), panels_memory(panels * packed * static_cast<int64_t>(sizeof(T)));
  double* sums = static_cast<double*>(sums_memory.data());
  T* panel_data = static_cast<T*>(panels_memory.data());
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rectangles; ++r) memset(sums + r * numbers, 0, static_cast<size_t>(numbers) * 8);
    for (int64_t map = 0; map < x.images; map += maps)
      for (int64_t top = 0; top < x.lines; top += height) {
        const int64_t bottom = smaller(x.lines, top + height);
        const Batch batch{map, smaller(maps, x.images - map), top, bottom, larger(0, top - reach),
                          smaller(x.lines, bottom + reach)};
        const int64_t columns_packed = batch.maps * (batch.below - batch.above) * x.positions;
        const int64_t parts = blocks(columns_packed, kTerms);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < panels * parts; ++task) {
          const int64_t panel = task / parts, begin = task % parts * kTerms;
          of.pack(panel_data + panel * packed + begin * NR<T>, batch, panel, begin,
                  smaller(kTerms, columns_packed - begin));
        }
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < rectangles * panels; ++task) {
          const int64_t r = task / panels, panel = task % panels;
          const Piece &line = lines.first[r / columns.count], &column = columns.first[r % columns.count];
          if (symmetric && of.order(line, column) < 0) continue;
          of.add(sums + r * numbers, panel_data + panel * packed, batch, line, column, panel);
        }
      }
    if (symmetric) {
#pragma omp for schedule(dynamic)
      for (int64_t r = 0; r < rectangles; ++r) {
        const Piece &line = lines.first[r / columns.count], &column = columns.first[r % columns.count];
        const int order = of.order(line, column);
        if (order > 0) continue;
        const int64_t other = mirror(lines, line) * columns.count + mirror(columns, column);
        transpose_into(sums + r * numbers, sums + other * numbers, d, order == 0,
                       [&](int64_t channel) { return of.row_of(channel); });
      }
    }
#pragma omp for schedule(static)
    for (int64_t c = 0; c < d; ++c)
      for (int64_t r = 0; r < rectangles; ++r) {
        const Piece &line = lines.first[r / columns.count], &column = columns.first[r % columns.count];
        const double* from = sums + r * numbers + of.row_of(c) * m;
        for (int64_t u = line.tap; u < line.tap + line.taps; ++u)
          for (int64_t v = column.tap; v < column.tap + column.taps; ++v) {
            double* to = out + ((c * k + u) * k + v) * ld + (u + line.shift) * k + v + column.shift;
            for (int64_t j = 0; j < m; ++j) to[j * k * k] += from[j];
          }
      }
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
