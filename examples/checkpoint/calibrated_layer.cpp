// Apart from its users: there is a type of experts for every kind of model.
#include "calibrated_layer.hpp"

#include <sluice/quant/bit_allocation.hpp>
#include <sluice/quant/calibrated_maps.hpp>
#include <sluice/quant/compensated_rounding.hpp>
#include <sluice/quant/expert_sensitivity.hpp>

#include <array>
#include <type_traits>
#include <utility>

#include "session.hpp"

namespace checkpoint {
namespace {

/// The type of a published layer's routed experts, if they read the layer's tokens as they are; else void.
template <typename Layer>
struct experts_of {
  using type = void;
};
template <typename Router, typename Expert>
struct experts_of<sluice::moe_layer<Router, sluice::expert_bank<Expert>>> {
  using type = Expert;
};
template <typename Router, typename Expert, typename Copy>
struct experts_of<
    sluice::moe_layer<Router, sluice::expert_union<sluice::expert_bank<Expert>, sluice::expert_bank<Copy>>>> {
  using type = Expert;
};
template <typename Layer, typename Expert, bool Gated>
struct experts_of<sluice::shared_expert_layer<Layer, Expert, Gated>> : experts_of<Layer> {};
template <typename Layer>
struct experts_of<sluice::output_bias_layer<Layer>> : experts_of<Layer> {};

/// The experts under the names that they have in a layer.
template <typename Expert>
struct experts_alone {
  sluice::expert_bank<Expert> bank;

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("experts", self.bank);
  }
};

/// Rounds to nearest to format `choice`.
struct round_as_stored {
  index_t group;

  sluice::matrix<float> operator()(const sluice::matrix<float>& w, index_t choice) const {
    const weight_format& format = weight_formats[static_cast<std::size_t>(choice)];
    return sluice::round_to_nearest(w, rounding_to(format, group)).to_matrix();
  }
};

template <typename Expert>
class calibrated_experts final : public calibrated_layer {
public:
  calibrated_experts(sluice::expert_bank<Expert> bank, sluice::matrix<float> x, sluice::sparse_plan<float> plan,
                     const sluice::executor_ref& executor)
      : bank_(std::move(bank)), x_(std::move(x)), plan_(std::move(plan)), executor_(executor) {}

  index_t tokens(index_t e) const override { return plan_.load(e); }

  sluice::matrix<double> costs(index_t group, const std::function<void(double)>& progress) const override {
    constexpr index_t at_once = 16;
    sluice::expert_sensitivity<Expert, round_as_stored> sensitivity(bank_, weight_formats.size(), {group});
    std::vector<double> tokens, weights;
    for (index_t e = 0; e < bank_.experts(); ++e) {
      if (e % at_once == 0) {
        progress(static_cast<double>(e) / static_cast<double>(bank_.experts()));
        sensitivity.add(bank_, x_, rows().only(e, std::min(at_once, bank_.experts() - e)), executor_);
      }
      const sluice::row_range own = rows().by_expert.of(e);
      tokens.push_back(static_cast<double>(own.size()));
      weights.push_back(0);
      for (index_t i = own.begin; i < own.end; ++i) weights.back() += static_cast<double>(rows().weight(i));
    }
    return sluice::allocation_costs(tokens, weights, sensitivity.errors());
  }

  compensated_codes compensated(index_t e, const weight_format& format, index_t group) const override {
    sluice::bank_calibration<Expert> calibration(bank_, {.first_expert = e, .only = 1, .least_rows = least_tokens});
    calibration.add(bank_, x_, rows().only(e, 1), executor_);
    const sluice::rounding_options as = rounding_to(format, group);
    compensated_codes codes{{}, !calibration.unseen().empty()};
    sluice::for_each_calibrated_map(
        bank_, calibration, {.damping = 0.01},
        [&](const sluice::calibrated_map& map) {
          codes.of.push_back(sluice::compensated_rounding(
              map.weights, map.factor, {.bits = as.bits, .group = as.group, .range = as.range, .scales = as.scales},
              executor_));
        },
        executor_);
    return codes;
  }

