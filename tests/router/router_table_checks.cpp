// Holds the rows of the table of routers against the routers: counts, prefixes, context fields, differences.
#include "router_table.hpp"

#include <sluice/core/numeric.hpp>
#include <sluice/train/conformance/plan_words.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>

#include <algorithm>
#include <array>
#include <fstream>
#include <optional>
#include <set>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "support.hpp"

namespace sluice::test {

namespace {

// ---- the file -------------------------------------------------------------------------------------------------------

/// Fields of a line of a CSV file: those in quotes may hold commas, and two quotes for one.
std::vector<std::string> csv_fields(std::string_view line) {
  std::vector<std::string> fields(1);
  bool quoted = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (c == '"' && quoted && i + 1 < line.size() && line[i + 1] == '"')
      fields.back() += line[++i];
    else if (c == '"')
      quoted = !quoted;
    else if (c == ',' && !quoted)
      fields.emplace_back();
    else
      fields.back() += c;
  }
  if (quoted) throw std::runtime_error("a quote does not end");
  return fields;
}

std::vector<std::string> words_in(std::string_view text) {
  std::vector<std::string> words;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(' '), text.size());
    if (end > 0) words.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(text.size(), end + 1));
  }
  return words;
}

// ---- a batch with everything that a context may hold ----------------------------------------------------------------

enum class tokens_of { chance, one_direction, one_token };

struct whole_batch {
  matrix<double> x, previous_logits, features, group_features;
  std::vector<index_t> token_ids, modality_ids, cluster_ids, expert_ids, groups;

  /// `kind`: independent tokens, tokens that lean to one side, or one token many times.
  template <typename Router>
  whole_batch(const Router& router, const made_with& o, tokens_of kind, std::uint64_t seed) {
    const index_t T = table_tokens;
    x = random_matrix<double>(T, router.inputs(), seed);
    previous_logits = random_matrix<double>(T, router.experts(), seed + 100);
    features = random_matrix<double>(T, o.feature_width, seed + 200);
    group_features = random_matrix<double>(3, o.feature_width, seed + 250);
    const random_source random(seed + 300);
    const auto ids = [&](index_t below, index_t first) {
      std::vector<index_t> all;
      for (index_t t = 0; t < T; ++t)
        all.push_back(static_cast<index_t>(random.uniform(random_site::user_site, first + t) * double(below)));
      return all;
    };
    token_ids = ids(o.vocabulary, 0);
    modality_ids = ids(o.modalities, T);
    cluster_ids = ids(o.clusters, 2 * T);
    // Neighbours of the first, so that a row names no expert twice.
    for (const index_t first : ids(router.experts(), 3 * T))
      for (index_t j = 0; j < o.offered; ++j) expert_ids.push_back((first + j) % router.experts());
    groups = {0, T / 4, T / 2, T};
    if (kind == tokens_of::one_direction) x.rowwise() += random_matrix<double>(1, x.cols(), seed + 400).row(0);
    if (kind != tokens_of::one_token) return;
    for (matrix<double>* m : {&x, &previous_logits, &features}) *m = m->row(0).eval().replicate(T, 1);
    for (auto* all : {&token_ids, &modality_ids, &cluster_ids}) std::fill(all->begin(), all->end(), all->front());
    for (std::size_t i = as_size(o.offered); i < expert_ids.size(); ++i) expert_ids[i] = expert_ids[i % as_size(o.offered)];
  }
};

const std::set<std::string> known_fields{"random",      "step",    "groups",          "token_ids", "modality_ids",
                                         "cluster_ids", "task_id", "previous_logits", "features",
                                         "expert_ids",  "group_features"};

/// The first `tokens` of a batch, and the fields of the context that a router is to be given.
struct call_of {
  matrix<double> x;
  routing_context<double> context;

