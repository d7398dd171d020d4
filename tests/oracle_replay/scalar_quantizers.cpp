// Quantisers without a table: FSQ in its published forms, lookup-free and binary spherical quantisation.
#include "binding.hpp"
#include "replays.hpp"

#include <sluice/codebook/scalar/binary_spherical.hpp>
#include <sluice/codebook/scalar/finite_scalar.hpp>
#include <sluice/codebook/scalar/lookup_free.hpp>
#include <sluice/codebook/scalar/residual_finite_scalar.hpp>
#include <sluice/codebook/structure/product.hpp>
#include <sluice/codebook/structure/projected.hpp>
#include <sluice/codebook/structure/soft_clamped.hpp>
#include <sluice/codebook/structure/unit_rows.hpp>

namespace oracle {
namespace {

using namespace sluice;

/// A training call and its backward call.
template <typename Q>
struct step {
  using scalar = typename Q::scalar;
  matrix<scalar> y, dx;
  typename Q::tape tape;

  step(Q& quantizer, const matrix<scalar>& x, const matrix<scalar>& dy)
      : y(x.rows(), quantizer.outputs()), dx(x.rows(), x.cols()) {
    ensure_gradients(quantizer);
    zero_gradients(quantizer);
    quantizer.forward(x, y, tape);
    quantizer.backward(dy, dx, tape);
  }
};

std::vector<index_t> copy_ids(const matrix_buffer<index_t>& ids) { return {ids.data(), ids.data() + ids.size()}; }

/// The codes of all ids of the first column.
template <typename Q>
matrix<typename Q::scalar> all_codes(const Q& quantizer, index_t width) {
  const index_t count = quantizer.codes(0);
  matrix<index_t> ids = matrix<index_t>::Constant(count, quantizer.code_columns(), no_code);
  for (index_t i = 0; i < count; ++i) ids(i, 0) = i;
  matrix<typename Q::scalar> codes(count, quantizer.outputs());
  typename Q::workspace ws;
  quantizer.decode(ids, codes, ws);
  return codes.leftCols(width);
}

/// use(quantizer, what is projected), loaded; the second does nothing where the case has no projections.
template <typename Scalar, typename Inner, typename F>
void with_projections(oracle_case<Scalar>& c, const Inner& inner, F&& use) {
  bindings<Scalar> bound;
  if (!c.has("project_in.weight")) {
    Inner copy = inner;
    use(copy, bound);
    return;
  }
  projected_quantizer projected{c.axis("project_in.weight", 1), inner, {.bias = c.has("project_in.bias")}};
  bound.bind("project_in.weight", projected.project_in().weight());
  bound.bind("project_out.weight", projected.project_out().weight());
  if (c.has("project_in.bias")) {
    bound.bind("project_in.bias", projected.project_in().bias());
    bound.bind("project_out.bias", projected.project_out().bias());
  }
  bound.load(c);
  use(projected, bound);
}

/// ids, y and the gradients of y; what the calls without a tape say.
template <typename Scalar, typename Q>
void check_quantizer(oracle_case<Scalar>& c, Q& quantizer, const bindings<Scalar>& bound) {
  const matrix<Scalar> x = c.rows("x"), dy = c.rows("grad_out");
  const step run(quantizer, x, dy);
  c.check_integers("indices", copy_ids(run.tape.ids));
  c.check("y", run.y);
  c.check("grad.x", run.dx);
  bound.check_gradients(c, "grad");
  typename Q::workspace ws;
  matrix<index_t> ids(x.rows(), quantizer.code_columns());
  matrix<Scalar> y(x.rows(), quantizer.outputs());
  quantizer.encode(x, ids, ws);
  c.check_integers("indices", {ids.data(), as_size(ids.size())});
  quantizer.decode(ids, y, ws);
  c.check("y", y);
}

template <typename Scalar, typename Rounding>
void run_fsq(oracle_case<Scalar>& c, const std::vector<Rounding>& roundings) {
  const finite_scalar_quantizer<Scalar, Rounding> fsq(roundings);
  c.check("codebook", all_codes(fsq, fsq.inputs()));
  with_projections(c, fsq, [&](auto& quantizer, const bindings<Scalar>& bound) {
    check_quantizer(c, quantizer, bound);
    if constexpr (requires { quantizer.project_in(); }) {
      const step run(quantizer, c.rows("x"), c.rows("grad_out"));
      c.check("codes", matrix<Scalar>(run.tape.q.map()));
    } else {
      c.check("codes", step(quantizer, c.rows("x"), c.rows("grad_out")).y);
    }
  });
}

template <typename Scalar>
void fsq(oracle_case<Scalar>& c) {
  const auto levels = c.integers("levels");
  const bool clamps = c.template setting<bool>("hard_clamp");
  const auto run = [&]<typename Rounding>(std::type_identity<Rounding>) {
    run_fsq(c, std::vector<Rounding>(levels.begin(), levels.end()));
  };
  if (!c.template setting<bool>("preserve_symmetry")) {
    if (clamps) throw unsupported("hard_clamp without preserve_symmetry");
    run(std::type_identity<zero_centred_rounding<Scalar>>{});
  } else if (clamps) {
    run(std::type_identity<symmetric_rounding<Scalar, hard_tanh>>{});
  } else {
    run(std::type_identity<symmetric_rounding<Scalar>>{});
  }
}

template <typename Scalar>
void fsq_original(oracle_case<Scalar>& c) {
  std::vector<original_rounding<Scalar>> roundings;
  for (const index_t levels : c.integers("levels"))
    roundings.push_back(original_rounding<Scalar>(levels, {.epsilon = c.template setting<double>("eps")}));
  matrix<Scalar> bounded = c.rows("x");
  for (index_t t = 0; t < bounded.rows(); ++t)
    for (index_t d = 0; d < bounded.cols(); ++d) bounded(t, d) = roundings[as_size(d)].position(bounded(t, d));
  c.check("bounded", bounded);
  run_fsq(c, roundings);
}

/// expected.indices [T,stage], or [group,T,stage] with several groups: the columns of ids, group after group.
template <typename Scalar, typename Q>
void run_residual_fsq(oracle_case<Scalar>& c, const Q& inner, index_t groups) {
  with_projections(c, inner, [&](auto& quantizer, const bindings<Scalar>& bound) {
    const step run(quantizer, c.rows("x"), c.rows("grad_out"));
    const auto ids = run.tape.ids.map();
    const index_t depth = ids.cols() / groups;
    std::vector<index_t> by_group;
    for (index_t g = 0; g < groups; ++g)
      for (index_t t = 0; t < ids.rows(); ++t)
        for (index_t j = 0; j < depth; ++j) by_group.push_back(ids(t, g * depth + j));
    c.check_integers("indices", by_group);
    c.check("y", run.y);
    c.check("grad.x", run.dx);
    bound.check_gradients(c, "grad");
  });
}

template <typename Scalar>
void residual_fsq(oracle_case<Scalar>& c) {
  const auto levels = c.integers("levels");
  const auto depth = c.template setting<index_t>("quantizers"), groups = c.template setting<index_t>("groups");
  std::vector<Scalar> scales;
  for (const auto& stage : finite_scalar_stages<Scalar>(levels, depth))
    for (index_t d = 0; d < stage.inputs(); ++d) scales.push_back(stage.rounding(d).scale());
  c.check("scales", scales);
  const auto run = [&](const auto& one) {
    if (groups == 1)
      run_residual_fsq(c, one, groups);
    else
      run_residual_fsq(c, product_quantizer{std::vector(as_size(groups), one)}, groups);
  };
  if (c.template setting<bool>("hard_clamp"))
    run(residual_finite_scalar<Scalar>(levels, depth));
  else
    run(residual_quantizer{finite_scalar_stages<Scalar, hyperbolic_tangent>(levels, depth),
                           {.gradient = residual_gradient::each_stage}});
}

template <typename Scalar>
void lfq(oracle_case<Scalar>& c) {
  if (!c.template setting<bool>("train")) throw unsupported("train = false");
  using options = typename lookup_free_quantizer<Scalar>::options;
  const auto bits = c.template setting<index_t>("bits"), books = c.template setting<index_t>("num_codebooks");
  options with_losses{.codebooks = books,
                      .scale = c.template setting<Scalar>("scale"),
                      .entropy_weight = c.template setting<double>("entropy_weight"),
                      .diversity_gamma = c.template setting<double>("diversity_gamma"),
                      .commitment_weight = c.template setting<double>("commitment_weight"),
                      .inverse_temperature = c.template setting<double>("inv_temperature")};
  const bool spherical = c.template setting<bool>("spherical");
  if (spherical) {
    if (books != 1 || with_losses.scale != 1) throw unsupported("spherical with a scale or several codebooks");
    with_losses.scale = 1 / std::sqrt(static_cast<Scalar>(bits));
  }
  options without = with_losses;
  without.entropy_weight = without.commitment_weight = 0;
  const lookup_free_quantizer<Scalar> plain(bits, without), whole(bits, with_losses);
  c.check("codebook", all_codes(plain, bits));
  const auto clamp = c.template setting<Scalar>("soft_clamp", Scalar(0));
  const auto around = [&](const lookup_free_quantizer<Scalar>& inner, auto&& use) {
    if (spherical && clamp > 0) throw unsupported("spherical with a soft clamp");
    if (spherical)
      with_projections(c, unit_rows{inner, {.smallest = 1e-12}}, use);
    else if (clamp > 0)
      with_projections(c, soft_clamped{inner, clamp}, use);
    else
      with_projections(c, inner, use);
  };
  around(plain, [&](auto& quantizer, const bindings<Scalar>& bound) { check_quantizer(c, quantizer, bound); });
  around(whole, [&](auto& quantizer, const bindings<Scalar>& bound) {
    const matrix<Scalar> x = c.rows("x");
    const step run(quantizer, x, matrix<Scalar>(matrix<Scalar>::Zero(x.rows(), quantizer.outputs())));
    c.check("aux_loss", run.tape.loss());
    c.check("grad_aux_loss.x", run.dx);
    bound.check_gradients(c, "grad_aux_loss");
    const auto look = [&](const auto& self, const auto& tape) -> void {
      if constexpr (requires { tape.inner; }) {
        self(self, tape.inner);
      } else {
        const auto columns = static_cast<double>(books);
        c.check("per_sample_entropy", static_cast<Scalar>(tape.entropy.per_sample / columns));
        c.check("codebook_entropy", static_cast<Scalar>(tape.entropy.batch / columns));
        c.check("commitment", static_cast<Scalar>(tape.commitment / (columns * static_cast<double>(bits))));
      }
    };
    look(look, run.tape);
  });
}

template <typename Scalar>
void bsq(oracle_case<Scalar>& c) {
  using options = typename binary_spherical_quantizer<Scalar>::options;
  const auto D = c.template setting<index_t>("D"), group = c.template setting<index_t>("group_size");
  const auto mode = c.template setting<std::string>("per_sample");
  if (mode != "group" && mode != "analytical") throw unsupported("per_sample = " + mode);
  const Scalar length = c.template setting<bool>("l2_norm") ? Scalar(1) : std::sqrt(static_cast<Scalar>(D));
  const double beta = c.template setting<double>("beta");
  const options with_losses{.group = mode == "analytical" ? 1 : group,
                            .length = length,
                            .beta = beta,
                            .gamma0 = c.template setting<double>("gamma0"),
                            .gamma = c.template setting<double>("gamma"),
                            .zeta = c.template setting<double>("zeta"),
                            .inverse_temperature = c.template setting<double>("inv_temperature")};
  const matrix<Scalar> x = c.rows("x"), dy = c.rows("grad_out");
  binary_spherical_quantizer<Scalar> plain(D, {.length = length, .zeta = 0}), whole(D, with_losses);
  check_quantizer(c, plain, bindings<Scalar>{});
  binary_spherical_quantizer<Scalar> groups(D, {.columns = D / group, .length = length, .zeta = 0});
  c.check_integers("group_indices", copy_ids(step(groups, x, dy).tape.ids));

  const step run(whole, x, matrix<Scalar>(matrix<Scalar>::Zero(x.rows(), D)));
  c.check("loss", run.tape.loss());
  c.check("grad_loss.x", run.dx);
  c.check("commit_loss", static_cast<Scalar>(beta * run.tape.commitment));
  c.check("per_sample_entropy", static_cast<Scalar>(run.tape.entropy.per_sample));
  c.check("codebook_entropy", static_cast<Scalar>(run.tape.entropy.batch));
  const auto& q = run.tape.entropy.mean_probabilities();
  c.check("avg_prob", matrix<Scalar>(q.map().template cast<Scalar>()));
}

}  // namespace

std::vector<replayer> scalar_quantizers() {
  return {{"fsq", fsq<float>, fsq<double>},
          {"fsq_original", fsq_original<float>, fsq_original<double>},
          {"residual_fsq", residual_fsq<float>, residual_fsq<double>},
          {"lfq", lfq<float>, lfq<double>},
          {"bsq", bsq<float>, bsq<double>}};
}

}  // namespace oracle
