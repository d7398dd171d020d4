#include <sluice/train/adamw.hpp>
#include <sluice/train/sgd.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

#include <map>
#include <optional>

using namespace sluice;

namespace {

/// One array of each role.
template <typename Scalar>
struct three_roles {
  parameter<Scalar> weight{{2, 3}, parameter_role::weight};
  parameter<Scalar> bias{{3}, parameter_role::vector};
  parameter<Scalar> state{{2}, parameter_role::state};

  explicit three_roles(double start = 1) {
    for (auto* p : {&weight, &bias, &state}) {
      for (Scalar& v : p->value()) v = static_cast<Scalar>(start);
      p->ensure_gradient();
    }
  }
  void set_gradients(double g) {
    for (auto* p : {&weight, &bias, &state})
      for (Scalar& v : p->gradient()) v = static_cast<Scalar>(g);
  }
  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
    visit("state", self.state);
  }
};

/// A list of arrays that can change, as a model whose experts come and go.
struct changing_model {
  std::vector<std::pair<std::string, parameter<double>>> arrays;

  void add(const std::string& name, index_t size) {
    arrays.emplace_back(name, parameter<double>({size}, parameter_role::weight, initial_values::constant(1)));
    for (double& g : arrays.back().second.gradient()) g = 1;
  }
  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    for (auto& [name, array] : self.arrays) visit(name, array);
  }
};

template <typename Object>
std::map<std::string, std::vector<double>> values_of(Object& object) {
  std::map<std::string, std::vector<double>> values;
  for_each_parameter(
      object, [&](const std::string& name, auto& p) { values[name].assign(p.value().begin(), p.value().end()); });
  return values;
}

}  // namespace

TEST_CASE("sgd: plain steps follow the formula, decay for weights only, states stay", "[train][sgd]") {
  three_roles<double> model;
  model.set_gradients(0.5);
  sgd<double> optimizer{{.learning_rate = 0.1, .weight_decay = 0.2}};
  optimizer.step(model);
  CHECK(model.weight.data()[5] == Approx(1 - 0.1 * (0.5 + 0.2 * 1)).epsilon(1e-15));
  CHECK(model.bias.data()[2] == Approx(1 - 0.1 * 0.5).epsilon(1e-15));
  CHECK(model.state.data()[1] == 1);
  CHECK(model.weight.gradient()[0] == 0.5);  // gradients are the caller's to clear
}

TEST_CASE("sgd: momentum and Nesterov's form, three steps by hand", "[train][sgd]") {
  // momentum 0.5, rate 1, gradients 1, 2, 4:  v = 1, 2.5, 5.25
  three_roles<double> heavy(0);
  three_roles<double> nesterov(0);
  sgd<double> heavy_ball{{.learning_rate = 1, .momentum = 0.5}};
  sgd<double> ahead{{.learning_rate = 1, .momentum = 0.5, .nesterov = true}};
  for (const double g : {1.0, 2.0, 4.0}) {
    heavy.set_gradients(g);
    nesterov.set_gradients(g);
    heavy_ball.step(heavy);
    ahead.step(nesterov);
  }
  CHECK(heavy.weight.data()[0] == -(1 + 2.5 + 5.25));
  CHECK(nesterov.weight.data()[0] == -((1 + 0.5 * 1) + (2 + 0.5 * 2.5) + (4 + 0.5 * 5.25)));
  CHECK(heavy.state.data()[0] == 0);
}

TEST_CASE("adamw: two steps by hand", "[train][adamw]") {
  // g = 2 then -1, beta1 = 0.5, beta2 = 0.75, rate 0.1, decay 0.1, epsilon 1e-8, w = 1
  //   t = 1  m = 1, v = 1;  m / 0.5 = 2, v / 0.25 = 4;                     w = 1 - 0.01 - 0.1 * 2 / 2 = 0.89
  //   t = 2  m = 0, v = 0.75 + 0.25 = 1;                                   w = 0.89 - 0.01 * 0.89 - 0
  three_roles<double> model;
  adamw<double> optimizer{{.learning_rate = 0.1, .beta1 = 0.5, .beta2 = 0.75, .weight_decay = 0.1}};
  model.set_gradients(2);
  optimizer.step(model);
  CHECK(model.weight.data()[3] == Approx(0.89).epsilon(1e-8));
  CHECK(model.bias.data()[0] == Approx(0.9).epsilon(1e-8));
  model.set_gradients(-1);
  optimizer.step(model);
  CHECK(model.weight.data()[3] == Approx(0.89 * 0.99).epsilon(1e-8));
  CHECK(model.bias.data()[0] == Approx(0.9).epsilon(1e-8));
  CHECK(model.state.data()[0] == 1);
}