  call_of(const whole_batch& b, const std::set<std::string>& fields, bool training, index_t tokens = table_tokens,
          std::uint64_t seed = 11) {
    x = b.x.topRows(tokens);
    context.training = training;
    context.random = random_source(seed);
    const auto some = [&](const char* name, const std::vector<index_t>& all) {
      return fields.count(name) == 0 ? std::span<const index_t>()
                                     : std::span(all).first(static_cast<std::size_t>(tokens));
    };
    context.token_ids = some("token_ids", b.token_ids);
    context.modality_ids = some("modality_ids", b.modality_ids);
    context.cluster_ids = some("cluster_ids", b.cluster_ids);
    if (fields.count("task_id") != 0) context.task_id = 0;
    if (fields.count("previous_logits") != 0)
      context.previous_logits = {b.previous_logits.data(), tokens, b.previous_logits.cols()};
    if (fields.count("features") != 0) context.features = {b.features.data(), tokens, b.features.cols()};
    if (fields.count("expert_ids") != 0) context.expert_ids = {b.expert_ids.data(), tokens, static_cast<index_t>(b.expert_ids.size()) / table_tokens};
    if (fields.count("group_features") != 0)
      context.group_features = {b.group_features.data(), 1, b.group_features.cols()};
  }
};

// ---- what plans have in common --------------------------------------------------------------------------------------

/// How many experts each token has.
std::vector<index_t> experts_of_tokens(const sparse_plan<double>& plan) {
  std::vector<index_t> counts;
  for (index_t t = 0; t < plan.tokens(); ++t) counts.push_back(static_cast<index_t>(plan.of_token(t).size()));
  return counts;
}
template <typename Plan>
std::vector<index_t> experts_of_tokens(const Plan& plan) {  // every token meets every expert, or every slot
  return std::vector<index_t>(static_cast<std::size_t>(plan.tokens()), plan.experts());
}

template <typename Plan>
std::vector<index_t> loads_of(const Plan& plan) {
  std::vector<index_t> loads(static_cast<std::size_t>(plan.experts()), 0);
  for (const row_range& own : plan.by_expert()) loads[static_cast<std::size_t>(own.expert)] = own.size();
  return loads;
}

/// A number that a plan's weights sum up to, and its gradient. A coefficient belongs to a pair of token and expert, not to its place.
double coefficient(index_t token, index_t column) { return std::sin(1.7 * double(token) + 2.9 * double(column) + 0.3); }

template <typename Plan>
double weighted(const Plan& plan, typename Plan::gradient& d) {
  double sum = 0;
  const auto routed = plan.routed();
  d.weight.assign(plan.rows(), 0);
  d.input_scale.assign(routed.input_scales == nullptr ? 0 : plan.rows(), 0);
  for (const row_range& own : plan.by_expert())
    for (index_t i = own.begin; i < own.end; ++i) {
      const index_t token = routed.tokens[i];
      d.weight[i] = coefficient(token, own.expert);
      sum += d.weight[i] * routed.weights[i];
      if (routed.input_scales == nullptr) continue;
      d.input_scale[i] = coefficient(token + 31, own.expert);
      sum += d.input_scale[i] * routed.input_scales[i];
    }
  return sum;
}
double weighted(const soft_plan<double>& plan, soft_plan_gradient<double>& d) {
  double sum = 0;
  for (auto* m : {&d.dispatch, &d.combine}) m->resize(plan.tokens(), plan.slot_count());
  for (index_t t = 0; t < plan.tokens(); ++t)
    for (index_t s = 0; s < plan.slot_count(); ++s) {
      d.dispatch(t, s) = coefficient(t, s);
      d.combine(t, s) = coefficient(t + 31, s);
      sum += d.dispatch(t, s) * plan.dispatch()(t, s) + d.combine(t, s) * plan.combine()(t, s);
    }
  return sum;
}

// ---- the checks -----------------------------------------------------------------------------------------------------

/// One row, one router.
template <typename Router>
class row_checks {
public:
  using plan_type = typename Router::plan;

