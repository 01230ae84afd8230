// SPDX-License-Identifier: BSD-3-Clause
// Samples in memory, on a CPU or a GPU: their number, and the same samples described with fewer and longer lines.
#pragma once

#include "compiler.h"
#include "kernels.h"

namespace rf::RF_ISA {

RF_HOST_DEVICE int64_t count(const Samples& x) { return x.images * x.lines * x.positions; }

// The same samples with all lines of an image joined into one, if their strides allow it.
RF_HOST_DEVICE Samples merged_lines(Samples x) {
  if (x.lines == 1 || x.positions == 1 || x.s_line == x.positions * x.s_position) {
    if (x.positions == 1 && x.lines > 1) x.s_position = x.s_line;
    x.positions *= x.lines, x.lines = 1, x.s_line = 0;
  }
  return x;
}

// The same samples with as few lines and images as their strides allow. Samples of shape (N, d) or in channels_last
// layout become one line.
RF_HOST_DEVICE Samples merged(Samples x) {
  x = merged_lines(x);
  if (x.lines == 1 && (x.images == 1 || x.positions == 1 || x.s_image == x.positions * x.s_position)) {
    if (x.positions == 1 && x.images > 1) x.s_position = x.s_image;
    x.positions *= x.images, x.images = 1, x.s_image = 0;
  }
  return x;
}

}  // namespace rf::RF_ISA
