/// k-means: codes that are the means of the tokens nearest to them.
///
///   kmeans<float> clusters(C, D, {.rounds = 20});
///   clusters.begin(x, spread_rows{random});        // or random_rows, or begin_at(codes)
///   clusters.fit(x);                               // Lloyd: ids[t] = nearest code, code = weighted mean of its tokens
///   clusters.learn(batch);                         // or batch after batch: each code is the mean of all it was given
///   const double inertia = clusters.label(x);      // ids() of the codes as they are now
///
/// fit stops when no token changes its code, or when the codes' squared shift is at most tolerance times the columns'
/// mean variance; with until_settled = false it makes all its rounds. Codes without tokens follow the rule Empty
/// (codebook/empty_codes.hpp), in fit only. With spherical = true codes have length 1 after every round and tokens go
/// to the code with the greatest product.
///
/// Nearest as in codebook/nearest.hpp: equal distances, the lowest code; tokens that hold NaN get no_code and are in no
/// mean. Sums run in the order of the tokens: equal bits for any thread count. Codes and sizes are all that learn goes
/// on from, so that training may be saved and continued. T = 0 changes nothing. A warm call allocates nothing, but for
/// the variance that a tolerance asks for.
/// Lloyd 1982; Sculley 2010 (learn), "Web-scale k-means clustering"; Dhillon and Modha 2001 (spherical).
#pragma once

#include <sluice/codebook/empty_codes.hpp>
#include <sluice/codebook/first_codes.hpp>
#include <sluice/codebook/metric.hpp>
#include <sluice/codebook/nearest.hpp>

#include <cmath>
#include <limits>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct kmeans_options {
  index_t rounds = 25;  ///< at most
  bool until_settled = true;
  double tolerance = 0;  ///< scikit-learn's default is 1e-4
  bool spherical = false;
};

struct kmeans_report {
  index_t rounds = 0;
  bool settled = false;  ///< no token changed its code in the last round
};

template <FloatOrDouble Scalar, typename Empty = farthest_tokens<Scalar>>
class kmeans {
public:
  using scalar = Scalar;
  using weights_in = std::span<const Scalar>;  ///< none, or one a token: at least 0

  /// Throws std::invalid_argument unless C, D >= 1, rounds >= 0 and tolerance >= 0.
  kmeans(index_t codes, index_t width, kmeans_options o = {}, Empty empty = {})
      : options_(o), empty_(std::move(empty)) {
    if (codes < 1 || width < 1 || o.rounds < 0 || !is_at_least(o.tolerance, 0.0))
      throw_invalid("kmeans needs C, D >= 1, rounds and tolerance >= 0, not ", codes, ", ", width, ", ", o.rounds,
                    " and ", o.tolerance);
    codes_.set_zero(codes, width);
    sizes_.assign(codes, Scalar(0));
  }

  index_t codes() const noexcept { return codes_.rows(); }
  index_t inputs() const noexcept { return codes_.cols(); }
  const kmeans_options& options() const noexcept { return options_; }

  const_matrix_map<Scalar> table() const noexcept { return codes_.map(); }
  /// Weight of all tokens that each code is the mean of, [C].
  std::span<const Scalar> sizes() const noexcept { return sizes_.span(); }
  /// Codes of the tokens of the last call.
  std::span<const index_t> ids() const noexcept { return ids_.span(); }
  /// Counts and sums of the last round or batch, after the rule for empty codes.
  const code_sums<Scalar>& sums() const noexcept { return sums_; }

  /// Codes are drawn (codebook/first_codes.hpp); what was learned before is forgotten.
  template <typename Draw>
  void begin(tokens_in<Scalar> x, const Draw& draw, const executor_ref& executor = {}, weights_in weights = {}) {
    check_call(x, weights);
    draw(x, weights, codes_.map(), executor);
    start();
  }
  /// From codes [C,D], and sizes if they stood for tokens already. Throws std::invalid_argument if shapes do not fit.
  void begin_at(tokens_in<Scalar> codes, std::span<const Scalar> sizes = {}) {
    if (codes.rows() != codes_.rows() || codes.cols() != inputs() ||
        (!sizes.empty() && static_cast<index_t>(sizes.size()) != codes_.rows()))
      throw_invalid("kmeans of [", codes_.rows(), ", ", inputs(), "] cannot begin at [", codes.rows(), ", ",
                    codes.cols(), "] with ", static_cast<index_t>(sizes.size()), " sizes");
    codes_.map() = codes;
    start();
    std::copy(sizes.begin(), sizes.end(), sizes_.begin());
  }

  /// Lloyd's rounds over all of x [T,D]. Throws std::invalid_argument if nothing was begun, shapes do not fit or a
  /// weight is negative or NaN.
  kmeans_report fit(tokens_in<Scalar> x, const executor_ref& executor = {}, weights_in weights = {}) {
    check_call(x, weights);
    check_begun();
    kmeans_report report;
    if (x.rows() == 0) return report;
    const double small_shift = options_.tolerance > 0 ? options_.tolerance * mean_variance(x) : 0;
    ids_.assign(x.rows(), no_code);
    while (report.rounds < options_.rounds) {
      previous_ = ids_;
      assign(x, executor);
      report.settled = report.rounds > 0 && previous_ == ids_;
      sum_by_code<Scalar>(x, ids_.data(), codes(), sums_, executor, 1, weights.data());
      empty_(kmeans_round<Scalar>{x, weights, ids_.span(), table(), report.rounds, executor}, sums_);
      const double shift = to_means(executor);
      ++report.rounds;
      if (options_.until_settled && (report.settled || (small_shift > 0 && shift <= small_shift))) break;
    }
    return report;
  }

