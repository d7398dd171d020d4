// expect: sluice: expert bank needs `index_t experts\(\) const`
#include <sluice/expert/normalized_bank.hpp>

using namespace sluice;

struct my_bank {
  using scalar = float;
  struct tape {};
  index_t inputs() const { return 4; }
  index_t outputs() const { return 4; }
};

void use() { normalized_bank bank{my_bank{}, rms_norm<float>{4}}; }
