// SPDX-License-Identifier: BSD-3-Clause
// Makes calls of the kernels that tests/helpers/aarch64.py writes to stdin; this process may be emulated.
//
// A call is the name of a kernel, blocks of memory, and the arguments in order. An argument is an integer or the bits
// of a double, then the block and the offset that it points to; the block is -1 if it is no address. A list is its
// length and its members. The answer is the blocks after the call.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"

using namespace rf;

namespace {

template <class T>
T from_stdin() {
  T value;
  if (std::fread(&value, sizeof(T), 1, stdin) != 1) std::exit(0);
  return value;
}

// Memory of exactly the size of a block, so that tools that watch memory see its end.
struct Block {
  char* data;
  int64_t size;
};

struct Call {
  std::vector<Block> blocks;

  int64_t integer() const { return word(nullptr); }
  template <class T>
  T* address() const {
    char* at;
    word(&at);
    return reinterpret_cast<T*>(at);
  }
  int64_t word(char** at) const {
    const auto [value, block, offset] = from_stdin<std::array<int64_t, 3>>();
    if (at != nullptr) *at = block < 0 ? nullptr : blocks[static_cast<size_t>(block)].data + offset;
    return value;
  }
};

// Reads an argument of type T. The result of `of` owns the memory that the argument points to.
template <class T>
struct Read {
  static T of(const Call& call) { return static_cast<T>(call.integer()); }
};
template <class T>
struct Read<T*> {
  static T* of(const Call& call) { return call.address<T>(); }
};
template <>
struct Read<double> {
  static double of(const Call& call) {
    const int64_t bits = call.integer();
    double value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
};
template <>
struct Read<Address> {
  static Address of(const Call& call) { return {call.integer(), call.integer(), call.integer(), call.integer()}; }
};
template <>
struct Read<Samples> {
  static Samples of(const Call& call) {
    Samples x{call.address<void>(), Read<DType>::of(call), 0, 0, 0, 0, 0, 0, 0, 0};
    call.integer();
    for (int64_t* size : {&x.images, &x.channels, &x.lines, &x.positions}) *size = call.integer();
    call.integer();
    for (int64_t* stride : {&x.s_image, &x.s_channel, &x.s_line, &x.s_position}) *stride = call.integer();
    return x;
  }
};
template <>
struct Read<Side> {
  static Side of(const Call& call) {
    return {Read<Samples>::of(call), call.address<const void>(), call.address<double>()};
  }
};
template <>
struct Read<Piece> {
  static Piece of(const Call& call) {
    call.integer();
    return {call.integer(), call.integer(), call.integer(), call.integer(), call.integer(), call.integer()};
  }
};
template <>
struct Read<Projection> {
  static Projection of(const Call& call) { return {Read<Samples>::of(call), Read<Samples>::of(call)}; }
};
template <class Member, class List>
struct ReadList {
  std::vector<Member> members;
  static ReadList of(const Call& call) {
    ReadList list;
    for (int64_t left = call.integer(); left > 0; --left) list.members.push_back(Read<Member>::of(call));
    return list;
  }
  operator List() { return {members.data(), static_cast<int64_t>(members.size())}; }
};
template <>
struct Read<Sides> : ReadList<Side, Sides> {};
template <>
struct Read<Pieces> : ReadList<Piece, Pieces> {};
template <>
struct Read<Projections> : ReadList<Projection, Projections> {};
template <>
struct Read<const Features&> {
  static Features of(const Call& call) {
    return {Read<Samples>::of(call),    Read<bool>::of(call),
            call.address<const void>(), {Read<Samples>::of(call), Read<Address>::of(call)},
            Read<Activation>::of(call), Read<double>::of(call),
            Read<double>::of(call),     Read<Precision>::of(call)};
  }
};
template <>
struct Read<const Upstream&> {
  Upstream upstream;
  ReadList<Projection, Projections> products;
  static Read of(const Call& call) {
    const Samples given = Read<Samples>::of(call);
    const void* const total = call.address<const void>();
    const void* const square = call.address<const void>();
    Read read{{given, total, square, {}}, Read<Projections>::of(call)};
    read.upstream.products = read.products;
    return read;
  }
  operator const Upstream&() { return upstream; }
};

template <>
struct Read<Bank> {
  static Bank of(const Call& call) {
    return {call.address<const double>(), call.integer(), call.integer(), call.integer() != 0, Read<double>::of(call)};
  }
};
template <>
struct Read<const WaveletMaps&> {
  static WaveletMaps of(const Call& call) {
    return {Read<Samples>::of(call), call.integer(), call.integer() != 0, call.address<void>(), Read<DType>::of(call)};
  }
};

template <class... T>
bool run(void (*kernel)(T...), const Call& call) {
  std::tuple<decltype(Read<T>::of(call))...> arguments{Read<T>::of(call)...};  // braces: from left to right
  std::apply([&](auto&... argument) { kernel(argument...); }, arguments);
  return true;
}

bool run(const std::string& name, const Call& call) {
  const Kernels& k = RF_ISA::kernels;
  return (name == "gaussian" && run(k.gaussian, call)) || (name == "uniform" && run(k.uniform, call)) ||
         (name == "cross_covariance" && run(k.cross_covariance, call)) ||
         (name == "patch_covariance" && run(k.patch_covariance, call)) || (name == "polar" && run(k.polar, call)) ||
         (name == "polar_multiply" && run(k.polar_multiply, call)) ||
         (name == "sample_project_align" && run(k.sample_project_align, call)) ||
         (name == "random_features" && run(k.random_features, call)) ||
         (name == "random_features_covariance" && run(k.random_features_covariance, call)) ||
         (name == "random_features_projection" && run(k.random_features_projection, call)) ||
         (name == "random_features_gradient" && run(k.random_features_gradient, call)) ||
         (name == "wavelet_modulus" && run(k.wavelet_modulus, call)) ||
         (name == "wavelet_modulus_gradient" && run(k.wavelet_modulus_gradient, call));
}

}  // namespace

int main() {
  while (true) {
    std::string name(static_cast<size_t>(from_stdin<int64_t>()), ' ');
    for (char& letter : name) letter = from_stdin<char>();
    Call call;
    for (int64_t left = from_stdin<int64_t>(); left > 0; --left) {
      const int64_t size = from_stdin<int64_t>();
      Block block{static_cast<char*>(std::malloc(static_cast<size_t>(size > 0 ? size : 1))), size};
      if (std::fread(block.data, 1, static_cast<size_t>(size), stdin) != static_cast<size_t>(size)) return 1;
      call.blocks.push_back(block);
    }
    if (!run(name, call)) return 2;
    for (const Block& block : call.blocks) {
      std::fwrite(block.data, 1, static_cast<size_t>(block.size), stdout);
      std::free(block.data);
    }
    std::fflush(stdout);
  }
}
