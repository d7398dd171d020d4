// Mixtures made smaller: experts that stay, experts merged in groups or gathered into one, matrices split and pruned.
#include "replays.hpp"

#include <sluice/convert/gathered_expert.hpp>
#include <sluice/convert/kept_experts.hpp>
#include <sluice/convert/low_rank_sparse.hpp>
#include <sluice/convert/merged_experts.hpp>

namespace oracle {

namespace {

using namespace sluice;

/// usage of round after round is given, as the source's own rounding left it.
template <typename Scalar>
void replay_task_pruning(oracle_case<Scalar>& c) {
  const auto rounds = c.template setting<index_t>("rounds");
  const bool empties = c.template setting<bool>("prune_to_minimum_last");
  const matrix<double> usage = c.rows("usage").template cast<double>();
  usage_pruning pruning(
      usage.cols(), {.beta = c.template setting<double>("beta"), .minimum = c.template setting<index_t>("minimum")});
  std::vector<index_t> alive;
  for (index_t round = 0; round < rounds; ++round) {
    pruning.set_usage({usage.data() + round * usage.cols(), as_size(usage.cols())});
    const auto ids = pruning.prune(empties && round + 1 == rounds);
    for (index_t e = 0; e < usage.cols(); ++e)
      alive.push_back(std::find(ids.begin(), ids.end(), e) != ids.end() ? 1 : 0);
  }
  c.check_integers("alive", alive);
}

template <typename Scalar>
void replay_router_norm(oracle_case<Scalar>& c) {
  const matrix<Scalar> before = c.rows("router_before"), after = c.rows("router_after");
  const auto keep = c.template setting<index_t>("keep");
  for (const bool of_norm : {true, false}) {
    const std::string name = of_norm ? "change_of_norm" : "norm_of_change";
    const auto scores =
        router_change<Scalar>(before, after, of_norm ? router_change_measure::of_norm : router_change_measure::of_row);
    const auto kept = most_used<Scalar>(scores, keep);
    c.check(name, scores);
    c.check_integers("kept_" + name, kept);
    if (of_norm) c.check("router_kept", router_rows<Scalar>(after, kept));
  }
}

template <typename Scalar>
void replay_ones(oracle_case<Scalar>& c) {
  const matrix<Scalar> first = c.rows("experts.wi"), last = c.rows("experts.wo");
  const auto count = c.template setting<index_t>("E"), hidden = c.template setting<index_t>("H");
  std::vector<expert_matrices<Scalar>> experts;
  for (index_t e = 0; e < count; ++e)
    experts.push_back(
        {first.middleRows(e * hidden, hidden), last.middleRows(e * last.rows() / count, last.rows() / count)});
  const auto check = [&](const std::string& name, const expert_matrices<Scalar>& made) {
    c.check(name + ".wi", made.first);
    c.check(name + ".wo", made.last);
  };
  check("sum", gathered_sum<Scalar>(experts));
  check("average", gathered_mean<Scalar>(experts));
  check("topk", gathered_units<Scalar>(experts));
  check("svd", gathered_directions<Scalar>(experts, c.template setting<index_t>("rank")));
  std::vector<index_t> units;
  for (const auto& of_expert : largest_units<Scalar>(experts))
    units.insert(units.end(), of_expert.begin(), of_expert.end());
  c.check_integers("topk.units", units);
}

template <typename Scalar>
void replay_m_smoe(oracle_case<Scalar>& c) {
  const auto layers = c.template setting<index_t>("layers"), count = c.template setting<index_t>("E");
  const bool align = c.template setting<bool>("permute");
  const matrix<double> usage = c.rows("usage").template cast<double>();
  const matrix<Scalar> logits = c.rows("router_logits"), first = c.rows("experts.wi"), last = c.rows("experts.wo");
  const index_t tokens = logits.rows() / layers, hidden = first.rows() / (layers * count),
                width = last.rows() / (layers * count);
  const auto counts = group_counts(usage, c.template setting<index_t>("average_groups"));
  c.check_integers("groups_per_layer", counts);
  std::vector<index_t> labels, slots, permutation;
  matrix<Scalar> similar(layers * count, count), wi(first.rows(), first.cols()), wo(last.rows(), last.cols());
  for (index_t l = 0; l < layers; ++l) {
    const matrix<double> similarity = logit_similarity<Scalar>(logits.middleRows(l * tokens, tokens));
    similar.middleRows(l * count, count) = similarity.cast<Scalar>();
    const std::span<const double> used(usage.data() + l * count, as_size(count));
    const auto groups = expert_groups(used, similarity, counts[as_size(l)]);
    std::vector<expert_matrices<Scalar>> experts;
    for (index_t e = l * count; e < (l + 1) * count; ++e)
      experts.push_back({first.middleRows(e * hidden, hidden), last.middleRows(e * width, width)});
    const merged_mixture<Scalar> merged = merge_groups<Scalar>(experts, groups, used, align);
    labels.insert(labels.end(), groups.begin(), groups.end());
    slots.insert(slots.end(), merged.slot.begin(), merged.slot.end());
    for (index_t e = 0; e < count; ++e) {
      const auto& pi = merged.alignment[as_size(e)];
      permutation.insert(permutation.end(), pi.begin(), pi.end());
      // The source takes the mean of a group of one too, whose divisor is 1e-7 too large.
      const bool alone = std::count(groups.begin(), groups.end(), groups[as_size(e)]) == 1;
      const expert_matrices<Scalar> now =
          alone ? merged_experts<Scalar>(std::span(experts).subspan(as_size(e), 1), used.subspan(as_size(e), 1))
                : merged.experts[as_size(e)];
      wi.middleRows((l * count + e) * hidden, hidden) = now.first;
      wo.middleRows((l * count + e) * width, width) = now.last;
    }
  }
  c.check("similarity", similar);
  c.check_integers("labels", labels);
  c.check_integers("storage_slot", slots);
  c.check_integers("permutation", permutation);
  c.check("merged.wi", wi);
  c.check("merged.wo", wo);
}

template <typename Scalar>
void replay_losparse(oracle_case<Scalar>& c) {
  const auto size = [&](const char* name) { return c.template setting<index_t>(name); };
  const matrix<Scalar> w = c.rows("w");
  if (rank_for(w.rows(), w.cols(), c.template setting<double>("parameter_ratio")) != size("rank"))
    c.fail("the rank differs");
  low_rank_sparse<Scalar> a = split_low_rank<Scalar>(w, size("rank"));
  c.check("low_rank", a.low_rank());
  c.check("sparse", a.sparse);
  a.sparse = a.sparse.template cast<float>().template cast<Scalar>();  // as the source's pruner had it
  matrix<Scalar> b = c.rows("sparse_b");
  row_pruning<Scalar> pruning({.keep = c.template setting<double>("final_keep"),
                               .decay = c.template setting<double>("beta1"),
                               .total = size("total_step"),
                               .initial = size("initial_warmup") * size("warmup_steps"),
                               .final = size("final_warmup") * size("warmup_steps")});
  const matrix<Scalar> grad_a = c.rows("grad_a"), grad_b = c.rows("grad_b");
  std::vector<Scalar> ratios, importance;
  std::vector<index_t> alive;
  for (index_t step = 0; step < size("steps"); ++step) {
    const matrix<Scalar> da = grad_a.middleRows(step * a.sparse.rows(), a.sparse.rows()),
                         db = grad_b.middleRows(step * b.rows(), b.rows());
    ratios.push_back(static_cast<Scalar>(pruning.share_at(step)));
    pruning.step({&a.sparse, &b}, {&da, &db});
    for (const std::size_t m : {std::size_t{0}, std::size_t{1}}) {
      for (const double score : pruning.scores(m)) importance.push_back(static_cast<Scalar>(score));
      const matrix<Scalar>& s = m == 0 ? a.sparse : b;
      for (index_t r = 0; r < s.rows(); ++r) alive.push_back(s.row(r).isZero(0) ? 0 : 1);
    }
  }
  c.check("keep_ratio", ratios);
  c.check("row_importance", importance);
  c.check_integers("row_alive", alive);
  c.check("final_sparse_a", a.sparse);
  c.check("final_sparse_b", b);
  c.check("y", matrix<Scalar>(c.rows("x") * a.to_matrix().transpose()));
}

}  // namespace

std::vector<replayer> conversions() {
  return {{"mc_smoe_losparse", replay_losparse<float>, replay_losparse<double>},
          {"m_smoe", replay_m_smoe<float>, replay_m_smoe<double>},
          {"task_pruning", replay_task_pruning<float>, replay_task_pruning<double>},
          {"router_norm_pruning", replay_router_norm<float>, replay_router_norm<double>},
          {"ones_gather", replay_ones<float>, replay_ones<double>}};
}

}  // namespace oracle
