// Rules and couplings for all tokens of a group, called on scores that a file gives.
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/router/choice_rule.hpp>

#include <numeric>
#include <vector>

namespace oracle {

/// One group of T tokens with scores [T,E], all of them to be routed, k = 1.
template <typename Scalar>
class batch_of_scores {
public:
  explicit batch_of_scores(const sluice::matrix<Scalar>& scores) : all_(static_cast<std::size_t>(scores.rows())) {
    scores_.resize(scores.rows(), scores.cols());
    scores_.map() = scores;
    std::iota(all_.begin(), all_.end(), sluice::index_t{0});
  }
  sluice::choice_batch<Scalar> batch() const {
    return {{context_, scores_.rows(), scores_.cols(), 1}, {0, scores_.rows()}, all_, scores_, scores_, scores_};
  }

private:
  sluice::routing_context<Scalar> context_;
  sluice::matrix_buffer<Scalar> scores_;
  std::vector<sluice::index_t> all_;
};

/// What a coupling makes of logits [T,E].
template <typename Coupling, typename Scalar>
typename Coupling::tape coupling_of(const Coupling& coupling, const sluice::matrix<Scalar>& logits) {
  const batch_of_scores<Scalar> group(logits);
  typename Coupling::tape tape;
  coupling.couple(group.batch(), tape);
  return tape;
}

}  // namespace oracle
