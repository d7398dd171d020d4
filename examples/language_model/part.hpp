/// One sublayer of a transformer, of any type: y = x + layer(norm(x)).
///
/// A program that chooses its layers at run time needs them behind one type, so that model, training and files are
/// compiled once and each kind of layer once more. What a type is made of stays visible where it is made (kinds.hpp).
/// A part holds the memory of its calls, so one object serves one thread; it may stand in several places of a model,
/// which then share its weights: `use` says which place calls, and each has a tape and draws of its own.
#pragma once

#include <sluice/kernel/row_norm.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/residual.hpp>

#include <concepts>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "cost.hpp"

namespace language_model {

using sluice::index_t;
using context = sluice::routing_context<float>;

class part {
  template <typename Parameter>
  using visitor = std::function<void(const std::string&, Parameter&)>;
  using parameter = sluice::parameter<float>;

  struct interface {
    virtual ~interface() = default;
    virtual void set_uses(std::size_t uses) = 0;
    virtual void forward(sluice::tokens_in<float> x, sluice::tokens_out<float> y, std::size_t use,
                         const context& c) = 0;
    virtual void backward(sluice::tokens_in<float> dy, sluice::tokens_out<float> dx, std::size_t use) = 0;
    virtual void after_step() = 0;
    virtual cost active() const = 0;
    virtual void visit(const visitor<parameter>& f) = 0;
    virtual void visit(const visitor<const parameter>& f) const = 0;
  };

  template <typename Layer>
  struct implementation final : interface {
    using whole = sluice::residual_layer<sluice::normalized_layer<Layer, sluice::rms_norm<float>>>;
    whole layer;
    std::vector<typename whole::tape> tapes{1};
    typename whole::workspace workspace;
    index_t tokens = 0;  // of the last inference

    implementation(Layer inner, const sluice::rms_norm<float>& norm)
        : layer(sluice::normalized_layer(std::move(inner), norm)) {}

    void set_uses(std::size_t uses) override { tapes.resize(uses); }
    void forward(sluice::tokens_in<float> x, sluice::tokens_out<float> y, std::size_t use, const context& c) override {
      if (c.training) {
        layer.forward(x, y, tapes[use], c);
      } else {
        layer.forward(x, y, workspace, c);
        tokens = x.rows();
      }
    }
    void backward(sluice::tokens_in<float> dy, sluice::tokens_out<float> dx, std::size_t use) override {
      layer.backward(dy, dx, tapes[use]);
    }
    void after_step() override {
      for (auto& t : tapes) layer.after_step(t);
    }
    cost active() const override { return cost_of(layer.layer(), workspace.layer, tokens); }
    void visit(const visitor<parameter>& f) override { sluice::for_each_parameter(layer, f); }
    void visit(const visitor<const parameter>& f) const override { sluice::for_each_parameter(layer, f); }
  };

public:
  /// Takes any causal layer that can be trained and gives what it takes.
  template <typename Layer>
    requires(!std::same_as<Layer, part>)
  explicit part(Layer layer) {
    static_assert(sluice::is_causal<Layer>, "a language model must not see what it is to say");
    const sluice::rms_norm<float> norm(layer.inputs());
    layer_ = std::make_unique<implementation<Layer>>(std::move(layer), norm);
  }

  /// How many places of the model it stands in.
  void set_uses(std::size_t uses) { layer_->set_uses(uses); }

  /// Keeps what backward needs if context.training. y is not x.
  void forward(sluice::tokens_in<float> x, sluice::tokens_out<float> y, std::size_t use, const context& c) {
    layer_->forward(x, y, use, c);
  }
  void backward(sluice::tokens_in<float> dy, sluice::tokens_out<float> dx, std::size_t use) {
    layer_->backward(dy, dx, use);
  }
  void after_step() { layer_->after_step(); }

  /// What a token costs, as the last inference was routed.
  cost active() const { return layer_->active(); }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    using seen = std::conditional_t<std::is_const_v<Self>, const parameter, parameter>;
    const visitor<seen> each = [&](const std::string& name, seen& p) { visit(std::string_view(name), p); };
    if constexpr (std::is_const_v<Self>)
      std::as_const(*self.layer_).visit(each);
    else
      self.layer_->visit(each);
  }

private:
  std::unique_ptr<interface> layer_;
};

}  // namespace language_model