  row_checks(const table_row& row, const made_router& made, const Router& router)
      : row_(row), made_(made), router_(router), options_(made.options) {
    if (options_.seed != 0) initialize(router_, options_.seed);
    fields_.insert(row.needs.begin(), row.needs.end());
    fields_.insert(row.uses.begin(), row.uses.end());
  }

  std::vector<std::string> all() {
    for (const std::string& field : fields_)
      if (known_fields.count(field) == 0) complain("routing_context has no field " + field);
    if (!complaints_.empty()) return complaints_;
    guarded([&] { check_causality(); });
    guarded([&] { check_counts(); });
    guarded([&] { check_gradient(); });
    for (const std::string& field : known_fields) guarded([&] { check_field(field); });
    return complaints_;
  }

private:
  /// A call that throws is a complaint as well.
  template <typename F>
  void guarded(F&& f) {
    try {
      f();
    } catch (const std::exception& e) {
      complain(std::string("a call with all that the row names throws: ") + e.what());
    }
  }

  void complain(const std::string& what) { complaints_.push_back(row_.name + ": " + what); }

  plan_type route(const call_of& call) const {
    plan_type plan;
    typename Router::tape tape;
    router_.route(call.x, call.context, plan, tape);
    return plan;
  }

  whole_batch batch(tokens_of kind, std::uint64_t seed) const { return whole_batch(router_, options_, kind, seed); }

  /// f(plan, training) for every kind of batch.
  template <typename F>
  void for_each_plan(F&& f) const {
    for (const tokens_of kind : {tokens_of::chance, tokens_of::one_direction, tokens_of::one_token})
      for (std::uint64_t seed = 1; seed <= 3; ++seed)
        for (const bool training : {false, true})
          f(route(call_of(batch(kind, seed), fields_, training)), training, kind);
  }

  // ---- causality: a token's route is the same whatever the other tokens are

  /// Tokens as they fare among others that follow, or follow no more.
  bool prefixes_agree(bool training, tokens_of kind, std::uint64_t seed) const {
    const whole_batch b = batch(kind, seed);
    const plan_type whole = route(call_of(b, fields_, training));
    for (const index_t tokens : {index_t{1}, index_t{5}, index_t{24}, table_tokens - 1})
      if (!agree_from(0, tokens, route(call_of(b, fields_, training, tokens)), whole)) return false;
    return true;
  }
  /// The second half of the tokens, after another first half.
  bool others_do_not_matter(bool training, tokens_of kind, std::uint64_t seed) const {
    const whole_batch b = batch(kind, seed);
    whole_batch changed = b;
    const whole_batch other = batch(tokens_of::chance, seed + 50);
    for (auto [to, from] :
         {std::pair(&changed.x, &other.x), std::pair(&changed.previous_logits, &other.previous_logits),
          std::pair(&changed.features, &other.features)})
      to->topRows(table_tokens / 2) = from->topRows(table_tokens / 2);
    return agree_from(table_tokens / 2, table_tokens, route(call_of(b, fields_, training)),
                      route(call_of(changed, fields_, training)));
  }

  static bool agree_from(index_t begin, index_t end, const plan_type& a, const plan_type& b) {
    for (index_t t = begin; t < end; ++t)
      if (!equal_words(sluice::detail::words_about(a, t), sluice::detail::words_about(b, t))) return false;
    return true;
  }

  static bool equal_words(const std::vector<double>& a, const std::vector<double>& b) {
    return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
  }

  void check_causality() {
    if (row_.causal != "yes" && row_.causal != "no") return complain("causal is yes or no, not " + row_.causal);
    const bool causal = row_.causal == "yes";
    if (made_.causal != causal) complain(std::string("its type says causal = ") + (made_.causal ? "true" : "false"));
    bool agree = true;
    for (const tokens_of kind : {tokens_of::chance, tokens_of::one_direction, tokens_of::one_token})
      for (std::uint64_t seed = 1; seed <= 3; ++seed) {
        agree = agree && prefixes_agree(false, kind, seed);
        for (const bool training : {false, true}) agree = agree && others_do_not_matter(training, kind, seed);
        if (!causal) agree = agree && prefixes_agree(true, kind, seed);  // some draws go by the number of tokens
      }
    if (agree != causal)
      complain(causal ? "the route of a token changes with other tokens"
                      : "no token's route was seen to depend on other tokens");
  }

