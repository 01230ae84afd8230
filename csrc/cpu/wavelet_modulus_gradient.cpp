// SPDX-License-Identifier: BSD-3-Clause
// wavelet_modulus_gradient: the gradient of z. The responses of the filters are computed again; the transposed filters
// add to the pixels that the filters have read.
#include <omp.h>

#include "kernels_cpu.h"
#include "wavelet_groups.h"

namespace rf::RF_ISA {
namespace {

// Turns the responses of one pixel and the gradient of its outputs, `step` numbers apart for its channels, into the
// gradient of the responses to the real part of z, and of those to its imaginary part.
template <class T, int PARTS>
RF_INLINE void pull_back(Full<T> (&first)[kResponses], Full<T> (&second)[kResponses], const T* from, int64_t step,
                         const Full<T> (&response)[kResponses], const Full<T> (&low)[2], bool skip) {
  constexpr int N = kWidth<T>;
  Full<T> upstream[4];
  RF_UNROLL
  for (int t = 0; t < 4; ++t) {
    upstream[t] = get(from + ((skip ? 6 : 1) + t) * step);
    first[kReal + t] = response[kReal + t];
    first[kImaginary + t] = response[kImaginary + t];
  }
  through_moduli<T, 4>(upstream, first + kReal, first + kImaginary);
  first[kLow] = get(from);
  if constexpr (PARTS == 2) second[kLow] = get(from + N);
  if (skip) {
    RF_UNROLL
    for (int t = 0; t < 4; ++t) {
      first[kReal + t] += get(from + (1 + t) * step);
      first[kImaginary + t] += get(from + (1 + t) * step + N);
    }
    Full<T> re = low[0], im = low[1];
    const Full<T> of_low[1] = {get(from + 5 * step)};
    through_moduli<T, 1>(of_low, &re, &im);
    first[kLow] += re;
    if constexpr (PARTS == 2) second[kLow] += im;
  }
  if constexpr (PARTS == 2) {
    RF_UNROLL
    for (int t = 0; t < 4; ++t) second[kReal + t] = first[kImaginary + t], second[kImaginary + t] = -first[kReal + t];
  }
}

// Adds the gradient that comes from lines [begin, end) of a group to `to`, which lies as z does. `line` and `gradient`
// have room for a filtered line each.
template <class T, bool OWN, int PARTS, int REACH>
void add_lines(T* to, T* line, T* gradient, const T* tile, const T* z, const WaveletCall<T>& call, int64_t begin,
               int64_t end) {
  constexpr int64_t N = kWidth<T>, F = kAlongLines<OWN>;
  const int64_t step = (end - begin) * call.width * call.numbers * N, reach = call.bank.reach;
  const T beta = static_cast<T>(call.bank.beta);
  for (int64_t i = begin; i < end; ++i) {
    filter_line<T, OWN, REACH>(line, z, call, i);
    memset(gradient, 0, static_cast<size_t>(call.line() * N) * sizeof(T));
    for (int64_t j = 0; j < call.width; ++j, tile += call.numbers * N) {
      Full<T> response[kResponses], low[2], first[kResponses], second[kResponses];
      respond<T, OWN, PARTS, REACH>(response, low, line, call, j);
      pull_back<T, PARTS>(first, second, tile, step, response, low, call.maps.skip);
      add_along_columns<T, OWN, REACH>(gradient, first, call.column(j), call.taps, reach, beta);
      if constexpr (PARTS == 2)
        add_along_columns<T, OWN, REACH>(gradient + F * N, second, call.column(j), call.taps, reach, beta);
    }
    for (int64_t x = 0; x < call.maps.z.positions * PARTS; ++x)
      add_along_lines<T, OWN, REACH>(to + x * N, gradient + x * F * N, call.row(i), call.taps, reach);
  }
}

template <class T>
void compute(void* result, const WaveletMaps& maps, const Bank& bank, int threads) {
  const Scratch shared(WaveletCall<T>::shared_bytes(maps, bank));
  const WaveletCall<T> call(maps, bank, shared.data());
  const int64_t tile = call.channels * call.lines * call.width * call.numbers;
  const int64_t own = (2 * (call.pixels() + call.line()) + tile) * kWidth<T>;
  const Scratch memory(threads * own * static_cast<int64_t>(sizeof(T)));
  const int64_t chunk = larger(1, call.groups() / (8 * threads));
#pragma omp parallel for num_threads(threads) schedule(dynamic, chunk)
  for (int64_t number = 0; number < call.groups(); ++number) {
    const auto group = call.group(number);
    T* const z = static_cast<T*>(memory.data()) + omp_get_thread_num() * own;
    T* const to = z + call.pixels() * kWidth<T>;
    T *const line = to + call.pixels() * kWidth<T>, *const gradient = line + call.line() * kWidth<T>;
    T* const outputs = gradient + call.line() * kWidth<T>;
    with_source<T>(maps.z.dtype, [&]<class S>(Type<S>) { call.template read<S>(z, group); });
    memset(to, 0, static_cast<size_t>(call.pixels() * kWidth<T>) * sizeof(T));
    for (int64_t begin = 0; begin < call.height; begin += call.lines) {
      const int64_t end = smaller(call.height, begin + call.lines);
      with_source<T>(maps.out_dtype, [&]<class S>(Type<S>) {
        call.template for_runs<S>(group, begin, end, outputs,
                                  [&](const MapsInMemory<S>& from, int64_t first, int64_t length, T* tile_of_run) {
                                    read_lanes<T>(tile_of_run, from, first, length);
                                  });
      });
      with_kind(maps, bank, [&]<bool OWN, int PARTS, int REACH>() {
        add_lines<T, OWN, PARTS, REACH>(to, line, gradient, outputs, z, call, begin, end);
      });
    }
    with_source<T>(maps.z.dtype, [&]<class S>(Type<S>) {
      const auto target = call.template addresses<S>(group, [&](int64_t image, int64_t channel) {
        return static_cast<S*>(result) + (image * maps.z.channels + channel) * call.pixels();
      });
      write_lanes<T>(target, 0, call.pixels(), to);
    });
  }
}

}  // namespace

void wavelet_modulus_gradient(void* to, const WaveletMaps& maps, Bank bank, int threads) {
  if (maps.z.dtype == DType::f64)
    compute<double>(to, maps, bank, threads);
  else
    compute<float>(to, maps, bank, threads);
}

}  // namespace rf::RF_ISA
