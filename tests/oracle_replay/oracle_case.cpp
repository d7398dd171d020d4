#include "oracle_case.hpp"

#include "layer_run.hpp"

namespace oracle {

ORACLE_CASE(, float)
ORACLE_CASE(, double)
template class bindings<float>;
template class bindings<double>;
template void check_slots(oracle_case<float>&, const sluice::sparse_plan<float>&, const sluice::routing_context<float>&);
template void check_slots(oracle_case<double>&, const sluice::sparse_plan<double>&, const sluice::routing_context<double>&);

}  // namespace oracle
