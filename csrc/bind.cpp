// SPDX-License-Identifier: BSD-3-Clause
// The module rainbow_fast._C: one line per kernel. Memory arrives as addresses; Python has checked and allocated it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "caches.h"
#include "kernels.h"

namespace py = pybind11;
using namespace rf;

namespace {

const Kernels* cpu_kernels = &baseline::kernels;
#ifdef RF_CUDA
const KernelsOn<Stream>* const cuda_kernels = &cuda::kernels;
#endif

struct Level {
  const char* name;
  const Kernels* kernels;
  bool runs_here;
};

#ifdef __x86_64__
bool has_f16c() {  // which __builtin_cpu_supports of older clangs does not know
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

bool has_amx() {
  constexpr unsigned tiles = 1u << 24, bfloat16 = 1u << 22;
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & tiles) && (d & bfloat16);
}

// Whether Linux lets this process use tile registers. It has to be asked once.
bool may_use_amx() {
#ifdef __linux__
  constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = has_amx() && syscall(SYS_arch_prctl, request, tile_data) == 0;
  return granted;
#else
  return false;
#endif
}
#endif

std::vector<Level> all_levels() {
  std::vector<Level> levels = {{"baseline", &baseline::kernels, true}};
#ifdef __x86_64__
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  levels.push_back({"avx2", &avx2::kernels, has_avx2});
  const bool has_bf16 = has_avx512 && __builtin_cpu_supports("avx512bf16");
  levels.push_back({"amx_emulated", &amx_emulated::kernels, has_bf16});  // for tests: slow, so never the last one
  levels.push_back({"avx512", &avx512::kernels, has_avx512});
  levels.push_back({"avx512_bf16", &avx512_bf16::kernels, has_bf16});
  levels.push_back({"amx", &amx::kernels, has_bf16 && may_use_amx()});
#endif
  return levels;
}

// The levels of this build that can run on this machine, lowest first.
std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (const Level& level : all_levels())
    if (level.kernels != nullptr && level.runs_here) names.push_back(level.name);
  return names;
}

// Whether the CPU has tile registers that the system does not let this process use.
bool amx_is_refused() {
#ifdef __x86_64__
  return has_amx() && !may_use_amx();
#else
  return false;
#endif
}

void use(const std::string& name) {
  for (const Level& level : all_levels())
    if (level.kernels != nullptr && level.runs_here && name == level.name) {
      cpu_kernels = level.kernels;
      return;
    }
  throw std::invalid_argument("this build on this machine has no level " + name);
}

// How an argument of a kernel arrives from Python: memory as an address, an enumeration as its number, a struct as the
// tuple of its members.
template <class T>
struct Argument {
  using From = T;
  static T to(T x) { return x; }
};
template <class T>
struct Argument<T*> {
  using From = uint64_t;
  static T* to(uint64_t address) { return reinterpret_cast<T*>(address); }
};
template <>
struct Argument<DType> {
  using From = int;
  static DType to(int code) { return static_cast<DType>(code); }
};
template <>
struct Argument<Address> {
  using From = std::tuple<int64_t, int64_t, int64_t, int64_t>;
  static Address to(const From& t) {
    const auto& [seed, stream, row, col] = t;
    return {seed, stream, row, col};
  }
};
template <>
struct Argument<Activation> {
  using From = int;
  static Activation to(int code) { return static_cast<Activation>(code); }
};
template <>
struct Argument<Precision> {
  using From = int;
  static Precision to(int code) { return static_cast<Precision>(code); }
};
template <>
struct Argument<Samples> {
  using Sizes = std::array<int64_t, 4>;
  using From = std::tuple<uint64_t, int, Sizes, Sizes>;
  static Samples to(const From& t) {
    const auto& [data, dtype, size, stride] = t;
    return {Argument<void*>::to(data),
            Argument<DType>::to(dtype),
            size[0],
            size[1],
            size[2],
            size[3],
            stride[0],
            stride[1],
            stride[2],
            stride[3]};
  }
};
template <>
struct Argument<Side> {
  using From = std::tuple<Argument<Samples>::From, uint64_t, uint64_t>;
  static Side to(const From& t) {
    const auto& [samples, shift, total] = t;
    return {Argument<Samples>::to(samples), Argument<const void*>::to(shift), Argument<double*>::to(total)};
  }
};
template <>
struct Argument<Sides> {
  using From = std::vector<Argument<Side>::From>;
  struct Held {
    std::vector<Side> sides;
    operator Sides() { return {sides.data(), static_cast<int64_t>(sides.size())}; }
  };
  static Held to(const From& from) {
    Held held;
    for (const auto& side : from) held.sides.push_back(Argument<Side>::to(side));
    return held;
  }
};
template <>
struct Argument<Pieces> {
  using From = std::vector<std::array<int64_t, 6>>;
  struct Held {
    std::vector<Piece> pieces;
    operator Pieces() const { return {pieces.data(), static_cast<int64_t>(pieces.size())}; }
  };
  static Held to(const From& from) {
    Held held;
    for (const auto& [shift, step, begin, end, tap, taps] : from)
      held.pieces.push_back({shift, step, begin, end, tap, taps});
    return held;
  }
};
template <>
struct Argument<const Features&> {
  using Tuple = Argument<Samples>::From;
  using From = std::tuple<Tuple, bool, uint64_t, Tuple, Argument<Address>::From, int, double, double, int>;
  static Features to(const From& t) {
    const auto& [u, paired, shift, given, address, activation, slope, scale, precision] = t;
    return {Argument<Samples>::to(u),
            paired,
            Argument<const void*>::to(shift),
            {Argument<Samples>::to(given), Argument<Address>::to(address)},
            static_cast<Activation>(activation),
            slope,
            scale,
            static_cast<Precision>(precision)};
  }
};

