/// Codes trained where they are used: dense weights of a model that are the decoded codes, before and after every step.
///
///   code_tuning<tunable_codes<float>> tuning;
///   tuning.add(layer.bank().expert(e).up(), codes);           // the weights become the decoded ones
///   ...
///   layer.backward(dy, dx, tape);                             // dense gradients, as ever
///   tuning.collect(layer);                                    // into codebooks and scales
///   optimizer.step(layer);  code_optimizer.step(tuning);      // the weights go where dense ones would; codes learn
///   tuning.settle(layer, [&](auto& codes, const auto& reference) { discrete_step<float>(codes, reference, o); });
///   zero_gradients(layer);  zero_gradients(tuning);           // the weights are decoded again
///
/// That is PV-Tuning: without a function settle only decodes, and codebooks alone are trained. What a step wanted and
/// codes could not follow is forgotten; with carry = 1 it is remembered and added to where the next step leads
/// (straight-through estimation, with a dense matrix a weight), with less in part: carry is 1 - delta_decay of the
/// authors. An optimiser that divides gradients by their size, as Adam does, moves all weights alike and says less
/// about which index to change than a plain gradient step.
///
/// Codes may be of any class with inputs, outputs, to_matrix, backward(dense gradient) and parameters to visit:
/// tunable_codes, low_rank_codes, candidate_codes. The layer, its experts and its kernels know nothing of codes; a
/// weight is found again by what it is (parameter::id), wherever the model has moved; a copy of the model has none. A
/// frozen weight has no gradient to collect. Equal bits for any thread count, as the parts. Malinovskii et al. 2024,
/// arXiv:2405.14852.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>

#include <concepts>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// Codes that a dense gradient can train.
template <typename Codes>
concept TunableCodes = HasParameters<Codes> &&
    requires(Codes& codes, const Codes& fixed, const matrix<typename Codes::scalar>& dw) {
  { fixed.outputs() } -> std::convertible_to<index_t>;
  { fixed.inputs() } -> std::convertible_to<index_t>;
  { fixed.to_matrix() } -> std::convertible_to<matrix<typename Codes::scalar>>;
  codes.backward(dw);
};

template <TunableCodes Codes>
class code_tuning {
public:
  using scalar = typename Codes::scalar;
  using weight = parameter<scalar>;

  /// Throws std::invalid_argument unless 0 <= carry <= 1.
  explicit code_tuning(double carry = 0) : carry_(carry) {
    if (!is_between(carry, 0, 1))
      throw_invalid("of what codes could not follow a share in [0, 1] is carried, not ", carry);
  }

  /// The weight becomes the decoded codes. Throws std::invalid_argument for another shape, or a weight that has codes.
  void add(weight& w, Codes codes) {
    if (w.rows() != codes.outputs() || w.cols() != codes.inputs())
      throw_invalid("a weight [", w.rows(), ", ", w.cols(), "] has no codes of a matrix [", codes.outputs(), ", ",
                    codes.inputs(), "]");
    if (find(w) != nullptr) throw_invalid("a weight [", w.rows(), ", ", w.cols(), "] has codes already");
    w.assign(codes.to_matrix());
    parts_.push_back({w.id(), std::move(codes), {}});
  }

  index_t size() const noexcept { return static_cast<index_t>(parts_.size()); }
  /// In the order in which they were added.
  const Codes& codes(index_t i) const noexcept { return parts_[as_size(i)].codes; }
  Codes& codes(index_t i) noexcept { return parts_[as_size(i)].codes; }

  /// Adds the gradients of the model's weights to those of their codes. Throws std::invalid_argument if the model lacks
  /// one of the weights.
  template <typename Model>
  void collect(Model& model) {
    for_each_found(model, [](weight& w, part& own) {
      if (std::as_const(w).has_gradient()) own.codes.backward(w.gradient_matrix());
    });
  }

  /// choose(codes, reference) for every weight, with the values it has now; then it is what its codes decode to.
  /// Throws std::invalid_argument if the model lacks one of the weights.
  template <typename Model, typename Choose>
  void settle(Model& model, Choose&& choose) {
    for_each_found(model, [&](weight& w, part& own) {
      matrix<scalar> reference = w.to_matrix();
      if (own.carried.size() != 0) reference += own.carried;
      choose(own.codes, std::as_const(reference));
      const matrix<scalar> decoded = own.codes.to_matrix();
      if (carry_ > 0) own.carried = static_cast<scalar>(carry_) * (reference - decoded);
      w.assign(decoded);
    });
  }
  template <typename Model>
  void settle(Model& model) {
    settle(model, [](Codes&, const matrix<scalar>&) {});
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    for (std::size_t i = 0; i < self.parts_.size(); ++i) visit(std::to_string(i), self.parts_[i].codes);
  }

private:
  struct part {
    std::uint64_t id;
    Codes codes;
    matrix<scalar> carried;
  };

  part* find(const weight& w) {
    for (part& p : parts_)
      if (p.id == w.id()) return &p;
    return nullptr;
  }

  template <typename Model, typename F>
  void for_each_found(Model& model, F&& f) {
    index_t found = 0;
    const auto visit = [&](auto& p) {
      if constexpr (std::same_as<std::remove_cvref_t<decltype(p)>, weight>)
        if (part* const own = find(p)) ++found, f(p, *own);
    };
    detail::for_each_unnamed_parameter(model, visit);
    if (found != size()) throw_invalid("the model has ", found, " of the ", size(), " weights that have codes");
  }

  double carry_;
  std::vector<part> parts_;
};

}  // namespace sluice::inline SLUICE_ISA
