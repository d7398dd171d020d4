/// Attention of heads of queries over heads of keys and values, forward and backward, and rotary positions.
///
///   kernel::attention_inputs<float> in{.shape = {.heads = 8, .key_heads = 2}, .sequences = ranges, .q = ..., .k = ..., .v = ...};
///   kernel::attention_forward(in, out, log_sums, memory, executor);
///   kernel::attention_backward(in, {.out = ..., .dout = ..., .log_sums = ..., .dq = ..., .dk = ..., .dv = ...}, memory, executor);
#pragma once

#include <sluice/kernel/attention/backward.hpp>
#include <sluice/kernel/attention/exponential.hpp>
#include <sluice/kernel/attention/forward.hpp>
#include <sluice/kernel/attention/heads.hpp>
#include <sluice/kernel/attention/lanes.hpp>
#include <sluice/kernel/attention/rotary.hpp>
