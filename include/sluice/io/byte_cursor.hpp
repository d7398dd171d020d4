/// byte_cursor: goes through the bytes of an untrusted file from front to back and never beyond them.
///
/// Every step says what it is for, so that a file that is cut off is refused with what was missing and where.
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/element_conversion.hpp>
#include <sluice/io/file_error.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace sluice::inline SLUICE_ISA::detail {

class byte_cursor {
public:
  /// Both must outlive the cursor; `file` is its name in messages.
  byte_cursor(std::span<const std::byte> bytes, const std::string& file) : bytes_(bytes), file_(file) {}

  const std::string& file() const noexcept { return file_; }
  std::uint64_t at() const noexcept { return at_; }
  std::uint64_t left() const noexcept { return bytes_.size() - at_; }
  std::span<const std::byte> rest() const noexcept { return bytes_.subspan(at_); }

  std::span<const std::byte> take(std::uint64_t count, std::string_view what) {
    if (count > left())
      throw file_error(file_, printable(what) + " needs " + std::to_string(count) + " bytes at byte " +
                                  std::to_string(at_) + ", the file has " + std::to_string(left()) + " more");
    const auto taken = bytes_.subspan(at_, count);
    at_ += count;
    return taken;
  }

  /// Little-endian, at any alignment.
  template <std::unsigned_integral T>
  T number(std::string_view what) {
    return load_element<T>(take(sizeof(T), what), 0);
  }

private:
  std::span<const std::byte> bytes_;
  const std::string& file_;
  std::size_t at_ = 0;
};

}  // namespace sluice::inline SLUICE_ISA::detail
