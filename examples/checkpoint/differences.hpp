/// How far two safetensors files of the same tensors are apart.
///
///   largest    max |a - b|            relative   largest / max |a|
///   mean       sum |a - b| / count
///
/// NaN: two NaN at the same place are equal, and counted; a NaN opposite a number is counted as well and makes the
/// largest difference infinite. Two equal infinities are equal, any other pair with an infinity is infinitely far apart.
/// max |a| is over the finite values. Everything compares bits, so that it holds under -ffast-math.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/io/safetensors_reader.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "interrupt.hpp"

namespace checkpoint {

/// An infinity that no compiler flag folds away.
inline const volatile double infinite = std::numeric_limits<double>::infinity();

inline bool is_finite(double value) {
  return !sluice::is_nan(value) && std::abs(sluice::order_key(value)) < sluice::order_key(double{infinite});
}

struct difference {
  std::uint64_t elements = 0;
  double largest = 0, sum = 0, magnitude = 0;
  std::uint64_t where = 0;     // the element of the largest difference
  std::uint64_t both_nan = 0;  // equal, by the rule above
  std::uint64_t one_nan = 0;

  double mean() const { return elements == 0 ? 0 : sum / static_cast<double>(elements); }
  double relative() const {
    if (!(largest > 0)) return 0;
    return magnitude > 0 && is_finite(largest) ? largest / magnitude : double{infinite};
  }

  void add(double a, double b) {
    const std::uint64_t here = elements++;
    if (is_finite(a)) magnitude = std::max(magnitude, std::abs(a));
    double apart = 0;
    if (sluice::is_nan(a) || sluice::is_nan(b)) {
      const bool both = sluice::is_nan(a) && sluice::is_nan(b);
      ++(both ? both_nan : one_nan);
      if (!both) apart = infinite;
    } else if (sluice::order_key(a) != sluice::order_key(b)) {
      apart = is_finite(a) && is_finite(b) ? std::abs(a - b) : double{infinite};
    }
    sum += apart;
    if (apart > largest) largest = apart, where = here;
  }

  /// For numbers over several tensors; `where` means nothing then.
  void add(const difference& other) {
    elements += other.elements;
    sum += other.sum;
    largest = std::max(largest, other.largest);
    magnitude = std::max(magnitude, other.magnitude);
    both_nan += other.both_nan;
    one_nan += other.one_nan;
  }
};

struct tensor_difference {
  std::string name;
  std::vector<std::int64_t> shape;
  difference found;
};

/// Tensor by tensor, in the order of `a`. Throws file_error if a tensor is missing from one of the files, has another
/// shape there or is not of numbers with a fraction.
inline std::vector<tensor_difference> differences(const sluice::safetensors_reader& a,
                                                  const sluice::safetensors_reader& b) {
  const auto require_all = [](const auto& from, const auto& in) {
    for (const sluice::tensor_info& tensor : from.tensors())
      if (!in.contains(tensor.name))
        throw sluice::file_error(in.file_name(), tensor.name, "is missing, " + from.file_name() + " has it");
  };
  require_all(a, b);
  require_all(b, a);
  std::vector<tensor_difference> out;
  constexpr std::size_t piece = 4096;
  std::vector<double> of_a(piece), of_b(piece);
  for (const sluice::tensor_info& tensor : a.tensors()) {
    const sluice::tensor_info& other = b.at(tensor.name);
    if (tensor.shape != other.shape)
      throw sluice::file_error(b.file_name(), tensor.name,
                               "has shape " + sluice::detail::shape_text(other.shape) + ", in " + a.file_name() +
                                   " it has " + sluice::detail::shape_text(tensor.shape));
    for (const auto& [file, which] : {std::pair{&a, &tensor}, std::pair{&b, &other}})
      if (const auto problem = sluice::safetensors_reader::obstacle<double>(*which, which->elements());
          !problem.empty())
        throw sluice::file_error(file->file_name(), which->name, problem);
    tensor_difference d{tensor.name, tensor.shape, {}};
    for (std::size_t first = 0; first < tensor.elements(); first += piece) {
      check_interrupt();
      const std::size_t count = std::min(piece, tensor.elements() - first);
      sluice::safetensors_reader::copy(tensor, first, std::span(of_a).first(count));
      sluice::safetensors_reader::copy(other, first, std::span(of_b).first(count));
      for (std::size_t i = 0; i < count; ++i) d.found.add(of_a[i], of_b[i]);
    }
    out.push_back(std::move(d));
  }
  return out;
}

}  // namespace checkpoint
