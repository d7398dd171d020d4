#include <sluice/layer/state_space/state_space_mixer.hpp>

#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../plain_checks.hpp"

using namespace sluice;

namespace {

/// 70 channels are more than a block, and no whole number of vectors.
const state_space_options every_option{
    .channels = 70, .states = 3, .step_rank = 2, .taps = 3, .bias = true, .normalized_selection = true};

template <typename Scalar>
state_space_mixer<Scalar> mixer_of(index_t width, const state_space_options& o) {
  state_space_mixer<Scalar> mixer(width, o);
  initialize(mixer, 3);
  const auto some = [](index_t i) { return static_cast<Scalar>(0.1) * static_cast<Scalar>(i % 5 - 2); };
  if (o.bias) mixer.weights().input_bias.fill(some), mixer.weights().output_bias.fill(some);
  return mixer;
}

double silu_of(double z) { return z / (1 + std::exp(-z)); }

/// The equations, token by token and number by number. counts: hidden tokens are 0.
matrix<double> reference_mixer(state_space_mixer<double>& m, matrix<double> x, const std::vector<index_t>& borders,
                               const std::vector<bool>& counts, bool normalized) {
  const index_t I = m.channels(), N = m.states(), R = m.step_rank(), W = m.taps();
  for (index_t t = 0; t < x.rows(); ++t)
    if (!counts[as_size(t)]) x.row(t).setZero();
  const matrix<double> in = m.weights().input.to_matrix(), taps = m.weights().convolution.to_matrix(),
                       rates = m.weights().log_decay.to_matrix(), selection = m.weights().selection.to_matrix(),
                       step = m.weights().step.to_matrix(), out = m.weights().output.to_matrix();
  const auto bias_of = [&](parameter<double>& p, index_t i) {
    return m.weights().has_bias() ? p.value()[as_size(i)] : 0;
  };
  const auto projected = [&](index_t c, index_t t) {
    return counts[as_size(t)] ? in.row(c).dot(x.row(t)) + bias_of(m.weights().input_bias, c) : 0;
  };
  matrix<double> y(x.rows(), x.cols());
  for (std::size_t s = 0; s + 1 < borders.size(); ++s) {
    matrix<double> h = matrix<double>::Zero(I, N);
    for (index_t t = borders[s]; t < borders[s + 1]; ++t) {
      Eigen::VectorXd v(I);
      for (index_t c = 0; c < I; ++c) {
        double sum = m.weights().convolution_bias.value()[as_size(c)];
        for (index_t k = 0; k < W; ++k)
          if (const index_t from = t - W + 1 + k; from >= borders[s]) sum += taps(c, k) * projected(c, from);
        v[c] = silu_of(sum);
      }
      Eigen::VectorXd chosen = selection * v;
      if (normalized) {
        const auto norm = [&](index_t first, index_t count, rms_norm<double>& of) {
          auto part = chosen.segment(first, count);
          part /= std::sqrt(part.squaredNorm() / static_cast<double>(count) + 1e-6);
          for (index_t i = 0; i < count; ++i) part[i] *= of.gain().value()[as_size(i)];
        };
        norm(0, R, m.weights().norms[0]), norm(R, N, m.weights().norms[1]), norm(R + N, N, m.weights().norms[2]);
      }
      Eigen::VectorXd gated(I);
      for (index_t c = 0; c < I; ++c) {
        const double d =
            std::log1p(std::exp(step.row(c).dot(chosen.head(R)) + m.weights().step_bias.value()[as_size(c)]));
        double sum = m.weights().skip.value()[as_size(c)] * v[c];
        for (index_t n = 0; n < N; ++n) {
          if (counts[as_size(t)]) h(c, n) = std::exp(-d * std::exp(rates(c, n))) * h(c, n) + d * v[c] * chosen[R + n];
          sum += chosen[R + N + n] * h(c, n);
        }
        gated[c] = sum * silu_of(projected(I + c, t));
      }
      y.row(t) = out * gated;
      for (index_t i = 0; i < y.cols(); ++i) y(t, i) += bias_of(m.weights().output_bias, i);
    }
  }
  return y;
}

}  // namespace

