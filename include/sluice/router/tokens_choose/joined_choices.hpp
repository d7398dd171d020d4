/// Equal choices of several heads, joined: a plan names an expert once a token, whoever of the heads chose it.
///
///   ids [T, heads·k]   place [T, heads·k]: which of its token's different ids a choice is, in order of first appearance
///   one assignment a place, with the sum of its choices' weights; dweight of a choice = that of its assignment
///
/// A layer is linear in the weights, so nothing is lost. Choices of one block (a head) are different and are not
/// compared; with a block as long as the row nothing is joined. A choice that is left out has place -1. Work a token is
/// (heads·k)² comparisons of integers at most. T = 0 is fine.
#pragma once

#include <sluice/core/buffer.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

class joined_choices {
public:
  void resize(index_t tokens, index_t choices) { place_.resize(tokens, choices); }

  index_t tokens() const noexcept { return place_.rows(); }
  index_t choices() const noexcept { return place_.cols(); }
  index_t operator()(index_t token, index_t choice) const noexcept { return place_(token, choice); }

  /// A token that is not routed.
  void leave_out(index_t token) { std::fill_n(place_.row(token), choices(), index_t{-1}); }

  /// Numbers the choices of a token for which takes_part(choice).
  template <typename F>
  void join(index_t token, const index_t* ids, index_t block, F&& takes_part) {
    index_t* place = place_.row(token);
    index_t places = 0;
    for (index_t c = 0; c < choices(); ++c) {
      place[c] = -1;
      if (!takes_part(c)) continue;
      for (index_t earlier = 0; earlier < c / block * block && place[c] < 0; ++earlier)
        if (ids[earlier] == ids[c]) place[c] = place[earlier];
      if (place[c] < 0) place[c] = places++;
    }
  }

  /// f(place, choice) for every place of a token, with the first choice that has it.
  template <typename F>
  void for_each_place(index_t token, F&& f) const {
    index_t places = 0;
    for (index_t c = 0; c < choices(); ++c)
      if (place_(token, c) == places) f(places++, c);
  }

  /// The sum of weight(choice) over the choices with the place of `first`, which is the first of them.
  template <typename F>
  auto sum(index_t token, index_t first, index_t block, F&& weight) const {
    auto sum = weight(first);
    for (index_t later = (first / block + 1) * block; later < choices(); ++later)
      if (place_(token, later) == place_(token, first)) sum += weight(later);
    return sum;
  }

private:
  matrix_buffer<index_t> place_;
};

}  // namespace sluice::inline SLUICE_ISA
