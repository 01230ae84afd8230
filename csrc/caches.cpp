// SPDX-License-Identifier: BSD-3-Clause
// Reads the sizes of the caches, once.
#include "caches.h"

#include <fstream>
#include <sstream>
#include <string>

namespace rf {
namespace {

// The CPUs in a list such as 0-3,8-11; 1 if there is none.
int64_t count_of(const std::string& list) {
  std::istringstream ranges(list);
  int64_t count = 0;
  for (std::string range; std::getline(ranges, range, ',');) {
    std::istringstream text(range);
    int64_t first = 0, last = 0;
    char dash = 0;
    if (text >> first) count += text >> dash >> last ? last - first + 1 : 1;
  }
  return count > 0 ? count : 1;
}

// What Linux says of CPU 0. Sizes that it does not report keep these usual values.
Caches read() {
  Caches found{int64_t{512} << 10, int64_t{2} << 20};
  for (int index = 0; index < 8; ++index) {
    const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index);
    const auto word = [&](const char* name) {
      std::ifstream file(folder + "/" + name);
      std::string text;
      file >> text;
      return text;
    };
    const std::string level = word("level"), type = word("type");
    int64_t size = 0;
    char unit = 0;
    std::istringstream(word("size")) >> size >> unit;
    size <<= unit == 'K' ? 10 : unit == 'M' ? 20 : 0;
    if (size <= 0 || type == "Instruction") continue;
    if (level == "2") found.second = size;
    if (level == "3") found.third = size / count_of(word("shared_cpu_list"));
  }
  return found;
}

Caches& present() {
  static Caches found = read();
  return found;
}

}  // namespace

Caches caches() { return present(); }
void set_caches(Caches other) { present() = other; }

}  // namespace rf
