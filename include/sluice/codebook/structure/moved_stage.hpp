/// A stage that several depths of one forward call share and that each of them moves: a copy of it for every depth.
///
///   begin(stage, M)    at(j), 0 <= j <= M: the stage as depth j sees it; at(M) is what is left
///   step(j, tape)      depth j + 1 sees what the stage has learned of depth j's tape
///   write_back(stage)  the stage becomes at(M)
///
/// So a const forward call can move codes, and backward finds every depth's codes as they were. Only what learns from
/// data can move, not what an optimiser changes meanwhile. Costs M + 1 copies of the stage; none is allocated once
/// warm.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/parameter.hpp>

#include <algorithm>
#include <concepts>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Throws std::invalid_argument if a parameter of the stage is learned by gradients.
template <typename Stage>
void check_learns_from_data(const Stage& stage) {
  for_each_parameter(stage, [](const std::string& name, const auto& p) {
    if (p.is_learned())
      throw_invalid("codes that move between depths learn from data; \"", name, "\" is learned by gradients");
  });
}

template <typename Stage>
class moved_stage {
public:
  void begin(const Stage& stage, index_t depth) {
    copies_.resize(as_size(depth + 1), stage);
    copies_.front() = stage;
  }

  Stage& at(index_t j) { return copies_[as_size(j)]; }

  void step(index_t j, typename Stage::tape& tape) {
    Stage &now = at(j), &next = at(j + 1);
    next = now;
    now.after_step(tape);  // the tape knows its stage by where it lies
    std::swap(now, next);
  }

  void write_back(Stage& stage) {
    using array = parameter<typename Stage::scalar>;
    from_.clear();
    for_each_unnamed_parameter(copies_.back(), [&](auto& p) { from_.push_back(&p); });
    std::size_t next = 0;
    for_each_unnamed_parameter(stage, [&](auto& p) {
      static_assert(std::same_as<std::remove_cvref_t<decltype(p)>, array>);
      std::copy_n(std::as_const(*from_[next++]).data(), p.size(), p.data());
    });
  }

private:
  std::vector<Stage> copies_;
  std::vector<parameter<typename Stage::scalar>*> from_;
};

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
