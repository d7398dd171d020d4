/// How many bits the activations of a token get: those that hold outliers 8, the others as few as a search finds
/// (QuantMCU).
///
///   token_precision precision({{.width = D, .operations = n}, ...});   // the layers' activations
///   first pass:   precision.observe(layer, x)     // mean m and deviation s of the values
///   second pass:  precision.count(layer, x)       // how often each of 256 values occurs in tokens without outliers
///   precision.has_outlier(layer, token)           // |v - m| > deviations s: 8 bits; otherwise those of layer_bits()
///
///   layer i at b bits:  S(i, b) = (1 - balance) saved(i, b) - balance lost(i, b)
///   saved(i, b) = operations of i (1 - b / 8) / operations of all layers;   lost(i, b) = 1 - H(i, b) / H(i, 8)
///   H(i, b) = entropy of the values in 2^b equal parts of m - deviations s .. m + deviations s
///
/// Layer by layer the b of the choices with the largest S is taken, equal ones the larger b. With a limit of memory
/// (bits of all layers for one token) the layer whose next smaller choice has the largest S goes down, equal ones the
/// first, until it is kept. NaN or infinity is an outlier, and in no mean. A layer that saw nothing keeps 8 bits. Sums
/// are in double, in the order of the rows. Throws std::invalid_argument for options and shapes that do not fit, passes
/// out of turn and limits that cannot be kept. The paper has the two classes, the score's two parts and the step from
/// layer to layer; threshold and scaling of the parts are a reading. Tao et al. 2024, "Value-Driven Mixed-Precision
/// Quantization for Patch-Based Inference on Microcontrollers", arXiv:2401.13714.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// The activations that a layer reads.
struct activation_use {
  index_t width = 0;
  double operations = 1;  ///< that read them, for a token
};

struct precision_options {
  double deviations = 6;
  double balance = 0.5;               ///< what lost entropy counts, against saved operations
  std::vector<int> choices{8, 4, 2};  ///< bits, falling from 8
  double memory = 0;                  ///< most bits of all layers' activations of a token; 0: no limit
};

class token_precision {
public:
  explicit token_precision(const std::vector<activation_use>& uses, precision_options o = {}) : options_(std::move(o)) {
    const std::vector<int>& bits = options_.choices;
    if (!is_above(options_.deviations, 0.0) || !is_between(options_.balance, 0.0, 1.0) ||
        !is_at_least(options_.memory, 0.0) || bits.empty() || bits.front() != 8 || bits.back() < 1 ||
        std::adjacent_find(bits.begin(), bits.end(), [](int a, int b) { return a <= b; }) != bits.end())
      throw_invalid(
          "precision needs deviations above 0, a balance of 0 to 1, no negative memory and choices that fall from 8 "
          "bits, not ",
          options_.deviations, ", ", options_.balance, " and ", options_.memory);
    for (const activation_use& use : uses) {
      if (use.width < 1 || !is_at_least(use.operations, 0.0))
        throw_invalid("activations of width ", use.width, " are read by ", use.operations, " operations");
      layers_.push_back({use, 0, 0, 0, {}});
    }
  }

  index_t layers() const noexcept { return static_cast<index_t>(layers_.size()); }

  void observe(index_t layer, tokens_in<float> x) {
    state& s = checked(layer, x);
    if (is_counted_) throw_invalid("activations were observed after others had been counted");
    for (index_t r = 0; r < x.rows(); ++r) {
      if (!all_finite(x.data() + r * x.outerStride(), x.cols())) continue;
      for (index_t c = 0; c < x.cols(); ++c) {
        const auto v = static_cast<double>(x(r, c));
        s.sum += v;
        s.squares += v * v;
      }
      s.values += static_cast<double>(x.cols());
    }
  }
  void count(index_t layer, tokens_in<float> x) {
    state& s = checked(layer, x);
    is_counted_ = true;
    const value_range range = range_of(s);
    for (index_t r = 0; r < x.rows(); ++r) {
      const float* const row = x.data() + r * x.outerStride();
      if (has_outlier(row, s.use.width, range)) continue;
      for (index_t c = 0; c < x.cols(); ++c) {
        const double place =
            range.reach > 0 ? (static_cast<double>(row[c]) - range.middle + range.reach) / (2 * range.reach) : 0;
        s.histogram[as_size(std::clamp<index_t>(static_cast<index_t>(place * 256), 0, 255))] += 1;
      }
    }
  }

