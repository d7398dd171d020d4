/// What the calls of a bank of feed-forward experts share: their memory, where packed rows lie, and how work is cut
/// into tasks.
///
/// Tasks are cut by the number of multiplications, so that skewed loads fill all threads and a single token does too;
/// how they are cut never changes a bit of a result. A stage of a few microseconds stays on the calling thread.
#pragma once

#include <sluice/core/executor.hpp>
#include <sluice/core/routed_rows.hpp>
#include <sluice/kernel/grouped_gemm.hpp>
#include <sluice/kernel/packed_memory.hpp>

#include <array>
#include <concepts>
#include <type_traits>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Map>
using storage_of_map = typename std::remove_cvref_t<Map>::storage;

/// The storages that an expert's last map may be of, and its first ones.
template <typename E>
using last_storages_of = storages_of<decltype(std::declval<const E&>().last_map())>;
template <typename E>
struct first_storages {
  using type = last_storages_of<E>;
};
template <typename E>
  requires(E::first_maps > 0)
struct first_storages<E> {
  using type = storages_of<decltype(std::declval<const E&>().first_map(0))>;
};
template <typename E>
using first_storages_of = typename first_storages<E>::type;

template <typename E>
concept HasFirstMaps = E::first_maps == 0 ||
    requires(const E& expert, const std::array<kernel::simd<typename E::scalar>, as_size(E::first_maps)>& z) {
  requires E::first_maps == 1 || E::first_maps == 2;
  { expert.first_map(0) } -> LinearMap;
  { expert.activate(index_t(), z) } -> std::same_as<kernel::simd<typename E::scalar>>;
};

}  // namespace detail

/// y = last(activate(first_0(x), first_1(x))) + output_bias, with two first maps, one, or none: then y = last(x) +
/// output_bias. Maps are what the products read of them (kernel/linear_map.hpp): linear_map, or a view, returned by
/// value. The last map may be of another storage than the first ones, and any may be chosen at run time
/// (kernel/mixed_map.hpp). The hidden width may differ from expert to expert.
template <typename E>
concept MadeOfLinearMaps = requires(const E& expert) {
  { E::first_maps } -> std::convertible_to<int>;
  { expert.last_map() } -> LinearMap;
  { expert.output_bias() } -> std::same_as<const typename E::scalar*>;
} && detail::HasFirstMaps<E>;

namespace detail {

/// Memory of one bank's calls.
template <typename Expert>
struct grouped_memory {
  using scalar = typename Expert::scalar;
  using first_memory = kernel::packed_memory<first_storages_of<Expert>>;
  using last_memory = kernel::packed_memory<last_storages_of<Expert>>;
  /// How often x is packed: twice if the first maps of an expert may want it differently.
  static constexpr std::size_t x_places = Expert::first_maps == 2 && !first_memory::all_alike ? 2 : 1;
  /// The rows of an expert that has some.
  struct active_rows : row_range {
    index_t lane_group;  ///< the first group of theirs, where rows lie in lanes
  };
  /// Units begin .. end of the work on them.
  struct task {
    active_rows own;
    index_t begin;
    index_t end;
  };

  bool keep = true;       ///< whether forward keeps what backward needs
  bool is_spent = false;  ///< whether backward has turned z into dz
  buffer<active_rows> active;
  buffer<task> tasks;
  std::array<first_memory, x_places> x;
  last_memory h;
  buffer<scalar> h_rows;                                      ///< where h is packed otherwise than number by number
  buffer<scalar> outputs;                                     ///< of whole experts, until they are added up
  std::array<buffer<scalar>, as_size(Expert::first_maps)> z;  ///< what the first maps gave, if kept; then dz
  buffer<scalar> dy, dy_lanes, dweight;                       ///< backward: weighted rows; rows in lanes; partial sums
  std::array<buffer<scalar>, as_size(Expert::first_maps)> dz_lanes;
};

/// Up to here, and with no more numbers in all outputs, handing out tasks once instead of once a stage is worth its
/// memory.
inline constexpr index_t whole_experts_work = 1 << 22;
inline constexpr index_t whole_experts_outputs = 1 << 14;
/// Tasks for every thread: enough for even loads, few enough that a task streams through its panels.
inline constexpr index_t tasks_per_thread = 16;

template <MadeOfLinearMaps Expert>
class grouped_rows {
public:
  using scalar = typename Expert::scalar;
  using memory = grouped_memory<Expert>;
  using last_memory = typename memory::last_memory;
  using full = full_precision<scalar>;
  using active_rows = typename memory::active_rows;
  static constexpr index_t lanes = kernel::simd_width<scalar>;
  static constexpr int maps = Expert::first_maps;

