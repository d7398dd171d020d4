/// Codes that are little used move to tokens of the batch, the less used the further: the anchors of CVQ-VAE.
///
///   after a step, with p_c the share of the batch that chose code c:
///     U_c     <- decay U_c + (1 - decay) p_c                        U begins at 0
///     alpha_c  = exp(-10 C U_c / (1 - decay) - 1e-3)                0.999 for a code never used, 0 for most
///     c       <- (1 - alpha_c) c + alpha_c anchor_c
///
///   closest   the token with the best score for the code; the lowest of equals
///   sampled   a token drawn by the softmax over the batch of its score for the code
///   random    row c of a pool of C former tokens. A batch of more than C tokens fills the pool anew by C of them, drawn
///             with repetition; smaller ones fill it up, in order, and then take the place of rows drawn without repetition
///
///   vector_quantizer cvq{learned_codes<float>{1024, 64}, cosine_similarity{}, anchors<float>{1024, 64}};
///
/// Scores are those of Metric: give the one that the quantiser searches by. With cosine, as published, codes that begin
/// near zero look in all directions and are in use within a few batches; by squared distance all of them have the same
/// closest token, and one a batch comes into use. The published program moves the codes within
/// forward, before the gradients of that step are applied; here it is done after them. A batch without tokens changes
/// nothing; scores of codes that do not move are not computed. In tape.replaced are codes with alpha > 1/2.
/// Draws: sampled: u_c; random: u_i for row i, or for token i. Parameters (state): "usage" U [C], "pool" [C,D] and how
/// many of its rows are "filled" [1] for random, "done" [1] where only the first batch counts.
/// Zheng, Vedaldi 2023, "Online Clustered Codebook", section 3.2.
#pragma once

#include <sluice/codebook/code_scores.hpp>
#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/codebook/repair/distinct_draws.hpp>
#include <sluice/codebook/repair/repairable_codes.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

enum class anchor_choice { closest, sampled, random };

struct anchor_options {
  anchor_choice choice = anchor_choice::sampled;
  double decay = 0.99;
  bool first_batch_only = false;
};

template <FloatOrDouble Scalar, typename Metric = cosine_similarity>
class anchors {
public:
  using role = repair_role;
  static constexpr const char* name = "anchors";
  static constexpr random_site site{"anchors"};
  template <typename>
  struct memory {
    buffer<index_t> tokens;
    buffer<Scalar> alpha;         ///< [C]
    buffer<index_t> moving;       ///< codes with alpha > 0
    buffer<index_t> chosen;       ///< a token for each, counted among those that are not hidden
    matrix_buffer<Scalar> x;      ///< [tokens,D]
    matrix_buffer<Scalar> codes;  ///< [moving,D]
    code_scores<Metric, Scalar> scores;
    buffer<Scalar> best;  ///< [moving] the best score, or what is left of a draw
    typename code_logits<Scalar>::log_sums log_sums;
    buffer<Scalar> means;
    distinct_draws draws;

    void reserve(index_t count, index_t all_codes, index_t width) {
      for (auto* numbers : {&tokens, &moving, &chosen}) numbers->reserve((std::max)(count, all_codes));
      for (auto* numbers : {&alpha, &best, &means}) numbers->reserve((std::max)(all_codes, width));
      x.reserve(count, width);
      codes.reserve(all_codes, width);
      scores.reserve(all_codes, count, width);
      log_sums.reserve(all_codes);
      draws.reserve(all_codes);
    }
  };

  /// Throws std::invalid_argument unless C, D >= 1 and 0 <= decay < 1.
  anchors(index_t codes, index_t width, anchor_options o = {}) : options_(o) {
    if (codes < 1 || width < 1 || !is_at_least(o.decay, 0.0) || o.decay >= 1)
      throw_invalid("anchors need C, D >= 1 and 0 <= decay < 1, not ", codes, ", ", width, " and ", o.decay);
    usage_ = {{codes}, parameter_role::state};
    if (o.choice == anchor_choice::random) {
      pool_ = {{codes, width}, parameter_role::state, initial_values::uniform(1 / static_cast<double>(codes))};
      filled_ = {{1}, parameter_role::state};
    }
    if (o.first_batch_only) done_ = {{1}, parameter_role::state};
  }

  const anchor_options& options() const noexcept { return options_; }
  parameter<Scalar>& usage() noexcept { return usage_; }
  parameter<Scalar>& pool() noexcept { return pool_; }

