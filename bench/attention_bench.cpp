// Attention alone, forward and backward: eight heads over one sequence, causal and not.
#include <sluice/exec/thread_pool.hpp>
#include <sluice/kernel/attention.hpp>

#include <string>
#include <vector>

#include "session.hpp"
#include "workload.hpp"

namespace bench {

namespace {

namespace kernel = sluice::kernel;

/// Queries, keys and values lie in one matrix, as a layer with one projection has them.
class attention_case {
public:
  attention_case(const kernel::attention_shape& shape, index_t tokens, const sluice::executor_ref& executor)
      : shape_(shape),
        executor_(executor),
        ranges_{{0, tokens, 0, tokens}},
        qkv_(random_tokens(tokens, 3 * columns(), 71)),
        dout_(random_tokens(tokens, columns(), 72)) {
    dqkv_.resize(tokens, 3 * columns());
    out_.resize(tokens, columns());
    log_sums_.resize(tokens, shape.heads);
    forward();
  }

  void forward() {
    kernel::attention_forward<float>(inputs(), heads(out_.data(), columns()), log_sums_.data(), memory_, executor_);
  }
  void backward() {
    float* d = dqkv_.data();
    kernel::attention_backward<float>(inputs(),
                                      {.out = heads(out_.data(), columns()),
                                       .dout = heads(dout_.data(), columns()),
                                       .log_sums = log_sums_.data(),
                                       .dq = heads(d, 3 * columns()),
                                       .dk = heads(d + columns(), 3 * columns()),
                                       .dv = heads(d + 2 * columns(), 3 * columns())},
                                      memory_, executor_);
  }

private:
  index_t columns() const { return shape_.heads * shape_.key_width; }
  template <typename Number>
  kernel::head_rows<Number> heads(Number* first, index_t row) const {
    return {first, row, shape_.key_width};
  }
  kernel::attention_inputs<float> inputs() const {
    const float* first = qkv_.data();
    return {.shape = shape_,
            .sequences = ranges_,
            .q = heads(first, 3 * columns()),
            .k = heads(first + columns(), 3 * columns()),
            .v = heads(first + 2 * columns(), 3 * columns())};
  }

  kernel::attention_shape shape_;
  sluice::executor_ref executor_;
  std::vector<kernel::attended_range> ranges_;
  token_rows qkv_, dout_;
  sluice::matrix_buffer<float> dqkv_, out_, log_sums_;
  kernel::attention_memory<float> memory_;
};

void time_attention(session& s, index_t width, index_t tokens, bool causal, int threads) {
  const kernel::attention_shape shape{
      .heads = 8, .key_heads = 8, .key_width = width, .value_width = width, .causal = causal};
  const std::string title =
      "attention head=" + std::to_string(width) + " T=" + std::to_string(tokens) + (causal ? " causal" : " whole");
  if (!s.wants(title)) return;
  sluice::thread_pool pool(threads);
  attention_case c(shape, tokens, threads == 1 ? sluice::executor_ref() : sluice::executor_ref(pool));
  const auto nothing = [](std::int64_t) {};
  const std::vector<timing> times = s.run.race(title, {{"forward", nothing, [&](std::int64_t) { c.forward(); }},
                                                       {"backward", nothing, [&](std::int64_t) { c.backward(); }}});
  const double pairs = static_cast<double>(causal ? tokens * (tokens + 1) / 2 : tokens * tokens);
  s.found.attentions.push_back(
      {width, tokens, causal, threads, 4 * pairs * static_cast<double>(8 * width), times[0].fastest, times[1].fastest});
}

}  // namespace

void attention_cases(session& s) {
  std::vector<int> threads{1};
  if (s.asked.threads > 1) threads.push_back(s.asked.threads);
  const std::vector<index_t> lengths = s.asked.smoke ? std::vector<index_t>{40} : std::vector<index_t>{128, 512, 2048};
  for (const int count : threads)
    for (const index_t width : {64, 128})
      for (const index_t tokens : lengths)
        for (const bool causal : {true, false}) time_attention(s, width, tokens, causal, count);
}

}  // namespace bench
