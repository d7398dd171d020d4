/// A codebook whose code 0 is zero and stays zero: a residual stage that can leave what it sees as it is.
///
///   zero_first codes{moving_average_codes<float>{1023, 64}};          // 1024 codes, the first of them zero
///   residual_quantizer rq{vector_quantizer{codes}, 8};                // whose error no stage makes larger
///
/// The other codes are the inner codebook's and learn as it does; nothing moves code 0, and tokens that take it teach
/// nobody. The table of a call is copied once, C D numbers. Parameters: the inner codebook's.
#pragma once

#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/core/buffer.hpp>

#include <algorithm>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Codes>
class zero_first {
public:
  using scalar = typename Codes::scalar;
  static constexpr bool learns_by_gradient = Codes::learns_by_gradient;
  struct memory {
    typename Codes::memory inner;
    matrix_buffer<scalar> codes, gradient;
    buffer<index_t> ids;
  };

  explicit zero_first(Codes codes) : codes_(std::move(codes)) {}

  index_t codes() const noexcept { return codes_.codes() + 1; }
  index_t inputs() const noexcept { return codes_.inputs(); }

  void evaluate(memory& m, const executor_ref& executor) const {
    codes_.evaluate(m.inner, executor);
    m.codes.resize(codes(), inputs());
    std::fill_n(m.codes.row(0), inputs(), scalar(0));
    std::copy_n(codes_.evaluated(m.inner).data(), codes_.codes() * inputs(), m.codes.row(1));
  }
  const_matrix_map<scalar> evaluated(const memory& m) const { return m.codes.map(); }

  matrix_map<scalar> gradient(memory& m) {
    m.gradient.set_zero(learns_by_gradient ? codes() : 0, inputs());
    return m.gradient.map();
  }
  void backward(memory& m, const executor_ref& executor) {
    if constexpr (learns_by_gradient) {
      matrix_map<scalar> of_inner = codes_.gradient(m.inner);
      of_inner += m.gradient.map().bottomRows(codes_.codes());
    }
    codes_.backward(m.inner, executor);
  }

  void after_step(const quantized_batch<scalar>& batch, memory& m) {
    m.ids.resize(batch.tokens());
    quantized_batch<scalar> own = batch;
    own.ids = m.ids.data();
    own.counted = 0;
    for (index_t t = 0; t < batch.tokens(); ++t) {
      m.ids[t] = batch.ids[t] > 0 ? batch.ids[t] - 1 : no_code;
      own.counted += m.ids[t] != no_code;
    }
    codes_.after_step(own, m.inner);
  }

  /// Code 0 is not replaced.
  template <typename... Size>
  void replace(index_t code, const scalar* vector, Size... size) {
    if (code > 0) codes_.replace(code - 1, vector, size...);
  }

  Codes& others() noexcept { return codes_; }
  const Codes& others() const noexcept { return codes_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("", self.codes_);
  }

private:
  Codes codes_;
};

}  // namespace sluice::inline SLUICE_ISA
