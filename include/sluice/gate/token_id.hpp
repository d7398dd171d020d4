/// A gate that knows tokens by their ids alone: StableMoE's distilled router, whose routes no context can change.
///
///   M [V,P] embeddings   C [E,P] centroids   id[t] from routing_context::token_ids   logits [T,E] = r C^T
///
///   window    r[t] =
///   word      M[id[t]]                                               the default
///   bigram    (M[id[t]] + M[id[t-1]]) / 2                            a sequence's first token: M[id[t]]
///   causal    sum over i = 0 .. 4 of kernel[i] M[id[t-i]]            nothing before a sequence's first token
///
/// Sequences are those of routing_context::sequences, or the groups. A token of padding counts as none: its id may be
/// anything, and looking back at it is looking past the sequence's start. Refused with its number: an id outside
/// 0..V-1, or a call with tokens and no ids. x is not read and has no gradient. Embeddings gather their gradients in
/// the order of the tokens: equal bits for any thread count. T = 0 is fine. Causal in the sense of routing one token at
/// a time only with the window word. Initial values: M normal with deviation 1, C normal with 0.1 / sqrt(P) (the
/// paper's are orthogonal, of length 0.1), kernel 1/5 each. Dai et al. 2022, "StableMoE: Stable Routing Strategy for
/// Mixture of Experts", arXiv:2204.08396.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

enum class id_window { word, bigram, causal };

template <FloatOrDouble Scalar, id_window Window = id_window::word>
class token_id_gate {
public:
  using scalar = Scalar;
  static constexpr bool causal = Window == id_window::word;
  struct tape {
    matrix_buffer<Scalar> read;  ///< r [T,P]
    matrix_buffer<Scalar> dread;
    buffer<index_t> reach;  ///< [T] how many tokens r[t] is made of, itself the first; 0 for padding
  };

  /// Throws std::invalid_argument unless D, E, V and P are at least 1.
  token_id_gate(index_t inputs, index_t experts, index_t ids, index_t width = 50) : inputs_(inputs) {
    if (inputs < 1 || experts < 1 || ids < 1 || width < 1)
      throw_invalid("token_id_gate needs D, E, V and P >= 1, not ", inputs, ", ", experts, ", ", ids, " and ", width);
    embeddings_ = {{ids, width}, parameter_role::weight, initial_values::normal(1)};
    centroids_ = {
        {experts, width}, parameter_role::weight, initial_values::normal(0.1 / std::sqrt(static_cast<double>(width)))};
    if (has_kernel) kernel_ = {{taps}, parameter_role::weight, initial_values::constant(1.0 / taps)};
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t experts() const noexcept { return centroids_.rows(); }

  void forward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_out<Scalar> logits, tape& t) const {
    find_reach(context, x.rows(), t);
    t.read.resize(x.rows(), width());
    for (index_t token = 0; token < x.rows(); ++token) {
      std::fill_n(t.read.row(token), width(), Scalar(0));
      for (index_t i = 0; i < t.reach[token]; ++i)
        kernel::add_scaled(share(i, t.reach[token]), embedding(context, token - i), t.read.row(token), width());
    }
    linear_forward<Scalar>(t.read.map(), centroids_, logits, context.executor);
  }

  /// Adds into the gradients.
  void backward(tokens_in<Scalar>, const routing_context<Scalar>& context, tokens_in<Scalar> dlogits, tape& t,
                tokens_out<Scalar>) {
    t.dread.set_zero(t.read.rows(), width());
    linear_backward<Scalar>(t.read.map(), centroids_, dlogits, t.dread.map(), context.executor);
    Scalar* const dembeddings = embeddings_.gradient().data();
    for (index_t token = 0; token < t.read.rows(); ++token)
      for (index_t i = 0; i < t.reach[token]; ++i) {
        kernel::add_scaled(share(i, t.reach[token]), t.dread.row(token),
                           dembeddings + id_of(context, token - i) * width(), width());
        if constexpr (has_kernel)
          kernel_.gradient()[as_size(i)] += kernel::dot(t.dread.row(token), embedding(context, token - i), width());
      }
  }

  parameter<Scalar>& embeddings() noexcept { return embeddings_; }
  parameter<Scalar>& centroids() noexcept { return centroids_; }
  /// Of the window `causal`; else empty.
  parameter<Scalar>& kernel() noexcept { return kernel_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("embeddings", self.embeddings_);
    visit("centroids", self.centroids_);
    if constexpr (has_kernel) visit("kernel", self.kernel_);
  }

private:
  static constexpr bool has_kernel = Window == id_window::causal;
  static constexpr index_t taps = Window == id_window::word ? 1 : Window == id_window::bigram ? 2 : 5;

  index_t width() const noexcept { return embeddings_.cols(); }
  static index_t id_of(const routing_context<Scalar>& context, index_t token) {
    return context.token_ids[as_size(token)];
  }
  const Scalar* embedding(const routing_context<Scalar>& context, index_t token) const {
    return embeddings_.data() + id_of(context, token) * width();
  }

  /// What the i-th token back counts, of so many that there are.
  Scalar share(index_t i, index_t reach) const {
    if constexpr (has_kernel)
      return kernel_.data()[i];
    else
      return 1 / static_cast<Scalar>(reach);
  }

  void find_reach(const routing_context<Scalar>& context, index_t tokens, tape& t) const {
    if (static_cast<index_t>(context.token_ids.size()) != tokens)
      throw_invalid("a gate by token ids needs routing_context.token_ids, one for each of ", tokens, " tokens");
    const auto borders = context.sequence_borders();
    t.reach.resize(tokens);
    auto border = borders.begin();
    index_t so_far = 0;
    for (index_t token = 0; token < tokens; ++token) {
      for (; border != borders.end() && *border <= token; ++border) so_far = 0;
      so_far = context.is_padding(token) ? 0 : (std::min)(so_far + 1, taps);
      t.reach[token] = so_far;
      if (so_far == 0) continue;
      const index_t id = id_of(context, token);
      if (id < 0 || id >= embeddings_.rows())
        throw_invalid("token ", token, " has id ", id, ", the gate knows ids 0 to ", embeddings_.rows() - 1);
    }
  }

  index_t inputs_;
  parameter<Scalar> embeddings_;
  parameter<Scalar> centroids_;
  parameter<Scalar> kernel_;
};

static_assert(DifferentiableGate<token_id_gate<float>>);
static_assert(DifferentiableGate<token_id_gate<float, id_window::causal>>);

}  // namespace sluice::inline SLUICE_ISA