  /// expert_of(e) is expert e.
  template <typename ExpertOf>
  grouped_rows(const routed_rows<scalar>& rows, const ExpertOf& expert_of, index_t inputs, memory& m,
               const executor_ref& executor)
      : rows_(rows), inputs_(inputs), m_(m), executor_(executor) {
    // The largest number of either that any routing of this many rows needs: a warm call must not allocate.
    const index_t most_active = (std::min)(rows.experts(), (std::max)(rows.size(), m.active.capacity()));
    m.active.resize(most_active);
    m.active.clear();
    m.tasks.resize(most_active + 2 * tasks_per_thread * executor.concurrency());
    index_t groups = 0;
    for (const row_range& own : rows.by_expert) {
      m.active.push_back({own, groups});
      groups += lane_rows::groups(own.size());
      const Expert& expert = expert_of(own.expert);
      check_is_set(expert, own.expert);
      hidden_ = (std::max)(hidden_, expert.last_map().inputs());
    }
  }

  index_t hidden_width() const noexcept { return hidden_; }
  static kernel::row_blocks blocks_of(const row_range& own) { return {own.begin, own.size()}; }
  /// The inputs as the first map of this number reads them, in the place that second_place says for the second.
  template <typename Storage>
  kernel::packed_rows<Storage> packed_inputs(const kernel::row_blocks& rows, std::size_t place = 0) const {
    return m_.x[place].template rows_as<Storage>(rows, rows_.begin(), inputs_, inputs_);
  }
  /// The same where rows from `first` on lie in front, over what others have left there.
  template <typename Storage>
  kernel::packed_rows<Storage> passing_inputs(index_t first, std::size_t place) const {
    return m_.x[place].template rows_as<Storage>(kernel::row_blocks(first, 0), first, inputs_, inputs_);
  }
  /// Whether tasks run one after the other.
  bool is_alone() const noexcept { return executor_.concurrency() == 1; }
  /// Where the inputs of the second first map lie: with those of the first, unless it reads them differently.
  static std::size_t second_place(const Expert& expert) {
    if constexpr (memory::x_places == 1)
      return 0;
    else
      return packing_mark_of(expert.first_map(0)) == packing_mark_of(expert.first_map(1)) ? 0 : 1;
  }
  /// What the last map reads: hidden units, or without first maps the inputs.
  template <typename Storage>
  kernel::packed_rows<Storage> packed_hidden(const kernel::row_blocks& rows, index_t width) const {
    return m_.h.template rows_as<Storage>(rows, rows_.begin(), width, hidden_);
  }
  /// Hidden units of an expert as numbers: in place at once where the last map reads such, else row by row.
  kernel::number_rows<scalar> hidden_numbers(const Expert& expert, const kernel::row_blocks& rows) const {
    const index_t width = expert.last_map().inputs();
    if (is_direct(expert)) return {packed_hidden<full>(rows, width).units, packed_full::pitch(width), true};
    return {m_.h_rows.data() + (rows.first() - rows_.begin()) * packed_full::pitch(hidden_),
            packed_full::pitch(hidden_), false};
  }
  /// Whether the last map reads hidden units as they are, so that they are written where it reads them.
  static bool is_direct(const Expert& expert) {
    if constexpr (last_memory::all_numbers || last_memory::no_numbers)
      return last_memory::all_numbers;
    else
      return visit_map(expert.last_map(), [](const auto& map) { return packs_numbers<storage_of_map<decltype(map)>>; });
  }
  /// Rows of hidden units that backward reads: z, then dz.
  kernel::packed_rows<full> packed_z(std::size_t map, const kernel::row_blocks& rows, index_t width) const {
    return {m_.z[map].data() + (rows.first() - rows_.begin()) * packed_full::pitch(hidden_), nullptr, width,
            rows.first()};
  }

