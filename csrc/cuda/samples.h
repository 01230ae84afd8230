// SPDX-License-Identifier: BSD-3-Clause
// Where samples lie.
#pragma once

#include "../philox.h"  // RF_HOST_DEVICE
#include "device.h"

namespace rf::cuda {

RF_HOST_DEVICE int64_t count(const Samples& x) { return x.images * x.lines * x.positions; }

// The same samples in as few lines and images as their strides allow: (N, d) and channels_last are one line.
inline Samples merged(Samples x) {
  if (x.lines == 1 || x.positions == 1 || x.s_line == x.positions * x.s_position) {
    if (x.positions == 1 && x.lines > 1) x.s_position = x.s_line;
    x.positions *= x.lines, x.lines = 1, x.s_line = 0;
  }
  if (x.lines == 1 && (x.images == 1 || x.positions == 1 || x.s_image == x.positions * x.s_position)) {
    if (x.positions == 1 && x.images > 1) x.s_position = x.s_image;
    x.positions *= x.images, x.images = 1, x.s_image = 0;
  }
  return x;
}

}  // namespace rf::cuda
