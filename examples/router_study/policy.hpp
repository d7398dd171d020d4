/// A router with its auxiliary losses behind virtual functions: seventy routers then share one layer, one model and one
/// training loop a kind of plan, and a source compiles little more than the routers in it.
///
/// In a program that uses one router there is no need for this: the composition is the type (README.md).
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/dense_plan.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/core/soft_plan.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/statistics.hpp>

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

namespace study {

using sluice::index_t;
using context = sluice::routing_context<float>;
using tokens_in = sluice::tokens_in<float>;
using tokens_out = sluice::tokens_out<float>;

/// What a call of a policy keeps for the next one.
struct policy_memory {
  virtual ~policy_memory() = default;
};

template <typename Plan>
struct policy_face {
  using gradient = typename Plan::gradient;
  virtual ~policy_face() = default;
  virtual std::unique_ptr<policy_face> clone() const = 0;
  virtual std::unique_ptr<policy_memory> make_memory() const = 0;
  virtual index_t inputs() const = 0;
  virtual index_t experts() const = 0;
  virtual void route(tokens_in x, const context&, Plan&, policy_memory&) const = 0;
  virtual float losses(const Plan&, const context&, policy_memory&) const = 0;
  virtual void backward(tokens_in x, const context&, const Plan&, const gradient&, policy_memory&, tokens_out dx) = 0;
  virtual bool needs_outputs(const context&, const Plan&, const policy_memory&) const = 0;
  virtual void weigh(tokens_in outputs, const context&, Plan&, policy_memory&) const = 0;
  virtual void backward_outputs(tokens_in outputs, const context&, const Plan&, const gradient&, policy_memory&,
                                tokens_out doutputs) = 0;
  virtual void after_step(const sluice::routing_statistics&, policy_memory&) = 0;
  virtual std::vector<std::pair<std::string, sluice::parameter<float>*>> parameters() = 0;
};

template <typename Router, typename... Losses>
class policy_of final : public policy_face<typename Router::plan> {
  using plan = typename Router::plan;
  using gradient = typename plan::gradient;
  static constexpr bool weighs = sluice::WeighsAfterExperts<Router>;
  struct memory final : policy_memory {
    typename Router::tape tape;
  };

public:
  explicit policy_of(Router router, Losses... losses) : router_(std::move(router)), losses_(std::move(losses)...) {}

  std::unique_ptr<policy_face<plan>> clone() const override { return std::make_unique<policy_of>(*this); }
  std::unique_ptr<policy_memory> make_memory() const override { return std::make_unique<memory>(); }
  index_t inputs() const override { return router_.inputs(); }
  index_t experts() const override { return router_.experts(); }
  void route(tokens_in x, const context& c, plan& p, policy_memory& m) const override {
    router_.route(x, c, p, tape(m));
  }
  float losses(const plan& p, const context& c, policy_memory& m) const override {
    [[maybe_unused]] auto& t = tape(m);
    if constexpr (requires { t.dseen.zero_like(t.seen); }) t.dseen.zero_like(t.seen);
    if constexpr (sizeof...(Losses) > 0)
      return std::apply([&](const auto&... loss) { return (0.0F + ... + loss(t.seen, p, c, t.dseen)); }, losses_);
    return 0;
  }
  void backward(tokens_in x, const context& c, const plan& p, const gradient& d, policy_memory& m,
                tokens_out dx) override {
    router_.backward(x, c, p, d, tape(m), dx);
  }
  bool needs_outputs(const context& c, const plan& p, const policy_memory& m) const override {
    if constexpr (weighs) return router_.needs_outputs(c, p, static_cast<const memory&>(m).tape);
    return false;
  }
  void weigh(tokens_in outputs, const context& c, plan& p, policy_memory& m) const override {
    if constexpr (weighs) router_.weigh(outputs, c, p, tape(m));
  }
  void backward_outputs(tokens_in outputs, const context& c, const plan& p, const gradient& d, policy_memory& m,
                        tokens_out doutputs) override {
    if constexpr (weighs) router_.backward_outputs(outputs, c, p, d, tape(m), doutputs);
  }
  void after_step(const sluice::routing_statistics& s, policy_memory& m) override {
    if constexpr (requires { router_.after_step(s, tape(m)); }) router_.after_step(s, tape(m));
    const auto step = [&](auto& loss) {
      if constexpr (requires { loss.after_step(s); }) loss.after_step(s);
    };
    std::apply([&](auto&... loss) { (step(loss), ...); }, losses_);
  }
  std::vector<std::pair<std::string, sluice::parameter<float>*>> parameters() override {
    std::vector<std::pair<std::string, sluice::parameter<float>*>> all;
    sluice::for_each_parameter(
        router_, [&](const std::string& name, sluice::parameter<float>& p) { all.emplace_back(name, &p); });
    return all;
  }

private:
  static typename Router::tape& tape(policy_memory& m) { return static_cast<memory&>(m).tape; }