TEST_CASE("adamw: the first step has the length of the learning rate whatever the gradient's", "[train][adamw]") {
  const double g = GENERATE(1e-3, 1.0, 1e6);
  three_roles<double> model;
  model.set_gradients(-g);
  adamw<double> optimizer{{.weight_decay = 0}};
  optimizer.step(model);
  CHECK(model.weight.data()[0] ==
        Approx(1 + 1e-3).epsilon(1e-5 * 1e-3));  // epsilon 1e-8 is 1e-5 of the smallest gradient
}

TEST_CASE("optimizers: frozen parameters and those without a gradient are left alone", "[train][sgd][adamw]") {
  const auto check = [](auto optimizer) {
    three_roles<double> model;
    model.set_gradients(1);
    model.weight.set_frozen(true);
    optimizer.step(model);
    CHECK(model.weight.data()[0] == 1);
    CHECK(model.bias.data()[0] != 1);
    model.weight.set_frozen(false);
    optimizer.step(model);
    CHECK(model.weight.data()[0] != 1);

    parameter<double> untouched({3}, parameter_role::weight, initial_values::constant(1));
    optimizer.prepare(untouched);
    optimizer.step(untouched);
    CHECK(untouched.data()[0] == 1);
  };
  check(sgd<double>{{.learning_rate = 0.1, .momentum = 0.9, .weight_decay = 0.1}});
  check(sgd<double>{{.learning_rate = 0.1, .weight_decay = 0.1}});
  check(adamw<double>{});
}

TEST_CASE("optimizers: clear_gradients sets them to zero after the step", "[train][sgd][adamw]") {
  three_roles<double> model;
  model.set_gradients(1);
  sgd<double>{{.clear_gradients = true}}.step(model);
  CHECK(model.weight.gradient()[0] == 0);
  CHECK(model.weight.data()[0] == Approx(0.99));
  model.set_gradients(1);
  adamw<double>{{.clear_gradients = true}}.step(model);
  CHECK(model.bias.gradient()[0] == 0);
}

TEST_CASE("optimizers: equal bits for any thread count", "[train][determinism]") {
  const index_t size = 3 * 16384 + 77;
  const auto run = [&](executor_ref executor) {
    parameter<float> p({size}, parameter_role::weight);
    for (index_t i = 0; i < size; ++i) {
      p.data()[i] = static_cast<float>(random_source(1).normal(random_site::user_site, i));
      p.gradient()[static_cast<std::size_t>(i)] =
          static_cast<float>(random_source(2).normal(random_site::user_site, i));
    }
    adamw<float> first;
    sgd<float> second{{.momentum = 0.9}};
    for (int step = 0; step < 3; ++step) first.step(p, executor), second.step(p, executor);
    return std::vector<float>(p.value().begin(), p.value().end());
  };
  const auto serial = run({});
  for (const int threads : {1, 2, 3, 8}) {
    test::shuffled_threads pool(threads);
    CHECK(run(pool) == serial);
  }
}

