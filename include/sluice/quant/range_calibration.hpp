/// Ranges of activations for codes of a few bits, found together for blocks of consecutive layers (Q-VLM).
///
///   range_calibration calibration({D, D, D, D}, {.bits = 4});     // widths of the layers' activations
///   first pass:   calibration.observe(layer, x)                   // ranges of channels, and how spread out they are
///   second pass:  calibration.weigh(layer, x)                     // what each smaller range would lose
///   calibration.block_of(layer), .factor(layer), .grid(layer, channel)
///
///   entropy   of a layer: mean over channels of - sum over tokens of p log p, p = |x| / |x|_2 of the channel; the mean
///             of the batches
///   blocks    a layer begins one if the entropy before it is at least the mean of those so far, or after three layers
///   factor    of a block: the f in 1, 0.9 .. 0.4 with the least sum over its layers of |x - round(x)|^0.5, rounded
///             within f least .. f most
///
/// Errors of layers that depend on one another are weighed together, those of others apart; entropy stands for the
/// dependence. Codes are asymmetric, a range a channel (quant/code_range.hpp, min_max). Equal losses: the largest
/// factor. No activations are kept, only 2 D numbers a layer. Rows that hold NaN or infinity are left out; a layer that
/// saw nothing has range 0 and factor 1. Sums are in double, in the order of the rows. Throws std::invalid_argument for
/// shapes that do not fit, and where a pass is out of turn. The released code fixes the entropy at which a search
/// begins, 37, and searches layer by layer within a pass; one factor for a block is a reading of the text. Wang et al.
/// 2024, "Q-VLM: Post-training Quantization for Large Vision-Language Models", arXiv:2410.08119.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/quant/code_range.hpp>

#include <cmath>
#include <optional>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct range_options {
  int bits = 4;
  index_t factors = 7;  ///< that are tried: 1, 1 - step, ...
  double step = 0.1;
  double power = 0.5;   ///< of errors
  index_t longest = 3;  ///< layers of a block
  std::optional<double> dependent_from =
      std::nullopt;  ///< entropy from which on the next layer begins a block; none: the mean so far
};

class range_calibration {
public:
  explicit range_calibration(const std::vector<index_t>& widths, range_options o = {}) : options_(o) {
    detail::check_code_bits(o.bits);
    const double smallest = 1 - o.step * static_cast<double>(o.factors - 1);
    if (o.factors < 1 || !is_above(o.step, 0.0) || !is_above(smallest, 0.0) || !is_above(o.power, 0.0) || o.longest < 1)
      throw_invalid("ranges are tried at ", o.factors, " factors from 1 down by ", o.step,
                    ", all above 0, with a power above 0 and blocks of 1 or more, not ", o.power, " and ", o.longest);
    for (const index_t width : widths) {
      if (width < 1) throw_invalid("a layer has activations of width ", width);
      layers_.push_back(
          {std::vector<kernel::number_range>(as_size(width)), std::vector<double>(as_size(o.factors), 0.0)});
    }
  }

  index_t layers() const noexcept { return static_cast<index_t>(layers_.size()); }
  double entropy(index_t layer) const {
    const state& s = of(layer);
    return s.batches == 0 ? 0 : s.entropy / static_cast<double>(s.batches);
  }

  /// The first pass, any number of batches of any layers.
  void observe(index_t layer, tokens_in<float> x) {
    if (!block_of_.empty()) throw_invalid("activations were observed after others had been weighed");
    state& s = checked(layer, x);
    std::vector<double> squares(as_size(x.cols()), 0.0), entropies = squares;
    for_each_row(x, [&](const float* row) {
      for (std::size_t c = 0; c < squares.size(); ++c) {
        s.ranges[c].least = (std::min)(s.ranges[c].least, row[c]);
        s.ranges[c].most = (std::max)(s.ranges[c].most, row[c]);
        squares[c] += static_cast<double>(row[c]) * static_cast<double>(row[c]);
      }
    });
    for_each_row(x, [&](const float* row) {
      for (std::size_t c = 0; c < squares.size(); ++c) {
        const double p = (std::abs)(static_cast<double>(row[c])) / std::sqrt(squares[c] > 0 ? squares[c] : 1);
        if (p > 0) entropies[c] -= p * std::log(p);
      }
    });
    double sum = 0;
    for (const double e : entropies) sum += e;
    s.entropy += sum / static_cast<double>(x.cols());
    ++s.batches;
  }

