/// published_layer: a layer of a published model whose type is decided by its config, at run time.
///
///   auto layer = sluice::load_published_layer<float>(model, {.layer = 3}, sluice::weight_type::bfloat16);
///   layer->forward(x, y);                        // x [T,D] -> y [T,D]
///   layer->plan();                               // who went where with what weight
///
/// One virtual call a batch; everything below is the compiled layer. It keeps its own workspace, so one object serves
/// one thread at a time; share() makes another on the same weights, for another thread. Programs that know their model
/// at compile time use load_layer, and can train what it returns.
#pragma once

#include <sluice/checkpoint/file_storages.hpp>
#include <sluice/checkpoint/layer_tensors.hpp>
#include <sluice/checkpoint/load_layer.hpp>
#include <sluice/core/sparse_plan.hpp>

#include <cstdint>
#include <memory>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// What the weights of experts are kept as; arithmetic is in the layer's scalar.
enum class weight_type { as_scalar, bfloat16, float16 };

template <FloatOrDouble Scalar>
class published_layer {
public:
  virtual ~published_layer() = default;

  virtual index_t inputs() const = 0;
  virtual index_t experts() const = 0;
  /// y [T,D] is overwritten. Throws std::invalid_argument if shapes do not fit.
  virtual void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, const routing_context<Scalar>& context = {}) = 0;
  /// The same weights with a workspace of its own, for another thread. Weights live as long as anyone who shares them.
  virtual std::unique_ptr<published_layer> share() const = 0;
  /// Of the last forward call.
  virtual const sparse_plan<Scalar>& plan() const = 0;
  /// Bytes of all weights, and of those of one routed expert.
  virtual std::uint64_t weight_bytes() const = 0;
  virtual std::uint64_t expert_bytes(index_t expert) const = 0;
  /// The layer's tensors under a model's names. Refers to this layer.
  virtual layer_tensors tensors(const tensor_names& names) const = 0;
};

namespace detail {

/// What the mixture inside its wrappers works in.
template <typename Workspace>
auto& innermost_workspace(Workspace& workspace) {
  if constexpr (requires { workspace.layer; })
    return innermost_workspace(workspace.layer);
  else
    return workspace;
}

template <typename Object>
std::uint64_t parameter_bytes(const Object& object) {
  std::uint64_t bytes = 0;
  for_each_unnamed_parameter(object, [&](const auto& p) { bytes += p.value().size_bytes(); });
  return bytes;
}

/// Of one expert of a bank, or of a union in which only the first bank has weights.
template <typename Bank>
std::uint64_t expert_bytes(const Bank& bank, index_t e) {
  if constexpr (requires { bank.expert(e); })
    return parameter_bytes(bank.expert(e));
  else
    return e < bank.template bank<0>().experts() ? parameter_bytes(bank.template bank<0>().expert(e)) : 0;
}

template <typename Layer>
class published_layer_of final : public published_layer<typename Layer::scalar> {
public:
  using scalar = typename Layer::scalar;

  explicit published_layer_of(Layer layer) : layer_(std::make_shared<const Layer>(std::move(layer))) {}

  index_t inputs() const override { return layer_->inputs(); }
  index_t experts() const override { return layer_->experts(); }
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, const routing_context<scalar>& context) override {
    layer_->forward(x, y, workspace_, context);
  }
  std::unique_ptr<published_layer<scalar>> share() const override {
    return std::unique_ptr<published_layer<scalar>>(new published_layer_of(layer_));
  }
  const sparse_plan<scalar>& plan() const override { return innermost_workspace(workspace_).plan; }
  std::uint64_t weight_bytes() const override { return parameter_bytes(*layer_); }
  std::uint64_t expert_bytes(index_t e) const override { return detail::expert_bytes(innermost(*layer_).bank(), e); }
  layer_tensors tensors(const tensor_names& names) const override { return layer_tensors(*layer_, names); }

private:
  explicit published_layer_of(std::shared_ptr<const Layer> layer) : layer_(std::move(layer)) {}

  std::shared_ptr<const Layer> layer_;
  typename Layer::workspace workspace_;
};

template <std::floating_point Scalar, WeightStorage Storage>
std::unique_ptr<published_layer<Scalar>> load_stored(const checkpoint_model& model, const block_id& block,
                                                     const layer_load_options& options) {
  return with_published_type<Scalar, Storage>(
      model.config(), block,
      [&]<typename Layer>(std::type_identity<Layer>) -> std::unique_ptr<published_layer<Scalar>> {
        return std::make_unique<published_layer_of<Layer>>(load_layer<Layer>(model, block, options));
      });
}

}  // namespace detail

/// Errors are those of load_layer. Sixteen-bit weights need float arithmetic.
template <std::floating_point Scalar>
std::unique_ptr<published_layer<Scalar>> load_published_layer(const checkpoint_model& model, const block_id& block,
                                                              weight_type weights = weight_type::as_scalar,
                                                              const layer_load_options& options = {}) {
  if (weights != weight_type::as_scalar) {
    if constexpr (std::same_as<Scalar, float>)
      return weights == weight_type::bfloat16 ? detail::load_stored<float, bfloat16_storage>(model, block, options)
                                              : detail::load_stored<float, float16_storage>(model, block, options);
    else
      throw_invalid("sixteen-bit weights need layers of float");
  }
  return detail::load_stored<Scalar, full_precision<Scalar>>(model, block, options);
}

}  // namespace sluice::inline SLUICE_ISA