  // ---- counts

  /// "k at inference" is "k" in that mode alone.
  static std::string in_mode(std::string trait, bool training) {
    const std::string own = training ? " in training" : " at inference",
                      other = training ? " at inference" : " in training";
    if (trait.ends_with(other)) return "";
    return trait.ends_with(own) ? trait.substr(0, trait.size() - own.size()) : trait;
  }

  void check_counts() {
    const auto number = [](index_t n) { return std::to_string(n); };
    std::set<std::string> faults;
    bool varies = false, fewer = false, everybody_at_one = false, full = false;
    for_each_plan([&](const plan_type& plan, bool training, tokens_of kind) {
      const std::string experts = in_mode(row_.experts_a_token, training);
      const auto counts = experts_of_tokens(plan);
      const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
      const index_t k = experts.ends_with("1") ? 1 : options_.k;
      if (experts == "k" || experts == "1") {
        if (k < 1) faults.insert("the test has to say its k");
        if (*least != k || *most != k)
          faults.insert("a token has " + number(*least == k ? *most : *least) + " experts, not " + number(k));
      } else if (experts == "at most k" || experts == "at most 1") {
        if (k < 1) faults.insert("the test has to say its k");
        if (*most > k) faults.insert("a token has " + number(*most) + " experts, more than " + number(k));
        fewer = fewer || *least < k;
      } else if (experts == "all") {
        if (*least != plan.experts()) faults.insert("a token has " + number(*least) + " experts, not all");
      } else if (experts == "varies") {
        varies = varies || *least != *most;
      } else if (!experts.empty()) {
        faults.insert("experts_a_token cannot be " + experts);
      }

      const std::string tokens = in_mode(row_.tokens_an_expert, training);
      const auto loads = loads_of(plan);
      const auto [idle, busy] = std::minmax_element(loads.begin(), loads.end());
      const bool own = !training && options_.inference_capacity > 0;
      const index_t capacity = own ? options_.inference_capacity : options_.training_capacity;
      if (tokens == "exactly C" || tokens == "at most C") {
        if (capacity < 1) faults.insert("the test has to say its C");
        if (*busy > capacity)
          faults.insert("an expert has " + number(*busy) + " tokens, more than " + number(capacity));
        if (tokens == "exactly C" && *idle != capacity)
          faults.insert("an expert has " + number(*idle) + " tokens, not " + number(capacity));
        full = full || *busy == capacity;
      } else if (tokens == "all") {
        if (*idle != plan.tokens()) faults.insert("an expert has " + number(*idle) + " tokens, not all");
      } else if (tokens == "free") {
        everybody_at_one = everybody_at_one || (kind == tokens_of::one_token && *busy == plan.tokens());
      } else if (!tokens.empty()) {
        faults.insert("tokens_an_expert cannot be " + tokens);
      }
    });
    if (row_.experts_a_token.starts_with("varies") && !varies) faults.insert("every token had as many experts");
    if (row_.experts_a_token.starts_with("at most") && !fewer) faults.insert("every token had k experts");
    if (row_.tokens_an_expert.starts_with("free") && !everybody_at_one)
      faults.insert("no expert took all tokens when all were equal");
    if (row_.tokens_an_expert.starts_with("at most") && !full) faults.insert("no expert was ever full");
    for (const std::string& fault : faults) complain(fault);
  }

  // ---- gradient

  struct differences {
    double largest_error = 0;
    double largest_gradient = 0;
  };

