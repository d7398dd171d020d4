/// Feed-forward experts whose matrices are computed for every call, from fewer numbers or from what experts share.
///
///   f_e(x) = W2_e phi(W1_e x + b1_e) + b2_e        x [n,D]  W1_e [H,D]  W2_e [D',H]  y [n,D'], rows by expert
///
/// What computes them is a policy, the bank's parameters:
///   scalar, tape                                     memory of its own for one call
///   experts(), inputs(), hidden(), outputs(), has_bias()
///   prepare(tape, most, training)                    room for so many experts
///   compute(experts, maps, tape, executor)           writes the panels of the experts listed
///   find_biases(experts, maps, tape)                 says where their biases are, if it has any
///   add_gradients(experts, maps, tape, executor)     adds what the panels' gradients mean for its parameters
///
/// Matrices are computed once a call, in panels, of the experts that have rows; then they run as any feed-forward
/// experts (expert/grouped_forward.hpp, expert/grouped_backward.hpp), forward and backward. They lie in the workspace:
/// H (D + D') numbers an expert with rows, twice as many in training. Where weights rest and batches are small,
/// written_out() has the cost once and for all. Equal bits for every thread count if the policy gives them; NaN stays
/// in its row; no rows is fine.
#pragma once

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>

#include <algorithm>
#include <array>
#include <span>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// One expert of a call. Matrices lie in panels (core/matrix_layout.hpp, one vector of outputs), whose places past the
/// last output are zero and stay so; biases and gradients end with a whole vector.
template <FloatOrDouble Scalar>
struct computed_maps {
  Scalar* up = nullptr;             ///< W1 [H,D]
  Scalar* down = nullptr;           ///< W2 [D',H]
  const Scalar* up_bias = nullptr;  ///< b1 [H]; null: none
  const Scalar* down_bias = nullptr;
  Scalar* dup = nullptr;  ///< gradients, in training
  Scalar* ddown = nullptr;
  Scalar* dup_bias = nullptr;
  Scalar* ddown_bias = nullptr;
};

namespace detail {

/// What the grouped kernels see of one expert.
template <typename Scalar, typename Phi>
struct computed_ffn {
  using scalar = Scalar;
  using vector = kernel::simd<Scalar>;
  static constexpr int first_maps = 1;

  computed_maps<Scalar> own;
  learned_map_view<Scalar> up, down;

  const learned_map_view<Scalar>& first_map(int) const noexcept { return up; }
  const learned_map_view<Scalar>& last_map() const noexcept { return down; }
  const Scalar* output_bias() const noexcept { return own.down_bias; }
  Scalar* output_bias_gradient() noexcept { return own.ddown_bias; }

  vector activate(index_t column, const std::array<vector, 1>& z) const {
    return value_of<Phi, Scalar>(with_bias(column, z[0]));
  }
  void activate_backward(index_t column, std::array<vector, 1>& z, const vector& dh) {
    z[0] = dh * derivative_of<Phi, Scalar>(with_bias(column, z[0]));
    if (own.dup_bias != nullptr) add_lanes<Scalar>(own.dup_bias + column, z[0]);
  }

private:
  vector with_bias(index_t column, const vector& z) const {
    return own.up_bias != nullptr ? z + kernel::load(own.up_bias + column) : z;
  }
};

}  // namespace detail

template <typename Weights, typename Phi = relu>
class computed_bank {
  using expert_type = detail::computed_ffn<typename Weights::scalar, Phi>;
  using forward_type = detail::grouped_forward<expert_type>;
  using backward_type = detail::grouped_backward<expert_type>;

public:
  using scalar = typename Weights::scalar;
  struct tape {
    detail::grouped_memory<expert_type> rows;
    typename Weights::tape weights;
    buffer<index_t> working;  ///< experts that have rows, ascending
    buffer<computed_maps<scalar>> maps;
    buffer<expert_type> experts;  ///< by number; those that work are set
    buffer<scalar> panels, gradients;
  };

  explicit computed_bank(Weights weights) : weights_(std::move(weights)) {}

  index_t experts() const noexcept { return weights_.experts(); }
  index_t inputs() const noexcept { return weights_.inputs(); }
  index_t hidden() const noexcept { return weights_.hidden(); }
  index_t outputs() const noexcept { return weights_.outputs(); }
  Weights& weights() noexcept { return weights_; }
  const Weights& weights() const noexcept { return weights_; }