  /// The second pass.
  void weigh(index_t layer, tokens_in<float> x) {
    state& s = checked(layer, x);
    find_blocks();
    for (index_t f = 0; f < options_.factors; ++f) {
      const std::vector<kernel::code_grid> grids = grids_of(s, value_of(f));
      for_each_row(x, [&](const float* row) {
        for (std::size_t c = 0; c < grids.size(); ++c) {
          const float error = row[c] - grids[c].value(grids[c].nearest(row[c]));
          s.losses[as_size(f)] += std::pow((std::abs)(static_cast<double>(error)), options_.power);
        }
      });
    }
  }

  /// The number of the block that a layer is in.
  index_t block_of(index_t layer) {
    of(layer);
    find_blocks();
    return block_of_[as_size(layer)];
  }
  double factor(index_t layer) {
    const index_t block = block_of(layer);
    std::vector<double> losses(as_size(options_.factors), 0.0);
    for (index_t other = 0; other < layers(); ++other)
      for (std::size_t f = 0; block_of_[as_size(other)] == block && f < losses.size(); ++f)
        losses[f] += layers_[as_size(other)].losses[f];
    return value_of(std::min_element(losses.begin(), losses.end()) - losses.begin());
  }
  /// The codes of a layer's channels, [D].
  std::vector<kernel::code_grid> grids(index_t layer) { return grids_of(of(layer), factor(layer)); }

private:
  struct state {
    std::vector<kernel::number_range> ranges;  ///< [D]
    std::vector<double> losses;                ///< of every factor
    double entropy = 0;                        ///< summed over batches
    index_t batches = 0;
  };

  const state& of(index_t layer) const {
    if (layer < 0 || layer >= layers()) throw_invalid("there is no layer ", layer, " of ", layers());
    return layers_[as_size(layer)];
  }
  state& checked(index_t layer, tokens_in<float> x) {
    const auto width = static_cast<index_t>(of(layer).ranges.size());
    if (x.cols() != width) throw_invalid("layer ", layer, " has activations of width ", width, ", not ", x.cols());
    return layers_[as_size(layer)];
  }
  double value_of(index_t f) const noexcept { return 1 - options_.step * static_cast<double>(f); }

  template <typename F>
  static void for_each_row(tokens_in<float> x, F&& f) {
    for (index_t r = 0; r < x.rows(); ++r)
      if (const float* row = x.data() + r * x.outerStride(); all_finite(row, x.cols())) f(row);
  }

  std::vector<kernel::code_grid> grids_of(const state& s, double factor) const {
    std::vector<kernel::code_grid> grids;
    for (const kernel::number_range& range : s.ranges)
      grids.push_back(fit_code_grid({static_cast<float>(factor * static_cast<double>(range.least)),
                                     static_cast<float>(factor * static_cast<double>(range.most))},
                                    code_range::min_max, options_.bits));
    return grids;
  }

  void find_blocks() {
    if (!block_of_.empty()) return;
    double sum = 0;
    for (index_t layer = 0, block = 0, begin = 0; layer < layers(); ++layer) {
      if (layer > 0) {
        const double before = entropy(layer - 1);
        sum += before;
        const double limit = options_.dependent_from.value_or(sum / static_cast<double>(layer));
        if (before >= limit || layer - begin >= options_.longest) ++block, begin = layer;
      }
      block_of_.push_back(block);
    }
  }

  range_options options_;
  std::vector<state> layers_;
  std::vector<index_t> block_of_;  ///< empty until the second pass begins
};

}  // namespace sluice::inline SLUICE_ISA
