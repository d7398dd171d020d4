/// UltraMem's values as experts: an expert puts out a piece of a row of a table, whatever the token is.
///
///   values [V,W], cut into M pieces of W/M   pairs P = B V: more of them than rows, B blocks of outputs
///   shuffle [P], a permutation drawn once:   row r = shuffle[pair] mod V,  block b = shuffle[pair] / V
///   expert m P + pair:  y[t, b W + c] = values[r, c] for the columns c of piece m, zero elsewhere       outputs B W
///
/// With the weights of a tucker_key_router over n keys a half (P = n², M cores), and a linear map of all blocks after
/// it, this is a memory layer with implicit value expansion: one physical row speaks for B pairs, through a part of the
/// map of its own for each.
///
///   sequence memory{moe_layer{tucker_key_router<float>{D, n, {.cores = M}},
///                             value_table<float>{D, V, W, {.blocks = B, .pieces = M}}},
///                   linear_layer<float>{B * W, D}};
///
/// x is not read and has the gradient zero; dvalues[r, c] += weight dy[t, b W + c]. Tasks are columns of a piece, rows
/// go in their order: equal bits for every thread count. Work grows with the rows of a call, not with the table; a
/// layer's plan is run as it lies (forward_routed). The shuffle is a state, "shuffle": whole numbers, saved and loaded,
/// not learned. Without one pair p is place p; shuffled_pairs draws one. No rows is fine. Initial values: normal with
/// deviation 0.02.
/// Huang et al. 2024, "Ultra-Sparse Memory Network", arXiv:2411.12364.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/random.hpp>
#include <sluice/core/routed_rows.hpp>
#include <sluice/expert/gathered_rows.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <limits>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

inline constexpr random_site pair_shuffle_site{"value_table.shuffle"};

/// A permutation of so many pairs, every one equally likely.
inline std::vector<index_t> shuffled_pairs(index_t pairs, const random_source& random) {
  std::vector<index_t> place(as_size(pairs));
  std::iota(place.begin(), place.end(), index_t(0));
  for (index_t left = pairs; left > 1; --left) {
    const auto drawn = static_cast<index_t>(random.uniform(pair_shuffle_site, left) * static_cast<double>(left));
    std::swap(place[as_size(left - 1)], place[as_size((std::min)(drawn, left - 1))]);
  }
  return place;
}

template <FloatOrDouble Scalar>
class value_table : public gathered_rows_bank<value_table<Scalar>, Scalar> {
public:
  using scalar = Scalar;
  struct options {
    index_t blocks = 1;  ///< B
    index_t pieces = 1;  ///< M
  };
  struct tape {};

  /// Throws std::invalid_argument unless D, V, W, B and M are at least 1, M divides W, and Scalar can number the pairs.
  value_table(index_t inputs, index_t values, index_t width, options o = {}) : options_(o), inputs_(inputs) {
    if (inputs < 1 || values < 1 || width < 1 || o.blocks < 1 || o.pieces < 1 || width % o.pieces != 0)
      throw_invalid("value_table needs D, V, W, blocks, pieces >= 1 and W divisible by the pieces, not ", inputs, ", ",
                    values, ", ", width, ", ", o.blocks, ", ", o.pieces);
    values_ = {{values, width}, parameter_role::weight, initial_values::normal(0.02)};
    if (pairs() > index_t(1) << std::numeric_limits<Scalar>::digits)
      throw_invalid("numbers of this precision cannot name each of ", pairs(), " pairs");
    shuffle_ = {{pairs()}, parameter_role::state};
    shuffle_.fill([](index_t i) { return static_cast<Scalar>(i); });
  }

  index_t experts() const noexcept { return options_.pieces * pairs(); }
  index_t inputs() const noexcept { return inputs_; }
  index_t outputs() const noexcept { return options_.blocks * values_.cols(); }
  /// P
  index_t pairs() const noexcept { return options_.blocks * values_.rows(); }

  /// Throws std::invalid_argument unless place is a permutation of 0 .. P - 1.
  void set_shuffle(std::span<const index_t> place) {
    std::vector<bool> seen(as_size(pairs()), false);
    if (static_cast<index_t>(place.size()) != pairs())
      throw_invalid("a shuffle of ", pairs(), " pairs cannot have ", place.size(), " entries");
    for (const index_t p : place) {
      check_place(p);
      if (seen[as_size(p)]) throw_invalid("a shuffle of pairs has the place ", p, " twice");
      seen[as_size(p)] = true;
    }
    shuffle_.fill([&](index_t i) { return static_cast<Scalar>(place[as_size(i)]); });
  }

