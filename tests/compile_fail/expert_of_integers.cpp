// expect: sluice: the scalar of routers, experts and layers is float or double
#include <sluice/expert/ffn.hpp>

sluice::ffn<int> expert{8, 4};
