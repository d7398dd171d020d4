/// Feed-forward experts whose two matrices are chains of cores with a shared centre: MPOE.
///
///   f_e(x) = W2_e phi(W1_e x + b1) + b2       W1_e [H,D], W2_e [D,H] chains (core_chain.hpp), b1, b2 of all experts
///   H = prod hidden factors, D = prod width factors; W2 has the bonds of W1 and its factors exchanged
///
///   mpoe_bank<float> bank{{8, {4, 4, 8, 6, 4}, {3, 4, 4, 4, 4}}};     E = 8, H = 3072, D = 768: a fifth of the numbers
///
/// Matrices are computed once a call (expert/derived/computed_bank.hpp), the experts that have rows in tasks of pairs
/// of the centre's indices. The centre's gradient is the sum over those experts in ascending order;
/// mask_centre_gradients makes its updates as rare as those of other cores, core(centre()).set_frozen(true) leaves it
/// as it is. Sums of gradients are cut in the same few parts for every thread count: equal bits. Throws
/// std::invalid_argument if shapes do not fit. Gao et al. 2022 (MPOE), arXiv:2203.01104; one bias for all experts is
/// the released code's. How often the centre is masked is not told there: the probability is the caller's.
#pragma once

#include <sluice/core/random.hpp>
#include <sluice/expert/derived/computed_bank.hpp>
#include <sluice/expert/factorized/core_chain.hpp>

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class matrix_product_weights {
public:
  using scalar = Scalar;
  struct options {
    std::vector<index_t> bonds{};  ///< one more than factors; empty: full_bonds
    index_t centre = dynamic;      ///< from 0; dynamic: the middle
    bool bias = true;
  };
  struct tape {
    buffer<Scalar> ends;     ///< of every expert that works, up and down
    buffer<Scalar> centres;  ///< C_s of every pair, up and down
    buffer<Scalar> scratch;  ///< of every thread
    buffer<Scalar> outer;    ///< gradients of L and R, in parts
    buffer<Scalar> dends;
  };

  matrix_product_weights(index_t experts, std::vector<index_t> hidden_factors, std::vector<index_t> width_factors,
                         options o = {})
      : has_bias_(o.bias),
        up_(chain(experts, hidden_factors, width_factors, o)),
        down_(chain(experts, width_factors, hidden_factors, o)) {
    if (!has_bias_) return;
    up_bias_ = detail::vector_in_lanes<Scalar>(hidden());
    down_bias_ = detail::vector_in_lanes<Scalar>(outputs());
  }

  index_t experts() const noexcept { return up_.experts(); }
  index_t inputs() const noexcept { return up_.columns(); }
  index_t hidden() const noexcept { return up_.rows(); }
  index_t outputs() const noexcept { return down_.rows(); }
  bool has_bias() const noexcept { return has_bias_; }
  core_chain<Scalar>& up() noexcept { return up_; }
  const core_chain<Scalar>& up() const noexcept { return up_; }
  core_chain<Scalar>& down() noexcept { return down_; }
  parameter<Scalar>& up_bias() noexcept { return up_bias_; }
  parameter<Scalar>& down_bias() noexcept { return down_bias_; }

  void prepare(tape& t, index_t most, bool training) const {
    t.ends.reserve(2 * most * up_.end_numbers());
    t.centres.reserve(2 * up_.pairs() * up_.centre_numbers());
    if (!training) return;
    t.outer.reserve(2 * parts() * most * up_.outer_numbers());
    t.scratch.reserve(2 * parts() * scratch_numbers());
    t.dends.reserve(2 * most * up_.end_numbers());
  }

  void compute(std::span<const index_t> experts, std::span<computed_maps<Scalar>> maps, tape& t,
               const executor_ref& executor) const {
    const auto count = static_cast<index_t>(experts.size());
    t.scratch.reserve(executor.concurrency() * up_.scratch_numbers());  // whatever this call has to compute
    t.ends.resize(2 * count * up_.end_numbers());
    executor.for_work(2 * count * up_.end_numbers()).parallel_for(2 * count, [&](index_t i) {
      chain_of(i % 2).compute_ends(experts[as_size(i / 2)], ends(t, i));
    });
    t.centres.resize(2 * up_.pairs() * up_.centre_numbers());
    executor.for_work(t.centres.size()).parallel_for(2 * up_.pairs(), [&](index_t i) {
      chain_of(i / up_.pairs()).copy_centre(i % up_.pairs(), centre(t, i / up_.pairs(), i % up_.pairs()));
    });
    // Pairs of an expert one after the other: its ends stay in a cache close by, and every C_s passes through.
    const index_t units = 2 * count * up_.pairs();
    const executor_ref threads = executor.for_work(units * up_.pair_work());
    const index_t tasks = (std::min)(units, threads.concurrency());
    t.scratch.resize(tasks * up_.scratch_numbers());
    threads.parallel_for(tasks, [&](index_t task) {
      for (index_t unit = units * task / tasks; unit < units * (task + 1) / tasks; ++unit) {
        const index_t s = unit % up_.pairs(), a = unit / up_.pairs() % count, which = unit / up_.pairs() / count;
        const computed_maps<Scalar>& own = maps[as_size(a)];
        chain_of(which).compute_pair(s, centre(t, which, s), ends(t, 2 * a + which), which == 0 ? own.up : own.down,
                                     t.scratch.data() + task * up_.scratch_numbers());
      }
    });
  }
  void find_biases(std::span<const index_t>, std::span<computed_maps<Scalar>> maps, const tape&) const {
    for (computed_maps<Scalar>& own : maps) own.up_bias = up_bias_.data(), own.down_bias = down_bias_.data();
  }

  void add_gradients(std::span<const index_t> experts, std::span<computed_maps<Scalar>> maps, tape& t,
                     const executor_ref& executor) {
    const auto count = static_cast<index_t>(experts.size());
    ensure_gradients(*this);
    t.outer.resize(2 * parts() * count * up_.outer_numbers());
    t.dends.resize(t.ends.size());
    t.scratch.resize(2 * parts() * scratch_numbers());
    const executor_ref threads = executor.for_work(4 * count * up_.pairs() * up_.pair_work());
    threads.parallel_for(2 * parts(), [&](index_t task) {
      const index_t which = task % 2, part = task / 2;
      Scalar* const outer = t.outer.data() + task * count * up_.outer_numbers();
      Scalar* const turned = t.scratch.data() + task * scratch_numbers();
      std::fill_n(outer, count * up_.outer_numbers(), Scalar(0));
      for (index_t s = up_.pairs() * part / parts(); s < up_.pairs() * (part + 1) / parts(); ++s) {
        chain_of(which).transpose_centre(s, turned);
        for (index_t a = 0; a < count; ++a) {
          const computed_maps<Scalar>& own = maps[as_size(a)];
          chain_of(which).add_pair_gradient(s, centre(t, which, s), turned, ends(t, 2 * a + which),
                                            which == 0 ? own.dup : own.ddown, outer + a * up_.outer_numbers(),
                                            turned + up_.centre_numbers());
        }
      }
    });
    threads.parallel_for(2 * count, [&](index_t i) {
      const index_t which = i % 2, a = i / 2, size = up_.outer_numbers();
      const auto outer = [&](index_t part) { return t.outer.data() + ((2 * part + which) * count + a) * size; };
      for (index_t part = 1; part < parts(); ++part) kernel::add_scaled(Scalar(1), outer(part), outer(0), size);
      chain_of(which).add_end_gradients(experts[as_size(a)], ends(t, i), outer(0),
                                        t.dends.data() + i * up_.end_numbers());
    });
    if (!has_bias_) return;
    for (const computed_maps<Scalar>& own : maps) {
      kernel::add_scaled(Scalar(1), own.dup_bias, up_bias_.gradient().data(), hidden());
      kernel::add_scaled(Scalar(1), own.ddown_bias, down_bias_.gradient().data(), outputs());
    }
  }

  /// Sets each number of the centres' gradients to zero with this probability; between backward and the optimiser's
  /// step.
  void mask_centre_gradients(double probability, const random_source& random) {
    index_t position = 0;
    for (auto* chain : {&up_, &down_})
      for (Scalar& g : chain->core(chain->centre()).gradient())
        if (random.uniform(random_site("matrix_product.centre"), position++) < probability) g = 0;
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("up", self.up_);
    if (self.has_bias_) visit("up_bias", self.up_bias_);
    visit("down", self.down_);
    if (self.has_bias_) visit("down_bias", self.down_bias_);
  }

private:
  /// Of one task of gradients: C_s^T comes first.
  index_t scratch_numbers() const noexcept { return up_.centre_numbers() + up_.scratch_numbers(); }
  /// Of the sums over pairs of indices, for every thread count.
  index_t parts() const noexcept { return (std::min<index_t>)(4, up_.pairs()); }

  static core_chain<Scalar> chain(index_t experts, const std::vector<index_t>& rows,
                                  const std::vector<index_t>& columns, const options& o) {
    const bool fit = rows.size() == columns.size();  // else the chain says so
    return {experts, rows, columns, o.bonds.empty() && fit ? full_bonds(rows, columns) : o.bonds,
            o.centre == dynamic ? static_cast<index_t>(rows.size()) / 2 : o.centre};
  }
  const core_chain<Scalar>& chain_of(index_t which) const noexcept { return which == 0 ? up_ : down_; }
  core_chain<Scalar>& chain_of(index_t which) noexcept { return which == 0 ? up_ : down_; }
  Scalar* centre(tape& t, index_t which, index_t s) const noexcept {
    return t.centres.data() + (which * up_.pairs() + s) * up_.centre_numbers();
  }
  Scalar* ends(tape& t, index_t i) const noexcept { return t.ends.data() + i * up_.end_numbers(); }

  bool has_bias_;
  core_chain<Scalar> up_, down_;
  parameter<Scalar> up_bias_, down_bias_;
};

template <FloatOrDouble Scalar, Activation<Scalar> Phi = relu>
using matrix_product_bank = computed_bank<matrix_product_weights<Scalar>, Phi>;
/// The paper's name.
template <FloatOrDouble Scalar, Activation<Scalar> Phi = relu>
using mpoe_bank = matrix_product_bank<Scalar, Phi>;

static_assert(DifferentiableBank<matrix_product_bank<float>> && RoutedBank<matrix_product_bank<float>>);

}  // namespace sluice::inline SLUICE_ISA
