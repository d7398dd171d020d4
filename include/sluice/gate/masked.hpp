/// A gate of which every token sees some experts only, by its id: the logits of all others are -infinity.
///
///   table [V,E] of 0 and 1, id[t] from routing_context::token_ids       L'[t,e] = L[t,e] where table[id[t],e] is 1
///
///   masked_gate gate(linear_gate<float>(64, 8), frequency_mask(occurrences, 8, {.frequent = 1000}));
///
/// Invisible experts have probability exactly 0 and no gradient. Rules that choose k experts of fewer that are visible
/// go into visible_rule (router/masked/id_mask.hpp). The table is a state, "visible": saved and loaded, not learned. An
/// id outside the table counts as options.unknown, or is refused with its number if that is none; padding may have any
/// id. Causal if the gate inside is. Su et al. 2024 (MaskMoE), arXiv:2407.09816.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/order.hpp>

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct frequency_mask_options {
  index_t frequent = 1;  ///< ids that occur so often see `visible` experts, all others one
  index_t visible = 0;   ///< 0 is all of them
  random_source random{};
};

inline constexpr random_site frequency_mask_site{"masked_gate.table"};

/// A table [V,E]: rare ids see one expert each, every expert as many of them within one, and frequent ones some at
/// random.
inline matrix<index_t> frequency_mask(std::span<const index_t> occurrences, index_t experts,
                                      frequency_mask_options o = {}) {
  const auto ids = static_cast<index_t>(occurrences.size());
  const index_t visible = o.visible == 0 ? experts : o.visible;
  if (experts < 1 || visible < 1 || visible > experts)
    throw_invalid("a mask over experts needs 1 <= visible <= E, not visible = ", visible, ", E = ", experts);
  const auto draw = [&](index_t position) { return o.random.uniform(frequency_mask_site, position); };
  matrix<index_t> table = matrix<index_t>::Zero(ids, experts);
  std::vector<std::pair<double, index_t>> order;
  for (index_t id = 0; id < ids; ++id)
    if (occurrences[as_size(id)] < o.frequent) order.emplace_back(draw(id), id);
  std::sort(order.begin(), order.end());
  for (std::size_t i = 0; i < order.size(); ++i) table(order[i].second, static_cast<index_t>(i) % experts) = 1;
  for (index_t id = 0; id < ids; ++id) {
    if (occurrences[as_size(id)] < o.frequent) continue;
    order.clear();
    for (index_t e = 0; e < experts; ++e) order.emplace_back(draw(ids + id * experts + e), e);
    std::sort(order.begin(), order.end());
    for (index_t j = 0; j < visible; ++j) table(id, order[as_size(j)].second) = 1;
  }
  return table;
}

template <typename Inner>
class masked_gate : public gate_decorator<Inner> {
  using base = gate_decorator<Inner>;

public:
  using typename base::scalar;
  struct tape : decorated_tape<Inner> {
    matrix_buffer<scalar> dlogits;
  };
  struct options {
    index_t unknown = -1;  ///< the id that ids outside the table count as
  };

  /// Throws std::invalid_argument unless the table has a column an expert and every id sees one.
  masked_gate(Inner inner, const matrix<index_t>& table, options o = {})
      : base(std::move(inner)),
        options_(o),
        visible_({table.rows(), table.cols()}, parameter_role::state, initial_values::uniform(0)) {
    if (table.cols() != this->experts())
      throw_invalid("the mask has a column for each of ", table.cols(), " experts, the gate has E = ", this->experts());
    if (o.unknown >= table.rows())
      throw_invalid("unknown ids cannot count as id ", o.unknown, ", the mask has rows for ids 0 to ",
                    table.rows() - 1);
    visible_.fill([&](index_t i) { return static_cast<scalar>(table.data()[i] != 0); });
    for (index_t id = 0; id < table.rows(); ++id)
      if ((table.row(id).array() == 0).all()) throw_invalid("id ", id, " sees no expert");
  }

  bool sees(index_t id, index_t expert) const { return visible_.data()[row_of(id) * this->experts() + expert] != 0; }

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    check_ids(context, x.rows());
    this->inner().forward(x, context, logits, t.inner);
    for_invisible(context, x.rows(), [&](index_t token, index_t e) {
      logits(token, e) = kernel::number_of_key<scalar>(-kernel::infinity_key<scalar>);
    });
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    t.dlogits.resize(dlogits.rows(), dlogits.cols());
    t.dlogits.map() = dlogits;
    for_invisible(context, x.rows(), [&](index_t token, index_t e) { t.dlogits(token, e) = 0; });
    this->inner().backward(x, context, t.dlogits.map(), t.inner, dx);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("visible", self.visible_);
    base::visit_parameters(self, visit);
  }

private:
  index_t row_of(index_t id) const noexcept { return id >= 0 && id < visible_.rows() ? id : options_.unknown; }

  void check_ids(const routing_context<scalar>& context, index_t tokens) const {
    if (static_cast<index_t>(context.token_ids.size()) != tokens)
      throw_invalid("a mask by token ids needs routing_context.token_ids, one for each of ", tokens, " tokens");
    for (index_t t = 0; t < tokens; ++t)
      if (!context.is_padding(t) && row_of(context.token_ids[as_size(t)]) < 0)
        throw_invalid("token ", t, " has id ", context.token_ids[as_size(t)], ", the mask has rows for ids 0 to ",
                      visible_.rows() - 1);
  }

  template <typename F>
  void for_invisible(const routing_context<scalar>& context, index_t tokens, F&& f) const {
    const index_t experts = this->experts();
    context.executor.parallel_each(tokens, experts, [&](index_t t) {
      if (context.is_padding(t)) return;
      const scalar* const row = visible_.data() + row_of(context.token_ids[as_size(t)]) * experts;
      for (index_t e = 0; e < experts; ++e)
        if (row[e] == scalar(0)) f(t, e);
    });
  }

  options options_;
  parameter<scalar> visible_;
};

static_assert(DifferentiableGate<masked_gate<linear_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
