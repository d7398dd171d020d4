// Banks of common experts that are compiled once (compiled_bank.cpp), for tests that are about something else.
#pragma once

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/reference/naive_moe.hpp>

namespace sluice::test {

/// expert_bank, whose calls are declared here and defined in compiled_bank.cpp for the experts that it lists.
template <typename Expert>
class compiled_bank : public expert_bank<Expert> {
  using base = expert_bank<Expert>;

public:
  using scalar = typename Expert::scalar;
  using tape = typename base::tape;
  using base::base;

  void prepare(tape& t, index_t rows, bool training) const;
  void forward(tokens_in<scalar> x, std::span<const index_t> offsets, tokens_out<scalar> y, tape& t,
               const executor_ref& executor) const;
  void backward(tokens_in<scalar> x, std::span<const index_t> offsets, tokens_in<scalar> dy, tokens_out<scalar> dx,
                tape& t, const executor_ref& executor);
  void forward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_out<scalar> y, tape& t,
                      const executor_ref& executor) const;
  void backward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_in<scalar> dy,
                       tokens_out<scalar> dx, tape& t, scalar* dweight, scalar* dinput_scale,
                       const executor_ref& executor);
  index_t workspace_bytes(index_t rows, bool training) const;
};

}  // namespace sluice::test
