// A quantiser of one's own: what codebook/quantizer.hpp asks for, whole.
#include <sluice/codebook/quantizer.hpp>

#include <algorithm>
#include <cmath>

#include "codebook_checks.hpp"

using namespace sluice;

namespace {

/// Every number goes to the nearest of 0, 1, ..., 9: a column of ids each.
template <FloatOrDouble Scalar>
class rounding : public quantizer_base<rounding<Scalar>, Scalar> {
  using base = quantizer_base<rounding, Scalar>;
  friend base;

public:
  using typename base::context_type;
  using typename base::tape;

  explicit rounding(index_t width) : width_(width) {}

  index_t inputs() const { return width_; }
  index_t code_columns() const { return width_; }
  index_t codes(index_t /*column*/) const { return 10; }

private:
  void encode_rows(tokens_in<Scalar> x, tokens_out<index_t> ids, detail::no_memory&, const context_type&) const {
    for (index_t t = 0; t < x.rows(); ++t)
      for (index_t c = 0; c < width_; ++c)
        ids(t, c) = static_cast<index_t>(std::nearbyint((std::clamp)(x(t, c), Scalar(0), Scalar(9))));
  }
  void decode_rows(tokens_in<index_t> ids, tokens_out<Scalar> y, detail::no_memory&, const executor_ref&) const {
    y = ids.template cast<Scalar>();
  }
  void assign(tape& t, const context_type& context) const { encode_rows(t.kept.x(), t.ids.map(), t, context); }
  void quantize(tape& t, tokens_out<Scalar> y, const context_type& context) const {
    decode_rows(std::as_const(t.ids).map(), y, t, context.executor);
  }
  void quantize_backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape&) { dx = dy; }

  index_t width_;
};

static_assert(Quantizer<rounding<float>>);

}  // namespace

TEST_CASE("quantizer_base: a quantiser of one's own keeps every promise", "[codebook][conformance]") {
  test::check_quantizer_promises(rounding<double>(3), 1);
}

TEST_CASE("quantizer_base: encode, decode and what is hidden", "[codebook]") {
  const rounding<float> q(2);
  matrix<float> x(4, 2), y(4, 2);
  x << 1.2F, 8.9F, -4, 20, quiet_nan<float>(), 3, 5, 5;
  const std::vector<std::uint8_t> mask{1, 1, 1, 0};
  const routing_context<float> context{.token_mask = mask};
  matrix<index_t> ids(4, 2), expected(4, 2);
  expected << 1, 9, 0, 9, no_code, no_code, no_code, no_code;
  rounding<float>::workspace ws;
  q.encode(x, ids, ws, context);
  CHECK(ids == expected);
  q.decode(ids, y, ws);
  CHECK(y(1, 1) == 9);
  CHECK(y.bottomRows(2).isZero(0));  // decode is not told why there is no code
  q.forward(x, y, ws, context);
  CHECK(is_nan(y(2, 1)));
  CHECK(y.row(3).isZero(0));
}
