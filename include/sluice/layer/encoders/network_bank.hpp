/// A bank whose experts are whole networks: layers, sequences of them, encoders of images.
///
///   rows of expert e: rows.of(e) of x [n,D] and y [n,D'], through its own layer
///
///   sequence network{dense_layer{ffn<float>{64, 256}}, linear_layer<float>{64, 10}};
///   moe_layer mixture{noisy_top_k_router<float>{64, 8}, network_bank{8, network}};
///   expert_union encoders{network_bank{1, first}, network_bank{1, second}};          networks of unlike types
///
/// What a network reads of several kinds stands side by side in a row, and so does what it says: blocks of features in,
/// blocks of scores out, as in MoE-VRD, whose scores are logarithms (router/combined.hpp). A network that works on many
/// tokens may take a whole sequence as a row (layer/encoders/unfolded.hpp), or mix its rows: they are the tokens that
/// were sent to it, in the call's sequences and with its encoders (attention/encoder_fusion.hpp). A plan that has an
/// expert's tokens of two sequences among each other is refused then.
///
/// Networks run one after the other, each with all threads; one without rows costs nothing. They are called with the
/// executor of the call, with training or not, task, step, sequences and encoders, draw each for itself, and find
/// nothing else in their context: no ids. Losses and after_step of layers inside are not theirs to call. In inference
/// all share the memory of one, with room for every row at any of them; in training each has its own, which grows with
/// the most rows that it had. Equal bits for every executor. Shaabana, Gharaee, Fieguth 2024 (MoE-VRD),
/// arXiv:2403.03994.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/layer/mixture_layer.hpp>
#include <sluice/layer/reserve.hpp>
#include <sluice/layer/split/own_context.hpp>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <typename Layer>
class network_bank {
  static_assert(explain_layer<Layer>());

public:
  using scalar = typename Layer::scalar;
  static constexpr bool causal = is_causal<Layer>;
  static constexpr bool mixes_tokens = is_token_mixer<Layer>;

  struct tape {
    typename Layer::workspace workspace;         ///< of inference
    std::vector<typename Layer::tape> networks;  ///< [E] of training
    std::vector<own_context> own;                ///< [E] the sequences of a network's rows
    routing_context<scalar> call;                ///< what holds for rows of any network
    index_t rows = 0;                            ///< that calls may have
    index_t room = 0;                            ///< rows that the workspace has room for
    index_t threads = 0;                         ///< with which it was made
    bool is_training = false;
  };

  /// `count` copies of a network. Throws std::invalid_argument if count < 1.
  network_bank(index_t count, const Layer& network) {
    if (count < 1) throw_invalid("network_bank needs E >= 1, not ", count);
    networks_.assign(static_cast<std::size_t>(count), network);
  }
  /// Networks made elsewhere, of equal widths in and out.
  explicit network_bank(std::vector<Layer> networks) : networks_(std::move(networks)) {
    if (networks_.empty()) throw_invalid("network_bank needs at least one network");
    for (const Layer& network : networks_)
      if (network.inputs() != inputs() || network.outputs() != outputs())
        throw_invalid("networks of one bank need equal widths: ", inputs(), " -> ", outputs(), " and ",
                      network.inputs(), " -> ", network.outputs());
  }

  index_t experts() const noexcept { return static_cast<index_t>(networks_.size()); }
  index_t inputs() const noexcept { return networks_.front().inputs(); }
  index_t outputs() const noexcept { return networks_.front().outputs(); }
  Layer& network(index_t e) noexcept { return networks_[as_size(e)]; }
  const Layer& network(index_t e) const noexcept { return networks_[as_size(e)]; }

  void prepare(tape& t, index_t rows, bool training) const {
    t.is_training = training;
    t.rows = (std::max)(t.rows, rows);
    if (training && t.networks.size() != networks_.size()) t.networks.resize(networks_.size());
  }

