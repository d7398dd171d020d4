/// Fills the parameters of a model with their initial values.
///
/// Every array draws from its own stream, named by its path, so adding a part to a model does not change the others'
/// values, and the values depend neither on how an array is kept nor on the executor. States (selection biases,
/// controllers, masks) keep the values that their constructors gave them, unless those are meant to be random (codes
/// that are moving averages).
#pragma once

#include <sluice/core/parameter.hpp>
#include <sluice/core/random.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

inline constexpr random_site initialization_site{5u};

namespace detail {

/// A class and no lambda of initialize(): common parts of models are compiled once (core/parameter.hpp).
struct draw_initial_values {
  std::uint64_t seed;
  executor_ref executor{};

  template <typename Parameter>
  void operator()(const std::string& name, Parameter& p) const {
    using scalar = typename Parameter::scalar;
    const initial_values initial = p.initial();
    const bool is_random = initial.distribution != initial_values::kind::constant && initial.scale != 0;
    if (p.role() == parameter_role::state && !is_random) return;
    std::uint64_t stream = 1469598103934665603u;  // FNV-1a of the name
    for (const char c : name) stream = (stream ^ static_cast<unsigned char>(c)) * 1099511628211u;
    const random_source random(seed ^ stream);
    const auto draw = [&](index_t i) -> scalar {
      switch (initial.distribution) {
        case initial_values::kind::normal:
          return static_cast<scalar>(initial.scale * random.normal(initialization_site, i));
        case initial_values::kind::uniform:
          return static_cast<scalar>(initial.scale * (2 * random.uniform(initialization_site, i) - 1));
        case initial_values::kind::computed:
          return static_cast<scalar>(initial.of(i % p.cols(), random.uniform(initialization_site, i)));
        case initial_values::kind::constant:
          break;
      }
      return static_cast<scalar>(initial.scale);
    };
    p.fill(draw, executor);
  }
};

}  // namespace detail

/// Overwrites every learned parameter of the model, and states of random initial values. Equal seeds give equal bits
/// for any thread count.
template <typename Model>
void initialize(Model& model, std::uint64_t seed, const executor_ref& executor = {}) {
  for_each_parameter(model, detail::draw_initial_values{seed, executor});
}

/// Gives all rows of a weight one length and keeps the standard deviation of its numbers: no expert of a gate begins
/// with louder scores than another. Rows of zeros stay. Csordas et al. 2023 (sigma-MoE), arXiv:2310.10837.
template <FloatOrDouble Scalar>
void equalize_rows(parameter<Scalar>& weight) {
  matrix<Scalar> w = weight.to_matrix();
  const auto deviation = [&] {
    const double mean = static_cast<double>(w.mean());
    return std::sqrt((w.template cast<double>().array() - mean).square().sum());
  };
  if (w.size() == 0) return;
  const double before = deviation();
  for (index_t r = 0; r < w.rows(); ++r)
    if (const Scalar length = w.row(r).norm(); length > Scalar(0)) w.row(r) /= length;
  const double after = deviation();
  if (after > 0) w *= static_cast<Scalar>(before / after);
  weight.assign(w);
}

}  // namespace sluice::inline SLUICE_ISA