  /// Backward of the router alone against differences of a sum of its weights. Entries at which a choice flips are left out.
  differences compare(bool training, std::uint64_t seed) {
    constexpr index_t tokens = 8;
    whole_batch b = batch(tokens_of::chance, seed);
    call_of call(b, fields_, training, tokens);
    plan_type plan;
    typename Router::tape tape;
    typename plan_type::gradient dplan;
    zero_gradients(router_);
    ensure_gradients(router_);
    router_.route(call.x, call.context, plan, tape);
    weighted(plan, dplan);
    tape.dseen.zero_like(tape.seen);
    matrix<double> dx = matrix<double>::Zero(tokens, router_.inputs());
    router_.backward(call.x, call.context, plan, dplan, tape, dx);
    differences found;
    found.largest_gradient = dx.size() == 0 ? 0 : dx.cwiseAbs().maxCoeff();
    for_each_parameter(router_, [&](const std::string&, const parameter<double>& p) {
      for (const double g : p.gradient()) found.largest_gradient = std::max(found.largest_gradient, std::abs(g));
    });
    std::vector<checked_input> inputs{{"x", span_of(call.x), span_of(std::as_const(dx))}};
    const auto& dgroup = tape.dgroup_features;
    if (fields_.count("group_features") != 0 && dgroup.size() > 0) {
      const auto size = as_size(dgroup.size());  // of the one group that there is
      inputs.push_back({"group_features", {b.group_features.data(), size}, {dgroup.data(), size}});
      for (const double g : inputs.back().gradient) found.largest_gradient = std::max(found.largest_gradient, std::abs(g));
    }
    const auto chosen = sluice::detail::choices_of(plan);
    const auto report = check_gradients(router_, inputs,
                                        [&]() -> std::optional<double> {
                                          plan_type other;
                                          typename Router::tape own;
                                          typename plan_type::gradient ignored;
                                          router_.route(call.x, call.context, other, own);
                                          if (sluice::detail::choices_of(other) != chosen) return std::nullopt;
                                          return weighted(other, ignored);
                                        },
                                        {.most_entries = 40});
    found.largest_error = report.largest_error;
    return found;
  }

  void check_gradient() {
    const std::string& kind = row_.gradient;
    if (kind != "exact" && kind != "estimator" && kind != "straight-through" && kind != "none" &&
        kind != "inference only")
      return complain("gradient cannot be " + kind);
    if (made_.trains != (kind != "inference only"))
      return complain(made_.trains ? "it can be trained" : "it has no backward");
    if (!made_.trains) return;
    if ((kind == "exact" || kind == "none") != made_.exact_gradient)
      complain(std::string("its type says exact_gradient = ") + (made_.exact_gradient ? "true" : "false"));
    if (kind == "estimator" && fields_.count("random") == 0) complain("an estimator that draws nothing");
    differences worst;
    for (const bool training : {false, true})
      for (std::uint64_t seed = 21; seed <= 23; ++seed) {
        const differences d = compare(training, seed);
        worst.largest_error = std::max(worst.largest_error, d.largest_error);
        worst.largest_gradient = std::max(worst.largest_gradient, d.largest_gradient);
      }
    const bool has_gradient = worst.largest_gradient > 0;
    if (has_gradient != (kind != "none")) complain(has_gradient ? "it has a gradient" : "all of its gradients are 0");
    constexpr double exact = 1e-6;  // differences of step 1e-6 in double of sums of order 1 (train/gradient_check.hpp)
    if (kind == "exact" && worst.largest_error > exact)
      complain("its gradient differs from differences by " + std::to_string(worst.largest_error));
    if ((kind == "estimator" || kind == "straight-through") && worst.largest_error <= exact)
      complain("its gradient equals differences: it is exact");
  }

  // ---- what of the context it reads

