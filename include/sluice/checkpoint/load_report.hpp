/// layer_load_report: what loading a layer did besides copying, and what it cannot do.
///
/// A number that the layer keeps in a narrower type is rounded to nearest and counted. Two kinds are refused, with
/// their count, because no output would be right: finite numbers that would become infinite, and NaN in biases.
#pragma once

#include <sluice/checkpoint/tensor_copy.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/io/conversion_loss.hpp>
#include <sluice/io/model_file.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// What a load did besides copying.
struct layer_load_report {
  conversion_report values = {};          ///< of numbers that the layer keeps in a narrower type or in codes
  std::vector<std::string> ignored = {};  ///< tensors of the block that were left over: counters, and what options name
};

namespace detail {

/// Counts what conversions cost, and reports numbers that cannot be kept. Needs copies that have found their tensors.
inline void count_losses(const std::vector<tensor_copy>& copies, executor_ref executor, problem_list& problems,
                         layer_load_report& report) {
  struct piece {
    const tensor_copy* copy;
    std::size_t first, count;
    conversion_loss loss = {};
  };
  constexpr std::size_t piece_size = std::size_t{1} << 18U;
  std::vector<piece> pieces;
  std::set<const tensor_info*> seen;
  for (const tensor_copy& copy : copies) {
    if (!seen.insert(copy.from).second || holds_whole_numbers(copy.from->dtype)) continue;
    if (copy.role() != parameter_role::weight)
      if (const std::uint64_t count = count_nan(*copy.from); count > 0)
        problems.add("unfit", copy.from->name, nan_text(count, copy.from->elements()));
    if (is_within(copy.from->number_type(), copy.element_type())) continue;
    for (std::size_t first = 0; first < copy.from->elements(); first += piece_size)
      pieces.push_back({&copy, first, (std::min)(piece_size, copy.from->elements() - first)});
  }
  executor.parallel_for(static_cast<index_t>(pieces.size()), [&](index_t i) {
    piece& p = pieces[static_cast<std::size_t>(i)];
    p.copy->read_losses(p.first, p.count, p.loss);
  });
  for (std::size_t i = 0; i < pieces.size();) {
    const tensor_copy& copy = *pieces[i].copy;
    conversion_loss loss;
    for (; i < pieces.size() && pieces[i].copy == &copy; ++i) loss += pieces[i].loss;
    if (loss.beyond > 0) problems.add("unfit", copy.from->name, beyond_text(loss, copy.element_type()));
    report.values.add(copy.from->name, loss);
  }
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
