#include <sluice/expert/bank_decorator.hpp>

#include <sluice/adapter/adapted_bank.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/bank_ref.hpp>
#include <sluice/expert/composed/chained_bank.hpp>
#include <sluice/expert/derived/compressed_bank.hpp>
#include <sluice/expert/derived/mapped_inputs.hpp>
#include <sluice/expert/latent_bank.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/expert/normalized_bank.hpp>
#include <sluice/expert/union.hpp>

#include "../support.hpp"

#include <utility>
#include <vector>

using namespace sluice;

namespace {

/// What a bank was told: the first of its rows' tokens, and how many there are.
using told_rows = std::vector<std::pair<index_t, index_t>>;

/// Experts that mix tokens, and write down what they hear.
struct listening_bank {
  using scalar = double;
  struct tape {
    index_t room = 0;
  };
  static constexpr bool causal = false;
  static constexpr bool mixes_tokens = true;

  index_t count;
  told_rows* told;
  const encoder_states<double>* encoder;

  index_t experts() const { return count; }
  index_t inputs() const { return 3; }
  index_t outputs() const { return 3; }
  void prepare(tape& t, index_t rows, bool) const { t.room = rows; }
  void read_context(tape& t, const routed_rows<double>& rows, const routing_context<double>& context) const {
    CHECK(t.room == 12);
    CHECK((context.encoders.size() == 1 && context.encoders.data() == encoder));
    CHECK(rows.experts() == count);
    told->emplace_back(rows.token(rows.begin()), rows.size());
  }
  void forward(tokens_in<double>, const expert_rows&, tokens_out<double>, tape&, const executor_ref&) const {}
  void forward_routed(tokens_in<double>, const routed_rows<double>&, tokens_out<double>, tape&,
                      const executor_ref&) const {}
};

/// The wrapper of the header's example.
template <typename Bank>
class doubled_bank : public bank_decorator<doubled_bank<Bank>, Bank> {
  friend bank_decorator<doubled_bank, Bank>;

public:
  using scalar = typename Bank::scalar;
  struct tape {
    typename Bank::tape bank;
  };

  explicit doubled_bank(Bank bank) : bank_(std::move(bank)) {}
  index_t experts() const { return bank_.experts(); }
  index_t inputs() const { return bank_.inputs(); }
  index_t outputs() const { return bank_.outputs(); }
  void forward(tokens_in<scalar> x, const expert_rows& rows, tokens_out<scalar> y, tape& t,
               const executor_ref& executor) const {
    bank_.forward(x, rows, y, t.bank, executor);
    y.middleRows(rows.first_row(), rows.rows()) *= 2;
  }

private:
  template <typename F>
  void for_each_bank(tape& t, F&& f) const {
    f(bank_, t.bank, 0);
  }
  void prepare_own(tape&, index_t, bool) const {}

  Bank bank_;
};

struct unchanged {
  static auto value(auto v) { return v; }
};

using plain_bank = expert_bank<linear_expert<double>>;

}  // namespace

TEST_CASE("bank_decorator: banks of banks pass on what the call says, and what their banks do to tokens",
          "[expert][bank]") {
  told_rows told;
  const encoder_states<double> encoder;
  const auto listening = [&](index_t count) { return listening_bank{count, &told, &encoder}; };
  const listening_bank elsewhere = listening(2);
  // Token e goes to expert e.
  const auto check_told = [&](const char* name, const auto& bank, const told_rows& wanted) {
    using bank_type = std::remove_cvref_t<decltype(bank)>;
    static_assert(ReadsContext<bank_type> && is_token_mixer<bank_type> && !is_causal<bank_type>);
    sparse_plan<double> plan;
    plan.reset(bank.experts(), bank.experts());
    for (index_t e = 0; e < bank.experts(); ++e) plan.add(e, e, 1);
    plan.finish();
    typename bank_type::tape tape;
    told.clear();
    bank.prepare(tape, 12, false);
    detail::read_context(bank, tape, plan.routed(), routing_context<double>{.encoders = {&encoder, 1}});
    INFO(name);
    CHECK(told == wanted);
  };
  check_told("a bank of one's own", doubled_bank{listening(2)}, {{0, 2}});
  check_told("bank_ref", bank_ref{elsewhere}, {{0, 2}});
  check_told("normalized_bank", normalized_bank{listening(2), no_norm<double>{}}, {{0, 2}});
  check_told("latent_bank", latent_bank{listening(2), 5, 4}, {{0, 2}});
  check_told("mapped_inputs_bank", mapped_inputs_bank<listening_bank, unchanged>{listening(2)}, {{0, 2}});
  check_told("compressed_bank: half of its experts", compressed_bank{listening(2)}, {{0, 2}});
  check_told("adapted_bank", adapted_bank{listening(2), listening(2)}, {{0, 2}, {0, 2}});
  check_told("chained_bank", chained_bank{plain_bank{2, 7, 3}, listening(2)}, {{0, 2}});
  check_told("expert_union", expert_union{listening(2), plain_bank{3, 3, 3}, listening(1)}, {{0, 2}, {5, 1}});
  check_told("all of them",
             latent_bank{expert_union{plain_bank{1, 3, 3},
                                      compressed_bank{adapted_bank{plain_bank{2, 3, 3}, bank_ref{elsewhere}}},
                                      chained_bank{normalized_bank{listening(1), no_norm<double>{}}, listening(1)}},
                         6, 6},
             {{1, 2}, {5, 1}, {5, 1}});
}

TEST_CASE("bank_decorator: banks of banks that look at their rows alone have nothing to be told", "[expert][bank]") {
  const auto is_plain = []<typename... Banks>(std::tuple<Banks...>*) {
    return ((!ReadsContext<Banks> && !is_token_mixer<Banks> && is_causal<Banks>)&&...);
  };
  using all = std::tuple<plain_bank, bank_ref<plain_bank>, normalized_bank<plain_bank, no_norm<double>>,
                         latent_bank<plain_bank>, mapped_inputs_bank<plain_bank, unchanged>,
                         compressed_bank<plain_bank>, adapted_bank<plain_bank, plain_bank>,
                         chained_bank<plain_bank, plain_bank>, expert_union<plain_bank, plain_bank>>;
  STATIC_REQUIRE(is_plain(static_cast<all*>(nullptr)));
}
