// expect: sluice: make_expert needs a forward function \(tokens_in<scalar> x, tokens_out<scalar> y\) that is callable as const
#include <sluice/expert/lambda.hpp>

const auto expert = sluice::make_expert<float>(4, 4, [calls = 0](auto x, auto y) mutable { ++calls, y = x; });
