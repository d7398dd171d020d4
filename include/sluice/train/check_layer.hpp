/// check_layer: every promise that a layer makes, tested on yours, a wrapper of yours or a whole model in one call.
///
///   const conformance_report report = check_layer(residual_layer{moe_layer{...}});
///
/// Tested are: zero tokens; padding gets zero and reaches nothing; a NaN token gets NaN, reaches no gradient of a
/// parameter and, if the layer is causal, no other token (where tokens see each other, mixes_tokens, the others are as
/// if it were padding); equal bits for equal calls, for used memory and for 1, 2, 3
/// and 8 threads, and for calls at the same time; y may be x, or that is refused, and what would be silently wrong is
/// refused: outputs that lie partly in inputs, dx in dy, backward without its forward call; a second backward call
/// gives the same; no call changes a parameter; every parameter has a name of its own; gradients of x and parameters
/// equal central differences (in double, where the router's gradient is exact). Initialise the layer first. What it
/// needs besides x is in options.context.
#pragma once

#include <sluice/layer/mixture_layer.hpp>
#include <sluice/train/conformance/repeated_calls.hpp>
#include <sluice/train/gradient_check.hpp>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
struct layer_check_options {
  std::uint64_t seed = 1;
  index_t tokens = 37;                ///< more than a block of rows
  index_t gradient_tokens = 7;
  /// What the layer needs besides x; training, draws and executor are set by the kit.
  routing_context<Scalar> context{};
  gradient_check_options gradients{.most_entries = 60};
  double gradient_bound = 1e-6;
};