TEST_CASE("optimizers: a run that goes on from saved state gives the same bits", "[train][adamw][sgd]") {
  const auto check = [](auto make_optimizer) {
    using layer_type = moe_layer<top_k_router<float>, expert_bank<ffn<float>>>;
    const auto step = [](layer_type& layer, auto& optimizer, std::uint64_t number) {
      const matrix<float> x = test::random_matrix<float>(12, 6, number);
      matrix<float> y(12, 6), dx(12, 6);
      layer_type::tape tape;
      layer.forward(x, y, tape);
      zero_gradients(layer);
      layer.backward(y, dx, tape);
      optimizer.step(layer);
    };
    layer_type layer{top_k_router<float>{6, 4}, expert_bank<ffn<float>>{4, 6, 8}};
    initialize(layer, 1);
    auto optimizer = make_optimizer();
    for (std::uint64_t s = 0; s < 4; ++s) step(layer, optimizer, s);
    const auto saved_layer = values_of(layer);
    const auto saved_state = values_of(optimizer);
    REQUIRE_FALSE(saved_state.empty());
    for (std::uint64_t s = 4; s < 8; ++s) step(layer, optimizer, s);

    layer_type resumed{top_k_router<float>{6, 4}, expert_bank<ffn<float>>{4, 6, 8}};
    auto fresh = make_optimizer();
    fresh.prepare(resumed);
    const auto load = [](auto& object, const auto& saved) {
      std::size_t loaded = 0;
      for_each_parameter(object, [&](const std::string& name, auto& p) {
        const auto& values = saved.at(name);
        REQUIRE(values.size() == p.value().size());
        for (std::size_t i = 0; i < values.size(); ++i) p.value()[i] = static_cast<float>(values[i]);
        ++loaded;
      });
      CHECK(loaded == saved.size());
    };
    load(resumed, saved_layer);
    load(fresh, saved_state);
    for (std::uint64_t s = 4; s < 8; ++s) step(resumed, fresh, s);
    CHECK(values_of(resumed) == values_of(layer));
    CHECK(values_of(fresh) == values_of(optimizer));
  };
  check([] { return adamw<float>{}; });
  check([] { return sgd<float>{{.momentum = 0.9}}; });
}

TEST_CASE("optimizers: state has names of the model and the role of state", "[train][adamw]") {
  three_roles<double> model;
  model.set_gradients(1);
  adamw<double> optimizer;
  optimizer.step(model);
  std::vector<std::string> names;
  for_each_parameter(optimizer, [&](const std::string& name, parameter<double>& p) {
    names.push_back(name);
    CHECK(p.role() == parameter_role::state);
  });
  CHECK(names == std::vector<std::string>{"weight.steps", "weight.first_moment", "weight.second_moment", "bias.steps",
                                          "bias.first_moment", "bias.second_moment"});
}

TEST_CASE("optimizers: state follows its array when the model changes", "[train][adamw]") {
  changing_model model;
  model.add("a", 2);
  model.add("b", 3);
  model.add("c", 4);
  adamw<double> optimizer;
  optimizer.step(model);
  optimizer.step(model);
  auto before = values_of(optimizer);
  CHECK(before.at("c.steps") == std::vector<double>{2});

  model.arrays.erase(model.arrays.begin());                                 // a goes
  model.arrays[0].second = parameter<double>({5}, parameter_role::weight);  // b gets another size
  for (double& g : model.arrays[0].second.gradient()) g = 1;
  model.add("d", 1);
  std::swap(model.arrays[1], model.arrays[2]);  // and the order changes
  optimizer.step(model);
  const auto after = values_of(optimizer);
  CHECK(after.count("a.steps") == 0);
  CHECK(after.at("b.steps") == std::vector<double>{1});
  CHECK(after.at("b.first_moment").size() == 5);
  CHECK(after.at("c.steps") == std::vector<double>{3});
  CHECK(after.at("c.second_moment")[0] > before.at("c.second_moment")[0]);
  CHECK(after.at("d.steps") == std::vector<double>{1});
}

TEST_CASE("optimizers: arrays of one name each keep their own state", "[train][adamw]") {
  changing_model model;
  model.add("twin", 2);
  model.add("twin", 2);
  for (double& g : model.arrays[1].second.gradient()) g = -1;
  adamw<double> optimizer;
  optimizer.step(model);
  model.add("more", 1);
  optimizer.step(model);
  CHECK(model.arrays[0].second.data()[0] < 0.9982);
  CHECK(model.arrays[1].second.data()[0] > 1.0018);
}

