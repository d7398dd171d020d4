// The expert of BASE, StableMoE and hash layers: L sublayers, each with its own residual.
#pragma once

#include "binding.hpp"

#include <sluice/core/concepts.hpp>

#include <cmath>
#include <string>
#include <vector>

namespace oracle {

/// f(x): x <- x + W2 relu(W1 LN(x) + b1) + b2, L times; LN with gain, bias and epsilon 1e-5.
template <typename Scalar>
class sublayers {
public:
  using scalar = Scalar;
  using matrix = sluice::matrix<Scalar>;

  sublayers(index_t width, index_t hidden, index_t count) : width_(width), hidden_(hidden), parts_(static_cast<std::size_t>(count)) {
    using sluice::parameter_role;
    for (part& p : parts_)
      p = {{{width}, parameter_role::vector}, {{width}, parameter_role::vector}, {{hidden, width}, parameter_role::weight},
           {{hidden}, parameter_role::vector}, {{width, hidden}, parameter_role::weight}, {{width}, parameter_role::vector}};
  }

  index_t inputs() const { return width_; }
  index_t outputs() const { return width_; }
  index_t saved_columns() const { return 0; }

  void forward(sluice::tokens_in<Scalar> x, sluice::tokens_out<Scalar> y, sluice::tokens_out<Scalar>) const {
    matrix now = x;
    for (const part& p : parts_) now += stage(p, now).out;
    y = now;
  }

  void backward(sluice::tokens_in<Scalar> x, sluice::tokens_in<Scalar> dy, sluice::tokens_out<Scalar>, sluice::tokens_out<Scalar> dx) {
    std::vector<matrix> inputs{x};
    for (const part& p : parts_) inputs.push_back(inputs.back() + stage(p, inputs.back()).out);
    matrix d = dy;
    for (std::size_t l = parts_.size(); l-- > 0;) {
      part& p = parts_[l];
      const stage s(p, inputs[l]);
      matrix dhidden = (d * p.down.map()).cwiseProduct(s.hidden.unaryExpr([](Scalar h) { return h > 0 ? Scalar(1) : Scalar(0); }));
      p.down.gradient_map() += d.transpose() * s.hidden;
      add_sums(d, p.down_bias);
      p.up.gradient_map() += dhidden.transpose() * s.normal;
      add_sums(dhidden, p.up_bias);
      const matrix dnormal = dhidden * p.up.map();
      add_sums(dnormal, p.norm_bias);
      add_sums(dnormal.cwiseProduct(s.unit), p.gain);
      for (index_t r = 0; r < d.rows(); ++r) {
        const matrix dunit = dnormal.row(r).cwiseProduct(p.gain.map().transpose());
        const Scalar mean = dunit.mean(), pull = dunit.cwiseProduct(s.unit.row(r)).mean();
        d.row(r).array() += (dunit.array() - mean - s.unit.row(r).array() * pull) / s.deviation[static_cast<std::size_t>(r)];
      }
    }
    dx = d;
  }

  /// The tensors [E,L,...] of a case, for expert e.
  void bind(bindings<Scalar>& b, index_t e) {
    const auto count = static_cast<index_t>(parts_.size());
    for (index_t l = 0; l < count; ++l) {
      part& p = parts_[static_cast<std::size_t>(l)];
      const auto one = [&](const char* name, sluice::parameter<Scalar>& a) {
        b.bind(std::string("experts.") + name, a, (e * count + l) * a.size());
      };
      one("norm_weight", p.gain), one("norm_bias", p.norm_bias), one("weight1", p.up), one("bias1", p.up_bias);
      one("weight2", p.down), one("bias2", p.down_bias);
    }
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    for (std::size_t l = 0; l < self.parts_.size(); ++l) {
      auto& p = self.parts_[l];
      const std::string number = std::to_string(l) + '.';
      visit(number + "gain", p.gain), visit(number + "norm_bias", p.norm_bias), visit(number + "up", p.up);
      visit(number + "up_bias", p.up_bias), visit(number + "down", p.down), visit(number + "down_bias", p.down_bias);
    }
  }

private:
  struct part {
    sluice::parameter<Scalar> gain, norm_bias, up, up_bias, down, down_bias;
  };

  struct stage {
    matrix unit, normal, hidden, out;
    std::vector<Scalar> deviation;

    stage(const part& p, const matrix& x) : unit(x) {
      for (index_t r = 0; r < x.rows(); ++r) {
        unit.row(r).array() -= x.row(r).mean();
        deviation.push_back(std::sqrt(unit.row(r).squaredNorm() / static_cast<Scalar>(x.cols()) + Scalar(1e-5)));
        unit.row(r) /= deviation.back();
      }
      normal = unit.array().rowwise() * p.gain.map().col(0).transpose().array();
      normal.rowwise() += p.norm_bias.map().col(0).transpose();
      hidden = normal * p.up.map().transpose();
      hidden.rowwise() += p.up_bias.map().col(0).transpose();
      hidden = hidden.cwiseMax(Scalar(0));
      out = hidden * p.down.map().transpose();
      out.rowwise() += p.down_bias.map().col(0).transpose();
    }
  };

  static void add_sums(const matrix& rows, sluice::parameter<Scalar>& p) {
    for (index_t c = 0; c < rows.cols(); ++c) p.gradient()[static_cast<std::size_t>(c)] += rows.col(c).sum();
  }

  index_t width_;
  index_t hidden_;
  std::vector<part> parts_;
};

template <typename Scalar, typename Bank, typename Inside>
void bind_sublayers(bindings<Scalar>& b, Bank& bank, Inside inside) {
  for (index_t e = 0; e < bank.experts(); ++e) inside(bank.expert(e)).bind(b, e);
}

/// Loads of all experts.
template <typename Scalar, typename Plan>
void check_loads(oracle_case<Scalar>& c, const Plan& plan) {
  std::vector<index_t> counts;
  for (index_t e = 0; e < plan.experts(); ++e) counts.push_back(plan.load(e));
  c.check_integers("counts", counts);
}

}  // namespace oracle
