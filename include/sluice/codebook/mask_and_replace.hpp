/// Noise on codes for discrete diffusion: a code stays, becomes any code, or becomes the mask, for good.
///
///   tokens 0 .. C-1 are codes, C is the mask.   A step t = 1 .. S:
///     a code stays with probability keep_t, becomes each of the C codes with replace_t (itself among them) and the mask with
///     mask_t;  keep_t + C replace_t + mask_t = 1.   The mask stays.
///   From x_0 to x_t the same holds with keep~ = product of keep, mask~ = 1 - product of (1 - mask), and what is left of
///   1 spread over the codes.
///
/// The default schedule is VQ-Diffusion's: keep~ falls from 1 - 1e-5 to 9e-6 and mask~ rises from 9e-6 to 1 - 1e-5,
/// both linearly. sample draws x_t, posterior gives q(x_{t-1} | x_t, p) for a model's belief p about x_0:
///   q(x_{t-1}) = sum over c of p(c) q(x_t | x_{t-1}) q(x_{t-1} | c) / q(x_t | c)
/// where keep~ + mask~ = 1 no code becomes another one: of p counts what x_t can have come from, scaled to the sum 1, or
/// all of that alike if p does not believe in it. Throws std::invalid_argument for tokens or steps that there are not,
/// and for an x_t that cannot be.
/// Gu et al. 2022, "Vector Quantized Diffusion Model for Text-to-Image Synthesis", equations 7 to 11.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/random.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct mask_and_replace_options {
  double first_keep = 0.99999, last_keep = 0.000009;  ///< keep~ after the first and the last step
  double first_mask = 0.000009, last_mask = 0.99999;  ///< mask~
};

class mask_and_replace {
public:
  static constexpr random_site site{"mask_and_replace"};

  /// The probabilities of a step, or of all steps up to one.
  struct rates {
    double keep = 1;
    double replace = 0;
    double mask = 0;
  };

  /// Throws std::invalid_argument unless there are codes and steps, and the schedule is one of probabilities that fall
  /// and rise.
  mask_and_replace(index_t codes, index_t steps, const mask_and_replace_options& o = {})
      : codes_(codes), up_to_{rates{}} {
    const bool falls = is_between(o.first_keep, 0.0, 1.0) && is_between(o.last_keep, 0.0, o.first_keep);
    const bool rises = is_between(o.first_mask, 0.0, 1.0) && is_between(o.last_mask, o.first_mask, 1.0);
    if (codes < 1 || steps < 1 || !falls || !rises || o.first_keep + o.first_mask > 1 || o.last_keep + o.last_mask > 1)
      throw_invalid(
          "mask_and_replace needs codes and steps >= 1 and shares that keep falls and mask rises by, together at most "
          "1, not ",
          codes, ", ", steps, ", ", o.first_keep, " to ", o.last_keep, " and ", o.first_mask, " to ", o.last_mask);
    for (index_t t = 0; t < steps; ++t) {
      const double along = steps == 1 ? 1 : static_cast<double>(t) / static_cast<double>(steps - 1);
      up_to_.push_back(with(o.first_keep + along * (o.last_keep - o.first_keep),
                            o.first_mask + along * (o.last_mask - o.first_mask)));
      const rates &before = up_to_[as_size(t)], &after = up_to_[as_size(t + 1)];
      if (after.keep * (1 - before.mask) > before.keep * (1 - after.mask) + rounding)
        throw_invalid("mask_and_replace needs shares of which no code comes back: step ", t + 1, " masks more, from ",
                      before.mask, " to ", after.mask, ", than it takes from what is kept, from ", before.keep, " to ",
                      after.keep);
    }
  }

  index_t codes() const noexcept { return codes_; }
  index_t mask() const noexcept { return codes_; }
  index_t steps() const noexcept { return static_cast<index_t>(up_to_.size()) - 1; }