  /// Whether a token of a layer's width holds an outlier.
  bool has_outlier(index_t layer, const float* token) const {
    const state& s = of(layer);
    return has_outlier(token, s.use.width, range_of(s));
  }

  double score(index_t layer, int bits) const {
    double operations = 0;
    for (const state& s : layers_) operations += s.use.operations;
    const state& s = of(layer);
    const double saved = operations > 0 ? s.use.operations * (1 - bits / 8.0) / operations : 0;
    const double whole = entropy(s, 8), lost = whole > 0 ? 1 - entropy(s, bits) / whole : 0;
    return (1 - options_.balance) * saved - options_.balance * lost;
  }

  /// Bits of tokens without outliers, a number a layer.
  std::vector<int> layer_bits() const {
    std::vector<std::size_t> choice(layers_.size(), 0);
    const auto score_of = [&](index_t layer, std::size_t j) { return score(layer, options_.choices[j]); };
    for (index_t i = 0; i < layers(); ++i)
      for (std::size_t j = 1; has_counts(i) && j < options_.choices.size(); ++j)
        if (score_of(i, j) > score_of(i, choice[as_size(i)])) choice[as_size(i)] = j;
    const auto memory = [&] {
      double sum = 0;
      for (std::size_t i = 0; i < choice.size(); ++i)
        sum += static_cast<double>(layers_[i].use.width) * options_.choices[choice[i]];
      return sum;
    };
    while (options_.memory > 0 && memory() > options_.memory) {
      index_t best = layers();
      for (index_t i = 0; i < layers(); ++i) {
        if (!has_counts(i) || choice[as_size(i)] + 1 == options_.choices.size()) continue;
        if (best == layers() || score_of(i, choice[as_size(i)] + 1) > score_of(best, choice[as_size(best)] + 1))
          best = i;
      }
      if (best == layers())
        throw_invalid("activations of a token cannot be kept in ", options_.memory, " bits, at least ", memory(),
                      " are needed");
      ++choice[as_size(best)];
    }
    std::vector<int> bits;
    for (const std::size_t j : choice) bits.push_back(options_.choices[j]);
    return bits;
  }

private:
  struct state {
    activation_use use;
    double values, sum, squares;
    std::array<double, 256> histogram;
  };
  struct value_range {
    double middle, reach;
  };

  const state& of(index_t layer) const {
    if (layer < 0 || layer >= layers()) throw_invalid("there is no layer ", layer, " of ", layers());
    return layers_[as_size(layer)];
  }
  state& checked(index_t layer, tokens_in<float> x) {
    if (x.cols() != of(layer).use.width)
      throw_invalid("layer ", layer, " has activations of width ", of(layer).use.width, ", not ", x.cols());
    return layers_[as_size(layer)];
  }
  bool has_counts(index_t layer) const {
    return std::any_of(of(layer).histogram.begin(), of(layer).histogram.end(), [](double n) { return n > 0; });
  }

  value_range range_of(const state& s) const {
    if (s.values == 0) return {0, 0};
    const double mean = s.sum / s.values;
    return {mean, options_.deviations * std::sqrt((std::max)(0.0, s.squares / s.values - mean * mean))};
  }
  static bool has_outlier(const float* token, index_t width, const value_range& range) {
    return std::any_of(token, token + width, [&](const float& v) {
      return !is_finite(v) || (std::abs)(static_cast<double>(v) - range.middle) > range.reach;
    });
  }

  static double entropy(const state& s, int bits) {
    const std::size_t parts = std::size_t{1} << bits, merged = 256 / parts;
    double whole = 0, sum = 0;
    for (const double n : s.histogram) whole += n;
    for (std::size_t part = 0; part < parts; ++part) {
      double n = 0;
      for (std::size_t k = 0; k < merged; ++k) n += s.histogram[part * merged + k];
      if (n > 0) sum -= n / whole * std::log2(n / whole);
    }
    return sum;
  }

  precision_options options_;
  std::vector<state> layers_;
  bool is_counted_ = false;
};

}  // namespace sluice::inline SLUICE_ISA
