// Any bytes are a case of a matrix product, in every storage of weights and in both orders of its operands, whose
// result must be that of a plain loop in wider arithmetic up to the rounding of its sums. Sizes, distances between
// rows, where arrays begin, how work is cut and how many rows an expert has come from the bytes; gaps between rows hold
// NaN, which no sum may meet. Arrays end where their last number does, so AddressSanitizer sees every step beyond them.
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/block_storage.hpp>
#include <sluice/kernel/format/codebook_storage.hpp>
#include <sluice/kernel/format/formats.hpp>
#include <sluice/kernel/format/grid_storage.hpp>
#include <sluice/kernel/grouped_gemm.hpp>
#include <sluice/kernel/linear.hpp>

#include "byte_reader.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <vector>

using namespace sluice;
using namespace sluice::kernel;
using test::bit_stream;
using test::byte_reader;
using test::demand;

namespace {

/// What a float or a double is compared in.
template <typename Scalar>
using wide = std::conditional_t<std::same_as<Scalar, float>, double, long double>;

/// Multiplications of one case: a fuzzer wants many cases.
constexpr index_t budget = 600;

/// Mostly small, sometimes about a power of two: tails, and borders of blocks.
index_t draw_size(byte_reader& bytes, index_t least = 1) {
  const std::uint8_t b = bytes.byte();
  return b < 208 ? least + b % 48 : (index_t(64) << (b % 5)) - 2 + bytes.below(5);
}

/// Halves sizes until their product is within the budget; the largest one last.
void fit(std::initializer_list<index_t*> sizes) {
  const auto product = [&] {
    index_t all = 1;
    for (const index_t* s : sizes) all *= (std::max<index_t>)(1, *s);
    return all;
  };
  while (product() > budget) {
    index_t* const largest = *std::max_element(sizes.begin(), sizes.end(), [](auto* a, auto* b) { return *a < *b; });
    index_t* second = nullptr;
    for (index_t* s : sizes)
      if (s != largest && *s > 1 && (second == nullptr || *s > *second)) second = s;
    *(second == nullptr ? largest : second) /= 2;
  }
}

/// Numbers of a kind that the bytes choose.
class numbers {
public:
  explicit numbers(byte_reader& bytes) : kind_(bytes.below(4)), bits_(bytes.byte()) {}

  double next() {
    const double u = bits_.uniform();
    switch (kind_) {
      case 0:
        return u;
      case 1:
        return std::nearbyint(3 * u);
      case 2:  // magnitudes far apart, all within what sixteen bits hold
        return std::ldexp(u, static_cast<int>(bits_.next() % 19) - 12);
      default:
        return bits_.next() % 4 == 0 ? u : 0.0;
    }
  }

private:
  index_t kind_;
  bit_stream bits_;
};

/// An array that begins up to three numbers off the allocator's alignment and ends where its memory does.
template <typename T>
class exact_array {
public:
  exact_array(index_t count, index_t offset) : offset_(offset), memory_(new T[as_size(count + offset)]) {}
  T* data() const { return memory_.get() + offset_; }

private:
  index_t offset_;
  std::unique_ptr<T[]> memory_;
};

/// Rows that lie apart; the gaps hold a NaN that is neither to be read nor overwritten.
template <typename Scalar>
class framed_matrix {
public:
  framed_matrix(byte_reader& bytes, index_t rows, index_t cols)
      : framed_matrix(rows, cols, bytes.below(4), bytes.below(4)) {
    numbers draw(bytes);
    for (index_t r = 0; r < rows; ++r)
      for (index_t c = 0; c < cols; ++c) (*this)(r, c) = static_cast<Scalar>(draw.next());
  }
  framed_matrix(const framed_matrix& other) : framed_matrix(other.rows_, other.cols_, other.stride_ - other.cols_, 0) {
    for (index_t r = 0; r < rows_; ++r) std::copy_n(&other(r, 0), cols_, &(*this)(r, 0));
  }
  framed_matrix& operator=(const framed_matrix&) = delete;

