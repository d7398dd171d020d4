// What reads codes: Transformer-VQ's attention, MoVQ's norm.
#include "binding.hpp"
#include "replays.hpp"

#include <sluice/codebook/attention/quantized_attention.hpp>
#include <sluice/codebook/modulated_norm.hpp>
#include <sluice/layer/normalized.hpp>

namespace oracle {
namespace {

using namespace sluice;

template <typename Scalar>
void replay_transformer_vq(oracle_case<Scalar>& c) {
  const auto size = [&](const char* name) { return c.template setting<index_t>(name); };
  const index_t D = size("D"), heads = size("heads"), dk = size("d_k"), dv = size("d_v"), codes = size("codes");
  const auto make = [&](double commitment) {
    quantized_attention<Scalar> attention{
        D, {.heads = heads, .key_width = dk, .value_width = dv, .codes = codes, .block = size("L"), .window = size("M"),
            .commitment = commitment, .length = c.template setting<double>("lam"),
            .averages = {.decay = c.template setting<double>("gamma"), .epsilon = 0, .least_size = 0.01}}};
    return normalized_layer{std::move(attention), rms_norm<Scalar>{D, {.epsilon = Scalar(1e-6), .smallest = 0, .bias = true}}};
  };
  const auto bind = [&](auto& layer) {
    bindings<Scalar> b;
    auto& a = layer.layer();
    b.bind("input_ln.g", layer.norm().gain());
    b.bind("input_ln.b", layer.norm().bias());
    b.bind("q_proj.kernel", a.query(), 0, layout::transposed);
    b.bind("r_proj.kernel", a.relative(), 0, layout::transposed);
    b.bind("res_proj.kernel", a.output(), 0, layout::transposed);
    const index_t columns = heads * (dk + 2 * dv);
    b.bind_at("kvg_proj.kernel", a.key(), {0, 1, columns});
    b.bind_at("kvg_proj.kernel", a.value(), {heads * dk, 1, columns});
    b.bind_at("kvg_proj.kernel", a.gate(), {heads * (dk + dv), 1, columns});
    b.bind("xl_u", a.content_bias());
    b.bind("xl_v", a.position_bias());
    return b;
  };
  auto layer = make(1), without_loss = make(0);
  using layer_type = decltype(layer);
  const auto counts = c.numbers("c_count"), sums = c.numbers("c_sum");
  for (auto* one : {&layer, &without_loss}) {
    bind(*one).load(c);
    for (index_t h = 0; h < heads; ++h) {
      auto& codebook = one->layer().codebook(h).codebook();
      codebook.sizes().fill([&](index_t s) { return counts[as_size(h * codes + s)]; });
      codebook.sums().fill([&](index_t i) { return sums[as_size(h * codes * dk + i)]; });
      codebook.table().fill([&](index_t i) {
        return sums[as_size(h * codes * dk + i)] / std::max(counts[as_size(h * codes + i / dk)], Scalar(0.01));
      });
    }
  }
  const auto x = c.rows("x"), dy = c.rows("grad_out");
  const auto borders = c.groups();
  const routing_context<Scalar> context{.training = true, .sequences = borders};
  typename layer_type::tape tape, plain;
  matrix<Scalar> y(x.rows(), D), dx(x.rows(), D);

  without_loss.forward(x, y, plain, context);
  without_loss.backward(dy, dx, plain);
  c.check("y", y);
  c.check("grad.x", dx);
  bind(without_loss).check_gradients(c, "grad");

  layer.forward(x, y, tape, context);
  c.check("commit_loss", tape.loss());
  layer.backward(matrix<Scalar>::Zero(x.rows(), D), dx, tape);
  c.check("grad_commit_loss.x", dx);
  layer.after_step(tape);

  const index_t sequences = static_cast<index_t>(borders.size()) - 1, length = x.rows() / sequences;
  std::vector<index_t> ids;
  std::vector<Scalar> table, cached_counts, cached_means, counts_after, sums_after;
  for (index_t s = 0; s < sequences; ++s)
    for (index_t h = 0; h < heads; ++h) {
      for (index_t t = 0; t < length; ++t) ids.push_back(tape.layer.key[as_size(h)].ids(s * length + t, 0));
      const auto& head = tape.layer.head[as_size(s * heads + h)];
      cached_counts.insert(cached_counts.end(), head.next_counts.begin(), head.next_counts.end());
      cached_means.insert(cached_means.end(), head.next_means.begin(), head.next_means.end());
    }
  const auto append = [](std::vector<Scalar>& to, auto& p) { to.insert(to.end(), p.value().begin(), p.value().end()); };
  for (index_t h = 0; h < heads; ++h) {
    append(table, without_loss.layer().codebook(h).codebook().table());
    append(counts_after, layer.layer().codebook(h).codebook().sizes());
    append(sums_after, layer.layer().codebook(h).codebook().sums());
  }
  c.check_integers("indices", ids);
  c.check("codebook", table);
  c.check("cache_count", cached_counts);
  c.check("cache_mean", cached_means);
  c.check("c_count_after", counts_after);
  c.check("c_sum_after", sums_after);
}

// ---- MoVQ ------------------------------------------------------------------------------------------------------------

/// [B,C,H,W] as pixels of channels, and back.
template <typename Scalar>
matrix<Scalar> pixels_of(const std::vector<Scalar>& values, index_t images, index_t channels, index_t pixels) {
  matrix<Scalar> m(images * pixels, channels);
  for (index_t b = 0; b < images; ++b)
    for (index_t c = 0; c < channels; ++c)
      for (index_t p = 0; p < pixels; ++p) m(b * pixels + p, c) = values.at(as_size((b * channels + c) * pixels + p));
  return m;
}
template <typename Scalar>
std::vector<Scalar> maps_of(const matrix<Scalar>& m, index_t images) {
  const index_t pixels = m.rows() / images;
  std::vector<Scalar> values;
  for (index_t b = 0; b < images; ++b)
    for (index_t c = 0; c < m.cols(); ++c)
      for (index_t p = 0; p < pixels; ++p) values.push_back(m(b * pixels + p, c));
  return values;
}

template <typename Scalar>
void replay_movq(oracle_case<Scalar>& c) {
  const auto size = [&](const char* name) { return c.template setting<index_t>(name); };
  const index_t B = size("B"), C = size("C"), Z = size("Z");
  const bool convolution = c.template setting<bool>("add_conv");
  modulated_norm<Scalar> norm{{.channels = C, .code_width = Z, .groups = size("groups"), .height = size("H"), .width = size("W"),
                               .code_height = size("h"), .code_columns = size("w"), .convolution = convolution}};
  bindings<Scalar> b;
  b.bind("norm_layer.weight", norm.gain());
  b.bind("norm_layer.bias", norm.bias());
  b.bind("conv_y.weight", norm.scale());
  b.bind("conv_y.bias", norm.scale_bias());
  b.bind("conv_b.weight", norm.shift());
  b.bind("conv_b.bias", norm.shift_bias());
  b.load(c);
  // The window's places come before its channels here, behind them there.
  const auto moved = [&](index_t i) { return i / (9 * Z) * 9 * Z + i % Z * 9 + i % (9 * Z) / Z; };
  if (convolution) {
    const auto weight = c.numbers("conv.weight"), bias = c.numbers("conv.bias");
    norm.convolution().fill([&](index_t i) { return weight.at(as_size(moved(i))); });
    norm.convolution_bias().fill([&](index_t i) { return bias.at(as_size(i)); });
  }
  const auto x = pixels_of(c.numbers("x"), B, C, size("H") * size("W"));
  const auto q = pixels_of(c.numbers("zq"), B, Z, size("h") * size("w"));
  const auto dy = pixels_of(c.numbers("grad_out"), B, C, size("H") * size("W"));
  matrix<Scalar> y(x.rows(), C), dx(x.rows(), C), dq(q.rows(), Z);
  typename modulated_norm<Scalar>::tape tape;
  norm.forward(x, q, y, tape);
  norm.backward(dy, dx, dq, tape);
  c.check("y", maps_of(y, B));
  c.check("grad.x", maps_of(dx, B));
  c.check("grad.zq", maps_of(dq, B));
  b.check_gradients(c, "grad");
  if (convolution) {
    std::vector<Scalar> weight(as_size(norm.convolution().size())), bias(norm.convolution_bias().gradient().begin(), norm.convolution_bias().gradient().end());
    for (index_t i = 0; i < norm.convolution().size(); ++i) weight.at(as_size(moved(i))) = norm.convolution().gradient()[as_size(i)];
    c.check("grad.conv.weight", weight);
    c.check("grad.conv.bias", bias);
  }
}

}  // namespace

std::vector<replayer> code_readers() {
  return {{"transformer_vq", replay_transformer_vq<float>, replay_transformer_vq<double>},
          {"movq", replay_movq<float>, replay_movq<double>}};
}

}  // namespace oracle
