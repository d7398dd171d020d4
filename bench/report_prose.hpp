/// The sentences of report.md. {balance} stands for the tokens an expert where reading and computing take equally long.
#pragma once

#include <string>
#include <string_view>

namespace bench::prose {

inline constexpr std::string_view how_to_read = R"(## How to read this

- Times are medians in milliseconds, with the share of the roofline in brackets: the time that this machine needs at
  least, over the time taken. The least time is max(FLOP / peak, bytes / bandwidth) with 6 D H FLOP an assignment and the
  weights of the experts that got tokens read once, for the same number of threads. Routing, gathering and combining count
  as no work but take time.
- Every repetition takes other tokens, and before each one the caches are flushed with a buffer three times the L3: the
  weights come from memory, as they do in a model of many layers. Cases called `_cached` repeat one batch whose weights
  fit into a cache, and are compared with that cache's bandwidth.
- Repetitions of all implementations of a case are interleaved in random order. `spread` is median over fastest.
- `uniform` is routed by the layer's own top-k router, in the time measured, and the loops route for themselves. In
  `uniform_planned` and `zipf_planned` the plan is given: K experts a token drawn evenly, or by Zipf's law, so that both
  have equal numbers of assignments.
- `eigen` and `onednn` are loops over experts around Eigen's products and oneDNN's sgemm: gather rows, three products,
  SiLU, scatter. Both are tried with their threads inside the products and with experts shared out over the threads; the
  faster one is shown, and named in the list at the end. `naive` is three nested loops, with tokens shared out over the
  threads, where that does not take too long. `dense` is sluice with a single expert of hidden width K H that takes every
  token: the same active FLOP without any choice, and its own bytes.
- `stream` reads the weights of the experts that got tokens and does nothing else: what memory gave in that very race. Where
  memory is shared with other machines its best moment, which the roofline counts with, may be twice as good;
  `stream / sluice` does not depend on that.
)";

inline constexpr std::string_view same_results =
    "- All implementations compute the same. The largest difference from sluice, as a part of the largest output:";

inline constexpr std::string_view balance =
    "An expert in float32 takes as long to read from memory as {balance} tokens take to compute: with fewer tokens an\n"
    "expert the memory is the limit, with more the arithmetic. ";

inline constexpr std::string_view limits =
    "The limits are the best of several measurements in this\nprocess, between the groups of cases.";

inline constexpr std::string_view disturbed =
    ": **other programs ran at the same time, so times below are too long**, above all those of threads that wait for "
    "each "
    "other";

inline constexpr std::string_view skew = R"(## Even and uneven routing

sluice, with plans of equal numbers of assignments. An uneven plan uses fewer experts, so it reads less; its largest expert
must not hold up the others.

)";

inline constexpr std::string_view storage = R"(## Rounded weights

The same layer with its weights in other storages (`stored_as<bfloat16_storage>()`, `stored_as<coded_storage<q4_k_format>>()` and so on), in
the same race. Arithmetic stays in float, so that gain ends where the weights no longer come from memory; `int8` and what is called
"8-bit" takes activations in 8 bits too, for dot products of which a machine may do more than the peak in float32 that its roofline
counts.

)";

inline constexpr std::string_view sweep = R"(## Sizes, round and odd

A forward pass of 512 tokens for every pair of D and H, repeated on the same tokens: two experts, one a token, so that it is
arithmetic that counts. A shape should reach about what its neighbours do.

)";

inline constexpr std::string_view factorized = R"(## Experts whose weights are products

Forward. `factorized_mpoe`: matrices are computed for the call and multiplied; counted are both, and as bytes the cores and the
matrices, written and read. `factorized_multilinear`: gates, factors and the output of 128 linear experts of rank 512.

)";

inline constexpr std::string_view other_layers = R"(## Other layers

Forward. `other_merged`: eight experts of width 768 and 64 hidden units become one for every sequence of 64 tokens; counted are the
sums and the networks, and as bytes the experts once and what they become twice. `other_convolution`: two of eight 3 x 3 convolutions
an image of 64 channels, 16 x 16. `other_selective_attention`: four of eight heads a token, width 512, one sequence.
`other_cross_attention`: eight heads, width 512, at 576 rows of width 1024. Routing is not counted.

)";