  index_t rows() const { return rows_; }
  index_t cols() const { return cols_; }
  index_t stride() const { return stride_; }
  Scalar* row(index_t r) const { return memory_.data() + r * stride_; }
  Scalar& operator()(index_t r, index_t c) const { return row(r)[c]; }
  tokens_out<Scalar> view() const { return matrix_view(memory_.data(), rows_, cols_, Eigen::OuterStride<>(stride_)); }

  /// Sometimes one number becomes NaN: it must reach what it is summed into and nothing else.
  void poison(byte_reader& bytes) {
    if (bytes.below(4) != 1 || rows_ == 0 || cols_ == 0) return;
    (*this)(bytes.byte() % rows_, bytes.byte() % cols_) = quiet_nan<Scalar>();
  }
  bool gaps_are_intact() const {
    for (index_t r = 0; r + 1 < rows_; ++r)
      for (index_t c = cols_; c < stride_; ++c)
        if (!is_nan((*this)(r, c))) return false;
    return true;
  }

private:
  using matrix_view = Eigen::Map<matrix<Scalar>, 0, Eigen::OuterStride<>>;

  framed_matrix(index_t rows, index_t cols, index_t gap, index_t offset)
      : rows_(rows), cols_(cols), stride_(cols + gap), memory_(rows == 0 ? 0 : (rows - 1) * stride_ + cols, offset) {
    for (index_t r = 0; r + 1 < rows; ++r) std::fill_n(row(r) + cols, gap, quiet_nan<Scalar>());
  }

  index_t rows_, cols_, stride_;
  exact_array<Scalar> memory_;
};

/// A dot product in wider arithmetic and the size of its terms, which scales the rounding error.
template <typename Scalar>
struct exact_sum {
  wide<Scalar> value = 0;
  wide<Scalar> size = 0;
  index_t terms = 0;