  /// Cuts `units_of(own)` units of every active expert's rows into tasks of about equal work and runs body(task) for
  /// each; work_of(own) is the work of one unit. A task is worth at least half of the target or is all that an expert
  /// has, so there are at most two targets' number and one for every active expert.
  template <typename UnitsOf, typename WorkOf, typename Body>
  void run_tasks(UnitsOf units_of, WorkOf work_of, Body&& body) const {
    index_t total = 0;
    for (const active_rows& own : m_.active) total += units_of(own) * work_of(own);
    const index_t target = (std::max<index_t>)(executor_ref::smallest_work, total / most_tasks());
    m_.tasks.clear();
    for (const active_rows& own : m_.active) {
      const index_t units = units_of(own);
      const index_t most = (std::max<index_t>)(1, target / (std::max<index_t>)(1, work_of(own)));
      const index_t parts = (units + most - 1) / most;
      for (index_t part = 0; part < parts; ++part)
        m_.tasks.push_back({own, units * part / parts, units * (part + 1) / parts});
    }
    executor_.for_work(total).parallel_for(m_.tasks.size(), [&](index_t i) { body(m_.tasks[i]); });
  }

  /// Runs body(begin, end) on [0, units) units of columns, in equal parts that do not share work; `work` is that of
  /// all. A part reads the rows of all experts, from a cache further away: no more of them than threads.
  template <typename Body>
  void run_columns(index_t units, index_t work, Body&& body) const {
    const index_t parts =
        (std::min)({units, executor_.concurrency(), (std::max<index_t>)(1, 2 * work / executor_ref::smallest_work)});
    executor_.for_work(work).parallel_for(
        parts, [&](index_t part) { body(units * part / parts, units * (part + 1) / parts); });
  }

  /// Whether the batch is small and every thread gets experts to itself without one of them keeping the others waiting.
  /// `outputs` numbers wait for every row.
  bool suits_whole_experts(index_t outputs) const {
    const index_t threads = executor_.concurrency();
    const index_t work = rows_.size() * hidden_ * (maps * inputs_ + outputs);
    if (threads == 1 || work < executor_ref::smallest_work || work > whole_experts_work) return false;
    if (rows_.size() * outputs > whole_experts_outputs) return false;
    index_t largest = 0;
    for (const active_rows& own : m_.active) largest = (std::max)(largest, own.size());
    return largest * threads <= rows_.size();
  }
  /// body(own) for the rows of every active expert.
  template <typename Body>
  void run_whole(Body&& body) const {
    executor_.parallel_for(m_.active.size(), [&](index_t a) { body(m_.active[a]); });
  }

  static index_t pairs_of(const Expert& expert) {
    if constexpr (maps == 0)
      return 0;
    else
      return maps == 2 ? expert.first_map(0).panels() : (expert.first_map(0).panels() + 1) / 2;
  }

private:
  /// Weights that nobody has set may have no memory.
  static void check_is_set(const Expert& expert, index_t e) {
    const auto check = [e](const LinearMap auto& any) {
      visit_map(any, [e](const auto& map) {
        if (map.panel(0) == nullptr) throw_invalid("expert ", e, " has weights that nobody has set");
      });
    };
    for (int m = 0; m < maps; ++m)
      if constexpr (maps > 0) check(expert.first_map(m));
    check(expert.last_map());
  }

  using lane_rows = kernel::lane_rows<scalar>;
  using packed_full = kernel::packed_rows<full>;

  /// The same address for storages that pack alike; one of an own for every map whose format may differ from map to
  /// map.
  template <typename Storage>
  static constexpr char packing_mark = 0;
  static const void* packing_mark_of(const LinearMap auto& any) {
    return visit_map(any, [&](const auto& map) -> const void* {
      using storage = storage_of_map<decltype(map)>;
      if constexpr (packs_numbers<storage>)
        return &packing_mark<full>;
      else if constexpr (std::is_empty_v<packing_of<storage>>)
        return &packing_mark<packing_of<storage>>;
      else
        return &map;
    });
  }

  /// One thread has nobody to share with: larger tasks read what they share less often.
  index_t most_tasks() const { return executor_.concurrency() == 1 ? 1 : tasks_per_thread * executor_.concurrency(); }

  routed_rows<scalar> rows_;
  index_t inputs_;
  index_t hidden_ = 1;
  memory& m_;
  executor_ref executor_;
};

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