inline constexpr std::string_view training = R"(## Training step

Forward and backward, without the optimiser, counted as three times the FLOP of a forward pass; the bound from memory counts
weights twice, and gradients as read once and written once.

)";

inline constexpr std::string_view adapters = R"(## Low-rank adapters

A bank of 64 of rank 16, without the frozen layer beside it: D = 2048, T = 512, routed evenly. An adapter is so thin that the tokens
are most of what is moved: the roofline counts every weight, every input and every output once, and outputs are read and written.

)";

inline constexpr std::string_view growth = R"(## Growth

D = 256, H = 512, routed evenly. `growth` is the time over that of the line above.

)";

inline constexpr std::string_view growth_by_tokens =
    R"(**Tokens**, with E = 64 and K = 2. At first every token brings experts of its own, and time grows with the experts used.
Once nearly all of them are read anyway, twice the tokens take much less than twice the time, until each expert has several
times {balance} of them, about where reading an expert and computing with it take equally long; from there on time is
arithmetic and grows with T.

)";

inline constexpr std::string_view growth_by_experts =
    R"(**Experts**, with T = 512 and K = 1: the arithmetic is the same in every line. As long as an expert gets many more than
about {balance} tokens, more experts cost little. Beyond that each further expert that is used costs its reading, and time
grows with their number. It is less than linear again at the end: T K assignments use T K experts at most, and those that
got no token cost only their column of the gate.

)";

inline constexpr std::string_view growth_by_choices =
    R"(**Experts a token**, with T = 256 and E = 64. With few choices the reading of the experts is most of the time, and it is
done once however many tokens an expert gets, so the first doublings cost much less than twice; then time is nearly linear
in K.

)";

inline constexpr std::string_view growth_by_neurons =
    R"(**Single neurons** behind product keys (PEER), one token with D = 64, 8 heads and 16 neurons a head. The keys that are searched
grow with the square root of their number and with it the time; neurons that are not chosen cost nothing.

)";

inline constexpr std::string_view stages = R"(## What is not experts

Each stage timed as the call that does it, beside the whole forward pass. Where the layer fuses stages into its products,
the share is an upper bound.

)";

inline constexpr std::string_view codebooks = R"(## Codebooks

The nearest of C codes for T tokens of width D, counted as 2 T C D operations, at the fastest call. A round of k-means and a
step of moving averages include their search. Few tokens read the keys once: there the keys' GB/s count, from the level of
memory that holds them.

)";

inline constexpr std::string_view scans = R"(## Search by codes

The 10 closest of N items of M codes, 256 a part, for Q queries, at the fastest call: M table entries an item and query. Beside
it as many loads from a table of that size in the first cache and nothing else, which no scan of single entries can beat.

)";

inline constexpr std::string_view roundings = R"(## Making codes of weights

Four bits, a scale for 128 inputs, at the fastest call. Round to nearest is counted as five bytes a weight: it is read as a float
and written as a byte. GPTQ is that of one expert's three matrices; a layer takes that, and the moments of its calibration rows,
once an expert.

)";

inline constexpr std::string_view attentions = R"(## Attention

Eight heads over one sequence of T tokens, without the projections, at the fastest call. Counted are the products of pairs that see
each other, two forward and five backward: 4 and 10 operations a pair and number of a head, no exponential.

)";

inline constexpr std::string_view executors = R"(## Handing out tasks

One call of `parallel_for`: with a task a thread that does nothing, and with 32 tasks of some five microseconds. The first two
columns are the fastest calls, the last is the median while other threads keep all cores busy.

)";

inline constexpr std::string_view memory = R"(## Memory

Resident memory. `weights` is counted; `workspace` is what `layer.workspace_bytes` says before anything is taken; the rest is
measured: growth when the layer is made, and the peak after a forward pass.

)";

/// The text with a number in the place of {balance}.
inline std::string with_balance(std::string_view text, std::string_view number) {
  constexpr std::string_view place = "{balance}";
  std::string out(text);
  for (std::size_t at = out.find(place); at != std::string::npos; at = out.find(place, at))
    out.replace(at, place.size(), number);
  return out;
}

}  // namespace bench::prose
