/// Codes of items as a scan reads them: one byte a code, 64 items a block, part after part.
///
///   ids [T,M], each below 256  ->  blocks [ceil(T / 64), M, 64]
///
/// Items are numbered as they were added. What is left of the last block holds code 0 and belongs to no item.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/kernel/table_scan.hpp>

#include <algorithm>
#include <cstdint>

namespace sluice::inline SLUICE_ISA {

class code_blocks {
public:
  static constexpr index_t block_items = kernel::scan_block;
  static constexpr index_t most_codes = 256;

  explicit code_blocks(index_t parts = 1) : parts_(parts) {}

  index_t size() const noexcept { return size_; }
  index_t parts() const noexcept { return parts_; }
  index_t blocks() const noexcept { return (size_ + block_items - 1) / block_items; }
  const std::uint8_t* block(index_t b) const noexcept { return bytes_.data() + b * block_bytes(); }
  std::uint8_t code(index_t item, index_t part) const noexcept {
    return block(item / block_items)[part * block_items + item % block_items];
  }

  void reserve(index_t items) { bytes_.reserve((items + block_items - 1) / block_items * block_bytes()); }

  /// ids [M] of one more item. Throws std::invalid_argument for a number that is no byte.
  void add(const index_t* ids) {
    for (index_t m = 0; m < parts_; ++m)
      if (ids[m] < 0 || ids[m] >= most_codes)
        throw_invalid("an item has the code ", ids[m], ", a scan takes codes of one byte");
    if (size_ % block_items == 0) {
      const index_t wanted = (blocks() + 1) * block_bytes();
      if (wanted > bytes_.capacity()) bytes_.reserve((std::max)(wanted, 2 * bytes_.capacity()));
      bytes_.resize(wanted);
      std::fill_n(bytes_.end() - block_bytes(), block_bytes(), std::uint8_t{0});
    }
    std::uint8_t* const place = bytes_.data() + size_ / block_items * block_bytes() + size_ % block_items;
    for (index_t m = 0; m < parts_; ++m) place[m * block_items] = static_cast<std::uint8_t>(ids[m]);
    ++size_;
  }

private:
  index_t block_bytes() const noexcept { return parts_ * block_items; }

  index_t parts_;
  index_t size_ = 0;
  buffer<std::uint8_t> bytes_;
};

}  // namespace sluice::inline SLUICE_ISA