TEST_CASE("optimizers: another model is refused until it is handed over", "[train][adamw][sgd]") {
  const auto check = [](auto optimizer, bool remembers) {
    const auto another = Catch::Matchers::Contains("remembers another model");
    three_roles<double> first, second;  // equal names and sizes
    changing_model third;
    third.add("weight", 5);
    first.set_gradients(1);
    second.set_gradients(1);
    optimizer.step(first);
    if (!remembers) {
      CHECK_NOTHROW(optimizer.step(second));
      CHECK(second.weight.data()[0] == first.weight.data()[0]);
      return;
    }
    CHECK_THROWS_WITH(optimizer.step(second), another);
    CHECK_THROWS_WITH(optimizer.step(third), another);
    CHECK(second.weight.data()[0] == 1);
    CHECK_NOTHROW(optimizer.step(first));  // as if nothing had happened

    three_roles<double> moved = std::move(first);
    CHECK_NOTHROW(optimizer.step(moved));
    three_roles<double> copied = moved;
    CHECK_THROWS_WITH(optimizer.step(copied), another);
    moved = copied;  // back to a snapshot: still this model
    CHECK_NOTHROW(optimizer.step(moved));
    CHECK(values_of(optimizer).at("weight.steps") == std::vector<double>{4});

    auto branch = optimizer;  // of a copied optimiser the first model is its own
    CHECK_NOTHROW(branch.step(copied));
    CHECK(values_of(branch).at("weight.steps") == std::vector<double>{5});
    CHECK_THROWS_WITH(branch.step(moved), another);
    branch.prepare(moved);
    CHECK_NOTHROW(branch.step(moved));
    CHECK(values_of(branch).at("weight.steps") == std::vector<double>{6});
  };
  check(adamw<double>{}, true);
  check(sgd<double>{{.momentum = 0.9}}, true);
  check(sgd<double>{}, false);
}

TEST_CASE("optimizers: a model that is new in the place of an old one is another model", "[train][adamw]") {
  adamw<double> optimizer;
  std::optional<three_roles<double>> model(std::in_place);
  model->set_gradients(1);
  optimizer.step(*model);
  model.emplace();  // the same address, and perhaps the same memory
  model->set_gradients(1);
  CHECK_THROWS_AS(optimizer.step(*model), std::invalid_argument);
}

TEST_CASE("optimizers: settings that make no sense are refused", "[train][sgd][adamw]") {
  CHECK_THROWS_AS(sgd<float>({.learning_rate = -1}), std::invalid_argument);
  CHECK_THROWS_AS(sgd<float>({.momentum = -0.1}), std::invalid_argument);
  CHECK_THROWS_AS(sgd<float>({.nesterov = true}), std::invalid_argument);
  CHECK_THROWS_AS(adamw<float>({.beta1 = 1}), std::invalid_argument);
  CHECK_THROWS_AS(adamw<float>({.beta2 = -0.5}), std::invalid_argument);
  CHECK_THROWS_AS(adamw<float>({.epsilon = 0}), std::invalid_argument);
  CHECK_THROWS_WITH(sgd<float>({.nesterov = true}), "sluice: sgd: Nesterov's form needs a momentum");
}

TEST_CASE("optimizers: both bring a layer down on a small regression", "[train][sgd][adamw]") {
  const auto final_error = [](auto optimizer) {
    moe_layer layer{top_k_router<double>{4, 3, {.top_k = 2}}, expert_bank<ffn<double, silu>>{3, 4, 8}};
    initialize(layer, 5);
    const matrix<double> x = test::random_matrix<double>(64, 4, 6);
    const matrix<double> target = x.array().sin().matrix();
    matrix<double> y(64, 4), dx(64, 4);
    typename decltype(layer)::tape tape;
    double first = 0, last = 0;
    for (int step = 0; step < 150; ++step) {
      layer.forward(x, y, tape);
      const matrix<double> error = y - target;
      last = error.squaredNorm() / 64;
      if (step == 0) first = last;
      zero_gradients(layer);
      layer.backward(error / 32, dx, tape);
      optimizer.step(layer);
    }
    return last / first;
  };
  CHECK(final_error(sgd<double>{{.learning_rate = 0.1, .momentum = 0.9}}) < 0.1);
  CHECK(final_error(adamw<double>{{.learning_rate = 0.01}}) < 0.1);
}