  Router router_;
  std::tuple<Losses...> losses_;
};

/// A router for moe_layer. With parts > 1 a token is so many vectors one after another, and the router reads their sum.
template <typename Plan>
class policy {
public:
  using scalar = float;
  using plan = Plan;
  using gradient = typename Plan::gradient;
  static constexpr bool causal = false;

  /// What policy_losses reads: the losses are the router's own affair.
  struct losses_of {
    const policy_face<Plan>* face = nullptr;
    policy_memory* memory = nullptr;
  };
  struct tape {
    losses_of seen;
    struct {
    } dseen;
    std::unique_ptr<policy_memory> memory;
    sluice::matrix<float> sum, dsum;
  };

  explicit policy(std::unique_ptr<policy_face<Plan>> face) : face_(std::move(face)) {}
  policy(const policy& other) : face_(other.face_->clone()), parts_(other.parts_) {}
  policy(policy&&) noexcept = default;

  /// The same router on tokens of so many parts.
  policy on_parts(index_t parts) const {
    policy other = *this;
    other.parts_ = parts;
    return other;
  }

  index_t inputs() const { return face_->inputs() * parts_; }
  index_t experts() const { return face_->experts(); }

  void route(tokens_in x, const context& c, Plan& p, tape& t) const {
    if (t.memory == nullptr) t.memory = face_->make_memory();
    t.seen = {face_.get(), t.memory.get()};
    if (parts_ == 1) return face_->route(x, c, p, *t.memory);
    sum(x, t.sum);
    face_->route(t.sum, c, p, *t.memory);
  }
  void backward(tokens_in x, const context& c, const Plan& p, const gradient& d, tape& t, tokens_out dx) {
    if (parts_ == 1) return face_->backward(x, c, p, d, *t.memory, dx);
    t.dsum.setZero(x.rows(), face_->inputs());
    face_->backward(t.sum, c, p, d, *t.memory, t.dsum);
    for (index_t i = 0; i < parts_; ++i) dx.middleCols(i * t.dsum.cols(), t.dsum.cols()) += t.dsum;
  }
  bool needs_outputs(const context& c, const Plan& p, const tape& t) const {
    return face_->needs_outputs(c, p, *t.memory);
  }
  void weigh(tokens_in outputs, const context& c, Plan& p, tape& t) const { face_->weigh(outputs, c, p, *t.memory); }
  void backward_outputs(tokens_in outputs, const context& c, const Plan& p, const gradient& d, tape& t,
                        tokens_out doutputs) {
    face_->backward_outputs(outputs, c, p, d, *t.memory, doutputs);
  }
  void after_step(const sluice::routing_statistics& s, tape& t) { face_->after_step(s, *t.memory); }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    for (auto& [name, p] : self.face_->parameters())
      if constexpr (std::is_const_v<Self>)
        visit(name, std::as_const(*p));
      else
        visit(name, *p);
  }

private:
  void sum(tokens_in x, sluice::matrix<float>& s) const {
    const index_t width = face_->inputs();
    s = x.leftCols(width);
    for (index_t i = 1; i < parts_; ++i) s += x.middleCols(i * width, width);
  }

  std::unique_ptr<policy_face<Plan>> face_;
  index_t parts_ = 1;
};

/// The auxiliary losses of a policy, as one.
struct policy_losses {
  template <typename Seen, typename Plan, typename Gradients>
  float operator()(const Seen& seen, const Plan& p, const context& c, Gradients&) const {
    return seen.face->losses(p, c, *seen.memory);
  }
};

using any_policy = std::variant<policy<sluice::sparse_plan<float>>, policy<sluice::dense_plan<float>>,
                                policy<sluice::soft_plan<float>>>;

template <typename Router, typename... Losses>
any_policy make_policy(Router router, Losses... losses) {
  using plan = typename Router::plan;
  return policy<plan>(std::make_unique<policy_of<Router, Losses...>>(std::move(router), std::move(losses)...));
}

}  // namespace study