  /// Two calls that differ in nothing but this field.
  std::array<call_of, 2> with_and_without(const std::string& field, const whole_batch& b, const whole_batch& other,
                                          bool training) const {
    std::array<call_of, 2> calls{call_of(b, fields_, training), call_of(b, fields_, training)};
    routing_context<double>& changed = calls[1].context;
    if (field == "random") changed.random = random_source(12);
    if (field == "groups") {
      changed.groups = b.groups;
      if (changed.group_features) changed.group_features = b.group_features;
    }
    if (field == "token_ids") changed.token_ids = other.token_ids;
    if (field == "modality_ids") changed.modality_ids = other.modality_ids;
    if (field == "cluster_ids") changed.cluster_ids = other.cluster_ids;
    if (field == "task_id") changed.task_id = options_.tasks - 1;
    if (field == "previous_logits") changed.previous_logits = other.previous_logits;
    if (field == "features") changed.features = other.features;
    if (field == "expert_ids") changed.expert_ids = {other.expert_ids.data(), table_tokens, options_.offered};
    if (field == "group_features")
      changed.group_features = {other.group_features.data(), 1, other.group_features.cols()};
    return calls;
  }

  bool same_plans(const call_of& a, const call_of& b) const {
    return equal_words(sluice::detail::words_of(route(a)), sluice::detail::words_of(route(b)));
  }

  /// Whether any call was changed by the field.
  bool changes(const std::string& field, bool training) const {
    for (const tokens_of kind : {tokens_of::chance, tokens_of::one_direction})
      for (std::uint64_t seed = 1; seed <= 6; ++seed) {
        const whole_batch b = batch(kind, seed), other = batch(kind, seed + 1000);
        auto calls = with_and_without(field, b, other, training);
        if (field != "step") {
          if (field == "random") calls[1].context.random = random_source(seed + 12);
          if (!same_plans(calls[0], calls[1])) return true;
          continue;
        }
        for (const index_t step : options_.steps) {
          calls[1].context.step = step;
          if (!same_plans(calls[0], calls[1])) return true;
        }
      }
    return false;
  }

  void check_field(const std::string& field) {
    const bool listed = fields_.count(field) != 0;
    bool changed = false;
    try {
      const bool trained = changes(field, true), inferred = changes(field, false);
      if (field == "random" && inferred) complain("inference draws");
      changed = trained || inferred;
    } catch (const std::exception& e) {
      return complain("a call with " + field + " throws: " + e.what());
    }
    if (changed != listed) complain(changed ? field + " changes what it does" : field + " changes nothing");
    if (std::find(row_.needs.begin(), row_.needs.end(), field) == row_.needs.end()) return;
    std::set<std::string> others = fields_;
    others.erase(field);
    for (const bool training : {false, true}) try {
        route(call_of(batch(tokens_of::chance, 1), others, training));
        complain("a call without " + field + " is no error");
      } catch (const std::invalid_argument& e) {
        if (std::string_view(e.what()).find(field) == std::string_view::npos)
          complain("the error of a call without " + field + " does not name it: " + e.what());
      }
  }

  const table_row& row_;
  const made_router& made_;
  Router router_;
  const made_with& options_;
  std::set<std::string> fields_;
  std::vector<std::string> complaints_;
};

}  // namespace

std::vector<table_row> read_router_table(const std::string& path) {
  std::ifstream in(path);
  const std::string columns =
      "name,header,does,papers,causal,experts_a_token,tokens_an_expert,gradient,needs,uses,losses";
  std::string line;
  if (!std::getline(in, line) || line != columns) throw std::runtime_error(path + " does not begin with " + columns);
  std::vector<table_row> rows;
  for (int number = 2; std::getline(in, line); ++number) {
    auto f = csv_fields(line);
    if (f.size() != 11)
      throw std::runtime_error(path + ":" + std::to_string(number) + " has " + std::to_string(f.size()) +
                               " fields of 11");
    rows.push_back({f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], words_in(f[8]), words_in(f[9]), words_in(f[10])});
  }
  return rows;
}

std::vector<std::string> complaints_about(const table_row& row, const made_router& made) {
  return std::visit(
      [&](const auto& router) { return row_checks<std::decay_t<decltype(router)>>(row, made, router).all(); },
      made.router);
}

}  // namespace sluice::test