// A list of structs arrives as a list of tuples. The structs are kept for the length of the call.
template <>
struct Argument<Projections> {
  using Tuple = Argument<Samples>::From;
  using From = std::vector<std::tuple<Tuple, Tuple>>;
  struct Kept {
    std::vector<Projection> all;
    operator Projections() const { return {all.data(), static_cast<int64_t>(all.size())}; }
  };
  static Kept to(const From& from) {
    Kept kept;
    for (const auto& [x, a] : from) kept.all.push_back({Argument<Samples>::to(x), Argument<Samples>::to(a)});
    return kept;
  }
};

template <>
struct Argument<const Upstream&> {
  using From = std::tuple<Argument<Samples>::From, uint64_t, uint64_t, Argument<Projections>::From>;
  struct Kept {
    Argument<Projections>::Kept products;
    Upstream upstream;
    operator const Upstream&() { return upstream; }
  };
  static Kept to(const From& from) {
    const auto& [given, total, square, products] = from;
    Kept kept{Argument<Projections>::to(products), {}};
    kept.upstream = {Argument<Samples>::to(given), Argument<const void*>::to(total), Argument<const void*>::to(square),
                     kept.products};
    return kept;
  }
};

template <>
struct Argument<Bank> {
  using From = std::tuple<uint64_t, int64_t, int64_t, bool, double>;
  static Bank to(const From& t) {
    const auto& [taps, reach, stride, own_low, beta] = t;
    return {Argument<const double*>::to(taps), reach, stride, own_low, beta};
  }
};
template <>
struct Argument<const WaveletMaps&> {
  using From = std::tuple<Argument<Samples>::From, int64_t, bool, uint64_t, int>;
  static WaveletMaps to(const From& t) {
    const auto& [z, parts, skip, out, dtype] = t;
    return {Argument<Samples>::to(z), parts, skip, Argument<void*>::to(out), Argument<DType>::to(dtype)};
  }
};

template <>
struct Argument<Stream> {
  using From = std::tuple<int, uint64_t, uint64_t, int64_t>;
  static Stream to(const From& t) {
    const auto& [device, handle, workspace, bytes] = t;
    return {device, Argument<void*>::to(handle), Argument<void*>::to(workspace), bytes};
  }
};

// Binds one kernel. Each call takes it from the table that `kernels` points to at that time.
template <class Here, class Table, class... T>
void bind(py::module_& m, const char* name, Here* const* kernels, void (*Table::*kernel)(T...)) {
  m.def(
      name,
      [kernels, kernel](const typename Argument<T>::From&... from) { ((*kernels)->*kernel)(Argument<T>::to(from)...); },
      py::call_guard<py::gil_scoped_release>());
}

// Binds the kernels that both the CPU and CUDA have.
template <class Run, class Here>
void bind_shared(py::module_& m, Here* const* kernels) {
  using Table = KernelsOn<Run>;
  bind(m, "gaussian", kernels, &Table::gaussian);
  bind(m, "uniform", kernels, &Table::uniform);
  bind(m, "cross_covariance", kernels, &Table::cross_covariance);
  bind(m, "sample_project_align", kernels, &Table::sample_project_align);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("levels", &levels);
  m.def("amx_is_refused", &amx_is_refused);
  m.def("use", &use);
  m.def("caches", [] {
    const Caches here = caches();
    return std::tuple(here.second, here.third);
  });
  m.def("set_caches", [](int64_t second, int64_t third) { set_caches({second, third}); });
  m.def("advise_huge_pages", [](uint64_t data, int64_t bytes) { advise_huge_pages(Argument<void*>::to(data), bytes); });
  bind_shared<int>(m, &cpu_kernels);
  bind(m, "random_features", &cpu_kernels, &Kernels::random_features);
  bind(m, "random_features_covariance", &cpu_kernels, &Kernels::random_features_covariance);
  bind(m, "random_features_projection", &cpu_kernels, &Kernels::random_features_projection);
  bind(m, "patch_covariance", &cpu_kernels, &Kernels::patch_covariance);
  bind(m, "polar", &cpu_kernels, &Kernels::polar);
  bind(m, "polar_multiply", &cpu_kernels, &Kernels::polar_multiply);
  bind(m, "random_features_gradient", &cpu_kernels, &Kernels::random_features_gradient);
  bind(m, "wavelet_modulus", &cpu_kernels, &Kernels::wavelet_modulus);
  bind(m, "wavelet_modulus_gradient", &cpu_kernels, &Kernels::wavelet_modulus_gradient);
#ifdef RF_CUDA
  py::module_ gpu = m.def_submodule("cuda");
  gpu.def("toolkit_version", &cuda::toolkit_version);
  gpu.def("driver_version", &cuda::driver_version);
  bind_shared<Stream>(gpu, &cuda_kernels);
#endif
}
