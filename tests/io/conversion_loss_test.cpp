#include <sluice/io/conversion_loss.hpp>

#include "messages.hpp"
#include "support.hpp"

#include <cmath>
#include <limits>
#include <span>
#include <vector>

using namespace sluice;

namespace {

template <typename T>
conversion_loss loss_of(const std::vector<T>& values, data_type from, data_type to) {
  const tensor_info tensor{"t", from, {static_cast<std::int64_t>(values.size())},
                           std::as_bytes(std::span<const T>(values))};
  conversion_loss loss;
  add_losses(tensor, 0, values.size(), to, loss);
  return loss;
}

}  // namespace

TEST_CASE("conversion_loss: exact, rounded, lost to zero, beyond and NaN are told apart", "[io]") {
  const double infinity = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(loss_of<double>({1, -0.0, infinity, -infinity, 0x1p-24, 65504}, data_type::f64, data_type::f16) ==
        conversion_loss{.elements = 6});
  CHECK(loss_of<double>({1.0 + 0x1p-11, 0x1p-26, -65520, 70000, nan}, data_type::f64, data_type::f16) ==
        conversion_loss{.elements = 5,
                        .rounded = 2,
                        .to_zero = 1,
                        .beyond = 2,
                        .not_a_number = 1,
                        .largest_error = 0x1p-11,
                        .largest_beyond = 70000});
  CHECK(loss_of<double>({1e39, -1 - 0x1p-30}, data_type::f64, data_type::f32) ==
        conversion_loss{
            .elements = 2, .rounded = 1, .beyond = 1, .largest_error = 0x1p-30, .largest_beyond = 1e39});
  CHECK(loss_of<float>({(std::numeric_limits<float>::max)(), 1.0F}, data_type::f32, data_type::bf16).beyond == 1);
  CHECK(loss_of<bfloat16>({bfloat16{0x4780}, bfloat16{0x3F80}}, data_type::bf16, data_type::f16).beyond == 1);
  CHECK(loss_of<float16>({float16{0x3C01}, float16{0x0001}}, data_type::f16, data_type::bf16).rounded == 1);
}

TEST_CASE("conversion_loss: types that hold all numbers of another cost nothing", "[io]") {
  CHECK(loss_of<float>({1e30F, std::numeric_limits<float>::quiet_NaN()}, data_type::f32, data_type::f64) ==
        conversion_loss{});
  CHECK(loss_of<bfloat16>({bfloat16{0x7F7F}}, data_type::bf16, data_type::f32) == conversion_loss{});
  CHECK(loss_of<float16>({float16{0x0001}}, data_type::f16, data_type::f32) == conversion_loss{});
}

TEST_CASE("conversion_report: sums tensors up and names the worst", "[io]") {
  conversion_report report;
  CHECK(to_string(report) == "no value was rounded");
  report.add("a", {.elements = 9});
  CHECK(report.worst.empty());
  report.add("b", {.elements = 4, .rounded = 2, .to_zero = 1, .largest_error = 0.25});
  report.add("c", {.elements = 4, .rounded = 1, .not_a_number = 3, .largest_error = 0.125});
  CHECK(report.total.elements == 17);
  CHECK(to_string(report) ==
        "3 of 17 values were rounded, 1 of them to zero, the largest error is 0.25 in \"b\"; 3 are NaN");
}