  /// Adds the weighted values into y. Throws std::invalid_argument if a loaded shuffle has no such place.
  void forward_routed(tokens_in<Scalar>, const routed_rows<Scalar>& rows, tokens_out<Scalar> y, tape&,
                      const executor_ref& executor) const {
    for_each_row(rows, [&](index_t, const piece& p) { check_place(p.place); });
    for_columns(rows, executor, [&](index_t begin, index_t count) {
      for_each_row(rows, [&](index_t i, const piece& p) {
        if (rows.weight(i) != Scalar(0))
          kernel::add_scaled(rows.weight(i), values_.data() + p.value + begin,
                             y.data() + rows.target(i) * y.outerStride() + p.output + begin, count);
      });
    });
  }

  /// For the last forward_routed: adds the gradient of the values, and writes those of weights and input scales where
  /// the pointers are not null. x has none.
  void backward_routed(tokens_in<Scalar>, const routed_rows<Scalar>& rows, tokens_in<Scalar> dy, tokens_out<Scalar>,
                       tape&, Scalar* dweight, Scalar* dinput_scale, const executor_ref& executor) {
    const auto upstream = [&](index_t i, const piece& p) {
      return dy.data() + rows.target(i) * dy.outerStride() + p.output;
    };
    for_each_row(rows, [&](index_t i, const piece& p) {
      if (dweight != nullptr) dweight[i] = kernel::dot(upstream(i, p), values_.data() + p.value, piece_width());
      if (dinput_scale != nullptr) dinput_scale[i] = 0;
    });
    Scalar* const gradient = values_.gradient().data();
    for_columns(rows, executor, [&](index_t begin, index_t count) {
      for_each_row(rows, [&](index_t i, const piece& p) {
        kernel::add_scaled(rows.weight(i), upstream(i, p) + begin, gradient + p.value + begin, count);
      });
    });
  }

  parameter<Scalar>& values() noexcept { return values_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("values", self.values_);
    visit("shuffle", self.shuffle_);
  }

private:
  /// What an expert puts out, and where.
  struct piece {
    index_t place;   ///< shuffle[pair]
    index_t value;   ///< where it begins in the table
    index_t output;  ///< and in a row of y
  };

  index_t piece_width() const noexcept { return values_.cols() / options_.pieces; }

  void check_place(index_t p) const {
    if (p < 0 || p >= pairs()) throw_invalid("a shuffle of ", pairs(), " pairs has no place ", p);
  }

  piece piece_of(index_t expert) const noexcept {
    const Scalar number = shuffle_.data()[expert % pairs()];
    const bool is_place = number >= Scalar(0) && number < static_cast<Scalar>(pairs());  // else the cast has no meaning
    const index_t place = is_place ? static_cast<index_t>(number) : index_t(-1);
    const index_t from = expert / pairs() * piece_width();
    return {place, place % values_.rows() * values_.cols() + from, place / values_.rows() * values_.cols() + from};
  }

  /// f(i, piece of its expert) for the rows of the view.
  template <typename F>
  void for_each_row(const routed_rows<Scalar>& rows, F&& f) const {
    for (const auto& [expert, begin, end] : rows.by_expert) {
      const piece p = piece_of(expert);
      for (index_t i = begin; i < end; ++i) f(i, p);
    }
  }

  /// f(begin, count) for parts of a piece's columns.
  template <typename F>
  void for_columns(const routed_rows<Scalar>& rows, const executor_ref& executor, F&& f) const {
    constexpr index_t fewest = 64;  // columns of a task
    const executor_ref threads = executor.for_work(2 * rows.size() * piece_width());
    const index_t parts = std::clamp<index_t>(piece_width() / fewest, 1, threads.concurrency());
    threads.parallel_for(parts, [&](index_t part) {
      const index_t begin = piece_width() * part / parts;
      f(begin, piece_width() * (part + 1) / parts - begin);
    });
  }

  options options_;
  index_t inputs_;
  parameter<Scalar> values_;
  parameter<Scalar> shuffle_;
};

static_assert(DifferentiableBank<value_table<float>> && RoutedBank<value_table<float>>);

}  // namespace sluice::inline SLUICE_ISA
