// SPDX-License-Identifier: BSD-3-Clause
// The module rainbow_fast._C: one line per kernel. Memory arrives as addresses; Python has checked and allocated it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "kernels.h"

namespace py = pybind11;
using namespace rf;

namespace {

const Kernels* kernels = &baseline::kernels;

struct Level {
  const char* name;
  const Kernels* kernels;
  bool runs_here;
};

std::vector<Level> all_levels() {
  std::vector<Level> levels = {{"baseline", &baseline::kernels, true}};
#ifdef RF_X86
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  levels.push_back({"avx2", &avx2::kernels, has_avx2});
  levels.push_back({"avx512", &avx512::kernels, has_avx512});
  levels.push_back({"avx512_bf16", &avx512_bf16::kernels, has_avx512 && __builtin_cpu_supports("avx512bf16")});
#endif
  return levels;
}

// The levels of this build that this machine runs, lowest first.
std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (const Level& level : all_levels())
    if (level.runs_here) names.push_back(level.name);
  return names;
}

void use(const std::string& name) {
  for (const Level& level : all_levels())
    if (level.runs_here && name == level.name) {
      kernels = level.kernels;
      return;
    }
  throw std::invalid_argument("this build on this machine has no level " + name);
}

template <class T = void>
T* at(uint64_t address) {
  return reinterpret_cast<T*>(address);
}

// (address, dtype, images, channels, positions, their strides), as rainbow_fast.ops.cross_covariance.samples makes it
using SamplesTuple = std::tuple<uint64_t, int, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

Samples samples(const SamplesTuple& t) {
  const auto& [address, dtype, images, channels, positions, s_image, s_channel, s_position] = t;
  return {at(address), static_cast<DType>(dtype), images, channels, positions, s_image, s_channel, s_position};
}

Address address(const std::vector<int64_t>& a) { return {a.at(0), a.at(1), a.at(2), a.at(3)}; }

Features features(const SamplesTuple& u, uint64_t shift, const SamplesTuple& g, const std::vector<int64_t>& key, int activation,
                  double slope, double scale) {
  return {samples(u), at(shift), {samples(g), address(key)}, static_cast<Activation>(activation), slope, scale};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using Key = std::vector<int64_t>;
  using Tuple = SamplesTuple;
  const py::call_guard<py::gil_scoped_release> released;

  m.def("levels", &levels);
  m.def("use", &use);
  m.def("gaussian", [](uint64_t out, int dtype, int64_t rows, int64_t cols, int64_t ld, const Key& key, int threads) {
    kernels->gaussian(at(out), static_cast<DType>(dtype), rows, cols, ld, address(key), threads); }, released);
  m.def("cross_covariance", [](uint64_t out, int64_t ld, const Tuple& x, const Tuple& y, bool symmetric, int threads) {
    kernels->cross_covariance(at<double>(out), ld, samples(x), samples(y), symmetric, threads); }, released);
  m.def("polar_multiply", [](uint64_t q, uint64_t M, uint64_t out, int64_t rows, int64_t inner, int64_t cols, int threads) {
    kernels->polar_multiply(at<double>(q), at<double>(M), at<double>(out), rows, inner, cols, threads); }, released);
  m.def("sample_project_align", [](uint64_t out, int dtype, int64_t n, int64_t ld, const Tuple& P, const Key& key, double scale, int threads) {
    kernels->sample_project_align(at(out), static_cast<DType>(dtype), n, ld, samples(P), address(key), scale, threads); }, released);
  m.def("random_features", [](const Tuple& out, const Tuple& u, uint64_t shift, const Tuple& G, const Key& key, int activation, double slope, double scale, int threads) {
    kernels->random_features(samples(out), features(u, shift, G, key, activation, slope, scale), threads); }, released);
  m.def("random_features_covariance", [](uint64_t out, uint64_t total, uint64_t square, const Tuple& x, const Tuple& u, uint64_t shift, const Tuple& G, const Key& key, int activation, double slope, double scale, int threads) {
    kernels->random_features_covariance(at<double>(out), at<double>(total), at<double>(square), samples(x), features(u, shift, G, key, activation, slope, scale), threads); }, released);
  m.def("random_features_projection", [](const Tuple& out, const Tuple& u, const Tuple& A, uint64_t shift, const Tuple& G, const Key& key, int activation, double slope, double scale, int threads) {
    kernels->random_features_projection(samples(out), samples(A), features(u, shift, G, key, activation, slope, scale), threads); }, released);
}
