#include <sluice/core/parameter.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("parameter: shape, role, initial value and views", "[core][parameter]") {
  const parameter<double> p({2, 3, 4}, parameter_role::weight, initial_values::constant(2.5));
  CHECK(std::vector<index_t>(p.shape().begin(), p.shape().end()) == std::vector<index_t>{2, 3, 4});
  CHECK(p.size() == 24);
  CHECK(p.rows() == 2);
  CHECK(p.cols() == 12);
  CHECK((p.map().array() == 2.5).all());
  CHECK(p.role() == parameter_role::weight);
  const parameter<double> vector({5}, parameter_role::vector, initial_values::normal(1));
  CHECK(vector.rows() == 5);
  CHECK(vector.cols() == 1);
  CHECK(vector.map().isZero(0));  // until it is initialised
  const parameter<double> scalar({}, parameter_role::vector);
  CHECK(scalar.size() == 1);
  CHECK(parameter<double>({0, 7}, parameter_role::weight).size() == 0);
  CHECK(parameter<double>().size() == 0);
}

TEST_CASE("parameter: more than four axes and negative ones are refused", "[core][parameter]") {
  CHECK_THROWS_WITH((parameter<float>({1, 1, 1, 1, 1}, parameter_role::weight)),
                    "sluice: a parameter has at most 4 axes, not 5");
  CHECK_THROWS_WITH((parameter<float>({2, -1}, parameter_role::weight)), "sluice: a parameter axis cannot be -1");
}

TEST_CASE("parameter: first values that are not finite, or of a deviation below 0, are refused", "[core][parameter]") {
  const auto with = [](initial_values first) { return parameter<float>({2}, parameter_role::weight, first); };
  CHECK(with(initial_values::constant(-1)).value()[1] == -1);
  CHECK(with(initial_values::normal(0)).size() == 2);
  CHECK_THROWS_WITH(with(initial_values::normal(-0.5)),
                    "sluice: a parameter cannot begin with a deviation or bound of -0.5");
  CHECK_THROWS_WITH(with(initial_values::uniform(-1)),
                    "sluice: a parameter cannot begin with a deviation or bound of -1");
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    CHECK_THROWS_AS(with(initial_values::constant(bad)), std::invalid_argument);
    CHECK_THROWS_AS(with(initial_values::normal(bad)), std::invalid_argument);
    CHECK_THROWS_AS(with(initial_values::uniform(bad)), std::invalid_argument);
  }
}

TEST_CASE("parameter: more numbers than memory can hold are refused", "[core][parameter]") {
  const index_t large = index_t(1) << 32;
  CHECK_THROWS_WITH(parameter<float>({large, large}, parameter_role::weight),
                    "sluice: there is no array of 4294967296 x 4294967296 numbers");
  CHECK_THROWS_AS(parameter<float>({2, large, large}, parameter_role::weight), std::invalid_argument);
  const index_t largest = (std::numeric_limits<index_t>::max)();
  CHECK_THROWS_AS(parameter<float>({0, largest}, parameter_role::weight, {}, {.lanes = 8, .group = 4}),
                  std::invalid_argument);
  CHECK_THROWS_AS(parameter<float>({largest, 1}, parameter_role::weight, {}, {.lanes = 8}), std::invalid_argument);
}

TEST_CASE("parameter: its id moves along, and a copy is another parameter", "[core][parameter]") {
  parameter<float> a({2}, parameter_role::weight), b({2}, parameter_role::weight);
  const std::uint64_t id = a.id();
  CHECK(b.id() != id);
  const parameter<float> copy = a;
  CHECK(copy.id() != id);
  b = a;
  CHECK(b.id() != id);
  CHECK(a.id() == id);
  std::vector<parameter<float>> list;
  list.push_back(std::move(a));
  for (int i = 0; i < 9; ++i) list.emplace_back();  // grows
  CHECK(list.front().id() == id);
  CHECK(a.id() != id);
}

TEST_CASE("parameter: the gradient appears when it is asked for, as zeros", "[core][parameter]") {
  parameter<float> p({3}, parameter_role::weight);
  CHECK_FALSE(p.has_gradient());
  CHECK(std::as_const(p).gradient().empty());
  p.zero_gradient();
  CHECK_FALSE(p.has_gradient());
  CHECK(p.gradient()[2] == 0);
  CHECK(p.has_gradient());
  p.gradient()[1] = 4;
  p.ensure_gradient();
  CHECK(p.gradient_map()(1, 0) == 4);
  const parameter<float> copy = p;
  p.zero_gradient();
  CHECK(p.gradient()[1] == 0);
  CHECK(copy.gradient()[1] == 4);
}

