#include "report.hpp"
#include "text.hpp"

namespace bench {

std::string csv(const records& all) {
  std::string out =
      "case,tokens,routing,dtype,implementation,threads,median_ms,gflops,gbytes_per_s,roofline_fraction\n";
  for (const record& r : all)
    out += r.name + ',' + std::to_string(r.tokens) + ',' + r.routing + ',' + r.dtype + ',' + r.implementation + ',' +
           std::to_string(r.threads) + ',' + fixed(1e3 * r.median, 6) + ',' + fixed(r.gflops(), 3) + ',' +
           fixed(r.gbytes_per_s(), 3) + ',' + fixed(r.roofline_fraction(), 4) + '\n';
  return out;
}

}  // namespace bench