  void add(wide<Scalar> a, wide<Scalar> b) {
    value += a * b;
    size += a * b < 0 ? -a * b : a * b;
    ++terms;
  }
  /// |computed - exact| <= n eps (sum of |a| |b|), n terms each with at most three roundings of its own besides those
  /// of the sum; times 2 for second-order terms. NaN exactly where the exact sum is NaN.
  void check(Scalar computed) const {
    const bool should_be_nan = is_nan(static_cast<double>(value));
    demand(is_nan(computed) == should_be_nan);
    if (should_be_nan) return;
    const auto difference = static_cast<wide<Scalar>>(computed) - value;
    demand((difference < 0 ? -difference : difference) <=
           2 * static_cast<wide<Scalar>>(terms + 3) * wide<Scalar>(std::numeric_limits<Scalar>::epsilon()) * size);
  }
};

template <typename Scalar>
bool same_bits(const Scalar* a, const Scalar* b, index_t count) {
  return count == 0 || std::memcmp(a, b, as_size(count) * sizeof(Scalar)) == 0;
}
template <typename Scalar>
bool same_bits(const framed_matrix<Scalar>& a, const framed_matrix<Scalar>& b) {
  for (index_t r = 0; r < a.rows(); ++r)
    if (!same_bits(a.row(r), b.row(r), a.cols())) return false;
  return true;
}

/// Runs tasks one after another from the last to the first, and has no task too small for it.
struct backwards {
  template <typename Body>
  void parallel_for(index_t n, Body&& body) {
    for (index_t task = n - 1; task >= 0; --task) body(task);
  }
  index_t smallest_work() const noexcept { return 0; }
};

// ---- gemm, linear --------------------------------------------------------------------------------------------------

/// C (+)= op(A) op(B) in each of its three forms, whole and in two blocks of rows.
template <typename Scalar>
void check_gemm(byte_reader& bytes) {
  enum { nt, nn, tn };
  const index_t form = bytes.below(3);
  const kernel::write mode = bytes.flag() ? kernel::write::accumulate : kernel::write::replace;
  index_t m = draw_size(bytes, 0), n = draw_size(bytes, 0), k = draw_size(bytes, 0);
  fit({&m, &n, &k});
  framed_matrix<Scalar> a(bytes, form == tn ? k : m, form == tn ? m : k);
  framed_matrix<Scalar> b(bytes, form == nt ? n : k, form == nt ? k : n);
  const framed_matrix<Scalar> before(bytes, m, n);
  a.poison(bytes);
  b.poison(bytes);

  const auto multiply = [&](index_t begin, index_t end, const framed_matrix<Scalar>& c) {
    const Scalar* from = form == tn ? a.row(0) + begin : a.row(begin);
    (form == nt   ? &multiply_nt<Scalar>
     : form == nn ? &multiply_nn<Scalar>
                  : &multiply_tn<Scalar>)(end - begin, n, k, from, a.stride(), b.row(0), b.stride(), c.row(begin),
                                          c.stride(), mode);
  };
  const framed_matrix<Scalar> c(before), parts(before);
  multiply(0, m, c);
  const index_t cut = m == 0 ? 0 : bytes.byte() % m;
  multiply(cut, m, parts);
  multiply(0, cut, parts);
  demand(same_bits(c, parts));
  demand(a.gaps_are_intact() && b.gaps_are_intact() && c.gaps_are_intact());
  for (index_t i = 0; i < m; ++i)
    for (index_t j = 0; j < n; ++j) {
      exact_sum<Scalar> sum;
      if (mode == kernel::write::accumulate) sum.add(before(i, j), 1);
      for (index_t p = 0; p < k; ++p) sum.add(form == tn ? a(p, i) : a(i, p), form == nt ? b(j, p) : b(p, j));
      sum.check(c(i, j));
    }
}

/// y = x W^T and its gradients, in tasks of any order.
template <typename Scalar>
void check_linear(byte_reader& bytes) {
  index_t n = draw_size(bytes, 0), inputs = draw_size(bytes), outputs = draw_size(bytes);
  fit({&n, &inputs, &outputs});
  framed_matrix<Scalar> x(bytes, n, inputs), dy(bytes, n, outputs);
  const framed_matrix<Scalar> dx_before(bytes, n, inputs);
  x.poison(bytes);
  dy.poison(bytes);
  numbers draw(bytes);
  parameter<Scalar> w({outputs, inputs}, parameter_role::weight);
  for (Scalar& v : w.value()) v = static_cast<Scalar>(draw.next());
  std::vector<Scalar> dw_before;
  for (index_t i = 0; i < w.size(); ++i) dw_before.push_back(static_cast<Scalar>(draw.next()));

  struct results {
    framed_matrix<Scalar> y, dx;
    parameter<Scalar> w;
  };
  const auto run = [&](const executor_ref& executor) {
    results r{dy, dx_before, w};
    std::copy(dw_before.begin(), dw_before.end(), r.w.gradient().begin());
    linear_forward<Scalar>(x.view(), r.w, r.y.view(), executor);
    linear_backward<Scalar>(x.view(), r.w, dy.view(), r.dx.view(), executor);
    return r;
  };
  const results r = run({});
  backwards other_order;
  const results again = run(other_order);
  demand(same_bits(r.y, again.y) && same_bits(r.dx, again.dx));
  demand(same_bits(r.w.gradient().data(), again.w.gradient().data(), w.size()));
  demand(r.y.gaps_are_intact() && r.dx.gaps_are_intact());
  for (index_t t = 0; t < n; ++t) {
    for (index_t o = 0; o < outputs; ++o) {
      exact_sum<Scalar> y;
      for (index_t i = 0; i < inputs; ++i) y.add(x(t, i), w.map()(o, i));
      y.check(r.y(t, o));
    }
    for (index_t i = 0; i < inputs; ++i) {
      exact_sum<Scalar> dx;
      dx.add(dx_before(t, i), 1);
      for (index_t o = 0; o < outputs; ++o) dx.add(dy(t, o), w.map()(o, i));
      dx.check(r.dx(t, i));
    }
  }
  for (index_t o = 0; o < outputs; ++o)
    for (index_t i = 0; i < inputs; ++i) {
      exact_sum<Scalar> dw;
      dw.add(dw_before[as_size(o * inputs + i)], 1);
      for (index_t t = 0; t < n; ++t) dw.add(dy(t, o), x(t, i));
      dw.check(r.w.gradient()[as_size(o * inputs + i)]);
    }
}

// ---- products of packed rows with panels ---------------------------------------------------------------------------

/// Rows of a few experts, any number each, one expert's after another's; the first row of the batch need not be row 0.
struct drawn_loads {
  std::vector<index_t> offsets;

