// SPDX-License-Identifier: BSD-3-Clause
// Samples in memory: a range of samples in pieces, and their prefetching.
#pragma once

#include "../samples.h"
#include "strided.h"

namespace rf::RF_ISA {

// Splits columns [begin, end) into pieces that lie in one line each, and calls f(first column, address, length) for
// each piece. A column has E elements; the last one of a line may have fewer. `length` counts elements.
template <class S, int E = 1, class F>
RF_INLINE void for_pieces(const Samples& x, int64_t begin, int64_t end, F f) {
  const int64_t columns = blocks(x.positions, E);
  while (begin < end) {
    const int64_t line = begin / columns, column = begin % columns;
    const int64_t length = smaller(end - begin, columns - column);
    f(begin,
      static_cast<S*>(x.data) + line / x.lines * x.s_image + line % x.lines * x.s_line + column * E * x.s_position,
      smaller(length * E, x.positions - column * E));
    begin += length;
  }
}

// Prefetches rows [row, row + rows) and columns [k0, k0 + k) of channels, in `parts` equal parts, while something else
// is computed.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const Samples& x, int64_t elements, int64_t row, int64_t rows, int64_t k0, int64_t k, int64_t parts)
      : x_(x), row_(row), rows_(rows), k_(k0), end_(k0 + k), elements_(elements), parts_(parts) {
    along_k_ = x.s_position == 1;
    if (k > 0 && (along_k_ || x.s_channel == 1)) {
      runs_ = along_k_ ? rows * blocks(k * elements, smaller(x.positions, k * elements)) : k * elements;
      next_piece();
    }
  }
  RF_INLINE void step(Ahead& a) {
    for (a.due_ += a.runs_; a.due_ >= a.parts_; a.due_ -= a.parts_) {
      if (a.left_ == 0) return;
      for (int64_t i = 0; i < a.bytes_; i += 64) __builtin_prefetch(a.at_ + i, 0, 2);
      a.at_ += a.stride_;
      if (--a.left_ == 0) a.next_piece();
    }
  }

 private:
  __attribute__((noinline)) void next_piece() {
    if (k_ >= end_) return;
    const int64_t size = x_.dtype == DType::f64 ? 8 : x_.dtype == DType::f32 ? 4 : 2;
    const int64_t columns = blocks(x_.positions, elements_), line = k_ / columns, column = k_ % columns;
    const int64_t length = smaller(end_ - k_, columns - column);
    at_ = static_cast<const char*>(x_.data) + size * (line / x_.lines * x_.s_image + line % x_.lines * x_.s_line +
                                                      column * elements_ * x_.s_position + row_ * x_.s_channel);
    left_ = along_k_ ? rows_ : length * elements_;
    bytes_ = size * (along_k_ ? length * elements_ : rows_);
    stride_ = size * (along_k_ ? x_.s_channel : x_.s_position);
    k_ += length;
  }

  Samples x_{};
  int64_t row_, rows_, k_, end_, elements_, parts_ = 1;
  bool along_k_;
  int64_t runs_ = 0, due_ = 0, left_ = 0, bytes_, stride_;
  const char* at_;
};

struct NothingAhead {
  RF_INLINE void step(const NothingAhead&) {}
};

template <class A, class B>
struct Both {
  A a;
  B b;
  RF_INLINE void step(Both& both) { A::step(both.a), B::step(both.b); }
};
template <class A, class B>
Both(A, B) -> Both<A, B>;

}  // namespace rf::RF_ISA
