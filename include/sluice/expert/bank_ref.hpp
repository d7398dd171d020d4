/// A bank that another object owns: several gates over one set of experts.
///
///   struct two_tasks {
///     using bank_type = expert_bank<swiglu<float>>;
///     bank_type experts{8, 64, 128};
///     moe_layer<top_k_router<float>, bank_ref<bank_type>> first{top_k_router<float>{64, 8}, bank_ref{experts}};
///     moe_layer<top_k_router<float>, bank_ref<bank_type>> second{top_k_router<float>{64, 8}, bank_ref{experts}};
///     two_tasks(const two_tasks&) = delete;                                // the layers refer to this very bank
///     template <typename Self, typename Visitor>
///     static void visit_parameters(Self& self, Visitor&& visit) {          // the bank's parameters: once, by its owner
///       visit("experts", self.experts), visit("first", self.first), visit("second", self.second);
///     }
///   };
///
/// A layer calls it like the bank itself, and backward calls of all layers add into the same gradients, but it has no
/// parameters to visit: initialisers, optimisers, files and counts see them where the owner shows them, once and under
/// one name. The bank has to stay where it is for as long as a reference is used; a copy of a layer refers to the same
/// bank. After an owner was moved or copied, rebind the references of the new one. bank_ref<const Bank> infers only.
/// Inference from many threads at once is fine; backward calls of two layers at once are not.
/// Ma et al. 2018, "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts".
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/expert/bank_decorator.hpp>

#include <concepts>
#include <memory>
#include <type_traits>

namespace sluice::inline SLUICE_ISA {

template <typename Bank>
class bank_ref : public bank_decorator<bank_ref<Bank>, std::remove_const_t<Bank>> {
  using plain = std::remove_const_t<Bank>;
  friend bank_decorator<bank_ref, plain>;
  static constexpr bool is_trainable = DifferentiableBank<plain> && !std::is_const_v<Bank>;

public:
  using scalar = typename plain::scalar;
  using tape = typename plain::tape;

  explicit bank_ref(Bank& bank) noexcept : bank_(std::addressof(bank)) {}
  explicit bank_ref(const Bank&&) = delete;

  /// Refers to another bank from now on.
  void rebind(Bank& bank) noexcept { bank_ = std::addressof(bank); }
  Bank& bank() const noexcept { return *bank_; }

  index_t experts() const noexcept { return read().experts(); }
  index_t inputs() const noexcept { return read().inputs(); }
  index_t outputs() const noexcept { return read().outputs(); }

  void prepare(tape& t, index_t rows, bool training) const
    requires requires(const plain& bank) { bank.prepare(t, rows, training); }
  {
    read().prepare(t, rows, training && is_trainable);
  }

  void forward(tokens_in<scalar> x, const expert_rows& rows, tokens_out<scalar> y, tape& t,
               const executor_ref& executor) const {
    read().forward(x, rows, y, t, executor);
  }
  void backward(tokens_in<scalar> x, const expert_rows& rows, tokens_in<scalar> dy, tokens_out<scalar> dx,
                tape& t, const executor_ref& executor)
    requires is_trainable
  {
    ensure_gradients(*bank_);
    bank_->backward(x, rows, dy, dx, t, executor);
  }

  void forward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_out<scalar> y, tape& t,
                      const executor_ref& executor) const
    requires RoutedBank<plain>
  {
    read().forward_routed(x, rows, y, t, executor);
  }
  void backward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_in<scalar> dy,
                       tokens_out<scalar> dx, tape& t, scalar* dweight, scalar* dinput_scale,
                       const executor_ref& executor)
    requires(RoutedBank<plain> && is_trainable)
  {
    ensure_gradients(*bank_);
    bank_->backward_routed(x, rows, dy, dx, t, dweight, dinput_scale, executor);
  }

  index_t workspace_bytes(index_t rows, bool training) const
    requires requires(const plain& bank) { bank.workspace_bytes(rows, training); }
  {
    return read().workspace_bytes(rows, training);
  }

  /// A reference holds no weights that could be rounded.
  template <typename Storage>
  void stored_as() const {
    static_assert(!std::same_as<Storage, Storage>,
                  "sluice: a bank_ref has no weights of its own: convert the bank, and refer to the result");
  }

  static consteval bool explain_training() {
    static_assert(!std::is_const_v<Bank>, "sluice: a bank_ref to a const bank only infers");
    return explain_differentiable_bank<plain>();
  }

private:
  template <typename F>
  void for_each_bank(tape& t, F&& f) const {
    f(read(), t, 0);
  }
  const plain& read() const noexcept { return *bank_; }

  Bank* bank_;
};

}  // namespace sluice::inline SLUICE_ISA
