/// Seeds of the fuzz targets that draw their cases from bytes (byte_reader.hpp): for every kind of case, which the
/// first byte says, a few inputs of random bytes, small ones, middle ones and any, since targets give them different
/// meanings.
#pragma once

#include "byte_reader.hpp"

#include <map>
#include <string>

namespace sluice::test {

inline std::map<std::string, std::string> drawn_cases(index_t kinds, index_t each, index_t longest) {
  std::map<std::string, std::string> files;
  for (index_t kind = 0; kind < kinds; ++kind)
    for (index_t i = 0; i < each; ++i) {
      bit_stream bits(static_cast<std::uint64_t>(100 * kind + i));
      std::string bytes(1, static_cast<char>(kind));
      while (static_cast<index_t>(bytes.size()) < longest * (i + 1) / each) {
        const std::uint64_t drawn = bits.next(), value = drawn >> 8U;
        bytes += static_cast<char>(drawn % 3 == 0 ? value % 16 : drawn % 3 == 1 ? 16 + value % 176 : value % 256);
      }
      files[std::to_string(kind) + "_" + std::to_string(i)] = bytes;
    }
  return files;
}

}  // namespace sluice::test
