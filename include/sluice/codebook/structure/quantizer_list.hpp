/// Several quantisers whose columns of ids follow one another: the stages of a sum, the parts of a row.
///
///   list[j], 0 <= j < size()       of its own, or one and the same for every j (is_shared)
///   columns(ids, j)                 the columns of ids [T,M] that belong to quantiser j
///
/// Parameters: "<name>s.0", "<name>s.1", ..., or "<name>" where one is shared.
#pragma once

#include <sluice/codebook/quantizer.hpp>

#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <Quantizer Q>
class quantizer_list {
public:
  /// Throws std::invalid_argument unless there is one.
  explicit quantizer_list(std::vector<Q> each) : quantizers_(std::move(each)) {
    if (quantizers_.empty()) throw_invalid("a quantiser that is made of others needs one");
    number_columns(static_cast<index_t>(quantizers_.size()));
  }
  /// Throws std::invalid_argument unless count >= 1.
  quantizer_list(Q shared, index_t count) : quantizers_{std::move(shared)}, is_shared_(true) {
    if (count < 1) throw_invalid("a quantiser that is made of others needs one, not ", count);
    number_columns(count);
  }

  index_t size() const noexcept { return static_cast<index_t>(first_column_.size()) - 1; }
  bool is_shared() const noexcept { return is_shared_; }
  Q& operator[](index_t j) noexcept { return quantizers_[memory_of(j)]; }
  const Q& operator[](index_t j) const noexcept { return quantizers_[memory_of(j)]; }

  /// Workspaces: one for every quantiser, the shared one's for all its places.
  index_t workspaces() const noexcept { return static_cast<index_t>(quantizers_.size()); }
  std::size_t memory_of(index_t j) const noexcept { return is_shared_ ? 0 : as_size(j); }

  index_t code_columns() const noexcept { return first_column_.back(); }
  index_t first_column(index_t j) const noexcept { return first_column_[as_size(j)]; }
  index_t codes(index_t column) const noexcept {
    index_t j = 0;
    while (column >= first_column(j + 1)) ++j;
    return (*this)[j].codes(column - first_column(j));
  }
  template <typename Ids>
  auto columns(Ids&& ids, index_t j) const {
    return ids.middleCols(first_column(j), first_column(j + 1) - first_column(j));
  }

  /// What workspaces or tapes of so many tokens take.
  index_t workspace_bytes(index_t rows, bool training) const {
    index_t bytes = 0;
    for (index_t j = 0; j < (training ? size() : workspaces()); ++j)
      bytes += (*this)[j].workspace_bytes(rows, training);
    return bytes;
  }

  template <typename Self, typename Visitor>
  static void visit_as(Self& self, const std::string& name, Visitor& visit) {
    if (self.is_shared_)
      visit(name, self.quantizers_.front());
    else
      for (std::size_t j = 0; j < self.quantizers_.size(); ++j)
        visit(name + "s." + std::to_string(j), self.quantizers_[j]);
  }

private:
  void number_columns(index_t count) {
    first_column_.push_back(0);
    for (index_t j = 0; j < count; ++j) first_column_.push_back(first_column_.back() + (*this)[j].code_columns());
  }

  std::vector<Q> quantizers_;
  bool is_shared_ = false;
  std::vector<index_t> first_column_;
};

}  // namespace sluice::inline SLUICE_ISA