static_assert(TrainableLayer<state_space_mixer<float>> && is_causal<mamba_mixer<float>>);

TEST_CASE("state_space_mixer: every promise of a layer", "[layer][state_space][conformance]") {
  const auto passes = [](const auto& mixer, index_t gradient_tokens) {
    const auto report = check_layer(mixer, {.seed = 5, .gradient_tokens = gradient_tokens});
    INFO(report.describe());
    CHECK(report.passed());
    CHECK(report.find("gradients")->result == outcome::passed);
  };
  passes(mixer_of<double>(5, every_option), 7);
  passes(mixer_of<double>(2, {.states = 2}), 35);  // across the border of a chunk
}

TEST_CASE("state_space_mixer: the equations of Mamba in every sequence", "[layer][state_space]") {
  const bool normalized = GENERATE(false, true);
  auto options = every_option;
  options.normalized_selection = normalized;
  auto mixer = mixer_of<double>(6, options);
  if (normalized)
    for (rms_norm<double>& norm : mixer.weights().norms)
      norm.gain().fill([](index_t i) { return 0.5 + 0.25 * static_cast<double>(i); });
  const std::vector<index_t> borders{0, 1, 1, 80, 90};
  matrix<double> x = test::random_matrix<double>(90, 6, 1), y(90, 6);
  x.row(83).setConstant(quiet_nan<double>());
  std::vector<std::uint8_t> mask(90, 1);
  std::vector<bool> counts(90, true);
  for (const index_t t : {1, 2, 40, 41, 83}) counts[as_size(t)] = false, mask[as_size(t)] = t == 83;
  state_space_mixer<double>::workspace ws;
  mixer.forward(x, y, ws, {.token_mask = mask, .sequences = borders});
  const matrix<double> expected = reference_mixer(mixer, x, borders, counts, normalized);
  for (index_t t = 0; t < 90; ++t) {
    CAPTURE(t);
    if (counts[as_size(t)])
      CHECK(test::largest_difference(y.row(t), expected.row(t)) < test::bound<double>(80, 4));
    else
      CHECK((t == 83 ? is_nan(y(t, 0)) : y.row(t).isZero(0)));
  }
}

TEST_CASE("state_space_mixer: gradients through many blocks of tokens, sequences and hidden tokens",
          "[layer][state_space][gradient]") {
  auto mixer = mixer_of<double>(2, {.channels = 3, .states = 2, .taps = 3, .bias = true});
  const index_t T = 75;
  matrix<double> x = test::random_matrix<double>(T, 2, 7), y(T, 2), dx(T, 2);
  const matrix<double> dy = test::random_matrix<double>(T, 2, 8);
  const std::vector<index_t> borders{0, 70, T};
  std::vector<std::uint8_t> mask(as_size(T), 1);
  mask[0] = mask[30] = mask[72] = 0;
  const routing_context<double> context{.training = true, .token_mask = mask, .sequences = borders};
  state_space_mixer<double>::tape tape;
  mixer.forward(x, y, tape, context);
  mixer.backward(dy, dx, tape);
  const auto objective = [&] {
    state_space_mixer<double>::workspace ws;
    mixer.forward(x, y, ws, {.token_mask = mask, .sequences = borders});
    return (y.array() * dy.array()).sum();
  };
  const double tolerance = 1e-7 * T;  // of central differences of step 1e-6
  for (const index_t t : {0, 1, 29, 30, 31, 32, 63, 64, 69, 70, 71, 74})
    for (index_t c = 0; c < 2; ++c) {
      CAPTURE(t, c);
      CHECK(std::abs(dx(t, c) - test::slope_at(x(t, c), objective)) < tolerance);
    }
  for_each_parameter(mixer, [&](const std::string& name, auto& p) {
    for (index_t i = 0; i < p.size(); ++i) {
      CAPTURE(name, i);
      CHECK(std::abs(p.gradient()[as_size(i)] - test::slope_at(p.value()[as_size(i)], objective)) < tolerance);
    }
  });
}

