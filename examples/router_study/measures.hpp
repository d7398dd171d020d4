/// What one training of one router on one task gives, and how routing is measured.
#pragma once

#include <sluice/core/dense_plan.hpp>
#include <sluice/core/soft_plan.hpp>
#include <sluice/core/sparse_plan.hpp>

#include <Eigen/Core>

#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

namespace study {

using sluice::index_t;

/// Routing of the test data at one moment of the training.
struct routing_record {
  double entropy = 0;  ///< dispatch entropy, in nats
  double experts_per_token = 0;
  double load_cv = 0;  ///< deviation of the experts' loads over their mean
  double changed = 0;  ///< share of the tokens that have other experts than at the record before
};

struct measured {
  double accuracy = 0;  ///< of the test data, 0..1
  double flops = 0;     ///< additions and multiplications of the mixture for a token, forward
  double dropped = 0;   ///< share of the test tokens without an expert
  double seconds = 0;
  std::vector<routing_record> over_training;

  const routing_record& last() const { return over_training.back(); }
};

/// f(token, expert, share) for all that meet: 1 where experts are chosen, the weight where all are used.
template <typename F>
void for_each_meeting(const sluice::sparse_plan<float>& plan, F&& f) {
  for (index_t i = 0; i < plan.size(); ++i) f(plan.token(i), plan.expert(i), 1.0);
}
template <typename F>
void for_each_meeting(const sluice::dense_plan<float>& plan, F&& f) {
  const auto routed = plan.routed_tokens();
  for (index_t e = 0; e < plan.experts(); ++e)
    for (std::size_t j = 0; j < routed.size(); ++j)
      f(routed[j], e, static_cast<double>(plan.weight(e, static_cast<index_t>(j))));
}
template <typename F>
void for_each_meeting(const sluice::soft_plan<float>& plan, F&& f) {
  for (index_t t = 0; t < plan.tokens(); ++t)
    for (index_t s = 0; s < plan.slot_count(); ++s)
      f(t, s / plan.slots_per_expert(), static_cast<double>(plan.combine()(t, s)));
}

/// The dispatch entropy of Chen et al. 2022: sum over experts e of (n_e / n) H(kind of the tokens at e). 0 if every
/// expert has tokens of one kind, that of the kinds if experts tell nothing about them.
template <typename Plan, typename KindOf>
double dispatch_entropy(const Plan& plan, index_t kinds, KindOf&& kind_of) {
  Eigen::MatrixXd share = Eigen::MatrixXd::Zero(plan.experts(), kinds);
  for_each_meeting(plan, [&](index_t token, index_t expert, double s) { share(expert, kind_of(token)) += s; });
  const double all = share.sum();
  double entropy = 0;
  for (index_t e = 0; e < share.rows(); ++e)
    for (index_t k = 0; k < kinds; ++k)
      if (share(e, k) > 0) entropy -= share(e, k) / all * std::log(share(e, k) / share.row(e).sum());
  return entropy;
}

/// The experts of every token as one number each, to see what changes. Where all experts are used nothing does.
inline std::vector<std::size_t> experts_of_tokens(const sluice::sparse_plan<float>& plan) {
  std::vector<std::size_t> sets(static_cast<std::size_t>(plan.tokens()), 0);
  for (index_t i = 0; i < plan.size(); ++i)
    sets[static_cast<std::size_t>(plan.token(i))] += std::size_t{1} << (plan.expert(i) % 63);
  return sets;
}
template <typename Plan>
std::vector<std::size_t> experts_of_tokens(const Plan&) {
  return {};
}

/// Watches the routing of the test data while a router is trained.
class routing_watch {
public:
  template <typename Tape, typename KindOf>
  void look(const Tape& tape, index_t kinds, KindOf&& kind_of) {
    routing_record r;
    r.entropy = dispatch_entropy(tape.plan, kinds, kind_of);
    r.experts_per_token = tape.statistics.experts_per_token();
    r.load_cv = tape.statistics.load_cv();
    auto sets = experts_of_tokens(tape.plan);
    std::size_t changed = 0;
    for (std::size_t t = 0; t < sets.size() && sets.size() == sets_.size(); ++t) changed += sets[t] != sets_[t];
    if (!records_.empty() && !sets.empty()) r.changed = static_cast<double>(changed) / static_cast<double>(sets.size());
    sets_ = std::move(sets);
    records_.push_back(r);
  }
  std::vector<routing_record> records() const { return records_; }

private:
  std::vector<std::size_t> sets_;
  std::vector<routing_record> records_;
};

}  // namespace study
