/// What a metric says of every code with every token, seen from the codes: scores as they are compared, tile by tile.
///
///   squared_distance   -|x - c|^2        cosine_similarity   x . c / (|x| |c|)        inner_product   x . c
///
/// Rows are codes, columns are tokens (codebook/code_logits.hpp). Cosine keeps normalised copies of both.
#pragma once

#include <sluice/codebook/code_logits.hpp>
#include <sluice/codebook/metric.hpp>

#include <type_traits>

namespace sluice::inline SLUICE_ISA {

template <typename Metric, FloatOrDouble Scalar>
class code_scores {
  static constexpr bool is_square = std::is_same_v<Metric, squared_distance>;

public:
  /// codes [C,D] and x [T,D] must stay as they are while the scores are looked at.
  void set(const_matrix_map<Scalar> codes, const_matrix_map<Scalar> x, const executor_ref& executor) {
    codes_ = codes.data(), x_ = x.data();
    tokens_ = x.rows(), width_ = x.cols();
    if constexpr (is_square) {
      logits_.set_squares(codes, x, 1, executor);
    } else {
      Metric().prepare(codes, code_keys_, executor);
      Metric().prepare(x, token_keys_, executor);
      logits_.set_products(map(code_keys_), map(token_keys_));
    }
  }

  void reserve(index_t codes, index_t tokens, index_t width) {
    logits_.reserve(codes, tokens);
    if (is_square) return;
    code_keys_.own_keys(codes, width);
    token_keys_.own_keys(tokens, width);
  }

  const code_logits<Scalar>& tiles() const noexcept { return logits_; }

  /// dcode += sum over tokens of d[t] dscore[c,t]/dc; scratch has room for D numbers.
  void add_gradient(index_t c, const Scalar* d, Scalar* dcode, Scalar* scratch) const {
    const Scalar* code = codes_ + c * width_;
    std::fill_n(scratch, width_, Scalar(0));
    const Scalar* rows = is_square ? x_ : token_keys_.keys().keys;
    Scalar sum = 0;
    for (index_t t = 0; t < tokens_; ++t) {
      if (d[t] == 0) continue;
      kernel::add_scaled(d[t], rows + t * width_, scratch, width_);
      sum += d[t];
    }
    if constexpr (is_square) {
      kernel::add_scaled(Scalar(2), scratch, dcode, width_);
      kernel::add_scaled(-2 * sum, code, dcode, width_);
    } else if constexpr (std::is_same_v<Metric, cosine_similarity>) {
      const Scalar* key = code_keys_.keys().keys + c * width_;
      const Scalar length =
          (std::max)(std::sqrt(kernel::dot(code, code, width_)), (std::numeric_limits<Scalar>::min)());
      kernel::add_scaled(1 / length, scratch, dcode, width_);
      kernel::add_scaled(-kernel::dot(key, static_cast<const Scalar*>(scratch), width_) / length, key, dcode, width_);
    } else {
      kernel::add_scaled(Scalar(1), scratch, dcode, width_);
    }
  }

private:
  static const_matrix_map<Scalar> map(const code_search<Scalar>& search) {
    return {search.keys().keys, search.codes(), search.width()};
  }

  const Scalar* codes_ = nullptr;
  const Scalar* x_ = nullptr;
  index_t tokens_ = 0;
  index_t width_ = 0;
  code_search<Scalar> code_keys_;
  code_search<Scalar> token_keys_;
  code_logits<Scalar> logits_;
};

}  // namespace sluice::inline SLUICE_ISA
