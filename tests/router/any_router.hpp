// Routers whose type is forgotten: what holds for every router is checked by code that is compiled once (any_router_checks.cpp),
// and a router's own tests compile the router and little else.
#pragma once

#include <sluice/core/choices.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/core/dense_plan.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/core/signals.hpp>
#include <sluice/core/soft_plan.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/statistics.hpp>
#include <sluice/train/conformance/report.hpp>
#include <sluice/train/gradient_check.hpp>

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace sluice::test {

/// A router's memory of a call. `seen` stays empty if losses see something else than scores. A router without a table of choices
/// is taken to have asked for what its plan lists. What a router makes of context.group_features may have a gradient too.
template <typename Scalar>
struct any_router_tape {
  struct any {
    virtual ~any() = default;
  };
  score_signals<Scalar> seen;
  score_gradients<Scalar> dseen;
  choice_table<Scalar> choices;
  matrix_buffer<Scalar> dgroup_features;  ///< of a backward call; empty if the router does not read them
  std::unique_ptr<any> own;
};

/// A router behind virtual functions, and a copy of one. The kit, the table of routers and the fuzzer share it.
template <typename Scalar, typename Plan>
struct router_face {
  using tape = any_router_tape<Scalar>;
  virtual ~router_face() = default;
  virtual std::unique_ptr<router_face> clone() const = 0;
  virtual index_t inputs() const = 0;
  virtual index_t experts() const = 0;
  virtual void route(tokens_in<Scalar>, const routing_context<Scalar>&, Plan&, tape&) const = 0;
  virtual void backward(tokens_in<Scalar>, const routing_context<Scalar>&, const Plan&, const typename Plan::gradient&,
                        tape&, tokens_out<Scalar>) = 0;
  virtual void after_step(const routing_statistics&, tape&) = 0;
  virtual std::vector<std::pair<std::string, parameter<Scalar>*>> parameters() = 0;
};

template <typename Router>
struct face_of final : router_face<typename Router::scalar, typename Router::plan> {
  using scalar = typename Router::scalar;
  using plan = typename Router::plan;
  using tape = any_router_tape<scalar>;
  struct own_tape : tape::any {
    typename Router::tape it;
  };
  explicit face_of(const Router& r) : router(r) {}

  std::unique_ptr<router_face<scalar, plan>> clone() const override { return std::make_unique<face_of>(router); }
  index_t inputs() const override { return router.inputs(); }
  index_t experts() const override { return router.experts(); }

  void route(tokens_in<scalar> x, const routing_context<scalar>& context, plan& p, tape& t) const override {
    if (t.own == nullptr) t.own = std::make_unique<own_tape>();
    auto& own = inside(t);
    router.route(x, context, p, own);
    if constexpr (requires { t.seen = own.seen; }) t.seen = own.seen;
    if constexpr (requires { t.choices = own.choices; })
      t.choices = own.choices;
    else if constexpr (requires { p.dropped(); })
      t.choices.asked.assign(p.size() + static_cast<index_t>(p.dropped().size()), 1);
  }
  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<scalar> dx) override {
    auto& own = inside(t);
    if constexpr (requires { own.dseen.zero_like(own.seen); }) own.dseen.zero_like(own.seen);
    if constexpr (requires(score_gradients<scalar>& scores) { scores = own.dseen; })  // which may hold more
      static_cast<score_gradients<scalar>&>(own.dseen) = t.dseen;
    if constexpr (DifferentiableRouter<Router>)
      router.backward(x, context, p, dplan, own, dx);
    else
      throw std::logic_error("this router is for inference only");
    if constexpr (requires { own.gate.group_gradient(); }) t.dgroup_features = own.gate.group_gradient();
  }
  void after_step(const routing_statistics& statistics, tape& t) override {
    if constexpr (requires { router.after_step(statistics, inside(t)); }) router.after_step(statistics, inside(t));
  }
  std::vector<std::pair<std::string, parameter<scalar>*>> parameters() override {
    std::vector<std::pair<std::string, parameter<scalar>*>> all;
    for_each_parameter(router, [&](const std::string& name, parameter<scalar>& p) { all.emplace_back(name, &p); });
    return all;
  }

  static typename Router::tape& inside(tape& t) { return static_cast<own_tape&>(*t.own).it; }

  Router router;
};

/// A copy of a router whose type is forgotten; its results are those of the router, bit for bit. Causal and Exact say what the
/// router's type says.
template <typename Scalar, typename Plan, bool Causal = true, bool Exact = true>
class any_router {
public:
  using scalar = Scalar;
  using plan = Plan;
  using tape = any_router_tape<Scalar>;
  static constexpr bool causal = Causal;
  static constexpr bool exact_gradient = Exact;

  template <RouterPolicy Router>
  explicit any_router(const Router& router) : face_(std::make_unique<face_of<Router>>(router)) {}
  any_router(const any_router& other) : face_(other.face_->clone()) {}
  any_router(any_router&&) noexcept = default;

  index_t inputs() const { return face_->inputs(); }
  index_t experts() const { return face_->experts(); }
  void route(tokens_in<Scalar> x, const routing_context<Scalar>& context, Plan& p, tape& t) const {
    face_->route(x, context, p, t);
  }
  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, const Plan& p,
                const typename Plan::gradient& dplan, tape& t, tokens_out<Scalar> dx) {
    face_->backward(x, context, p, dplan, t, dx);
  }
  void after_step(const routing_statistics& statistics, tape& t) { face_->after_step(statistics, t); }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    for (auto& [name, p] : self.face_->parameters())
      if constexpr (std::is_const_v<Self>)
        visit(name, std::as_const(*p));
      else
        visit(name, *p);
  }

private:
  std::unique_ptr<router_face<Scalar, Plan>> face_;
};

/// What the checks need of a rule: the experts that it chooses for every token, with this number all over its scratch memory.
template <typename Scalar>
using chooser = std::function<std::vector<index_t>(const routing_context<Scalar>&, const matrix<Scalar>&, Scalar held)>;

// Compiled once, for float and double.
template <typename Scalar, typename Plan, bool Causal, bool Exact>
conformance_report conformance_of(const any_router<Scalar, Plan, Causal, Exact>& router,
                                  const routing_context<Scalar>& context);
template <typename Scalar>
void check_promises_of(const any_router<Scalar, sparse_plan<Scalar>>& router, index_t choices, bool causal,
                       const chooser<Scalar>& chosen);
gradient_report check_router_gradients_of(const any_router<double, sparse_plan<double>>& router, index_t tokens,
                                          std::uint64_t seed, const routing_context<double>& context, index_t* dropped);

/// sluice's conformance kit (train/conformance.hpp) on a router.
template <DifferentiableRouter Router>
conformance_report conformance(const Router& router, const routing_context<typename Router::scalar>& context = {}) {
  using scalar = typename Router::scalar;
  // Central differences are taken in double only.
  constexpr bool exact = has_exact_gradient<Router> || !std::same_as<scalar, double>;
  return conformance_of(any_router<scalar, typename Router::plan, is_causal<Router>, exact>(router), context);
}

}  // namespace sluice::test
