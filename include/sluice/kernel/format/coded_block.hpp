/// One output's block of inputs as a format of weights keeps it: codes, and whatever scales are made of. What files are
/// unpacked to, panels are packed from, and readable decoding reads.
///
/// Every format here is a case of
///   w(i) = s(r) m(codes[i]) + b(r)      r = i / run; m whole numbers or small floats, b often 0
/// with s and b of a run of inputs made of `scale`, `minimum` (one a block, exactly as the format rounds them) and
/// `scales`, `minima` (small codes of the block's runs); which of them a format has, its kind of scales says
/// (kernel/format/block_scales.hpp).
#pragma once

#include <sluice/core/types.hpp>

#include <array>
#include <cstdint>

namespace sluice::inline SLUICE_ISA {

struct coded_block {
  std::array<std::uint8_t, 256> codes{};
  std::array<std::uint8_t, 16> scales{};
  std::array<std::uint8_t, 16> minima{};
  float scale = 0;
  float minimum = 0;
};

}  // namespace sluice::inline SLUICE_ISA
