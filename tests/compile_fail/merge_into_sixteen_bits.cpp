// expect: sluice: a low-rank expert is merged into weights of float or double
#include <sluice/adapter/merge.hpp>
#include <sluice/expert/linear.hpp>

void use(sluice::linear_expert<float, sluice::bfloat16_storage>& base, const sluice::low_rank_expert<float>& expert) {
  sluice::merge_adapter(base.weight(), expert);
}