  /// One batch more: tokens go to their nearest codes, and each code becomes the mean of all tokens since begin, or
  /// since the last fit, whose means it goes on from.
  void learn(tokens_in<Scalar> x, const executor_ref& executor = {}, weights_in weights = {}) {
    check_call(x, weights);
    check_begun();
    if (x.rows() == 0) return;
    assign(x, executor);
    sum_by_code<Scalar>(x, ids_.data(), codes(), sums_, executor, 1, weights.data());
    executor.parallel_each(codes(), inputs(), [&](index_t c) {
      const Scalar weight = sums_.weights[c];
      if (!(weight > 0)) return;
      Scalar* const code = codes_.row(c);
      sizes_[c] += weight;
      kernel::copy_scaled(1 - weight / sizes_[c], code, code, inputs());
      kernel::add_scaled(1 / sizes_[c], sums_.sums.row(c), code, inputs());
      if (options_.spherical) scale_to_unit(code);
    });
  }

  /// ids() of x with the codes as they are. Returns the weighted sum of squared distances to them.
  double label(tokens_in<Scalar> x, const executor_ref& executor = {}, weights_in weights = {}) {
    check_call(x, weights);
    check_begun();
    assign(x, executor);
    distances_.resize(x.rows());
    executor.parallel_each(x.rows(), inputs(), [&](index_t t) {
      distances_[t] = ids_[t] == no_code
                          ? Scalar(0)
                          : kernel::squared_difference(x.data() + t * x.outerStride(), codes_.row(ids_[t]), inputs());
    });
    double inertia = 0;
    for (index_t t = 0; t < x.rows(); ++t)
      inertia += static_cast<double>(detail::token_weight(weights, t)) * static_cast<double>(distances_[t]);
    return inertia;
  }

private:
  void check_call(tokens_in<Scalar> x, weights_in weights) const {
    if (x.cols() != inputs() || (!weights.empty() && static_cast<index_t>(weights.size()) != x.rows()))
      throw_invalid("kmeans needs x [T, ", inputs(), "] and no weights or T, not [", x.rows(), ", ", x.cols(), "] and ",
                    static_cast<index_t>(weights.size()));
    for (std::size_t t = 0; t < weights.size(); ++t)
      if (!is_at_least(weights[t], Scalar(0))) throw_invalid("token ", t, " has the weight ", weights[t]);
  }
  void check_begun() const {
    if (!begun_) throw_invalid("kmeans has no codes yet: call begin or begin_at");
  }
  void start() {
    sizes_.fill(Scalar(0));
    if (options_.spherical)
      for (index_t c = 0; c < codes(); ++c) scale_to_unit(codes_.row(c));
    begun_ = true;
  }

  void assign(tokens_in<Scalar> x, const executor_ref& executor) {
    if (options_.spherical)
      inner_product{}.prepare<Scalar>(table(), search_, executor);
    else
      squared_distance{}.prepare<Scalar>(table(), search_, executor);
    ids_.resize(x.rows());
    nearest_codes<Scalar>(x, search_, matrix_map<index_t>(ids_.data(), x.rows(), 1), nullptr, scratch_, executor);
  }

  /// Codes become means; returns how far they moved, squared.
  double to_means(const executor_ref& executor) {
    distances_.assign(codes(), Scalar(0));
    before_.resize(codes(), inputs());
    executor.parallel_each(codes(), inputs(), [&](index_t c) {
      sizes_[c] = sums_.weights[c];
      if (!(sizes_[c] > 0)) return;
      Scalar* const code = codes_.row(c);
      std::copy_n(code, inputs(), before_.row(c));
      kernel::copy_scaled(1 / sizes_[c], sums_.sums.row(c), code, inputs());
      if (options_.spherical) scale_to_unit(code);
      distances_[c] = kernel::squared_difference(before_.row(c), code, inputs());
    });
    double shift = 0;
    for (const Scalar distance : distances_) shift += static_cast<double>(distance);
    return shift;
  }

  /// Mean over the columns of the variance over the tokens that hold no NaN.
  static double mean_variance(tokens_in<Scalar> x) {
    buffer<double> sums(x.cols(), 0.0), squares(x.cols(), 0.0);
    double tokens = 0, total = 0;
    for (const bool second : {false, true})
      for (index_t t = 0; t < x.rows(); ++t) {
        if (any_nan(x.data() + t * x.outerStride(), x.cols())) continue;
        tokens += second ? 0 : 1;
        for (index_t d = 0; d < x.cols(); ++d) {
          const auto number = static_cast<double>(x(t, d));
          if (second)
            squares[d] += (number - sums[d] / tokens) * (number - sums[d] / tokens);
          else
            sums[d] += number;
        }
      }
    for (const double square : squares) total += square;
    return tokens > 0 ? total / tokens / static_cast<double>(x.cols()) : 0;
  }

  void scale_to_unit(Scalar* code) const {
    const Scalar length = std::sqrt(kernel::dot(code, code, inputs()));
    kernel::copy_scaled(1 / (std::max)(length, (std::numeric_limits<Scalar>::min)()), code, code, inputs());
  }

  kmeans_options options_;
  Empty empty_;
  bool begun_ = false;
  matrix_buffer<Scalar> codes_, before_;
  buffer<Scalar> sizes_;
  buffer<index_t> ids_, previous_;
  buffer<Scalar> distances_;
  code_search<Scalar> search_;
  nearest_scratch<Scalar> scratch_;
  code_sums<Scalar> sums_;
};

}  // namespace sluice::inline SLUICE_ISA