  relative_error change(index_t e, const std::vector<sluice::matrix<float>>& weights) const override {
    const sluice::row_range own = rows().by_expert.of(e);
    relative_error error;
    if (own.size() == 0) return error;
    sluice::matrix<float> x(own.size(), bank_.inputs()), exact(own.size(), bank_.outputs()), rounded = exact;
    for (index_t i = 0; i < own.size(); ++i)
      x.row(i) = rows().input_scale(own.begin + i) * x_.row(rows().token(own.begin + i));
    const std::array<index_t, 2> ends{0, own.size()};
    sluice::expert_bank<Expert> alone(std::vector<Expert>{bank_.expert(e)});
    run(alone, x, ends, exact);
    for (int m = 0; m < Expert::first_maps; ++m)
      alone.expert(0).first_map(m).weight().assign(weights[static_cast<std::size_t>(m)]);
    alone.expert(0).last_map().weight().assign(weights[static_cast<std::size_t>(Expert::first_maps)]);
    run(alone, x, ends, rounded);
    for (index_t i = 0; i < own.size(); ++i) {
      const sluice::matrix<double> y = exact.row(i).template cast<double>(),
                                   change = y - rounded.row(i).template cast<double>();
      if (!sluice::all_finite(change.data(), change.size())) continue;
      const auto weight = static_cast<double>(rows().weight(own.begin + i));
      error.add({weight * weight * change.squaredNorm(), weight * weight * y.squaredNorm()});
    }
    return error;
  }

private:
  /// Without those that only return their input.
  sluice::routed_rows<float> rows() const { return plan_.routed().slice(0, bank_.experts()); }

  void run(const sluice::expert_bank<Expert>& bank, const sluice::matrix<float>& x, const std::array<index_t, 2>& ends,
           sluice::matrix<float>& y) const {
    typename sluice::expert_bank<Expert>::tape memory;
    bank.prepare(memory, x.rows(), false);
    bank.forward(x, sluice::expert_rows(ends), y, memory, executor_);
  }

  sluice::expert_bank<Expert> bank_;
  sluice::matrix<float> x_;
  sluice::sparse_plan<float> plan_;
  sluice::executor_ref executor_;
};

template <typename Expert>
std::unique_ptr<calibrated_layer> calibrate(const sluice::checkpoint_model& model, const sluice::block_id& block,
                                            sluice::matrix<float> x, sluice::sparse_plan<float> plan,
                                            const sluice::executor_ref& executor) {
  experts_alone<Expert> experts{sluice::make_published_experts<Expert>(model.config())};
  sluice::layer_load_options load;
  load.executor = executor;
  load.ignored = {"*"};  // the whole layer has been loaded strictly
  sluice::load_layer_into(experts, model, block, load);
  return std::make_unique<calibrated_experts<Expert>>(std::move(experts.bank), std::move(x), std::move(plan), executor);
}

}  // namespace

std::unique_ptr<calibrated_layer> calibrate_layer(const sluice::checkpoint_model& model, const sluice::block_id& block,
                                                  sluice::matrix<float> x, const layer_options& o,
                                                  const sluice::executor_ref& executor,
                                                  const std::function<void(const std::string&, double)>& progress) {
  // Its layer goes before the experts come: they are most of it.
  sluice::sparse_plan<float> plan = run_layer(model, block, o, x, executor, progress).layer->plan();
  return sluice::with_published_type<float>(
      model.config(), block, [&]<typename Layer>(std::type_identity<Layer>) -> std::unique_ptr<calibrated_layer> {
        using expert = typename experts_of<Layer>::type;
        if constexpr (std::is_void_v<expert>)
          throw sluice::file_error(model.name(), to_string(block) + ": experts of " +
                                                     std::string(name_of(model.config().family)) +
                                                     " read a norm or a projection of the tokens, which --calibrate "
                                                     "does not know");
        else
          return calibrate<expert>(model, block, std::move(x), std::move(plan), executor);
      });
}

}  // namespace checkpoint