  /// From x_0 to x_t, t = 0 .. S.
  const rates& up_to(index_t t) const {
    check_step(t, 0);
    return up_to_[as_size(t)];
  }
  /// From x_{t-1} to x_t, t = 1 .. S.
  rates at(index_t t) const {
    check_step(t, 1);
    const rates &before = up_to_[as_size(t - 1)], &after = up_to_[as_size(t)];
    const double kept = before.keep == 0 ? 0 : after.keep / before.keep;
    if (after.replace == 0) return {kept, 0, 1 - kept};
    return with(kept, before.mask == 1 ? 1 : 1 - (1 - after.mask) / (1 - before.mask));
  }

  /// out[i] = a draw of x_t for x_0 = ids[i]; a mask stays one. Draws: two for token i, at 2i and 2i + 1.
  void sample(std::span<const index_t> ids, index_t t, const random_source& random, std::span<index_t> out) const {
    const rates& r = up_to(t);
    if (ids.size() != out.size())
      throw_invalid("mask_and_replace cannot put ", ids.size(), " tokens into ", out.size());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      check_token(ids[i]);
      const auto place = 2 * static_cast<index_t>(i);
      const double u = random.uniform(site, place);
      out[i] = ids[i] == mask() || u < r.keep ? ids[i]
               : u < r.keep + r.mask
                   ? mask()
                   : static_cast<index_t>(random.uniform(site, place + 1) * static_cast<double>(codes_));
    }
  }

  /// out [C+1] = q(x_{t-1} | x_t, p) for p [C], which sums to 1.
  void posterior(index_t token, index_t t, std::span<const double> p, std::span<double> out) const {
    check_token(token);
    if (static_cast<index_t>(p.size()) != codes_ || static_cast<index_t>(out.size()) != codes_ + 1)
      throw_invalid("mask_and_replace of ", codes_, " codes needs a belief about each and room for one more, not ",
                    p.size(), " and ", out.size());
    const rates step = at(t), before = up_to(t - 1), after = up_to(t);
    // With w_c = p(c) / q(x_t | c): the sum over c of w_c q(x_{t-1} | c) is keep~ w + replace~ sum of w.
    double believed = weigh(after, token, out, [&](index_t c) { return p[as_size(c)]; });
    if (believed == 0) believed = weigh(after, token, out, [](index_t) { return 1.0; });
    if (believed == 0) throw_invalid("mask_and_replace leads to token ", token, " from no code in ", t, " steps");
    double sum = 0;
    for (index_t c = 0; c < codes_; ++c) sum += out[as_size(c)];
    for (index_t c = 0; c < codes_; ++c)
      out[as_size(c)] = likelihood(step, c, token) * (before.keep * out[as_size(c)] + before.replace * sum);
    out[as_size(codes_)] = token == mask() ? before.mask * sum : 0;
  }

private:
  static constexpr double rounding = 1e-15;

  rates with(double keep, double masked) const {
    const double rest = 1 - keep - masked;
    return {keep, rest > rounding ? rest / static_cast<double>(codes_) : 0, masked};
  }
  /// q(to | from) for a code `from`.
  double likelihood(const rates& r, index_t from, index_t to) const {
    return to == mask() ? r.mask : r.replace + (from == to ? r.keep : 0);
  }
  /// out[c] = p(c) / q(token | c), p scaled to the sum 1 if codes that the token cannot come from are left out. The
  /// sum before.
  template <typename Belief>
  double weigh(const rates& r, index_t token, std::span<double> out, Belief&& p) const {
    double believed = 0;
    bool is_whole = true;
    for (index_t c = 0; c < codes_; ++c) {
      const double q = likelihood(r, c, token), belief = q > 0 ? p(c) : 0;
      believed += belief;
      out[as_size(c)] = q > 0 ? belief / q : 0;
      is_whole = is_whole && q > 0;
    }
    for (index_t c = 0; !is_whole && believed > 0 && c < codes_; ++c) out[as_size(c)] /= believed;
    return believed;
  }
  void check_step(index_t t, index_t first) const {
    if (t < first || t > steps()) throw_invalid("mask_and_replace has steps ", first, " to ", steps(), ", not ", t);
  }
  void check_token(index_t token) const {
    if (token < 0 || token > codes_) throw_invalid("mask_and_replace has tokens 0 to ", codes_, ", not ", token);
  }

  index_t codes_;
  std::vector<rates> up_to_;  ///< of 0 .. S steps
};

}  // namespace sluice::inline SLUICE_ISA
