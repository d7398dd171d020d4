/// Sums of experts' parameters by weight, and the same road backwards: what merging experts into one is made of.
///
///   merged_g = sum over e of w[g,e] theta_e,  e ascending        theta: all parameters of an expert, in the order of
///   dtheta_e += sum over g of w[g,e] dmerged_g,  g ascending     their visit, as they lie in memory
///   dw[g,e]  = <dmerged_g, theta_e>
///
/// Experts are visited, so any that is made of parameters will do; they have to be alike, array by array, in full
/// precision. Arrays are cut into pieces that stay in a near cache while every g takes what it wants of them, so each
/// expert is read from memory once. Sums have one order whatever the threads. Costs G k |theta| multiplications,
/// backward twice as many.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// A bank whose experts' parameters can be visited, and which can be made anew with as many experts as wanted.
template <typename B>
concept MergeableBank = requires(B& bank, const B& only_read) {
  requires HasParameters<std::remove_cvref_t<decltype(bank.expert(index_t()))>>;
  { only_read.copies_of_first(index_t()) } -> std::same_as<B>;
};

/// w [G,E], and which of them count: the others leave their expert out.
template <FloatOrDouble Scalar>
struct merging_weights {
  matrix_buffer<Scalar> w;
  matrix_buffer<index_t> row;  ///< [G,E] of the plan, or -1

  bool has(index_t g, index_t e) const noexcept { return row(g, e) >= 0; }
  index_t groups() const noexcept { return w.rows(); }
  index_t experts() const noexcept { return w.cols(); }
};

template <FloatOrDouble Scalar>
class parameter_sums {
public:
  /// Throws std::invalid_argument if an expert's arrays are not those of the first one, or are read only.
  template <MergeableBank Bank>
  static void validate(const Bank& bank) {
    for (index_t e = 1; e < bank.experts(); ++e) {
      buffer<matrix_layout> first, own;
      const auto list = [](buffer<matrix_layout>& layouts) {
        return [&layouts](const auto& p) { layouts.push_back(p.layout()); };
      };
      for_each_array(bank, 0, list(first));
      for_each_array(bank, e, list(own));
      const bool is_alike =
          std::equal(first.begin(), first.end(), own.begin(), own.end(), [](const auto& a, const auto& b) {
            return a.rows() == b.rows() && a.cols() == b.cols() && a.stored_size() == b.stored_size();
          });
      if (!is_alike) throw_invalid("experts that are merged need equal shapes; expert ", e, " differs from expert 0");
    }
  }

  /// Overwrites expert g - first of `merged` for the groups first .. first + count.
  template <MergeableBank Bank>
  void merge(const Bank& bank, const merging_weights<Scalar>& weights, index_t first, index_t count, Bank& merged,
             const executor_ref& executor) {
    find(bank);
    places_.clear();
    for (index_t g = 0; g < count; ++g) for_each_array(merged, g, [&](auto& p) { places_.push_back(p.data()); });
    for_each_piece(count * weights.experts(), executor, [&](index_t, const piece& own) {
      for (index_t g = 0; g < count; ++g) {
        Scalar* const sum = places_[g * arrays_ + own.array] + own.begin;
        bool is_first = true;
        for (index_t e = 0; e < weights.experts(); ++e) {
          if (!weights.has(first + g, e)) continue;
          const Scalar w = weights.w(first + g, e);
          if (std::exchange(is_first, false))
            kernel::copy_scaled(w, value(e, own), sum, own.size);
          else
            kernel::add_scaled(w, value(e, own), sum, own.size);
        }
      }
    });
  }

  /// Adds into the experts' gradients and overwrites dw [G,E], given the gradients of expert g of `merged` for group g.
  template <MergeableBank Bank>
  void backward(Bank& bank, const merging_weights<Scalar>& weights, Bank& merged, matrix_buffer<Scalar>& dw,
                const executor_ref& executor) {
    find(bank);
    gradients_.clear();
    places_.clear();
    for (index_t e = 0; e < weights.experts(); ++e)
      for_each_array(bank, e, [&](auto& p) { gradients_.push_back(p.has_gradient() ? p.gradient().data() : nullptr); });
    for (index_t g = 0; g < weights.groups(); ++g)
      for_each_array(merged, g, [&](auto& p) { places_.push_back(p.gradient().data()); });
    partial_.set_zero(tasks(), weights.w.size());
    for_each_piece(2 * weights.w.size(), executor, [&](index_t task, const piece& own) {
      for (index_t g = 0; g < weights.groups(); ++g)
        for (index_t e = 0; e < weights.experts(); ++e) {
          if (!weights.has(g, e)) continue;
          const Scalar* const dmerged = places_[g * arrays_ + own.array] + own.begin;
          partial_(task, g * weights.experts() + e) += kernel::dot(dmerged, value(e, own), own.size);
          Scalar* const gradient = gradients_[e * arrays_ + own.array];
          if (gradient != nullptr) kernel::add_scaled(weights.w(g, e), dmerged, gradient + own.begin, own.size);
        }
    });
    dw.set_zero(weights.groups(), weights.experts());
    for (index_t task = 0; task < partial_.rows(); ++task)
      kernel::add_scaled(Scalar(1), partial_.row(task), dw.data(), dw.size());
  }

private:
  static constexpr index_t piece_size = 2048;  ///< numbers: with those of a merged expert in the first cache
  static constexpr index_t most_tasks = 64;

  struct piece {
    index_t array, begin, size;
  };

  /// f(parameter) for every array of an expert.
  template <typename Bank, typename F>
  static void for_each_array(Bank& bank, index_t e, F&& f) {
    auto&& expert = bank.expert(e);
    detail::for_each_unnamed_parameter(expert, [&](auto& p) {
      static_assert(std::remove_cvref_t<decltype(p)>::is_trainable,
                    "sluice: experts are merged in full precision; weights of another storage are only read");
      f(p);
    });
  }

  template <typename Bank>
  void find(const Bank& bank) {
    values_.clear();
    for (index_t e = 0; e < bank.experts(); ++e)
      for_each_array(bank, e, [&](const auto& p) { values_.push_back(p.data()); });
    arrays_ = values_.size() / bank.experts();
    pieces_.clear();
    index_t array = 0;
    for_each_array(bank, 0, [&](const auto& p) {
      const index_t size = p.layout().stored_size();
      for (index_t begin = 0; begin < size; begin += piece_size)
        pieces_.push_back({array, begin, (std::min)(piece_size, size - begin)});
      ++array;
    });
  }

  const Scalar* value(index_t e, const piece& own) const { return values_[e * arrays_ + own.array] + own.begin; }

  index_t tasks() const { return (std::min)(most_tasks, pieces_.size()); }

  /// body(task, piece), the pieces of a task one after the other; `work` is that of one number.
  template <typename Body>
  void for_each_piece(index_t work, const executor_ref& executor, Body&& body) const {
    executor.for_work(pieces_.size() * piece_size * work / 4).parallel_for(tasks(), [&](index_t task) {
      for (index_t p = pieces_.size() * task / tasks(); p < pieces_.size() * (task + 1) / tasks(); ++p)
        body(task, pieces_[p]);
    });
  }

  index_t arrays_ = 0;
  buffer<const Scalar*> values_;  // [E, arrays]
  buffer<Scalar*> places_;        // [G, arrays] of what is merged
  buffer<Scalar*> gradients_;     // [E, arrays], null where there is none
  buffer<piece> pieces_;
  matrix_buffer<Scalar> partial_;  // [tasks, G E] of dw
};

}  // namespace sluice::inline SLUICE_ISA
