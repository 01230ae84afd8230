// SPDX-License-Identifier: BSD-3-Clause
// wavelet_modulus: a group of maps at a time, line by line. Everything between reading z and writing the output stays
// in registers and in the caches.
#include <omp.h>

#include "kernels_cpu.h"
#include "wavelet_groups.h"

namespace rf::RF_ISA {
namespace {

// Writes the outputs of one pixel: `step` numbers apart for its channels.
template <class T, int PARTS>
RF_INLINE void write_pixel(T* to, int64_t step, const Full<T> (&response)[kResponses], const Full<T> (&low)[2],
                           bool skip) {
  constexpr int N = kWidth<T>;
  const auto number = [&](int64_t channel, Full<T> re, Full<T> im) {
    put(to + channel * step, re);
    if (PARTS == 2 || skip) put(to + channel * step + N, im);
  };
  Full<T> modulus[4];
  moduli<T, 4>(modulus, response + kReal, response + kImaginary);
  number(0, low[0], low[1]);
  if (skip) {
    RF_UNROLL
    for (int t = 0; t < 4; ++t) number(1 + t, response[kReal + t], response[kImaginary + t]);
    Full<T> of_low[1];
    moduli<T, 1>(of_low, low, low + 1);
    number(5, of_low[0], Full<T>{});
  }
  RF_UNROLL
  for (int t = 0; t < 4; ++t) number((skip ? 6 : 1) + t, modulus[t], Full<T>{});
}

// Lines [begin, end) of a group. `line` has room for a filtered line.
template <class T, bool OWN, int PARTS, int REACH>
void write_lines(T* tile, T* line, const T* z, const WaveletCall<T>& call, int64_t begin, int64_t end) {
  constexpr int64_t N = kWidth<T>;
  const int64_t step = (end - begin) * call.width * call.numbers * N;
  for (int64_t i = begin; i < end; ++i) {
    filter_line<T, OWN, REACH>(line, z, call, i);
    for (int64_t j = 0; j < call.width; ++j, tile += call.numbers * N) {
      Full<T> response[kResponses], low[2];
      respond<T, OWN, PARTS, REACH>(response, low, line, call, j);
      write_pixel<T, PARTS>(tile, step, response, low, call.maps.skip);
    }
  }
}

template <class T>
void compute(const WaveletMaps& maps, const Bank& bank, int threads) {
  const Scratch shared(WaveletCall<T>::shared_bytes(maps, bank));
  const WaveletCall<T> call(maps, bank, shared.data());
  const int64_t tile = call.channels * call.lines * call.width * call.numbers;
  const int64_t own = (call.pixels() + call.line() + tile) * kWidth<T>;
  const Scratch memory(threads * own * static_cast<int64_t>(sizeof(T)));
  const int64_t chunk = larger(1, call.groups() / (8 * threads));
#pragma omp parallel for num_threads(threads) schedule(dynamic, chunk)
  for (int64_t number = 0; number < call.groups(); ++number) {
    const auto group = call.group(number);
    T* const z = static_cast<T*>(memory.data()) + omp_get_thread_num() * own;
    T *const line = z + call.pixels() * kWidth<T>, *const outputs = line + call.line() * kWidth<T>;
    with_source<T>(maps.z.dtype, [&]<class S>(Type<S>) { call.template read<S>(z, group); });
    for (int64_t begin = 0; begin < call.height; begin += call.lines) {
      const int64_t end = smaller(call.height, begin + call.lines);
      with_kind(maps, bank, [&]<bool OWN, int PARTS, int REACH>() {
        write_lines<T, OWN, PARTS, REACH>(outputs, line, z, call, begin, end);
      });
      with_source<T>(maps.out_dtype, [&]<class S>(Type<S>) {
        call.template for_runs<S>(group, begin, end, outputs,
                                  [&](const MapsInMemory<S>& to, int64_t first, int64_t length, const T* from) {
                                    write_lanes<T>(to, first, length, from);
                                  });
      });
    }
  }
}

}  // namespace

void wavelet_modulus(const WaveletMaps& maps, Bank bank, int threads) {
  if (maps.z.dtype == DType::f64)
    compute<double>(maps, bank, threads);
  else
    compute<float>(maps, bank, threads);
}

}  // namespace rf::RF_ISA
