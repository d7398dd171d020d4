/// What a search for codes looks through: keys [C,D] and, where wanted, a number to add to each code's score.
///
///   score of code c for a row x  =  x . keys[c] + offsets[c]          kernel/best_code.hpp says which code is best
///
/// Keys are a view of somebody's matrix, a codebook's own, or a copy that belongs to the search, for keys that are made
/// of a codebook: normalised, say. set_keys is as cheap as a pointer, so that a codebook's memory may move between
/// calls. Buffers grow to the largest size seen and stay.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/kernel/best_code.hpp>

#include <span>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class code_search {
public:
  using scalar = Scalar;

  /// Keys that lie elsewhere and must live as long as they are searched.
  void set_keys(const_matrix_map<Scalar> keys) noexcept {
    view_ = keys.data();
    codes_ = keys.rows();
    width_ = keys.cols();
    own_.clear();
  }

  /// Room for keys of the search's own, unset.
  matrix_map<Scalar> own_keys(index_t codes, index_t width) {
    own_.resize(codes, width);
    view_ = nullptr;
    codes_ = codes;
    width_ = width;
    return own_.map();
  }

  /// What is added to the scores of codes that many, unset.
  std::span<Scalar> offsets(index_t codes) {
    offsets_.resize(codes);
    return offsets_.span();
  }
  void no_offsets() noexcept { offsets_.clear(); }

  index_t codes() const noexcept { return codes_; }
  index_t width() const noexcept { return width_; }

  /// How the kernel sees it. Throws std::invalid_argument if there are offsets, but not one a code.
  kernel::code_keys<Scalar> keys() const {
    if (!offsets_.empty() && offsets_.size() != codes_)
      throw_invalid("a search of ", codes_, " codes has ", offsets_.size(), " offsets");
    return {.keys = view_ == nullptr ? own_.data() : view_,
            .stride = width_,
            .offsets = offsets_.empty() ? nullptr : offsets_.data(),
            .count = codes_,
            .width = width_};
  }

private:
  const Scalar* view_ = nullptr;  ///< null: the search's own
  index_t codes_ = 0;
  index_t width_ = 0;
  matrix_buffer<Scalar> own_;
  buffer<Scalar> offsets_;
};

}  // namespace sluice::inline SLUICE_ISA
