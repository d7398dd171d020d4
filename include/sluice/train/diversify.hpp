/// Experts that begin as unlike copies of one: the first stage of EvoMoE.
///
///   diversify_experts(layer.bank(), trained, {.masked = 0.1}, random_source(7));
///
/// Every expert gets the parameters of the trained one; of its weights (parameter_role::weight) each number is then set
/// to zero with the chance `masked`, and has normal noise of deviation `noise` times the deviation of its array added,
/// drawn anew for every expert; vectors and states are copied. Draws are those at diversify_site, from random.split(e)
/// for expert e. The ratio is not stated in what was readable of the paper. Nie et al. 2021 (EvoMoE), arXiv:2112.14397.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/core/random.hpp>

#include <cmath>
#include <string>
#include <vector>

namespace sluice::inline SLUICE_ISA {

inline constexpr random_site diversify_site("diversify_experts");

struct diversification {
  double masked = 0.1;  ///< the chance of a weight to become 0
  double noise = 0;     ///< deviation of what is added, as a share of the deviation of the array
};

/// Throws std::invalid_argument unless 0 <= masked < 1 and noise >= 0, or if an expert has other parameters.
template <typename Bank, typename Expert>
void diversify_experts(Bank& bank, const Expert& trained, diversification o, const random_source& random) {
  using scalar = typename Expert::scalar;
  if (is_nan(o.masked) || o.masked < 0 || !(o.masked < 1) || is_nan(o.noise) || o.noise < 0)
    throw_invalid("experts are made unlike with 0 <= masked < 1 and noise >= 0, not ", o.masked, " and ", o.noise);
  std::vector<matrix<scalar>> values;
  for_each_parameter(trained, [&](const std::string&, const auto& p) { values.push_back(p.to_matrix()); });
  for (index_t e = 0; e < bank.experts(); ++e) {
    const random_source own = random.split(e);
    std::size_t next = 0;
    index_t position = 0;
    for_each_parameter(bank.expert(e), [&](const std::string& name, auto& p) {
      if (next == values.size() || values[next].size() != p.size())
        throw_invalid("expert ", e, " has another parameter ", name, " than the expert to copy");
      matrix<scalar> copy = values[next++];
      if (p.role() == parameter_role::weight) {
        const double mean = static_cast<double>(copy.mean());
        const double deviation = std::sqrt((copy.template cast<double>().array() - mean).square().mean());
        for (index_t i = 0; i < copy.size(); ++i) {
          if (o.noise > 0)
            copy.data()[i] += static_cast<scalar>(o.noise * deviation * own.normal(diversify_site, 2 * (position + i)));
          if (own.uniform(diversify_site, 2 * (position + i) + 1) < o.masked) copy.data()[i] = 0;
        }
        position += copy.size();
      }
      p.assign(copy);
    });
    if (next != values.size()) throw_invalid("expert ", e, " lacks parameters of the expert to copy");
  }
}

}  // namespace sluice::inline SLUICE_ISA
