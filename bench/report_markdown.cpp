// report.md: the machine, the tables, and how to read them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "markdown_table.hpp"
#include "report.hpp"
#include "report_prose.hpp"
#include "text.hpp"

namespace bench {

namespace {

constexpr std::string_view peer_names[] = {"eigen", "onednn", "naive", "dense", "stream"};

/// "12.3 (81 %)": milliseconds and share of the roofline.
std::string cell(const record* r) {
  return r ? milliseconds(r->median) + " (" + percent(r->roofline_fraction()) + ")" : "-";
}

/// Tokens an expert where reading it from memory (4 bytes a weight) and using it (2 operations a weight and token) take
/// equally long.
std::string balance(const session& s) { return fixed(s.all.memory > 0 ? 2 * s.all.gflops / s.all.memory : 0, 0); }

std::string limits_section(const session& s) {
  table t({"measured limit", "1 thread", std::to_string(s.all.threads) + " threads"});
  t.add({"fp32 multiply-add", fixed(s.one.gflops, 0) + " GFLOP/s", fixed(s.all.gflops, 0) + " GFLOP/s"});
  t.add({"reading L2", fixed(s.one.l2, 1) + " GB/s", fixed(s.all.l2, 1) + " GB/s"});
  t.add({"reading L3", fixed(s.one.l3, 1) + " GB/s", fixed(s.all.l3, 1) + " GB/s"});
  t.add({"reading memory", fixed(s.one.memory, 1) + " GB/s", fixed(s.all.memory, 1) + " GB/s"});
  std::string text = t.text() + prose::with_balance(prose::balance, balance(s)) + std::string(prose::limits);
  if (s.found.waited) {
    const double share = s.found.waited->seconds / s.found.waited->of;
    text += " The main thread waited " + percent(share) + " of the time for a processor";
    if (share > 0.02) text += prose::disturbed;
    text += ".";
  }
  return text + "\n\n";
}

std::string how_to_read(const session& s) {
  std::string text(prose::how_to_read);
  if (!s.found.checks.empty()) {
    text += prose::same_results;
    for (const auto& [name, difference] : s.found.checks) {
      char words[48];
      std::snprintf(words, sizeof words, " %.1e", difference);
      text += (name == s.found.checks.begin()->first ? " " : ", ") + name + words;
    }
    text += ".\n";
  }
  return text + "\n";
}

/// The token counts of a case, ascending, in the order in which they were measured.
std::vector<std::int64_t> token_counts(const records& all, std::string_view name, std::string_view routing,
                                       int threads) {
  std::vector<std::int64_t> counts;
  for (const record& r : all)
    if (r.name == name && r.routing == routing && r.threads == threads &&
        std::find(counts.begin(), counts.end(), r.tokens) == counts.end())
      counts.push_back(r.tokens);
  std::sort(counts.begin(), counts.end());
  return counts;
}

/// sluice against its twins: one row a number of tokens.
std::string race_table(const session& s, const std::string& name, const std::string& routing) {
  const records& all = s.found.cases;
  const int threads = s.asked.threads;
  table t({"T", "bound", "least ms", "sluice", "eigen", "onednn", "naive", "dense", "stream", "stream / sluice",
           "sluice vs best loop", "spread"});
  for (const std::int64_t rows : token_counts(all, name, routing, threads)) {
    const auto* own = find(all, name, rows, routing, "sluice", threads);
    if (!own) continue;
    std::vector<std::string> line{std::to_string(rows),
                                  own->least.by_memory ? std::string(name_of(own->level)) : std::string("arithmetic"),
                                  milliseconds(own->least.seconds), cell(own)};
    double best = INFINITY;
    for (const auto peer : peer_names) {
      const record* other = find(all, name, rows, routing, peer, threads);
      line.push_back(cell(other));
      if (other && peer != "dense" && peer != "stream") best = std::min(best, other->median);
    }
    const record* stream = find(all, name, rows, routing, "stream", threads);
    line.push_back(stream && own->least.by_memory ? percent(stream->median / own->median) : "-");
    line.push_back(std::isfinite(best) ? significant(best / own->median) + " x" : "-");
    line.push_back(fixed(own->spread(), 2));
    t.add(std::move(line));
  }
  return t.empty() ? "" : t.text();
}

std::string shape_words(const shape& s) {
  return "D = " + std::to_string(s.inputs) + ", H = " + std::to_string(s.hidden) +
         ", E = " + std::to_string(s.experts) + ", K = " + std::to_string(s.top_k) + ", " +
         megabytes(4.0 * static_cast<double>(s.size())) + " of float32 weights";
}

std::string forward_section(const session& s) {
  std::string out;
  for (const shape& on : published_shapes()) {
    const std::string uniform = race_table(s, on.name, "uniform"), zipf = race_table(s, on.name, "zipf_planned");
    const std::string cached = race_table(s, on.name + "_cached", "uniform");
    if (uniform.empty() && zipf.empty() && cached.empty()) continue;
    out += "### " + on.title + " (`" + on.name + "`)\n\n" + shape_words(on) + "\n\n";
    if (!uniform.empty()) out += "Routed by the router, evenly (`uniform`):\n\n" + uniform;
    if (!zipf.empty()) out += "Planned, by Zipf's law (`zipf_planned`):\n\n" + zipf;
    if (!cached.empty()) out += "Cache-resident: one batch repeated (`" + on.name + "_cached`):\n\n" + cached;
  }
  return out.empty() ? "" : "## Forward pass\n\n" + out;
}

std::string skew_section(const session& s) {
  table t({"shape", "T", "experts used, even", "experts used, Zipf", "largest load, even", "largest load, Zipf",
           "ms, even", "ms, Zipf", "of roofline, even", "of roofline, Zipf"});
  for (const shape& on : published_shapes())
    for (const auto rows : token_counts(s.found.cases, on.name, "zipf_planned", s.asked.threads)) {
      const auto* even = find(s.found.cases, on.name, rows, "uniform_planned", "sluice", s.asked.threads);
      const auto* zipf = find(s.found.cases, on.name, rows, "zipf_planned", "sluice", s.asked.threads);
      if (even && zipf)
        t.add({on.name, std::to_string(rows), fixed(even->touched, 1), fixed(zipf->touched, 1),
               fixed(even->largest_load, 0), fixed(zipf->largest_load, 0), milliseconds(even->median),
               milliseconds(zipf->median), percent(even->roofline_fraction()), percent(zipf->roofline_fraction())});
    }
  return t.empty() ? "" : std::string(prose::skew) + t.text();
}

std::string storage_section(const session& s) {
  table t({"case", "T", "storage", "ms, float32", "ms", "gain", "of roofline, float32", "of roofline"});
  for (const record& rounded : s.found.cases) {
    if (rounded.dtype == "float32") continue;
    const auto* full =
        find(s.found.cases, rounded.name, rounded.tokens, rounded.routing, rounded.implementation, rounded.threads);
    if (full)
      t.add({rounded.name, std::to_string(rounded.tokens), rounded.dtype, milliseconds(full->median),
             milliseconds(rounded.median), significant(full->median / rounded.median) + " x",
             percent(full->roofline_fraction()), percent(rounded.roofline_fraction())});
  }
  return t.empty() ? "" : std::string(prose::storage) + t.text() + "![storages](storages.svg)\n\n";
}

template <typename Wanted>
std::string section_of_cases(const session& s, std::string_view prose, Wanted&& wanted) {
  table t({"case", "T", "threads", "least ms", "ms", "of roofline", "GFLOP/s", "spread"});
  for (const record& r : s.found.cases)
    if (wanted(r.name))
      t.add({r.name, std::to_string(r.tokens), std::to_string(r.threads), milliseconds(r.least.seconds),
             milliseconds(r.median), percent(r.roofline_fraction()), fixed(r.gflops(), 0), fixed(r.spread(), 2)});
  return t.empty() ? "" : std::string(prose) + t.text();
}
std::string training_section(const session& s) {
  return section_of_cases(s, prose::training, [](const std::string& name) { return name.ends_with("_training"); });
}
std::string factorized_section(const session& s) {
  return section_of_cases(s, prose::factorized, [](const std::string& name) { return name.starts_with("factorized_"); });
}
std::string other_layers_section(const session& s) {
  return section_of_cases(s, prose::other_layers, [](const std::string& name) { return name.starts_with("other_"); });
}

std::string threads_section(const session& s) {
  if (s.asked.threads == 1) return "";
  table t({"shape", "T", "implementation", "ms, 1 thread", "ms, " + std::to_string(s.asked.threads) + " threads",
           "gain", "of roofline, 1 thread", std::to_string(s.asked.threads) + " threads"});
  for (const record& one : s.found.cases) {
    if (one.threads != 1) continue;
    const auto* all =
        find(s.found.cases, one.name, one.tokens, one.routing, one.implementation, s.asked.threads, one.dtype);
    if (all)
      t.add({one.name, std::to_string(one.tokens), one.implementation, milliseconds(one.median),
             milliseconds(all->median), fixed(one.median / all->median, 2) + " x", percent(one.roofline_fraction()),
             percent(all->roofline_fraction())});
  }
  const double reading = s.one.memory > 0 ? s.all.memory / s.one.memory : 0;
  if (t.empty()) return "";
  return "## One thread and " + std::to_string(s.asked.threads) + "\n\nThe machine itself gains " +
         fixed(s.all.gflops / s.one.gflops, 2) + " x in arithmetic and " + fixed(reading, 2) +
         " x in reading memory.\n\n" + t.text();
}

std::string adapter_section(const session& s) {
  table t({"experts a token", "threads", "experts used", "bound", "ms", "of roofline", "GFLOP/s", "GB/s"});
  for (const record& r : s.found.cases) {
    constexpr std::string_view prefix = "low_rank_K=";
    if (!r.name.starts_with(prefix)) continue;
    t.add({r.name.substr(prefix.size()), std::to_string(r.threads), fixed(r.touched, 1),
           r.least.by_memory ? "memory" : "arithmetic", milliseconds(r.median), percent(r.roofline_fraction()),
           fixed(r.gflops(), 0), fixed(r.gbytes_per_s(), 1)});
  }
  return t.empty() ? "" : std::string(prose::adapters) + t.text();
}

/// What follows "growth_E=" in a record's name, or nothing.
std::string varied(const record& r, const std::string& axis) {
  const std::string prefix = "growth_" + axis;
  if (!r.name.starts_with(prefix)) return "";
  return axis == "T" ? std::to_string(r.tokens) : r.name.substr(prefix.size() + 1);
}

std::string growth_table(const session& s, const std::string& axis) {
  table t({axis, "experts used", "tokens an expert used", "bound", "ms", "growth", "of roofline", "GFLOP/s", "GB/s"});
  const record* last = nullptr;
  for (const record& r : s.found.cases) {
    const std::string value = varied(r, axis);
    if (value.empty()) continue;
    const double assignments = r.done.flops / (2.0 * static_cast<double>(moderate(1, 1).expert_size()));
    t.add({value, fixed(r.touched, 1), significant(assignments / r.touched),
           r.least.by_memory ? "memory" : "arithmetic", milliseconds(r.median),
           last ? significant(r.median / last->median) + " x" : "-", percent(r.roofline_fraction()),
           fixed(r.gflops(), 0), fixed(r.gbytes_per_s(), 1)});
    last = &r;
  }
  return t.empty() ? "" : t.text();
}

std::string neurons_table(const session& s) {
  table t({"N", "experts used", "ms", "growth", "of roofline", "GFLOP/s", "GB/s"});
  const record* last = nullptr;
  for (const record& r : s.found.cases) {
    const std::string value = varied(r, "N");
    if (value.empty()) continue;
    t.add({value, fixed(r.touched, 1), milliseconds(r.median), last ? significant(r.median / last->median) + " x" : "-",
           percent(r.roofline_fraction()), fixed(r.gflops(), 0), fixed(r.gbytes_per_s(), 1)});
    last = &r;
  }
  return t.empty() ? "" : t.text();
}

std::string growth_section(const session& s) {
  const std::string by_tokens = growth_table(s, "T"), by_experts = growth_table(s, "E"),
                    by_choice = growth_table(s, "K"), by_neurons = neurons_table(s);
  if (by_tokens.empty() && by_experts.empty() && by_choice.empty() && by_neurons.empty()) return "";
  std::string out(prose::growth);
  if (!by_tokens.empty()) out += prose::with_balance(prose::growth_by_tokens, balance(s)) + by_tokens;
  if (!by_experts.empty()) out += prose::with_balance(prose::growth_by_experts, balance(s)) + by_experts;
  if (!by_choice.empty()) out += prose::with_balance(prose::growth_by_choices, balance(s)) + by_choice;
  if (!by_neurons.empty()) out += std::string(prose::growth_by_neurons) + by_neurons;
  return out;
}

/// A row a router, a column a number of experts: microseconds a token, and how often the time of the plain router, where that is most.
std::string routers_section(const session& s) {
  std::vector<std::int64_t> sizes;
  std::vector<std::string> names;
  std::map<std::pair<std::string, std::int64_t>, double> time;
  std::int64_t tokens = 0;
  for (const router_time& t : s.found.routers) {
    if (std::find(sizes.begin(), sizes.end(), t.experts) == sizes.end()) sizes.push_back(t.experts);
    if (std::find(names.begin(), names.end(), t.name) == names.end()) names.push_back(t.name);
    time[{t.name, t.experts}] = 1e6 * t.median / static_cast<double>(t.tokens);
    tokens = t.tokens;
  }
  if (names.empty()) return "";
  const std::string plain = "top_k, k = 2";
  std::vector<std::string> head{"router"};
  for (const std::int64_t experts : sizes) head.push_back("E = " + std::to_string(experts));
  head.push_back("times " + plain);
  table routers(head);
  for (const std::string& name : names) {
    std::vector<std::string> row{name};
    double most = 0;
    for (const std::int64_t experts : sizes) {
      const auto own = time.find({name, experts}), other = time.find({plain, experts});
      row.push_back(own == time.end() ? "" : significant(own->second));
      if (own != time.end() && other != time.end()) most = std::max(most, own->second / other->second);
    }
    row.push_back(most > 0 ? fixed(most, 2) : "");
    routers.add(row);
  }
  return "## Routers alone\n\nInference, D = " + std::string(s.asked.smoke ? "32" : "256 (product keys: 512)") + ", T = " +
         std::to_string(tokens) + ", from tokens to plan: microseconds a token.\n\n" + routers.text();
}

std::string neurons_section(const session& s) {
  table t({"single neurons", "T", "layer", "reading its weights", "times", "arithmetic"});
  for (const neurons_time& n : s.found.neurons) {
    const auto a_token = [&](double seconds) { return significant(1e6 * seconds / static_cast<double>(n.tokens)); };
    t.add({std::to_string(n.experts), std::to_string(n.tokens), a_token(n.layer), a_token(n.reading),
           fixed(n.layer / n.reading, 2), significant(n.arithmetic / (s.all.gflops * 1e3))});
  }
  if (t.empty()) return "";
  return "## A layer of single neurons\n\nPEER behind product keys: D = 512, 8 heads, 16 neurons a head; microseconds a token. "
         "Reading: once, the neurons that the tokens go to, the keys and the matrix of the queries. Arithmetic: what the "
         "multiplications take at this machine's best, at any T.\n\n" +
         t.text();
}

std::string routing_section(const session& s) {
  std::string out;
  table stages(
      {"shape", "T", "route ms", "gather ms", "combine ms", "forward ms", "share of routing + gather + combine"});
  for (const stage_times& t : s.found.stages)
    stages.add({t.on.name, std::to_string(t.tokens), milliseconds(t.route), milliseconds(t.gather),
                milliseconds(t.combine), milliseconds(t.whole), percent((t.route + t.gather + t.combine) / t.whole)});
  if (!stages.empty()) out += std::string(prose::stages) + stages.text();
  return out + routers_section(s) + neurons_section(s);
}

std::string codebook_section(const session& s) {
  table t({"C", "D", "T", "threads", "search ms", "GFLOP/s", "of the peak", "keys, GB/s", "k-means round / search",
           "moving average / search", "spread"});
  for (const codebook_time& c : s.found.codebooks) {
    const auto numbers = static_cast<double>(c.codes * c.width);
    const double gflops = 2e-9 * numbers * static_cast<double>(c.tokens) / c.fastest;
    const auto beside = [&](double seconds) { return seconds > 0 ? fixed(seconds / c.fastest, 2) : "-"; };
    t.add({std::to_string(c.codes), std::to_string(c.width), std::to_string(c.tokens), std::to_string(c.threads),
           milliseconds(c.fastest), fixed(gflops, 0), percent(gflops / s.limits_of(c.threads).gflops),
           fixed(4e-9 * numbers / c.fastest, 1), beside(c.cluster), beside(c.average), fixed(c.median / c.fastest, 2)});
  }
  return t.empty() ? "" : std::string(prose::codebooks) + t.text();
}

std::string scan_section(const session& s) {
  table t({"N", "M", "Q", "threads", "ms", "ns an item", "table entries, G/s", "of the loads alone", "spread"});
  for (const scan_time& c : s.found.scans) {
    const auto items = static_cast<double>(c.items * c.queries);
    t.add({std::to_string(c.items), std::to_string(c.parts), std::to_string(c.queries), std::to_string(c.threads),
           milliseconds(c.fastest), fixed(1e9 * c.fastest / items, 2), fixed(1e-9 * items * static_cast<double>(c.parts) / c.fastest, 2),
           percent(c.loads / c.fastest), fixed(c.median / c.fastest, 2)});
  }
  return t.empty() ? "" : std::string(prose::scans) + t.text();
}

std::string rounding_section(const session& s) {
  table t({"D", "H", "threads", "nearest, GB/s", "of the memory", "moments of rows", "ms", "GPTQ ms", "64 experts, s"});
  for (const rounding_time& r : s.found.roundings) {
    const double bytes = 5e-9 * static_cast<double>(r.weights) / r.nearest;
    t.add({std::to_string(r.inputs), std::to_string(r.hidden), std::to_string(r.threads), fixed(bytes, 1),
           percent(bytes / s.limits_of(r.threads).memory), std::to_string(r.rows), milliseconds(r.moments), milliseconds(r.gptq),
           fixed(64 * (r.moments + r.gptq), 1)});
  }
  return t.empty() ? "" : std::string(prose::roundings) + t.text();
}

std::string attention_section(const session& s) {
  table t({"head", "T", "who is seen", "threads", "forward, GFLOP/s", "of the peak", "backward, GFLOP/s", "of the peak"});
  for (const attention_time& a : s.found.attentions) {
    const double forward = 1e-9 * a.flops / a.forward, backward = 2.5e-9 * a.flops / a.backward;
    const double peak = s.limits_of(a.threads).gflops;
    t.add({std::to_string(a.width), std::to_string(a.tokens), a.causal ? "earlier tokens" : "all",
           std::to_string(a.threads), fixed(forward, 0), percent(forward / peak), fixed(backward, 0),
           percent(backward / peak)});
  }
  return t.empty() ? "" : std::string(prose::attentions) + t.text();
}

std::string executor_section(const session& s) {
  table t({"executor", "threads", "nothing to do, us", "32 tasks, free cores, us", "32 tasks, busy cores, us"});
  for (const executor_time& e : s.found.executors)
    t.add({e.name, e.name == "serial" ? "1" : std::to_string(s.asked.threads), significant(1e6 * e.empty),
           significant(1e6 * e.free), significant(1e6 * e.busy)});
  return t.empty() ? "" : std::string(prose::executors) + t.text();
}

std::string memory_section(const session& s) {
  table t({"shape", "T", "weights", "layer", "workspace", "peak", "peak over weights + workspace"});
  for (const memory_use& m : s.found.memory) {
    const bool known = m.peak > 0;
    t.add({m.on.name, std::to_string(m.tokens), megabytes(m.weights), known ? megabytes(m.layer) : "-",
           known ? megabytes(m.workspace) : "-", known ? megabytes(m.peak) : "-",
           known ? fixed(m.peak / (m.weights + m.workspace), 3) : "-"});
  }
  return t.empty() ? "" : std::string(prose::memory) + t.text();
}

std::string sweep_section(const session& s) {
  if (s.found.sweep.empty()) return "";
  const auto weakest = std::min_element(s.found.sweep.begin(), s.found.sweep.end(), [&](const auto& a, const auto& b) {
    return beside_neighbours(s.found.sweep, a) < beside_neighbours(s.found.sweep, b);
  });
  return std::string(prose::sweep) + "The weakest beside its neighbours is D = " + std::to_string(weakest->inputs) +
         ", H = " + std::to_string(weakest->hidden) + ": " +
         percent(beside_neighbours(s.found.sweep, *weakest)) + " of what they reach on average.\n\n![sweep](sweep.svg)\n\n";
}

std::string list_section(const records& all) {
  table t({"case", "T", "routing", "implementation", "threads", "repetitions", "median ms", "fastest ms", "spread",
           "GFLOP/s", "GB/s", "of roofline", "how"});
  for (const record& r : all)
    t.add({r.name, std::to_string(r.tokens), r.routing, r.implementation + (r.dtype == "float32" ? "" : " " + r.dtype),
           std::to_string(r.threads), std::to_string(r.repetitions), milliseconds(r.median), milliseconds(r.fastest),
           fixed(r.spread(), 2), fixed(r.gflops(), 1), fixed(r.gbytes_per_s(), 1), percent(r.roofline_fraction()),
           r.note});
  return t.empty() ? "" : "## Every case\n\n" + t.text();
}

}  // namespace

std::string markdown(const session& s, const facts& environment) {
  std::string out = "# sluice: benchmark report\n\n";
  if (s.asked.smoke) out += "**A smoke run: it proves that this report is written, and its numbers mean nothing.**\n\n";
  if (s.asked.quick) out += "A quick run: fewer cases and repetitions than a full one.\n\n";
  if (!s.asked.filter.empty()) out += "Only cases whose name contains \"" + s.asked.filter + "\".\n\n";
  table machine({"machine", ""});
  for (const auto& [name, value] : environment) machine.add({name, value});
  out += machine.text() + limits_section(s) +
         "Data: `report.csv`; pictures: `roofline.svg`, `storages.svg`, `sweep.svg`.\n\n![share of the roofline](roofline.svg)\n\n";
  return out + how_to_read(s) + forward_section(s) + skew_section(s) + storage_section(s) + training_section(s) +
         factorized_section(s) + other_layers_section(s) + threads_section(s) + adapter_section(s) + growth_section(s) + routing_section(s) + codebook_section(s) + scan_section(s) + rounding_section(s) + attention_section(s) + executor_section(s) + sweep_section(s) +
         memory_section(s) + list_section(s.found.cases);
}

}  // namespace bench