  explicit drawn_loads(byte_reader& bytes, index_t outputs, index_t inputs) {
    const index_t experts = bytes.between(1, 3);
    offsets.push_back(bytes.below(4));
    for (index_t e = 0; e < experts; ++e) {
      index_t load = draw_size(bytes, 0), other = (outputs * inputs + 1) * experts;
      while (load * other > budget && load > 1) load /= 2;
      offsets.push_back(offsets.back() + load);
    }
  }
  index_t experts() const { return static_cast<index_t>(offsets.size()) - 1; }
  index_t rows() const { return offsets.back() - offsets.front(); }
  row_blocks rows_of(index_t e) const { return {offsets[as_size(e)], offsets[as_size(e) + 1] - offsets[as_size(e)]}; }
};

/// Rows of x from the last to the first, packed by expert, each times a factor.
template <typename Storage>
class packed_batch {
public:
  using scalar = typename Storage::scalar;
  using packed = packed_rows<Storage>;

  packed_batch(byte_reader& bytes, const framed_matrix<scalar>& x, const drawn_loads& loads)
      : x_(x),
        first_(loads.offsets.front()),
        units_(x.rows() * packed::pitch(x.cols()), bytes.below(4)),
        row_factors_(x.rows() * packed::row_factors(x.cols()), 0) {
    const bool scaled = bytes.flag();
    for (index_t i = 0; i < x.rows(); ++i)
      factors_.push_back(static_cast<scalar>(scaled ? 0.25 + 0.5 * double(i % 5) : 1.0));
    for (index_t e = 0; e < loads.experts(); ++e) {
      const auto rows = loads.rows_of(e);
      for (index_t b = 0; b < rows.count(); ++b)
        pack_block(
            Storage(), view(), rows, b, [&](index_t i) { return row(i); }, [&](index_t i) { return factor(i); });
    }
  }
  packed view() const { return {units_.data(), row_factors_.data(), x_.cols(), first_}; }
  const scalar* row(index_t i) const { return x_.row(x_.rows() - 1 - (i - first_)); }
  scalar factor(index_t i) const { return factors_[as_size(i - first_)]; }

private:
  const framed_matrix<scalar>& x_;
  index_t first_;
  exact_array<sluice::detail::activation_of<Storage>> units_;
  exact_array<typename packed::factor> row_factors_;
  std::vector<scalar> factors_;
};

template <typename Storage>
linear_map<Storage> draw_map(byte_reader& bytes, index_t outputs, index_t inputs) {
  numbers draw(bytes);
  linear_map<Storage> w(outputs, inputs);
  w.weight().fill([&](index_t) { return static_cast<typename Storage::scalar>(draw.next()); });
  return w;
}

/// The dot product of a row with an output's weights, as they are read back one by one.
template <typename Storage>
void check_output(const typename Storage::scalar* x, typename Storage::scalar factor,
                  const matrix<typename Storage::scalar>& w, index_t output, typename Storage::scalar computed) {
  using scalar = typename Storage::scalar;
  const index_t inputs = w.cols();
  const scalar* weights = w.data() + output * inputs;
  exact_sum<scalar> sum;
  if constexpr (SumsInBlocks<Storage>) {
    // Sums of whole numbers are exact; what is rounded is their product with two scales, and the sum over blocks.
    using tiles = sluice::detail::tiles_of<Storage>;
    constexpr index_t block_inputs = sluice::detail::block_inputs<tiles>();
    for (index_t first = 0; first < inputs; first += block_inputs) {
      scalar block[as_size(block_inputs)] = {};
      const index_t count = (std::min)(block_inputs, inputs - first);
      std::copy_n(x + first, count, block);
      typename tiles::activation units[as_size(tiles::block)];
      const auto packed = tiles::pack_block(block, factor, units);
      for (index_t i = 0; i < count; ++i)
        sum.add(wide<scalar>(units[i / tiles::group][as_size(i % tiles::group)]) * packed.scale, weights[first + i]);
    }
  } else {
    for (index_t i = 0; i < inputs; ++i) sum.add(wide<scalar>(x[i]) * factor, weights[i]);
  }
  sum.check(computed);
}

/// multiply_panels: outputs of one map, or of two side by side as gate and up are, in two parts of the pairs of panels.
/// A row alone has the bits that it has among the others.
template <typename Storage>
void check_panels(byte_reader& bytes) {
  using scalar = typename Storage::scalar;
  constexpr index_t lanes = simd_width<scalar>;
  const bool two_maps = bytes.flag();
  index_t outputs = draw_size(bytes), inputs = draw_size(bytes);
  fit({&outputs, &inputs});
  const drawn_loads loads(bytes, outputs, inputs);
  framed_matrix<scalar> x(bytes, loads.rows(), inputs);
  x.poison(bytes);
  const packed_batch<Storage> batch(bytes, x, loads);
  const linear_map<Storage> w[2] = {draw_map<Storage>(bytes, outputs, inputs),
                                    draw_map<Storage>(bytes, outputs, inputs)};
  const matrix<scalar> weights[2] = {w[0].weight().to_matrix(), w[1].weight().to_matrix()};
  const index_t pairs = two_maps ? w[0].panels() : (w[0].panels() + 1) / 2;
  const index_t cut = bytes.byte() % (pairs + 1);

  const auto panels_of = [&](index_t q) {
    const index_t last = w[0].panels() - 1;
    if (two_maps) return streams<const std::byte*>{w[0].panel((std::min)(q, last)), w[1].panel((std::min)(q, last))};
    return streams<const std::byte*>{w[0].panel((std::min)(2 * q, last)), w[0].panel((std::min)(2 * q + 1, last))};
  };
  /// Calls f(row, map, output, number) for every sum of these rows.
  const auto multiply = [&](const packed_rows<Storage>& packed, const row_blocks& rows, auto&& f) {
    for (const auto& [begin, end] : {std::pair(index_t(0), cut), std::pair(cut, pairs)})
      multiply_panels<Storage>(w[0].format(), packed, rows, begin, end, panels_of,
                               [&](index_t b, index_t q, const streams<const scalar*>& sums) {
                                 for (index_t v = 0; v < 2; ++v)
                                   for (index_t i = 0; i < rows.size(b); ++i)
                                     for (index_t l = 0; l < lanes; ++l) {
                                       const index_t output = (two_maps ? q : 2 * q + v) * lanes + l;
                                       if (output < outputs)
                                         f(rows.begin(b) + i, two_maps ? v : 0, output,
                                           sums[as_size(v)][i * lanes + l]);
                                     }
                               });
  };
  const index_t maps = two_maps ? 2 : 1;
  std::vector<scalar> alone(as_size(maps * outputs));
  for (index_t e = 0; e < loads.experts(); ++e) {
    const auto rows = loads.rows_of(e);
    if (rows.rows() == 0) continue;
    const index_t single = rows.first() + bytes.byte() % rows.rows();
    exact_array<sluice::detail::activation_of<Storage>> units(packed_rows<Storage>::pitch(inputs), 0);
    const exact_array<typename packed_rows<Storage>::factor> row_factors(packed_rows<Storage>::row_factors(inputs), 0);
    const packed_rows<Storage> packed{units.data(), row_factors.data(), inputs, single};
    pack_block(
        Storage(), packed, row_blocks(single, 1), 0, [&](index_t i) { return batch.row(i); },
        [&](index_t i) { return batch.factor(i); });
    multiply(packed, row_blocks(single, 1),
             [&](index_t, index_t map, index_t output, scalar sum) { alone[as_size(map * outputs + output)] = sum; });
    index_t seen = 0;
    multiply(batch.view(), rows, [&](index_t row, index_t map, index_t output, scalar sum) {
      check_output<Storage>(batch.row(row), batch.factor(row), weights[map], output, sum);
      if (row == single) demand(same_bits(&sum, &alone[as_size(map * outputs + output)], 1));
      ++seen;
    });
    demand(seen == rows.rows() * maps * outputs);
  }
}

/// multiply_transposed over two maps, for some of the inputs and some of the groups of rows; lanes without a row hold
/// NaN.
template <typename Scalar>
void check_transposed(byte_reader& bytes) {
  constexpr index_t lanes = simd_width<Scalar>;
  index_t n = draw_size(bytes), outputs = draw_size(bytes), inputs = draw_size(bytes);
  fit({&n, &outputs, &inputs});
  framed_matrix<Scalar> dy(bytes, n, outputs);
  dy.poison(bytes);
  using map = linear_map<full_precision<Scalar>>;
  const map w[2] = {draw_map<full_precision<Scalar>>(bytes, outputs, inputs),
                    draw_map<full_precision<Scalar>>(bytes, outputs, inputs)};
  const matrix<Scalar> weights[2] = {w[0].weight().to_matrix(), w[1].weight().to_matrix()};
  const index_t all = lane_rows<Scalar>::groups(n);
  const exact_array<Scalar> numbers_in_lanes(all * outputs * lanes, bytes.below(4));
  const lane_rows<Scalar> in_lanes{numbers_in_lanes.data(), outputs};
  for (index_t i = 0; i < all * lanes; ++i)
    for (index_t k = 0; k < outputs; ++k)
      in_lanes.group(i / lanes)[k * lanes + i % lanes] = i < n ? dy(i, k) : quiet_nan<Scalar>();
  const index_t begin = bytes.byte() % inputs, count = 1 + bytes.byte() % (inputs - begin);
  const index_t first = bytes.byte() % all, groups = 1 + bytes.byte() % (all - first);
  const exact_array<Scalar> sums(groups * count * lanes, bytes.below(4));
  for (index_t m = 0; m < 2; ++m)
    multiply_transposed(w[m], begin, begin + count, in_lanes, first, groups, sums.data(), m > 0);
  for (index_t i = first * lanes; i < (std::min)((first + groups) * lanes, n); ++i)
    for (index_t c = 0; c < count; ++c) {
      exact_sum<Scalar> sum;
      for (const matrix<Scalar>& one : weights)
        for (index_t o = 0; o < outputs; ++o) sum.add(dy(i, o), one.data()[o * inputs + begin + c]);
      sum.check(sums.data()[((i / lanes - first) * count + c) * lanes + i % lanes]);
    }
}

/// add_weight_gradient of one map, two panels at a time, or of two maps side by side.
template <typename Scalar>
void check_gradient(byte_reader& bytes) {
  using storage = full_precision<Scalar>;
  const bool two_maps = bytes.flag();
  index_t outputs = draw_size(bytes), inputs = draw_size(bytes);
  fit({&outputs, &inputs});
  const drawn_loads loads(bytes, outputs, inputs);
  framed_matrix<Scalar> x(bytes, loads.rows(), inputs), dy0(bytes, loads.rows(), outputs),
      dy1(bytes, loads.rows(), outputs);
  x.poison(bytes);
  const packed_batch<storage> packed_x(bytes, x, loads);
  const packed_batch<storage> packed_dy[2] = {{bytes, dy0, loads}, {bytes, dy1, loads}};
  for (index_t e = 0; e < loads.experts(); ++e) {
    const auto rows = loads.rows_of(e);
    linear_map<storage> w[2] = {{outputs, inputs}, {outputs, inputs}};
    const auto start = static_cast<Scalar>(e);
    for (auto& map : w)
      for (Scalar& g : map.weight().gradient()) g = start;
    const index_t panels = w[0].panels();
    for (index_t p = 0; p < panels; p += two_maps ? 1 : 2) {
      const index_t second = two_maps ? p : (std::min)(p + 1, panels - 1);
      linear_map<storage>& other = w[two_maps ? 1 : 0];
      add_weight_gradient<Scalar>(
          rows, packed_x.view(), {packed_dy[0].view(), packed_dy[two_maps ? 1 : 0].view()}, {p, second},
          {w[0].gradient_panel(p), !two_maps && second == p ? nullptr : other.gradient_panel(second)});
    }
    for (index_t m = 0; m < (two_maps ? 2 : 1); ++m) {
      const auto& weight = std::as_const(w[m]).weight();
      for (index_t o = 0; o < outputs; ++o)
        for (index_t i = 0; i < inputs; ++i) {
          exact_sum<Scalar> sum;
          sum.add(start, 1);
          for (index_t r = rows.first(); r < rows.first() + rows.rows(); ++r)
            sum.add(wide<Scalar>(packed_x.row(r)[i]) * packed_x.factor(r),
                    wide<Scalar>(packed_dy[m].row(r)[o]) * packed_dy[m].factor(r));
          sum.check(weight.gradient()[as_size(weight.layout().place(o, i))]);
        }
    }
  }
}

/// A storage with a state: 64 entries of four numbers of both signs, in elements across bytes.
struct small_codebook : codebook_storage<4, 6, vector_direction::along_inputs, float, 32> {
  small_codebook() : codebook_storage(codes()) {}