TEST_CASE("parameter: frozen arrays and states are not learned", "[core][parameter]") {
  parameter<float> p({3}, parameter_role::vector);
  CHECK(p.is_learned());
  p.set_frozen(true);
  CHECK_FALSE(p.is_learned());
  p.set_frozen(false);
  CHECK(p.is_learned());
  CHECK_FALSE(parameter<float>({3}, parameter_role::state).is_learned());
}

namespace {

struct leaf {
  parameter<float> weight{{2, 2}, parameter_role::weight};
  parameter<float> bias{{2}, parameter_role::vector};
  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
  }
};

struct plain {};

struct tree {
  leaf first;
  std::vector<leaf> list{2};
  parameter<float> state{{5}, parameter_role::state};
  plain nothing;
  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("first", self.first);
    for (std::size_t i = 0; i < self.list.size(); ++i) visit("list." + std::to_string(i), self.list[i]);
    visit("nothing", self.nothing);
    visit("state", self.state);
  }
};

}  // namespace

TEST_CASE("for_each_parameter: depth first, names joined by dots, const objects too", "[core][parameter]") {
  static_assert(HasParameters<tree> && !HasParameters<plain>);
  tree t;
  std::vector<std::string> names;
  for_each_parameter(t, [&](const std::string& name, parameter<float>&) { names.push_back(name); });
  CHECK(names == std::vector<std::string>{"first.weight", "first.bias", "list.0.weight", "list.0.bias", "list.1.weight",
                                          "list.1.bias", "state"});
  names.clear();
  for_each_parameter(
      std::as_const(t), [&](const std::string& name, const parameter<float>&) { names.push_back(name); }, "model");
  CHECK(names.front() == "model.first.weight");
  plain none;
  for_each_parameter(none, [](const std::string&, parameter<float>&) { FAIL("there is no parameter"); });
  parameter<float> alone({1}, parameter_role::weight);
  int seen = 0;
  for_each_parameter(alone, [&](const std::string& name, parameter<float>&) { seen += name.empty(); });
  CHECK(seen == 1);
}

TEST_CASE("parameters: gradients are made, cleared and counted over a whole object", "[core][parameter]") {
  tree t;
  ensure_gradients(t);
  for_each_parameter(t, [](const std::string&, parameter<float>& p) {
    REQUIRE(p.has_gradient());
    for (float& g : p.gradient()) g = 1;
  });
  zero_gradients(t);
  for_each_parameter(t, [](const std::string&, parameter<float>& p) {
    for (const float g : p.gradient()) CHECK(g == 0);
  });
  CHECK(parameter_count(t) == 3 * (4 + 2));  // without the state
}

namespace {

struct parameters_by_reference {  // takes its visitor by lvalue alone: nobody could visit it with a lambda
  static void visit_parameters(auto& self, auto& visit) { visit("p", self.p); }
  parameter<float> p;
};
struct parameters_of_an_object {
  void visit_parameters(auto&&) {}
};
class private_parameters {
  static void visit_parameters(auto&, auto&&) {}
};
class inherited_parameters : public parameters_of_an_object {};
struct no_parameters {
  int visit = 0;
};
struct usual_parameters {
  static void visit_parameters(auto&, auto&&) {}
};

}  // namespace

TEST_CASE("parameters: what is called visit_parameters and cannot be visited is noticed", "[core][parameter]") {
  using detail::NamesParameters;
  STATIC_REQUIRE((NamesParameters<parameters_by_reference> && !HasParameters<parameters_by_reference>));
  STATIC_REQUIRE((NamesParameters<parameters_of_an_object> && !HasParameters<parameters_of_an_object>));
  STATIC_REQUIRE((NamesParameters<private_parameters> && !HasParameters<private_parameters>));
  STATIC_REQUIRE((NamesParameters<inherited_parameters> && !HasParameters<inherited_parameters>));
  STATIC_REQUIRE((NamesParameters<usual_parameters> && HasParameters<usual_parameters>));
  STATIC_REQUIRE((!NamesParameters<no_parameters> && !HasParameters<no_parameters>));
  STATIC_REQUIRE((!NamesParameters<int> && !NamesParameters<std::string> && explain_model<parameter<float>>()));
}