  /// Makes room for calls of up to so many rows, whichever experts they go to, and says whether backward calls will
  /// follow.
  void prepare(tape& t, index_t rows, bool training) const {
    const index_t most = (std::min)(rows, experts());
    t.rows.keep = training;
    t.working.reserve(most);
    t.maps.reserve(most);
    t.experts.reserve(experts());
    t.panels.reserve(most * expert_numbers());
    weights_.prepare(t.weights, most, training);
    if (!forward_type::has_room(t.rows, rows, inputs()))
      forward_type::reserve(t.rows, rows, experts(), inputs(), hidden(), outputs());
    if (!training) return;
    t.gradients.reserve(most * (expert_numbers() + bias_numbers()));
    if (!backward_type::has_room(t.rows, rows, outputs()))
      backward_type::reserve(t.rows, rows, experts(), inputs(), hidden(), outputs());
  }

  void forward(tokens_in<scalar> x, const expert_rows& rows, tokens_out<scalar> y, tape& t,
               const executor_ref& executor) const {
    forward_routed(x, {.by_expert = rows}, y, t, executor);
  }
  void backward(tokens_in<scalar> x, const expert_rows& rows, tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t,
                const executor_ref& executor) {
    dx.middleRows(rows.first_row(), rows.rows()).setZero();
    backward_routed(x, {.by_expert = rows}, dy, dx, t, nullptr, nullptr, executor);
  }

  /// Dispatch, experts and combine in one: adds the weighted sums of its tokens' experts into y.
  void forward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_out<scalar> y, tape& t,
                      const executor_ref& executor) const {
    compute(rows.by_expert, t, executor);
    const auto expert_of = [&](index_t e) -> const expert_type& { return t.experts[e]; };
    forward_type(rows, expert_of, inputs(), outputs(), t.rows, executor).run(x, y, expert_of);
  }

  /// For the last forward_routed with this tape and training, any number of times: adds into dx and the gradients, and
  /// writes for every row the gradients of its weight and of its input scale where the pointers are not null.
  void backward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_in<scalar> dy,
                       tokens_out<scalar> dx, tape& t, scalar* dweight, scalar* dinput_scale,
                       const executor_ref& executor) {
    clear_gradients(t, executor);
    const auto expert_of = [&](index_t e) -> expert_type& { return t.experts[e]; };
    const auto read_only = [&](index_t e) -> const expert_type& { return t.experts[e]; };
    forward_type(rows, read_only, inputs(), outputs(), t.rows, executor).restore(read_only);
    backward_type(rows, expert_of, inputs(), outputs(), t.rows, executor)
        .run(x, dy, dx, dweight, dinput_scale, expert_of);
    weights_.add_gradients(std::as_const(t.working).span(), t.maps.span(), t.weights, executor);
  }

  /// Bytes of a tape that has run `rows` rows, forward or (training) both ways, without what the policy keeps.
  index_t workspace_bytes(index_t rows, bool training) const {
    constexpr auto number = static_cast<index_t>(sizeof(scalar));
    const index_t most = (std::min)(rows, experts());
    return forward_type::bytes(rows, experts(), inputs(), hidden(), outputs()) + number * most * expert_numbers() +
           (training ? detail::grouped_training_bytes<expert_type>(rows, experts(), inputs(), hidden(), outputs()) +
                           number * most * (expert_numbers() + bias_numbers())
                     : 0);
  }

  /// The experts with their matrices as they are now, as a bank that computes nothing.
  expert_bank<ffn<scalar, Phi>> written_out() const {
    expert_bank<ffn<scalar, Phi>> bank(experts(), inputs(), hidden(),
                                       {.outputs = outputs(), .bias = weights_.has_bias()});
    std::vector<index_t> offsets{0};
    for (index_t e = 0; e < experts(); ++e) offsets.push_back(e + 1);
    tape t;
    prepare(t, experts(), false);
    compute(offsets, t, {});
    for (index_t e = 0; e < experts(); ++e) {
      const computed_maps<scalar>& maps = t.maps[e];
      auto& expert = bank.expert(e);
      std::copy_n(maps.up, up_numbers(), expert.up().data());
      std::copy_n(maps.down, down_numbers(), expert.down().data());
      if (maps.up_bias != nullptr) std::copy_n(maps.up_bias, hidden(), expert.up_bias().data());
      if (maps.down_bias != nullptr) std::copy_n(maps.down_bias, outputs(), expert.down_bias().data());
    }
    return bank;
  }
  /// The same with the matrices rounded to another storage.
  template <typename Storage>
  auto stored_as(const auto&... format) const {
    return written_out().template stored_as<Storage>(format...);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("", self.weights_);
  }

