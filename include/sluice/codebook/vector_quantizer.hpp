/// A vector goes to its nearest code and comes back as that code: VQ-VAE's layer and, by its policies, its successors.
///
///   x [T,D] -> id [T] = the code that the metric says is nearest    y = code of id
///   training: y is the same; dx = what the gradient policy makes of dy, and the losses' part
///
///   vector_quantizer vq{learned_codes<float>{512, 64}};                                  // van den Oord et al. 2017
///   vector_quantizer vq{moving_average_codes<float>{512, 64, {.decay = 0.99}}};          // and its appendix A.1
///   vector_quantizer vq{mapped_codes<float>{65536, 64}, rotation{}, commitment_loss{.encoder = 0.25, .codebook = 1}};
///   vq.forward(x, y, tape, {.training = true, .random = random_source{7, step}});
///   vq.backward(dy, dx, tape);       optimizer.step(vq);       vq.after_step(tape);      tape.usage.perplexity()
///
/// The first argument is the codebook (codebook/codes/), the others are policies in any order, found by their roles
/// (codebook/quantized_batch.hpp): squared_distance, nearest_code, straight_through and commitment_loss are there
/// unless you give another. Inference, and encode, take the nearest code whatever the assignment in training. Losses
/// are in tape.loss(), and backward adds their gradients. after_step lets codes learn from the batch, then repairs
/// them.
///
/// Equal scores: the lowest code. Hidden tokens, T = 0, memory and threads: codebook/quantizer.hpp. Search costs 2 C D
/// operations a token and never holds [T,C]. What a call makes of the codes alone (norms, a linear map) costs C D; for
/// a few tokens at a time keep a code_search (codebook/code_search.hpp) of codes that do not change. Parameters:
/// "codebook".
#pragma once

#include <sluice/codebook/assign/nearest.hpp>
#include <sluice/codebook/code_usage.hpp>
#include <sluice/codebook/codes/learned.hpp>
#include <sluice/codebook/gradient/straight_through.hpp>
#include <sluice/codebook/loss/commitment.hpp>
#include <sluice/codebook/metric.hpp>
#include <sluice/codebook/quantizer.hpp>

#include <algorithm>
#include <tuple>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Role, typename Default, typename... Policies>
using default_policy = std::conditional_t<policy_set<std::tuple<Policies...>>::template count<Role> == 0,
                                          std::tuple<Default>, std::tuple<>>;

/// What is there unless another policy plays its part.
template <typename... Policies>
using default_policies =
    decltype(std::tuple_cat(default_policy<metric_role, squared_distance, Policies...>{},
                            default_policy<assignment_role, nearest_code, Policies...>{},
                            default_policy<gradient_role, straight_through, Policies...>{},
                            default_policy<loss_role, commitment_loss, Policies...>{}));

template <typename... Policies>
using all_policies = decltype(std::tuple_cat(std::declval<std::tuple<Policies...>>(), default_policies<Policies...>{}));

/// What a search needs beside x.
template <typename Codes>
struct search_memory {
  typename Codes::memory codes;
  code_search<typename Codes::scalar> search;
  nearest_scratch<typename Codes::scalar> scratch;
};

template <typename Codes, typename... Policies>
struct vector_tape : search_memory<Codes> {
  typename policy_set<all_policies<Policies...>>::template memories<typename Codes::scalar> memories;
  code_usage usage;          ///< of this batch
  buffer<index_t> replaced;  ///< the codes that after_step gave to others
};

}  // namespace detail

