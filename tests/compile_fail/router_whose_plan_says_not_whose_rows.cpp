// expect: sluice: plan needs `expert_rows by_expert\(\) const`
#include <sluice/core/concepts.hpp>

struct my_router {
  using scalar = float;
  struct plan {
    using scalar = float;
    struct gradient {};
    sluice::index_t tokens() const { return 0; }
    sluice::index_t experts() const { return 2; }
    sluice::index_t rows() const { return 0; }
    sluice::index_t most_rows() const { return 0; }
    std::span<const sluice::index_t> invalid_tokens() const { return {}; }
  };
  struct tape {};
  sluice::index_t inputs() const { return 4; }
  sluice::index_t experts() const { return 2; }
  void route(sluice::tokens_in<float>, const sluice::routing_context<float>&, plan&, tape&) const {}
};

static_assert(sluice::explain_router<my_router>());
