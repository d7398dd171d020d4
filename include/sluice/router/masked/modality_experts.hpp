/// Which experts belong to which modality: experts in consecutive groups, one a modality.
///
///   counts {4, 2}: experts 0 to 3 are those of modality 0, 4 and 5 those of modality 1      context.modality_ids says
///   what each token is. No counts: one group of all experts, and modality_ids are not looked at.
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/core/error.hpp>

#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

class modality_experts {
public:
  /// The experts first .. first + count - 1.
  struct part {
    index_t first;
    index_t count;
  };

  modality_experts() noexcept {}  // defaulted, GCC 12 fails to compile options that have one
  /// Throws std::invalid_argument unless every modality has an expert.
  modality_experts(std::vector<index_t> counts) : counts_(std::move(counts)) {
    for (const index_t count : counts_)
      if (count < 1) throw_invalid("a modality needs an expert or more, not ", count);
  }

  /// Whether tokens are told apart.
  bool divides() const noexcept { return !counts_.empty(); }
  index_t modalities() const noexcept { return divides() ? static_cast<index_t>(counts_.size()) : 1; }

  /// The experts of a modality, of E in all.
  part of(index_t modality, index_t experts) const {
    if (!divides()) return {0, experts};
    index_t first = 0;
    for (index_t m = 0; m < modality; ++m) first += counts_[static_cast<std::size_t>(m)];
    return {first, counts_[static_cast<std::size_t>(modality)]};
  }
  /// The modality that an expert is for.
  index_t served_by(index_t expert) const {
    index_t modality = 0;
    for (index_t last = 0; modality + 1 < modalities(); ++modality)
      if (expert < (last += counts_[static_cast<std::size_t>(modality)])) break;
    return modality;
  }
  template <typename Scalar>
  index_t modality(const routing_context<Scalar>& context, index_t token) const noexcept {
    return divides() ? context.modality_ids[static_cast<std::size_t>(token)] : 0;
  }

  /// Throws std::invalid_argument if the counts do not make E.
  void validate(index_t experts) const {
    if (!divides()) return;
    index_t sum = 0;
    for (const index_t count : counts_) sum += count;
    if (sum != experts) throw_invalid("modalities have ", sum, " experts together, the router has E = ", experts);
  }
  /// Throws std::invalid_argument unless every token that is no padding has a modality.
  template <typename Scalar>
  void validate_call(const routing_context<Scalar>& context, index_t tokens) const {
    if (!divides()) return;
    if (static_cast<index_t>(context.modality_ids.size()) != tokens)
      throw_invalid("experts of modalities need routing_context.modality_ids, one for each of ", tokens, " tokens");
    for (index_t t = 0; t < tokens; ++t)
      if (const index_t m = modality(context, t); !context.is_padding(t) && (m < 0 || m >= modalities()))
        throw_invalid("token ", t, " is of modality ", m, ", there are modalities 0 to ", modalities() - 1);
  }

private:
  std::vector<index_t> counts_;
};

}  // namespace sluice::inline SLUICE_ISA