TEST_CASE("state_space_mixer: one state of one channel is a geometric sum", "[layer][state_space]") {
  state_space_mixer<double> mixer(1, {.channels = 1, .states = 1, .step_rank = 1, .taps = 1});
  const auto set = [](parameter<double>& p, double value) { p.fill([&](index_t) { return value; }); };
  // u = z = x; v = silu(x), the same for every token; d = ln 2, so that A = -1 halves the state; B = v, C = v, no skip.
  set(mixer.weights().input, 1), set(mixer.weights().convolution, 1), set(mixer.weights().convolution_bias, 0),
      set(mixer.weights().step, 0);
  set(mixer.weights().step_bias, 0), set(mixer.weights().log_decay, 0), set(mixer.weights().skip, 0),
      set(mixer.weights().output, 1);
  mixer.weights().selection.fill([](index_t i) { return i == 0 ? 0.0 : 1.0; });
  const double x = 2, v = silu_of(x);
  const index_t T = 40;
  matrix<double> y(T, 1);
  state_space_mixer<double>::workspace ws;
  mixer.forward(matrix<double>::Constant(T, 1, x), y, ws);
  double sum = 0, power = 1;
  for (index_t t = 0; t < T; ++t, power /= 2) {
    sum += power;  // 1 + 1/2 + 1/4 ...
    CHECK(std::abs(y(t, 0) - std::numbers::ln2 * v * v * v * sum * v) < test::bound<double>(T, 4));
  }
}

TEMPLATE_TEST_CASE("state_space_mixer: token by token with a cache has the bits of whole sequences",
                   "[layer][state_space]", float, double) {
  using Scalar = TestType;
  auto mixer = mixer_of<Scalar>(8, every_option);
  const std::vector<index_t> borders{0, 90, 130};
  std::vector<std::uint8_t> mask(130, 1);
  mask[3] = mask[6] = 0;
  matrix<Scalar> x = test::random_matrix<Scalar>(130, 8, 11), whole(130, 8);
  x(100, 2) = quiet_nan<Scalar>();
  typename state_space_mixer<Scalar>::workspace ws;
  mixer.forward(x, whole, ws, {.token_mask = mask, .sequences = borders});

  state_space_cache<Scalar> cache(mixer, 2);
  for (const bool again : {false, true}) {
    index_t done[] = {0, 0};
    for (const index_t step : {5, 1, 1, 70, 1, 12}) {  // the second sequence ends first
      const index_t more[] = {step, std::min<index_t>(40 - done[1], (step + 1) / 2)};
      const std::vector<index_t> some{0, more[0], more[0] + more[1]};
      matrix<Scalar> part(some[2], 8), y(some[2], 8), expected(some[2], 8);
      part << x.middleRows(done[0], more[0]), x.middleRows(90 + done[1], more[1]);
      expected << whole.middleRows(done[0], more[0]), whole.middleRows(90 + done[1], more[1]);
      std::vector<std::uint8_t> part_mask(mask.begin() + done[0], mask.begin() + done[0] + more[0]);
      part_mask.insert(part_mask.end(), as_size(more[1]), 1);
      mixer.forward_cached(part, y, cache, ws, {.token_mask = part_mask, .sequences = some});
      CAPTURE(again, done[0], done[1]);
      CHECK(test::same_bits(y, expected));
      done[0] += more[0], done[1] += more[1];
    }
    again ? cache.clear(1) : cache.clear();
  }
}