namespace detail {

/// Who is chosen by whom in a tape, of the layer or of layers inside it; nothing where there is no plan.
template <typename Tape>
auto choices_in(const Tape& tape) {
  std::vector<index_t> all;
  if constexpr (requires { choices_of(tape.plan); })
    all = choices_of(tape.plan);
  for_each_inner(tape, [&](const auto& one) {
    const auto inner = choices_in(one);
    all.insert(all.end(), inner.begin(), inner.end());
  });
  return all;
}

template <typename Layer>
constexpr bool has_exact_gradients() {
  if constexpr (requires(Layer& layer) { layer.layer(); })  // a wrapper
    return has_exact_gradients<std::remove_cvref_t<decltype(std::declval<Layer&>().layer())>>();
  else if constexpr (requires(Layer& layer) { layer.router(); })
    return has_exact_gradient<std::remove_cvref_t<decltype(std::declval<Layer&>().router())>>;
  else if constexpr (requires(Layer& layer) { layer.template layer<Layer::size - 1>(); })  // one after the other
    return []<std::size_t... I>(std::index_sequence<I...>) {
      return (has_exact_gradients<std::remove_cvref_t<decltype(std::declval<Layer&>().template layer<I>())>>() && ...);
    }(std::make_index_sequence<Layer::size>{});
  else
    return has_exact_gradient<Layer>;  // a quantiser's is an estimate
}

/// Whether f throws std::invalid_argument; true where there are no exceptions to see it by.
template <typename F>
bool refuses([[maybe_unused]] F&& f) {
#if defined(__cpp_exceptions)
  try {
    f();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
#else
  return true;
#endif
}

template <MixtureLayer Layer>
class layer_probe {
public:
  using scalar = typename Layer::scalar;
  using tape = typename Layer::tape;
  using batch = picked_batch<scalar>;
  static constexpr bool trains = TrainableLayer<Layer>;
  static constexpr bool causal = is_causal<Layer>;
  static constexpr bool mixes_tokens = is_token_mixer<Layer>;

  struct results {
    matrix<scalar> y;
    matrix<scalar> dx;
    std::vector<scalar> gradients;

    bool operator==(const results& other) const {
      return equal_bits(y, other.y) && equal_bits(dx, other.dx) && equal_bits(gradients, other.gradients);
    }
  };

  layer_probe(const Layer& l, const layer_check_options<scalar>& o)
      : options(o), layer(l), x(random_rows<scalar>(o.tokens, l.inputs(), o.seed + 1)) {
    if (l.inputs() < 1) throw_invalid("check_layer needs a layer that reads x");
    if (o.tokens < 4 || o.gradient_tokens < 1 || o.gradient_tokens > o.tokens)
      throw_invalid("check_layer needs at least 4 tokens and 1 <= gradient_tokens <= tokens, not ", o.tokens, " and ",
                    o.gradient_tokens);
    check_context(o.context, o.tokens);
    options.context.random = random_source(o.seed + 2, 1);
  }

  batch pick(const std::vector<index_t>& rows) const { return batch(x, options.context, rows); }
  batch everything() const { return pick(ascending_rows(options.tokens)); }
  matrix<scalar> cotangent(index_t rows) const { return random_rows<scalar>(rows, layer.outputs(), options.seed + 3); }

  matrix<scalar> infer(const batch& b) const {
    matrix<scalar> y(b.x.rows(), layer.outputs());
    typename Layer::workspace workspace;
    layer.forward(b.x, y, workspace, b.context(false));
    return y;
  }
  results step(const batch& b, tape& t, const matrix<scalar>& dy, executor_ref executor = {}) {
    results r{matrix<scalar>(b.x.rows(), layer.outputs()), matrix<scalar>(), {}};
    layer.forward(b.x, r.y, t, b.context(true, executor));
    if constexpr (trains) {
      zero_gradients(layer);
      r.dx.resize(b.x.rows(), b.x.cols());
      layer.backward(dy, r.dx, t);
      r.gradients = parameter_gradients(layer);
    }
    return r;
  }
  results step(const batch& b, tape& t, executor_ref executor = {}) {
    return step(b, t, cotangent(b.x.rows()), executor);
  }
  auto caller() {
    return [this](const batch& b, tape& t, const executor_ref& executor) { return step(b, t, executor); };
  }

  layer_check_options<scalar> options;
  Layer layer;
  matrix<scalar> x;
};

template <typename Probe>
property_result layer_zero_tokens(Probe& probe) {
  typename Probe::tape t;
  const auto none = probe.pick({});
  probe.infer(none);
  for (const auto g : probe.step(none, t).gradients)
    if (g != 0) return fail("a gradient is not zero");
  return pass("no outputs, zero gradients");
}

/// Every third token is hidden: as padding, or by a NaN of its own.
template <typename Probe>
property_result layer_hidden_tokens(Probe& probe, bool padding) {
  using scalar = typename Probe::scalar;
  auto b = probe.everything();
  matrix<scalar> dy = probe.cotangent(b.x.rows());
  typename Probe::tape t;
  const bool masked = padding || Probe::mixes_tokens;
  if (masked) b.mask.assign(static_cast<std::size_t>(b.x.rows()), 1);
  for (index_t row = 2; masked && row < b.x.rows(); row += 3) b.mask[static_cast<std::size_t>(row)] = 0;
  const auto clean = probe.step(b, t, dy);
  const matrix<scalar> inferred = probe.infer(b);
  if (!padding) b.mask.clear();
  for (index_t row = 2; row < b.x.rows(); row += 3) b.x.row(row).setConstant(quiet_nan<scalar>());
  const auto spoiled = probe.step(b, t, dy);
  const matrix<scalar> spoiled_inferred = probe.infer(b);
  for (index_t row = 0; row < b.x.rows(); ++row) {
    const bool is_hidden = row % 3 == 2;
    if (is_hidden && padding && !spoiled.y.row(row).isZero(0)) return fail("the output of padding is not zero");
    if (is_hidden && !padding && !any_nan(&spoiled_inferred(row, 0), spoiled_inferred.cols()))
      return fail("the output of a NaN token is a number");
    if (is_hidden || !(padding || Probe::causal)) continue;
    if (!equal_bits(&clean.y(row, 0), &spoiled.y(row, 0), clean.y.cols()) ||
        !equal_bits(&inferred(row, 0), &spoiled_inferred(row, 0), inferred.cols()))
      return fail("the output of token " + std::to_string(row) + " changes");
  }
  if (any_nan(spoiled.gradients.data(), static_cast<index_t>(spoiled.gradients.size())))
    return fail("NaN reaches a parameter's gradient");
  if (padding && !equal_bits(clean.gradients, spoiled.gradients)) return fail("padding reaches a parameter's gradient");
  return pass(padding ? "output zero; its content reaches nothing" : "output NaN; it reaches no gradient");
}

template <typename Probe>
property_result layer_threads(Probe& probe) {
  const auto b = probe.everything();
  const auto r = equal_with_all_threads<typename Probe::tape>(b, probe.caller());
  if (r.result == outcome::failed) return r;
  const auto expected = probe.infer(b);
  std::vector<char> equal(4, 0);
  backward_threads(4).parallel_for(4, [&](index_t i) {
    equal[static_cast<std::size_t>(i)] = equal_bits(expected, probe.infer(b));
  });
  return std::all_of(equal.begin(), equal.end(), [](char e) { return e != 0; })
             ? pass("1, 2, 3 and 8 threads, and 4 calls at the same time")
             : fail("calls at the same time give other bits");
}

template <typename Probe>
property_result layer_shared_memory(Probe& probe) {
  using scalar = typename Probe::scalar;
  const auto b = probe.everything();
  const auto context = b.context(true);
  const index_t rows = b.x.rows(), in = probe.layer.inputs(), out = probe.layer.outputs();
  typename Probe::tape t, other;
  if (in == out) {
    matrix<scalar> both = b.x;
    const bool is_refused = refuses([&] { probe.layer.forward(both, both, t, context); });
    if (!is_refused && !equal_bits(both, probe.step(b, other).y)) return fail("y in the place of x is another y");
  }
  matrix<scalar> memory = random_rows<scalar>(rows + 1, (std::max)(in, out), probe.options.seed + 9);
  if (!refuses([&] { probe.layer.forward(memory.block(0, 0, rows, in), memory.block(1, 0, rows, out), t, context); }))
    return fail("y that lies partly in x is not refused");
  if constexpr (Probe::trains) {
    probe.step(b, t);
    if (!refuses([&] { probe.layer.backward(memory.block(0, 0, rows, out), memory.block(0, 0, rows, in), t); }))
      return fail("dx in the place of dy is not refused");
  }
  return pass("in place or refused");
}

template <typename Probe>
property_result layer_backward_calls(Probe& probe) {
  if constexpr (!Probe::trains) {
    return skip("the layer has no backward");
  } else {
    using scalar = typename Probe::scalar;
    const auto b = probe.everything();
    typename Probe::tape t, unused;
    const matrix<scalar> dy = probe.cotangent(b.x.rows());
    matrix<scalar> dx(b.x.rows(), b.x.cols());
    if (!refuses([&] { probe.layer.backward(dy, dx, unused); }))
      return fail("a tape that saw no forward call is not refused");
    if (!refuses([&] { probe.layer.backward(dy.topRows(0), dx.topRows(0), unused); }))
      return fail("a tape that saw no forward call is not refused with no tokens");
    const auto once = probe.step(b, t);
    zero_gradients(probe.layer);
    probe.layer.backward(dy, dx, t);
    return equal_bits(once.dx, dx) && equal_bits(once.gradients, parameter_gradients(probe.layer))
               ? pass("a second call gives equal bits, one without forward is refused")
               : fail("a second call gives other bits");
  }
}

template <typename Probe>
property_result layer_parameters(Probe& probe) {
  const auto kept = keeps_parameters(probe.layer, [&] {
    const auto b = probe.everything();
    typename Probe::tape t;
    probe.step(b, t);
    probe.infer(b);
  });
  if (kept.result == outcome::failed) return kept;
  std::vector<std::string> names, again;
  for_each_parameter(std::as_const(probe.layer), [&](const std::string& name, const auto&) { names.push_back(name); });
  for_each_parameter(probe.layer, [&](const std::string& name, auto&) { again.push_back(name); });
  if (names != again) return fail("a const layer visits other parameters");
  std::sort(names.begin(), names.end());
  const auto twin = std::adjacent_find(names.begin(), names.end());
  if (twin != names.end()) return fail("two parameters are called \"" + *twin + '"');
  return pass(std::to_string(names.size()) + " names, each once; calls change no value");
}

template <typename Layer>
property_result layer_gradients(layer_probe<Layer>& probe) {
  if constexpr (!layer_probe<Layer>::trains) {
    return skip("the layer has no backward");
  } else if constexpr (!has_exact_gradients<Layer>()) {
    return skip("the gradient is an estimate (exact_gradient = false)");
  } else if constexpr (!std::same_as<typename Layer::scalar, double>) {
    return skip("differences need double; check the layer's double form as well");
  } else {
    auto b = probe.pick(ascending_rows(probe.options.gradient_tokens));
    const matrix<double> dy = probe.cotangent(b.x.rows());
    typename Layer::tape t, again;
    const auto r = probe.step(b, t, dy);
    const auto choices = choices_in(t);
    matrix<double> y(b.x.rows(), probe.layer.outputs());
    const auto objective = [&]() -> std::optional<double> {
      probe.layer.forward(b.x, y, again, b.context(true));
      if (choices_in(again) != choices) return std::nullopt;
      return (y.array() * dy.array()).sum() + again.loss();
    };
    const auto size = static_cast<std::size_t>(b.x.size());
    const auto report = check_gradients(probe.layer, {{"x", {b.x.data(), size}, {r.dx.data(), size}}}, objective,
                                        probe.options.gradients);
    if (report.checked == 0) return fail("a choice flips near every entry");
    return report.largest_error <= probe.options.gradient_bound ? pass(report.describe()) : fail(report.describe());
  }
}

}  // namespace detail

/// Throws std::invalid_argument if the options do not fit; what the layer does wrong is in the report.
template <typename Layer>
conformance_report check_layer(const Layer& layer, const layer_check_options<typename Layer::scalar>& options = {}) {
  static_assert(explain_layer<Layer>());
  detail::layer_probe<Layer> probe(layer, options);
  conformance_report report;
  report.add("zero tokens", [&] { return detail::layer_zero_tokens(probe); });
  report.add("padding", [&] { return detail::layer_hidden_tokens(probe, true); });
  report.add("NaN tokens", [&] { return detail::layer_hidden_tokens(probe, false); });
  report.add("repetition", [&] {
    return detail::equal_with_used_tapes<typename decltype(probe)::tape>(probe.everything(), probe.pick({1, 0}),
                                                                         probe.caller());
  });
  report.add("threads", [&] { return detail::layer_threads(probe); });
  report.add("shared memory", [&] { return detail::layer_shared_memory(probe); });
  report.add("backward calls", [&] { return detail::layer_backward_calls(probe); });
  report.add("parameters", [&] { return detail::layer_parameters(probe); });
  report.add("gradients", [&] { return detail::layer_gradients(probe); });
  return report;
}

}  // namespace sluice::inline SLUICE_ISA
