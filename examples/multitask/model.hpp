/// A model of two tasks: a bottom that reads the features, and a tower a task.
///
///   shared bottom   h = relu(W x + b), the same for both towers
///   MMoE            h_q = sum over e of softmax(gate_q(x))[e] relu(W_e x + b_e)             (layer/multi_gate.hpp)
///   MMoE-Ex         the same where some experts are one task's alone                        (gate/connected.hpp)
///   y_q = tower_q(h_q), 8 hidden units
#pragma once

#include <sluice/expert/activated.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/gate/connected.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/multi_gate.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "task.hpp"

namespace multitask {

using context = sluice::routing_context<float>;

/// One network for both tasks: with its towers as many weights as the experts below with their gates and towers.
inline auto shared_bottom() {
  return sluice::dense_layer{sluice::activated_expert<float>{related_tasks::features, 126}};
}

/// Eight experts of 16 units and a gate a task; a share of the experts belongs to one task alone.
inline auto gated_bottom(double exclusive_share, std::uint64_t seed) {
  using namespace sluice;
  constexpr index_t D = related_tasks::features, E = 8, H = 16;
  using gate = connected_gate<linear_gate<float>>;
  std::vector<dense_softmax_router<float, gate>> routers;
  for (const auto& connected :
       exclusive_experts(E, tasks, random_source(seed), expert_diversity::exclusivity, exclusive_share))
    routers.emplace_back(gate(linear_gate<float>(D, E, {.bias = true}), connected));
  return multi_gate_layer{routers, expert_bank<activated_expert<float>>{E, activated_expert<float>{D, H}}};
}

template <typename Bottom>
class two_towers {
  using tower = sluice::dense_layer<sluice::ffn<float>>;
  template <typename BottomMemory, typename TowerMemory>
  struct memory {
    BottomMemory bottom;
    std::array<TowerMemory, tasks> towers;
    sluice::matrix_buffer<float> hidden;
  };

public:
  using context_type = context;
  struct workspace : memory<typename Bottom::workspace, typename tower::workspace> {};
  struct tape : memory<typename Bottom::tape, typename tower::tape> {
    sluice::matrix_buffer<float> dhidden, down, dx;
  };

  explicit two_towers(Bottom bottom)
      : bottom_(std::move(bottom)), width_(bottom_.outputs() / (gives_each_task_its_own() ? tasks : 1)) {
    for (index_t q = 0; q < tasks; ++q)
      towers_.emplace_back(sluice::ffn<float>{width_, 8, {.outputs = 1, .bias = true}});
  }

  /// x [T, features] -> y [T, tasks]. Memory: a workspace, or a tape to train.
  template <typename Memory>
  void forward(sluice::tokens_in<float> x, sluice::tokens_out<float> y, Memory& m, const context& c = {}) const {
    m.hidden.resize(x.rows(), bottom_.outputs());
    bottom_.forward(x, m.hidden.map(), m.bottom, c);
    for (std::size_t q = 0; q < tasks; ++q)
      towers_[q].forward(columns(m.hidden, q), y.middleCols(static_cast<index_t>(q), 1), m.towers[q], c);
  }

  void backward(sluice::tokens_in<float> dy, tape& t) {
    t.dhidden.set_zero(t.hidden.rows(), t.hidden.cols());
    t.dx.resize(t.hidden.rows(), bottom_.inputs());
    t.down.resize(t.hidden.rows(), width_);
    for (std::size_t q = 0; q < tasks; ++q) {
      towers_[q].backward(dy.middleCols(static_cast<index_t>(q), 1), t.down.map(), t.towers[q]);
      columns(t.dhidden, q) += t.down.map();
    }
    bottom_.backward(t.dhidden.map(), t.dx.map(), t.bottom);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("bottom", self.bottom_);
    for (std::size_t q = 0; q < tasks; ++q) visit("tower." + std::to_string(q), self.towers_[q]);
  }

private:
  static constexpr bool gives_each_task_its_own() {
    return requires(const Bottom& b) { b.tasks(); };
  }

  /// What tower q reads.
  auto columns(sluice::matrix_buffer<float>& hidden, std::size_t q) const {
    return hidden.map().middleCols(gives_each_task_its_own() ? static_cast<index_t>(q) * width_ : 0, width_);
  }

  Bottom bottom_;
  index_t width_;
  std::vector<tower> towers_;
};

}  // namespace multitask
