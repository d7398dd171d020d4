// expect: sluice: make_expert needs a backward function \(tokens_in<scalar> x, tokens_in<scalar> dy, tokens_out<scalar> dx\) that is callable as const
#include <sluice/expert/lambda.hpp>

const auto expert = sluice::make_expert<float>(4, 4, [](auto x, auto y) { y = x; }, [](auto dy, auto dx) { dx = dy; });
