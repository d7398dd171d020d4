/// A codebook that also counts who chooses its codes, for repairs that ask: moving averages have these numbers anyway.
///
///   after a step: N_c <- decay N_c + (1 - decay) n_c, n_c the tokens of code c
///
/// A batch without tokens changes nothing. Parameters: those of the codebook, and "sizes" N [C] (state).
#pragma once

#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>

#include <type_traits>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct counted_codes_options {
  double decay = 0.99;
  double initial_size = 1;
};

template <typename Codes>
class counted_codes : public Codes {
public:
  using scalar = typename Codes::scalar;
  using memory = typename Codes::memory;

  /// Throws std::invalid_argument unless 0 <= decay < 1 and initial_size >= 0.
  explicit counted_codes(Codes codes, counted_codes_options o = {}) : Codes(std::move(codes)), decay_(o.decay) {
    if (!is_at_least(o.decay, 0.0) || o.decay >= 1 || !is_at_least(o.initial_size, 0.0))
      throw_invalid("counted_codes needs 0 <= decay < 1 and initial_size >= 0, not ", o.decay, " and ", o.initial_size);
    sizes_ = {{this->codes()}, parameter_role::state, initial_values::constant(o.initial_size)};
  }

  void after_step(const quantized_batch<scalar>& batch, memory& m) {
    Codes::after_step(batch, m);
    if (batch.counted == 0) return;
    const auto decay = static_cast<scalar>(decay_);
    for (scalar& size : sizes_.value()) size *= decay;
    for (index_t t = 0; t < batch.tokens(); ++t)
      if (batch.has_code(t)) sizes_.data()[batch.ids[t]] += 1 - decay;
  }

  void replace(index_t code, const scalar* vector, scalar size = 1) {
    Codes::replace(code, vector, size);
    sizes_.data()[code] = size;
  }

  parameter<scalar>& sizes() noexcept { return sizes_; }
  const parameter<scalar>& sizes() const noexcept { return sizes_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    using plain = std::conditional_t<std::is_const_v<Self>, const Codes, Codes>;
    Codes::visit_parameters(static_cast<plain&>(self), visit);
    visit("sizes", self.sizes_);
  }

private:
  double decay_;
  parameter<scalar> sizes_;
};

}  // namespace sluice::inline SLUICE_ISA