private:
  static constexpr index_t lanes = kernel::simd_width<scalar>;

  static constexpr index_t in_lanes(index_t count) { return (count + lanes - 1) / lanes * lanes; }
  index_t up_numbers() const { return in_lanes(hidden()) * inputs(); }
  index_t down_numbers() const { return in_lanes(outputs()) * hidden(); }
  /// Both matrices; a multiple of a vector.
  index_t expert_numbers() const { return up_numbers() + down_numbers(); }
  index_t bias_numbers() const { return weights_.has_bias() ? in_lanes(hidden()) + in_lanes(outputs()) : 0; }

  void compute(const expert_rows& rows, tape& t, const executor_ref& executor) const {
    t.working.clear();
    for (const row_range& own : rows) t.working.push_back(own.expert);
    const index_t count = t.working.size();
    t.maps.resize(count);
    t.experts.resize(experts());
    t.panels.resize(count * expert_numbers());
    for (index_t a = 0; a < count; ++a) {
      t.maps[a] = panels_of(t, a);
      clear_last_panel(t.maps[a].up, hidden(), inputs());
      clear_last_panel(t.maps[a].down, outputs(), hidden());
    }
    weights_.compute(std::as_const(t.working).span(), t.maps.span(), t.weights, executor);
    set_experts(t, false);
  }

  computed_maps<scalar> panels_of(tape& t, index_t a) const {
    scalar* const up = t.panels.data() + a * expert_numbers();
    return {.up = up, .down = up + up_numbers()};
  }

  /// What a policy does not write there.
  static void clear_last_panel(scalar* panels, index_t out, index_t in) {
    if (out % lanes != 0) std::fill_n(panels + out / lanes * lanes * in, lanes * in, scalar(0));
  }

  void clear_gradients(tape& t, const executor_ref& executor) const {
    const index_t size = expert_numbers() + bias_numbers();
    t.gradients.resize(t.working.size() * size);
    executor.for_work(t.gradients.size() / 4).parallel_for(t.working.size(), [&](index_t a) {
      std::fill_n(t.gradients.data() + a * size, size, scalar(0));
    });
    set_experts(t, true);
  }

  /// Where everything lies, found anew in every call: a tape may have been copied or moved since the last.
  void set_experts(tape& t, bool with_gradients) const {
    const auto view = [](scalar* panels, scalar* gradient, index_t out, index_t in) {
      learned_map_view<scalar> map;
      map.first_panel = reinterpret_cast<const std::byte*>(panels);
      map.panel_bytes = lanes * in * static_cast<index_t>(sizeof(scalar));
      map.out = out, map.in = in, map.first_gradient = gradient;
      return map;
    };
    for (index_t a = 0; a < t.working.size(); ++a) t.maps[a] = panels_of(t, a);
    if (weights_.has_bias()) weights_.find_biases(std::as_const(t.working).span(), t.maps.span(), t.weights);
    for (index_t a = 0; a < t.working.size(); ++a) {
      computed_maps<scalar>& maps = t.maps[a];
      if (with_gradients) {
        maps.dup = t.gradients.data() + a * (expert_numbers() + bias_numbers());
        maps.ddown = maps.dup + up_numbers();
        if (maps.up_bias != nullptr) maps.dup_bias = maps.ddown + down_numbers();
        if (maps.down_bias != nullptr) maps.ddown_bias = maps.ddown + down_numbers() + in_lanes(hidden());
      }
      t.experts[t.working[a]] = {maps, view(maps.up, maps.dup, hidden(), inputs()),
                                 view(maps.down, maps.ddown, outputs(), hidden())};
    }
  }

  Weights weights_;
};

}  // namespace sluice::inline SLUICE_ISA