  static vector_codes codes() {
    vector_codes made;
    made.tile_inputs = 4;
    made.indices.resize(1);
    made.codebooks.emplace_back(64, 4);
    for (index_t i = 0; i < 256; ++i) made.codebooks[0].data()[i] = static_cast<float>(i * 37 % 101 - 50) / 16;
    return made;
  }
};

using check = void (*)(byte_reader&);
constexpr check checks[] = {
    &check_gemm<float>,
    &check_gemm<double>,
    &check_linear<float>,
    &check_linear<double>,
    &check_panels<full_precision<float>>,
    &check_panels<full_precision<double>>,
    &check_panels<bfloat16_storage>,
    &check_panels<float16_storage>,
    &check_panels<int8_blocks>,
    &check_panels<int4_blocks>,
    &check_panels<coded_storage<q4_k_format>>,
    &check_panels<coded_storage<mxfp4_format>>,
    &check_panels<coded_storage<zero_point_format<4, float, 64>>>,
    &check_panels<coded_storage<q6_k_format, arithmetic::bytes>>,
    &check_panels<coded_storage<iq4_xs_format, arithmetic::bytes>>,
    &check_panels<grid_storage<iq2_xxs>>,
    &check_panels<small_codebook>,
    &check_transposed<float>,
    &check_transposed<double>,
    &check_gradient<float>,
    &check_gradient<double>,
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  byte_reader bytes(data, size);
  bytes.one_of(checks)(bytes);
  return 0;
}
