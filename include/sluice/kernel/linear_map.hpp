/// A linear map y = W x whose weights lie in panels, in the storage of your choice: what feed-forward experts are made
/// of.
///
///   W [out,in]   panel p holds the weights to outputs p L .. p L + L - 1 (kernel/storage.hpp)
///
/// There is one copy of the weights, the panels; a gradient lies in panels too. Reading and writing by element or as a
/// matrix goes through weight(): assign, to_matrix, fill. stored_as<bfloat16>() converts. Initial values: normal with
/// deviation 1/sqrt(in).
#pragma once

#include <sluice/core/parameter.hpp>
#include <sluice/kernel/storage.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <WeightStorage Storage>
class linear_map {
public:
  using storage = Storage;
  using scalar = typename Storage::scalar;
  using element = typename Storage::element;
  using weight_type = parameter<scalar, element>;

  linear_map() = default;
  linear_map(index_t outputs, index_t inputs)
      : weight_({outputs, inputs}, parameter_role::weight,
                initial_values::normal(inputs > 0 ? 1 / std::sqrt(static_cast<double>(inputs)) : 0),
                panels_of<Storage>) {}

  index_t inputs() const noexcept { return weight_.cols(); }
  index_t outputs() const noexcept { return weight_.rows(); }

  weight_type& weight() noexcept { return weight_; }
  const weight_type& weight() const noexcept { return weight_; }

  index_t panels() const noexcept { return weight_.layout().panel_count(); }
  const element* panel(index_t p) const noexcept { return weight_.data() + p * weight_.layout().panel_size(); }
  /// Panel p of the gradient. The gradient must exist (ensure_gradients).
  scalar* gradient_panel(index_t p) noexcept { return weight_.gradient().data() + p * weight_.layout().panel_size(); }

  /// The same map with its weights rounded to another storage. Throws std::invalid_argument if nobody has set them.
  template <WeightStorage Other>
  linear_map<Other> stored_as() const {
    check_initialized(weight_, "weight");
    linear_map<Other> other(outputs(), inputs());
    other.weight().fill([&](index_t i) {
      return static_cast<typename Other::scalar>(
          to_number(weight_.data()[weight_.layout().place(i / inputs(), i % inputs())]));
    });
    return other;
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("", self.weight_);
  }

private:
  weight_type weight_;
};

}  // namespace sluice::inline SLUICE_ISA