TEST_CASE("state_space_cache: a copy is a way back, what does not fit throws and changes nothing",
          "[layer][state_space]") {
  auto mixer = mixer_of<float>(4, {}), other = mixer_of<float>(4, {.states = 8});
  const matrix<float> x = test::random_matrix<float>(6, 4, 11);
  matrix<float> y(6, 4), again(2, 4);
  state_space_mixer<float>::workspace ws;
  state_space_cache<float> cache(mixer, 1);
  mixer.forward_cached(x.topRows(4), y.topRows(4), cache, ws);
  const state_space_cache<float> earlier = cache;
  mixer.forward_cached(x.bottomRows(2), y.bottomRows(2), cache, ws);
  cache = earlier;
  const std::vector<index_t> two{0, 3, 6};
  CHECK_THROWS_WITH(mixer.forward_cached(x, y, cache, ws, {.sequences = two}),
                    Catch::Matchers::Contains("the context has 2 sequences and the state_space_cache 1"));
  CHECK_THROWS_WITH(other.forward_cached(x, y, cache, ws),
                    Catch::Matchers::Contains("8 channels, 16 states and 4 taps"));
  mixer.forward_cached(x.bottomRows(2), again, cache, ws);
  CHECK(test::same_bits(again, y.bottomRows(2)));
  CHECK_THROWS_AS(cache.clear(1), std::invalid_argument);
  CHECK_THROWS_AS(state_space_cache<float>(mixer, 0), std::invalid_argument);
}

TEST_CASE("state_space_mixer: padding in front of a sequence changes no bit", "[layer][state_space]") {
  auto mixer = mixer_of<float>(4, {});
  const matrix<float> x = test::random_matrix<float>(40, 4, 2);
  matrix<float> padded = matrix<float>::Constant(45, 4, quiet_nan<float>()), y(40, 4), after(45, 4);
  padded.bottomRows(40) = x;
  std::vector<std::uint8_t> mask(45, 1);
  std::fill_n(mask.begin(), 5, std::uint8_t(0));
  state_space_mixer<float>::workspace ws;
  mixer.forward(x, y, ws);
  mixer.forward(padded, after, ws, {.token_mask = mask});
  CHECK(test::same_bits(after.bottomRows(40), y));
}

TEST_CASE("state_space_mixer: begins as the paper says", "[layer][state_space]") {
  auto mixer = mixer_of<double>(33, {.deviation = 0.02, .output_deviation = 0.001});
  CHECK(mixer.channels() == 66);
  CHECK(mixer.step_rank() == 3);
  const matrix<double> rates = mixer.weights().log_decay.to_matrix();
  double least = 1, most = 0;
  for (index_t c = 0; c < 66; ++c) {
    for (index_t n = 0; n < 16; ++n) CHECK(rates(c, n) == std::log(static_cast<double>(n + 1)));
    const double step = std::log1p(std::exp(mixer.weights().step_bias.value()[as_size(c)]));
    least = std::min(least, step), most = std::max(most, step);
  }
  CHECK((least >= 0.001 * (1 - 1e-9) && least < 0.002));
  CHECK((most <= 0.1 * (1 + 1e-9) && most > 0.05));
  CHECK(mixer.weights().skip.to_matrix().isOnes(0));
  CHECK(mixer.weights().step.to_matrix().cwiseAbs().maxCoeff() <= 1 / std::sqrt(3.0));
  const auto deviation = [](const matrix<double>& m) {
    return std::sqrt(m.squaredNorm() / static_cast<double>(m.size()));
  };
  CHECK(deviation(mixer.weights().input.to_matrix()) == Approx(0.02).epsilon(0.1));
  CHECK(deviation(mixer.weights().output.to_matrix()) == Approx(0.001).epsilon(0.1));
}

TEST_CASE("state_space_mixer: sizes that do not fit throw with the numbers", "[layer][state_space]") {
  CHECK_THROWS_AS(state_space_mixer<float>(0), std::invalid_argument);
  CHECK_THROWS_WITH(state_space_mixer<float>(8, {.states = 0}), Catch::Matchers::Contains("D 8, I 0, N 0"));
  CHECK_THROWS_AS(state_space_mixer<float>(8, {.taps = 0}), std::invalid_argument);
  CHECK_THROWS_AS(state_space_mixer<float>(8, {.channels = -1}), std::invalid_argument);
  CHECK_THROWS_AS(state_space_mixer<float>(8, {.deviation = -1}), std::invalid_argument);
  auto mixer = mixer_of<float>(4, {});
  test::check_edges(mixer);
}