template <typename Codes, typename... Policies>
class vector_quantizer : public quantizer_base<vector_quantizer<Codes, Policies...>, typename Codes::scalar,
                                               detail::search_memory<Codes>, detail::vector_tape<Codes, Policies...>> {
  using base = quantizer_base<vector_quantizer, typename Codes::scalar, detail::search_memory<Codes>,
                              detail::vector_tape<Codes, Policies...>>;
  friend base;
  using policies = detail::policy_set<detail::all_policies<Policies...>>;
  static_assert(policies::template count<metric_role> == 1, "sluice: a vector_quantizer takes one metric");
  static_assert(policies::template count<assignment_role> == 1, "sluice: a vector_quantizer takes one assignment");
  static_assert(policies::template count<gradient_role> == 1, "sluice: a vector_quantizer takes one gradient");
  static_assert(policies::template count<repair_role> <= 1, "sluice: a vector_quantizer takes one repair");

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  static constexpr bool causal = policies::causal;

  /// Throws std::invalid_argument if an option of a policy does not fit.
  explicit vector_quantizer(Codes codes, Policies... given)
      : codebook_(std::move(codes)),
        policies_(
            std::tuple_cat(std::tuple<Policies...>(std::move(given)...), detail::default_policies<Policies...>{})) {
    std::apply([&](const auto&... one) { (check_options(one), ...); }, policies_);
  }

  index_t inputs() const noexcept { return codebook_.inputs(); }
  index_t code_columns() const noexcept { return 1; }
  index_t codes(index_t /*column*/ = 0) const noexcept { return codebook_.codes(); }

  /// Lets codes learn from the batch of this tape, then repairs them. Call it once after every training step, and then
  /// forget_replaced(optimizer, quantizer, tape).
  void after_step(tape& t) {
    t.record.validate(this);
    const auto batch = seen(t, t.ids.data());
    codebook_.after_step(batch, t.codes);
    t.replaced.clear();
    policies::template for_each<repair_role>(policies_, [&](auto& repair, auto& memory) {
      repair.after_step(codebook_, batch, memory, t.replaced);
    }, t.memories);
  }

  template <typename F>
  void for_each_replaced(tape& t, F&& f) {
    if constexpr (requires { codebook_.table(); })
      for (const index_t code : t.replaced) f(codebook_.table(), code);
  }

  Codes& codebook() noexcept { return codebook_; }
  const Codes& codebook() const noexcept { return codebook_; }
  /// One of the policies, by its type.
  template <typename Policy>
  Policy& policy() noexcept {
    return std::get<Policy>(policies_);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("codebook", self.codebook_);
    std::apply([&](auto&... one) { (visit_policy(one, visit), ...); }, self.policies_);
  }

private:
  template <typename Policy>
  static void check_options(const Policy& policy) {
    if constexpr (requires { policy.validate(); }) policy.validate();
  }

  template <typename Policy, typename Visitor>
  static void visit_policy(Policy& policy, Visitor&& visit) {
    if constexpr (HasParameters<std::remove_const_t<Policy>>) visit(Policy::name, policy);
  }

  template <typename Memory>
  void make_room(Memory& memory, index_t tokens) const {
    if constexpr (requires { memory.reserve(tokens, codes(), inputs()); }) memory.reserve(tokens, codes(), inputs());
  }

  void prepare(detail::search_memory<Codes>& m, const executor_ref& executor) const {
    codebook_.evaluate(m.codes, executor);
  }

  void prepare_search(detail::search_memory<Codes>& m, const executor_ref& executor) const {
    policies::template for_each<metric_role>(policies_, [&](const auto& metric) {
      metric.prepare(codebook_.evaluated(m.codes), m.search, executor);
    });
  }

  void encode_rows(tokens_in<scalar> x, tokens_out<index_t> ids, detail::search_memory<Codes>& m,
                   const context_type& context) const {
    prepare_search(m, context.executor);
    nearest_codes<scalar>(x, m.search, ids, nullptr, m.scratch, context.executor);
  }

  void decode_rows(tokens_in<index_t> ids, tokens_out<scalar> y, detail::search_memory<Codes>& m,
                   const executor_ref& executor) const {
    const const_matrix_map<scalar> codes = codebook_.evaluated(m.codes);
    executor.parallel_each(ids.rows(), inputs(), [&](index_t t) {
      if (ids(t, 0) != no_code)
        std::copy_n(codes.data() + ids(t, 0) * inputs(), inputs(), y.data() + t * y.outerStride());
    });
  }

  void assign(tape& t, const context_type& context) const {
    prepare(t, context.executor);
    prepare_search(t, context.executor);
    t.replaced.reserve(codes());
    std::apply([&](auto&... memory) { (make_room(memory, t.ids.rows()), ...); }, t.memories);
    const auto batch = seen(t, nullptr);
    policies::template for_each<assignment_role>(policies_, [&](const auto& assignment, auto& memory) {
      assignment.assign(batch, t.ids.map(), memory);
    }, t.memories);
  }

  void quantize(tape& t, tokens_out<scalar> y, const context_type& context) const {
    t.usage.clear(codes());
    t.usage.add(t.ids.data(), t.ids.rows());
    decode_rows(std::as_const(t.ids).map(), y, t, context.executor);
    if constexpr (requires { codebook_.reserve(t.codes, t.ids.rows()); }) codebook_.reserve(t.codes, t.ids.rows());
    const auto batch = seen(t, t.ids.data());
    t.value = 0;
    policies::template for_each<loss_role>(policies_, [&](const auto& loss, auto& memory) {
      t.value += loss.value(batch, memory, Codes::learns_by_gradient);
    }, t.memories);
  }

  void quantize_backward(matrix_map<scalar> dy, tokens_out<scalar> dx, tape& t) {
    const auto batch = seen(t, t.ids.data());
    const matrix_map<scalar> dcodes = codebook_.gradient(t.codes);
    policies::template for_each<loss_role>(policies_, [&](const auto& loss, auto&) {
      if constexpr (requires { loss.backward_output(batch, dy, dx); }) loss.backward_output(batch, dy, dx);
    }, t.memories);
    policies::template for_each<gradient_role>(policies_, [&](const auto& gradient, auto& memory) {
      gradient.backward(batch, dy, dx, dcodes, memory);
    }, t.memories);
    policies::template for_each<loss_role>(policies_, [&](auto& loss, auto& memory) {
      loss.backward(batch, dx, dcodes, memory);
    }, t.memories);
    codebook_.backward(t.codes, t.context.executor);
  }

  quantized_batch<scalar> seen(tape& t, const index_t* ids) const {
    return {t.kept.x(), codebook_.evaluated(t.codes), ids, t.kept.counts(), ids == nullptr ? 0 : t.usage.total(),
            t.search,   t.scratch,                    t.context};
  }

  Codes codebook_;
  detail::all_policies<Policies...> policies_;
};

}  // namespace sluice::inline SLUICE_ISA