  template <typename Codes>
  void after_step(Codes& codebook, const quantized_batch<Scalar>& batch, memory<Scalar>& m, buffer<index_t>& replaced) {
    static_assert(detail::explain_replaceable_codes<Codes, Scalar>());
    if (codebook.codes() != usage_.size())
      throw_invalid("anchors of ", usage_.size(), " codes cannot move a codebook of ", codebook.codes());
    if (batch.counted == 0 || (done_.size() > 0 && done_.value()[0] != 0)) return;
    if (done_.size() > 0) done_.value()[0] = 1;
    weigh(batch, m);
    list_tokens(batch, m.tokens);
    m.x.resize(batch.counted, batch.width());
    for (index_t i = 0; i < batch.counted; ++i) std::copy_n(batch.row(m.tokens[i]), batch.width(), m.x.row(i));
    if (options_.choice == anchor_choice::random)
      refill(batch, m);
    else
      choose(batch, m);
    buffer<Scalar>& vector = m.best;  // scores are no longer needed
    vector.resize(batch.width());
    for (index_t i = 0; i < m.moving.size(); ++i) {
      const index_t c = m.moving[i];
      const Scalar alpha = m.alpha[c];
      const Scalar* anchor =
          options_.choice == anchor_choice::random ? pool_.data() + c * batch.width() : m.x.row(m.chosen[i]);
      kernel::copy_scaled(1 - alpha, batch.code(c), vector.data(), batch.width());
      kernel::add_scaled(alpha, anchor, vector.data(), batch.width());
      codebook.replace(c, vector.data());
      if (alpha > Scalar(0.5)) replaced.push_back(c);
    }
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("usage", self.usage_);
    if (self.pool_.size() > 0) visit("pool", self.pool_);
    if (self.filled_.size() > 0) visit("filled", self.filled_);
    if (self.done_.size() > 0) visit("done", self.done_);
  }

private:
  static constexpr index_t stride = code_logits<Scalar>::tile_codes;

  void weigh(const quantized_batch<Scalar>& batch, memory<Scalar>& m) {
    Scalar* usage = usage_.data();
    const auto codes = static_cast<double>(usage_.size());
    const auto share = static_cast<Scalar>((1 - options_.decay) / static_cast<double>(batch.counted));
    for (Scalar& u : usage_.value()) u *= static_cast<Scalar>(options_.decay);
    for (index_t t = 0; t < batch.tokens(); ++t)
      if (batch.has_code(t)) usage[batch.ids[t]] += share;
    m.alpha.resize(usage_.size());
    m.moving.clear();
    for (index_t c = 0; c < usage_.size(); ++c) {
      m.alpha[c] =
          static_cast<Scalar>(std::exp(-static_cast<double>(usage[c]) * codes * 10 / (1 - options_.decay) - 1e-3));
      if (m.alpha[c] > 0) m.moving.push_back(c);
    }
  }

  /// Fills m.chosen.
  void choose(const quantized_batch<Scalar>& batch, memory<Scalar>& m) const {
    const index_t moving = m.moving.size();
    m.codes.resize(moving, batch.width());
    for (index_t i = 0; i < moving; ++i) std::copy_n(batch.code(m.moving[i]), batch.width(), m.codes.row(i));
    m.chosen.assign(moving, -1);
    m.best.assign(moving, Scalar(0));
    const executor_ref& executor = batch.context.executor;
    m.scores.set(std::as_const(m.codes).map(), std::as_const(m.x).map(), executor);
    const bool sampled = options_.choice == anchor_choice::sampled;
    if (sampled)
      m.scores.tiles().sum(m.log_sums, m.means, executor,
                           [](index_t, index_t, index_t, index_t, const Scalar*, Scalar* out) {
                             std::fill_n(out, code_logits<Scalar>::tile_tokens * stride, Scalar(0));
                           });
    for (index_t i = 0; sampled && i < moving; ++i)
      m.best[i] = static_cast<Scalar>(batch.context.random.uniform(site, m.moving[i]));
    m.scores.tiles().by_tokens(executor, [&](index_t c, index_t rows, index_t t, index_t tokens, const Scalar* scores) {
      std::array<Scalar, as_size(stride)> shares;
      for (index_t i = 0; i < rows; ++i) {
        const Scalar* row = scores + i * stride;
        Scalar& best = m.best[c + i];
        index_t& chosen = m.chosen[c + i];
        if (sampled) m.log_sums.shares(c + i, row, shares.data(), tokens);
        for (index_t j = 0; j < tokens; ++j) {
          if (!sampled) {
            if (chosen < 0 || row[j] > best) chosen = t + j, best = row[j];
          } else if (best > 0 || chosen < 0) {
            best -= shares[as_size(j)];
            chosen = t + j;  // the last token takes what rounding leaves
          }
        }
      }
    });
  }

  void refill(const quantized_batch<Scalar>& batch, memory<Scalar>& m) {
    const index_t codes = usage_.size(), tokens = batch.counted, width = batch.width();
    const auto put = [&](index_t token, index_t row) {
      std::copy_n(m.x.row(token), width, pool_.data() + row * width);
    };
    const random_source& random = batch.context.random;
    Scalar& filled = filled_.data()[0];
    const auto first = static_cast<index_t>(filled);
    if (tokens > codes) {
      for (index_t c = 0; c < codes; ++c)
        put((std::min)(static_cast<index_t>(random.uniform(site, c) * static_cast<double>(tokens)), tokens - 1), c);
      filled = static_cast<Scalar>(codes);
    } else if (first < codes) {
      const index_t added = (std::min)(tokens, codes - first);
      for (index_t i = 0; i < added; ++i) put(i, first + i);
      filled = static_cast<Scalar>(first + added);
    } else {
      m.draws.begin(codes);
      for (index_t i = 0; i < tokens; ++i) put(i, m.draws.take(random.uniform(site, i)));
    }
  }

  anchor_options options_;
  parameter<Scalar> usage_;
  parameter<Scalar> pool_;
  parameter<Scalar> filled_;
  parameter<Scalar> done_;
};

}  // namespace sluice::inline SLUICE_ISA