  /// In which sequences the rows are that follow, and what encoders say. Throws std::invalid_argument if the plan has
  /// taken the tokens of sequences among each other and networks would have to know.
  void read_context(tape& t, const routed_rows<scalar>& rows, const routing_context<scalar>& context) const {
    const index_t sequences = context.sequence_borders().empty() ? 0 : context.sequence_count();
    t.call = context.for_other_rows();
    t.own.resize(networks_.size());
    for (own_context& own : t.own) {  // of those without rows, too: others have rows in the next call
      own.clear();
      own.sequences.resize(sequences == 0 ? 0 : sequences + 1);
    }
    if (sequences == 0) return;
    for (const auto& [expert, begin, end] : rows.by_expert) {
      buffer<index_t>& borders = t.own[as_size(expert)].sequences;
      index_t row = begin;
      for (index_t s = 0; s < sequences; ++s) {
        const token_range tokens = context.sequence(s, 0);
        borders[s] = row - begin;
        while (row < end && rows.token(row) >= tokens.begin && rows.token(row) < tokens.end) ++row;
      }
      borders[sequences] = row - begin;
      if (row == end) continue;
      if (mixes_tokens || !context.encoders.empty())
        throw_invalid("network ", expert, " cannot mix tokens of ", sequences, " sequences: token ", rows.token(row),
                      " comes after tokens of a later one");
      borders.clear();
    }
  }

  void forward(tokens_in<scalar> x, const expert_rows& rows, tokens_out<scalar> y, tape& t,
               const executor_ref& executor) const {
    t.call.training = t.is_training;
    t.call.executor = executor;
    if (!t.is_training) make_room(t, t.call);
    for (const auto& [expert, begin, end] : rows) {
      const auto in = x.middleRows(begin, end - begin);
      auto out = y.middleRows(begin, end - begin);
      const auto context = (t.own.empty() ? t.call : t.own[as_size(expert)].seen_by(t.call)).for_layer(expert);
      if (t.is_training)
        network(expert).forward(in, out, t.networks[as_size(expert)], context);
      else
        network(expert).forward(in, out, t.workspace, context);
    }
  }

  void backward(tokens_in<scalar>, const expert_rows& rows, tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t,
                const executor_ref&) requires TrainableLayer<Layer> {
    for (const auto& [expert, begin, end] : rows) {
      if (!t.own.empty()) t.own[as_size(expert)].follow(t.networks[as_size(expert)]);
      network(expert).backward(dy.middleRows(begin, end - begin), dx.middleRows(begin, end - begin),
                               t.networks[as_size(expert)]);
    }
  }

  /// The same networks with the weights of their experts rounded to another storage, for inference.
  template <typename Storage>
  auto stored_as() const {
    using other = decltype(network(0).template stored_as<Storage>());
    std::vector<other> converted;
    converted.reserve(networks_.size());
    for (const Layer& one : networks_) converted.push_back(one.template stored_as<Storage>());
    return network_bank<other>(std::move(converted));
  }

  /// Bytes of a tape that has run `rows` rows; in training each network may have had all of them.
  index_t workspace_bytes(index_t rows, bool training) const {
    index_t bytes = 0;
    for (const Layer& one : networks_)
      if constexpr (requires { one.workspace_bytes(rows, training); }) {
        const index_t own = one.workspace_bytes(rows, training);
        bytes = training ? bytes + own : (std::max)(bytes, own);
      }
    return bytes;
  }

  static consteval bool explain_training() { return explain_trainable_layer<Layer>(); }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Layer>)
      for (std::size_t e = 0; e < self.networks_.size(); ++e) visit(std::to_string(e), self.networks_[e]);
  }

private:
  void make_room(tape& t, routing_context<scalar> context) const {
    const index_t threads = context.executor.concurrency();
    if (t.room >= t.rows && t.threads >= threads) return;
    // All rows are of the first sequence.
    std::vector<index_t> borders(t.own.empty() ? 0 : as_size(t.own.front().sequences.size()), t.rows);
    if (!borders.empty()) borders.front() = 0;
    context.sequences = borders;
    for (const Layer& one : networks_) reserve(one, t.workspace, t.rows, context);
    t.room = t.rows;
    t.threads = threads;
  }

  std::vector<Layer> networks_;
};

}  // namespace sluice::inline SLUICE_ISA
