/// expert_layout: how a published file holds the matrices of the experts of one block.
///
///   per expert    experts.3.gate_proj.weight [H,D]                     one tensor a matrix and expert; {} stands for the 3
///   stacked       experts.down_proj [E,D,H]                            one tensor for all experts
///   concatenated  gate and up in one tensor: [2H,D], the rows of gate first
///   interleaved   gate and up in one tensor: rows 0, 2, 4 ... are gate, 1, 3, 5 ... up
///   transposed    [in,out] instead of [out,in]; then "rows" above are columns
///   flat          stacked, in a matrix of E times the rows: [EH,D]
///
/// place() says where element (output, input) of a matrix lies: offset + output row_stride + input col_stride, in
/// elements of the tensor. Everything that reads or writes layers is written on these three numbers and knows no
/// layout.
#pragma once

#include <sluice/core/types.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// Where a matrix [rows, cols] of a layer lies in a file.
struct tensor_place {
  std::string tensor;
  std::vector<std::int64_t> shape;  ///< of the whole tensor
  index_t offset = 0;
  index_t row_stride = 0;
  index_t col_stride = 1;
  bool leading_ones = false;  ///< axes of one element in front of the shape are not counted

  /// Whether a tensor of this shape is the one.
  bool is_of(std::span<const std::int64_t> other) const noexcept {
    if (!leading_ones) return std::ranges::equal(other, shape);
    const auto counted = [](std::span<const std::int64_t> extents) {
      while (extents.size() > 1 && extents.front() == 1) extents = extents.subspan(1);
      return extents;
    };
    return std::ranges::equal(counted(other), counted(shape));
  }

  /// Whether elements of a row are nearer to each other than those of a column.
  bool is_by_row(index_t cols) const noexcept { return cols > 1 && col_stride <= row_stride; }

  /// Elements of a matrix that are evenly spaced in the tensor: `count` of a row or of a column, from (row, col) on.
  struct run {
    bool along_row;
    index_t row;
    index_t col;
    index_t count;
    index_t at;    ///< of the first, counted from the beginning of the range
    index_t step;  ///< to the next
  };

  /// f(run) for all elements of a matrix [rows, cols] here that are elements first .. last - 1 of the tensor.
  template <typename F>
  void for_each_run(index_t rows, index_t cols, index_t first, index_t last, F&& f) const {
    const bool by_row = is_by_row(cols);
    const index_t step = by_row ? col_stride : row_stride;
    const index_t outer_stride = by_row ? row_stride : col_stride;
    const index_t count = by_row ? cols : rows;
    const index_t outer_count = by_row ? rows : cols;
    const index_t behind =
        first - offset - ((count - 1) * step + 1);  // runs that begin here or earlier end before first
    for (index_t o = behind < 0 ? 0 : behind / outer_stride; o < outer_count; ++o) {
      const index_t begin = offset + o * outer_stride;
      if (begin >= last) return;
      const index_t from = begin >= first ? 0 : (first - begin + step - 1) / step;
      const index_t to = (std::min)(count, (last - begin + step - 1) / step);
      if (from < to) f(run{by_row, by_row ? o : from, by_row ? from : o, to - from, begin + from * step - first, step});
    }
  }
};

/// Sizes of one expert: D' = D in every published model. An expert that is one of a kind has no axis of experts: 0.
struct expert_extent {
  index_t experts;
  index_t hidden;
  index_t inputs;
};

struct expert_layout {
  enum class gate_and_up { apart, concatenated, interleaved };

  std::string_view name;  ///< for messages and the command line
  std::string_view gate;  ///< of both if gate and up share a tensor; empty if experts have no gate
  std::string_view up;
  std::string_view down;
  gate_and_up arrangement = gate_and_up::apart;
  bool transposed = false;
  std::string_view up_bias = {};  ///< of both if gate and up share a tensor
  std::string_view down_bias = {};
  bool down_transposed = false;  ///< down alone is [in,out]
  bool flat = false;             ///< stacked without an axis of experts: their matrices lie one below the other
  std::string_view gate_bias = {};  ///< where gate and up have a bias each
  bool coded = false;               ///< weights under these names are codes: there to be read, not to be written

  /// The names of the matrices and biases of one expert.
  std::vector<std::string_view> parts() const {
    std::vector<std::string_view> parts;
    for (const std::string_view part : {"gate", "up", "down", "gate_bias", "up_bias", "down_bias"})
      if ((has_gate() || !part.starts_with("gate")) && (!part.ends_with("_bias") || !up_bias.empty()))
        parts.push_back(part);
    return parts;
  }

  /// Rows and columns of one of them.
  static std::pair<index_t, index_t> extent_of(std::string_view part, const expert_extent& size) {
    const bool is_down = part.starts_with("down");
    return {is_down ? size.inputs : size.hidden, part.ends_with("_bias") ? 1 : is_down ? size.hidden : size.inputs};
  }

  bool has_gate() const { return !gate.empty(); }
  bool is_stacked() const { return down.find("{}") == std::string_view::npos; }

  /// part: gate, up, down, gate_bias, up_bias, down_bias; the tensor's name has `prefix` in front of it.
  tensor_place place(const std::string& prefix, index_t e, std::string_view part, const expert_extent& size) const {
    const bool is_bias = part.ends_with("_bias");
    const bool is_down = part.starts_with("down");
    const bool shares = !is_down && (arrangement != gate_and_up::apart && (!is_bias || gate_bias.empty()));
    const bool is_second = shares && part.starts_with("up");
    const auto [own, inputs] = extent_of(part, size);
    const index_t outputs = shares ? 2 * own : own;  // of the tensor, for one expert
    const index_t step = shares && arrangement == gate_and_up::interleaved ? 2 : 1;
    const index_t first = !is_second ? 0 : step == 2 ? 1 : own;

    tensor_place place;
    place.tensor = prefix + filled_in(name_of(part, is_down, is_bias, shares), e);
    const bool by_column = !is_bias && (transposed || (is_down && down_transposed));
    if (is_stacked() && size.experts > 0) {
      place.shape.push_back(size.experts);
      place.offset = e * outputs * inputs;
    }
    if (is_bias) {
      place.shape.push_back(outputs);
    } else {
      place.shape.push_back(by_column ? inputs : outputs);
      place.shape.push_back(by_column ? outputs : inputs);
    }
    if (flat) {
      place.shape[1] *= place.shape.front();
      place.shape.erase(place.shape.begin());
    }
    place.offset += first * (by_column ? 1 : inputs);
    place.row_stride = step * (by_column ? 1 : inputs);
    place.col_stride = by_column ? outputs : 1;
    return place;
  }

private:
  std::string_view name_of(std::string_view part, bool is_down, bool is_bias, bool shares) const {
    if (is_bias) return is_down ? down_bias : part.starts_with("gate") && !gate_bias.empty() ? gate_bias : up_bias;
    if (is_down) return down;
    return part == "gate" || shares ? gate : up;
  }

  static std::string filled_in(std::string_view pattern, index_t e) {
    const auto hole = pattern.find("{}");
    if (hole == std::string_view::npos) return std::string(pattern);
    return std::string(pattern.substr(0, hole)) + std::to_string(e) + std::string(pattern.substr(hole + 2));
  }
};

}  // namespace sluice::inline SLUICE_ISA
