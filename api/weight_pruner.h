#ifndef SLUICE_API_WEIGHT_PRUNER_H_
#define SLUICE_API_WEIGHT_PRUNER_H_
// Pruners of weights: a matrix, what is known of its inputs, and a target become a mask. Offline:
// they may allocate and take their time. Stages chain through the start mask: score and select by
// pattern first, repairs after (pruners/common/chain.h).
//
//   struct MyPruner {
//     static constexpr PrunerTraits kTraits = {.name = "weight/mine", ...};
//     struct Config { ... VisitFields ... };
//     static absl::StatusOr<MyPruner> Create(const Config&);
//     absl::Status Prune(const PruneInputs&, const RunContext&, Mask& out) const;
//     // Only one that changes the weights it keeps, .updates in its traits:
//     absl::Status Apply(const PruneInputs&, const Mask&, const RunContext&,
//                        MatrixView<float> out) const;
//   };
#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "sluice/api/check.h"
#include "sluice/api/config.h"
#include "sluice/api/router.h"
#include "sluice/api/tensor_view.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// One bit a weight, 1: kept. Rows begin on a word.
class Mask {
 public:
  Mask() = default;
  Mask(int64_t rows, int64_t cols, bool kept)
      : rows_(rows), cols_(cols), words_((cols + 63) / 64), bits_(At(rows * words_)) {
    for (int64_t r = 0; kept && r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) Set(r, c, true);
    }
  }

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t words_per_row() const { return words_; }
  // [rows * words_per_row]; bits beyond the columns are 0.
  absl::Span<uint64_t> words() { return absl::MakeSpan(bits_); }
  absl::Span<const uint64_t> words() const { return bits_; }

  bool kept(int64_t r, int64_t c) const {
    return (bits_[At(r * words_ + c / 64)] >> (c % 64) & 1) != 0;
  }
  void Set(int64_t r, int64_t c, bool kept) {
    const uint64_t bit = uint64_t{1} << (c % 64);
    uint64_t& word = bits_[At(r * words_ + c / 64)];
    word = kept ? word | bit : word & ~bit;
  }

  int64_t CountKept(int64_t row) const {
    int64_t n = 0;
    for (int64_t w = 0; w < words_; ++w) n += std::popcount(bits_[At(row * words_ + w)]);
    return n;
  }
  int64_t CountKept() const {
    int64_t n = 0;
    for (int64_t r = 0; r < rows_; ++r) n += CountKept(r);
    return n;
  }
  friend bool operator==(const Mask&, const Mask&) = default;

 private:
  static size_t At(int64_t i) { return static_cast<size_t>(i); }
  int64_t rows_ = 0, cols_ = 0, words_ = 0;
  std::vector<uint64_t> bits_;
};

// What calibration saw of the inputs x of y = W x, per column of W. Absent parts are empty.
struct PruneStats {
  int64_t tokens = 0;
  absl::Span<const float> mean;         // [cols], of x
  absl::Span<const float> sum_squares;  // [cols], of x^2 over the tokens
  // [cols], of x within its sample: each sample's population variance, averaged by its tokens. What
  // samples differ in is not in it. Optional: a pruner that wants it takes sum_squares / tokens -
  // mean^2 in its place, the variance over all tokens. It does not cross the C boundary.
  absl::Span<const float> variance;
  MatrixView<const float> gram;  // [cols, cols], sum of x x^T over the tokens
};

// How much goes.
struct PruneTarget {
  enum class Kind : uint8_t {
    kRatio,  // floor(ratio * n) of n go
    kNofM,   // n of every m neighbours in a row stay
    kCount,  // `count` stay
    kCost,   // what stays costs at most `cost`
  };
  // Over what the share is taken.
  enum class Scope : uint8_t {
    kRow,    // every row by itself
    kLayer,  // the whole matrix
    kBlock,  // whole blocks [block_rows, block_cols] stay or go; ratio, count and cost are of
             // blocks
  };
  Kind kind = Kind::kRatio;
  Scope scope = Scope::kRow;
  double ratio = 0.5;
  int64_t n = 2, m = 4;
  int64_t count = 0;
  double cost = 0;
  absl::Span<const float> column_cost = {};  // [cols] of a weight, for kCost; empty: 1 each
  int64_t block_rows = 1, block_cols = 1;
};

struct PruneInputs {
  MatrixView<const float> weights;  // [rows, cols]
  PruneStats stats;
  PruneTarget target;
  const Mask* start = nullptr;  // weights that are gone already; nullptr: none
};

enum PrunerReads : uint32_t {
  kPrunerReadsMean = 1,
  kPrunerReadsSumSquares = 2,
  kPrunerReadsGram = 4,
  kPrunerReadsStart = 8,
};
struct PrunerTraits {
  absl::string_view name = {};               // "weight/method": its key in the registry
  absl::string_view title = {}, arxiv = {};  // of the paper; empty: folklore
  uint32_t reads = 0;                        // PrunerReads that it needs
  uint32_t kinds = 0xF;                      // bit 1 << Kind of every kind of target it serves
  uint32_t scopes = 0x7;                     // bit 1 << Scope
  bool repairs = false;  // keeps the start mask's counts and moves which weights they are
  bool updates = false;  // Apply changes the weights that stay; not said across the C boundary
};

template <class P>
concept WeightPrunerModel =
    MadeFromConfig<P> && std::default_initializable<typename P::Config> &&
    requires(const P& p, const PruneInputs& in, const RunContext& ctx, Mask& out) {
      { P::kTraits } -> std::convertible_to<const PrunerTraits&>;
      { p.Prune(in, ctx, out) } -> std::same_as<absl::Status>;
    };

// Everything that a pruner may rely on: shapes, a target that it serves, statistics that are finite
// and, where they are squares, not negative. O(cols), with a Gram matrix O(cols^2).
inline absl::Status CheckPrune(const PrunerTraits& t, const PruneInputs& in);
// What Apply may rely on: the mask and `out` have the weights' shape.
inline absl::Status CheckApply(const PrunerTraits& t, const PruneInputs& in, const Mask& mask,
                               const MatrixView<float>& out);

class WeightPruner {
 public:
  virtual ~WeightPruner() = default;
  virtual const PrunerTraits& traits() const = 0;
  absl::string_view name() const { return traits().name; }
  // Weights that are not numbers go first and are never kept before one that is; a pruner that
  // computes with all of a row's weights refuses them.
  virtual absl::StatusOr<Mask> Prune(const PruneInputs&, const RunContext&) const = 0;
  // The weights that `mask` leaves: `out` [rows, cols] takes those that it keeps and 0 for the
  // others. One that updates (traits().updates) changes what stays so that it makes up for what
  // went. `in.start` does not matter. O(rows cols) where nothing is changed.
  virtual absl::Status Apply(const PruneInputs& in, const Mask& mask, const RunContext&,
                             MatrixView<float> out) const {
    SLUICE_RETURN_IF_ERROR(CheckApply(traits(), in, mask, out));
    for (int64_t r = 0; r < out.rows; ++r) {
      for (int64_t c = 0; c < out.cols; ++c)
        out.row(r)[c] = mask.kept(r, c) ? in.weights.row(r)[c] : 0.0f;
    }
    return absl::OkStatus();
  }
};

template <WeightPrunerModel P>
class WeightPrunerOf final : public WeightPruner {
 public:
  explicit WeightPrunerOf(P p) : p_(std::move(p)) {}
  const PrunerTraits& traits() const override { return P::kTraits; }
  absl::StatusOr<Mask> Prune(const PruneInputs& in, const RunContext& ctx) const override {
    SLUICE_RETURN_IF_ERROR(CheckPrune(P::kTraits, in));
    Mask out(in.weights.rows, in.weights.cols, false);
    SLUICE_RETURN_IF_ERROR(p_.Prune(in, ctx, out));
    return out;
  }
  absl::Status Apply(const PruneInputs& in, const Mask& mask, const RunContext& ctx,
                     MatrixView<float> out) const override {
    if constexpr (P::kTraits.updates) {
      SLUICE_RETURN_IF_ERROR(CheckApply(P::kTraits, in, mask, out));
      return p_.Apply(in, mask, ctx, out);
    } else {
      return WeightPruner::Apply(in, mask, ctx, out);
    }
  }

 private:
  P p_;
};

namespace pruner_internal {
inline absl::Status Bad(const PrunerTraits& t, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(t.name, ": ", what));
}

inline absl::Status CheckNumbers(const PrunerTraits& t, absl::string_view what,
                                 absl::Span<const float> x, bool squares) {
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isfinite(x[i]) && !(squares && x[i] < 0)) continue;
    return Bad(t, absl::StrCat("statistics: ", what, " of column ", i, " is ", x[i],
                               "; allowed are finite numbers", squares ? " of at least 0" : ""));
  }
  return absl::OkStatus();
}

inline absl::Status CheckStats(const PrunerTraits& t, const PruneStats& s, int64_t cols) {
  if (s.tokens < 0) return Bad(t, absl::StrCat("statistics of ", s.tokens, " tokens"));
  const auto vector = [&](uint32_t bit, absl::string_view what, absl::Span<const float> x,
                          bool squares) -> absl::Status {
    if (x.empty() && (t.reads & bit) == 0) return absl::OkStatus();
    if (static_cast<int64_t>(x.size()) == cols) return CheckNumbers(t, what, x, squares);
    return Bad(t, absl::StrCat("statistics: ", what, " has ", x.size(), " entries, wanted ", cols,
                               ", one a column"));
  };
  SLUICE_RETURN_IF_ERROR(vector(kPrunerReadsMean, "mean", s.mean, false));
  SLUICE_RETURN_IF_ERROR(vector(kPrunerReadsSumSquares, "sum_squares", s.sum_squares, true));
  SLUICE_RETURN_IF_ERROR(vector(0, "variance", s.variance, true));
  if (s.gram.empty() && (t.reads & kPrunerReadsGram) == 0) return absl::OkStatus();
  if (s.gram.rows != cols || s.gram.cols != cols || s.gram.row_stride < cols)
    return Bad(t, absl::StrCat("statistics: gram is [", s.gram.rows, ", ", s.gram.cols,
                               "], wanted [", cols, ", ", cols, "]"));
  for (int64_t r = 0; r < cols; ++r) {
    SLUICE_RETURN_IF_ERROR(CheckNumbers(t, absl::StrCat("row ", r, " of gram"),
                                        absl::MakeConstSpan(s.gram.row(r), cols), false));
    if (s.gram.row(r)[r] < 0)
      return Bad(t, absl::StrCat("statistics: gram's diagonal of column ", r, " is ",
                                 s.gram.row(r)[r], "; allowed are squares, at least 0"));
  }
  return absl::OkStatus();
}

inline absl::Status CheckBlocks(const PrunerTraits& t, const PruneTarget& g, int64_t rows,
                                int64_t cols) {
  if (g.block_rows < 1 || g.block_cols < 1 || rows % g.block_rows != 0 || cols % g.block_cols != 0)
    return Bad(t, absl::StrCat("blocks of [", g.block_rows, ", ", g.block_cols, "] do not tile [",
                               rows, ", ", cols, "]"));
  return absl::OkStatus();
}

inline absl::Status CheckTarget(const PrunerTraits& t, const PruneTarget& g, int64_t rows,
                                int64_t cols) {
  using Kind = PruneTarget::Kind;
  using Scope = PruneTarget::Scope;
  if ((t.kinds >> static_cast<int>(g.kind) & 1) == 0 ||
      (t.scopes >> static_cast<int>(g.scope) & 1) == 0)
    return Bad(t, absl::StrCat("target of kind ", static_cast<int>(g.kind), " and scope ",
                               static_cast<int>(g.scope), "; served are the kinds of bits ",
                               t.kinds, " and the scopes of bits ", t.scopes));
  if (g.scope == Scope::kBlock) SLUICE_RETURN_IF_ERROR(CheckBlocks(t, g, rows, cols));
  if (g.kind == Kind::kRatio && !(g.ratio >= 0 && g.ratio <= 1))
    return Bad(t, absl::StrCat("ratio ", g.ratio, " is outside [0, 1]"));
  if (g.kind == Kind::kNofM) {
    if (g.scope != Scope::kRow) return Bad(t, "N:M is a pattern of rows: give scope row");
    if (g.m < 1 || g.n < 0 || g.n > g.m)
      return Bad(t, absl::StrCat(g.n, ":", g.m, "; allowed 0 <= N <= M, M at least 1"));
    if (cols % g.m != 0)
      return Bad(t, absl::StrCat("width ", cols, " is no multiple of M = ", g.m));
  }
  int64_t most = cols;
  if (g.scope == Scope::kLayer) most = rows * cols;
  if (g.scope == Scope::kBlock) most = rows / g.block_rows * (cols / g.block_cols);
  if (g.kind == Kind::kCount && (g.count < 0 || g.count > most))
    return Bad(t, absl::StrCat("count ", g.count, " is outside [0, ", most, "]"));
  if (g.kind == Kind::kCost) {
    if (!(g.cost >= 0)) return Bad(t, absl::StrCat("cost ", g.cost, " is no number of at least 0"));
    if (!g.column_cost.empty() && static_cast<int64_t>(g.column_cost.size()) != cols)
      return Bad(t, absl::StrCat(g.column_cost.size(), " column costs for ", cols, " columns"));
    for (float c : g.column_cost) {
      if (!(c > 0) || std::isinf(c))
        return Bad(t, absl::StrCat("a column cost of ", c, "; costs are positive and finite"));
    }
  }
  return absl::OkStatus();
}
}  // namespace pruner_internal

namespace pruner_internal {
inline absl::Status CheckWeights(const PrunerTraits& t, const MatrixView<const float>& w) {
  constexpr int64_t kMost = int64_t{1} << 40;
  if (w.rows < 0 || w.cols < 0 || (w.cols > 0 && w.rows > kMost / w.cols) ||
      w.row_stride < w.cols || (w.empty() && w.rows * w.cols > 0))
    return Bad(t, absl::StrCat("weights [", w.rows, ", ", w.cols, "] of row stride ", w.row_stride,
                               w.empty() ? ", without data" : "", "; allowed 2^40 weights"));
  return absl::OkStatus();
}
}  // namespace pruner_internal

inline absl::Status CheckPrune(const PrunerTraits& t, const PruneInputs& in) {
  const MatrixView<const float>& w = in.weights;
  SLUICE_RETURN_IF_ERROR(pruner_internal::CheckWeights(t, w));
  SLUICE_RETURN_IF_ERROR(pruner_internal::CheckStats(t, in.stats, w.cols));
  SLUICE_RETURN_IF_ERROR(pruner_internal::CheckTarget(t, in.target, w.rows, w.cols));
  if (in.start == nullptr) {
    if ((t.reads & kPrunerReadsStart) == 0) return absl::OkStatus();
    return pruner_internal::Bad(t, "needs a start mask: it repairs what another pruner chose");
  }
  if (in.start->rows() != w.rows || in.start->cols() != w.cols)
    return pruner_internal::Bad(
        t, absl::StrCat("start mask [", in.start->rows(), ", ", in.start->cols(), "] for weights [",
                        w.rows, ", ", w.cols, "]"));
  return absl::OkStatus();
}

inline absl::Status CheckApply(const PrunerTraits& t, const PruneInputs& in, const Mask& mask,
                               const MatrixView<float>& out) {
  const MatrixView<const float>& w = in.weights;
  SLUICE_RETURN_IF_ERROR(pruner_internal::CheckWeights(t, w));
  if (t.updates) SLUICE_RETURN_IF_ERROR(pruner_internal::CheckStats(t, in.stats, w.cols));
  if (mask.rows() != w.rows || mask.cols() != w.cols)
    return pruner_internal::Bad(t, absl::StrCat("mask [", mask.rows(), ", ", mask.cols(),
                                                "] for weights [", w.rows, ", ", w.cols, "]"));
  if (out.rows != w.rows || out.cols != w.cols || out.row_stride < w.cols ||
      (out.empty() && w.rows * w.cols > 0))
    return pruner_internal::Bad(
        t, absl::StrCat("room for [", out.rows, ", ", out.cols, "] of row stride ", out.row_stride,
                        "; wanted [", w.rows, ", ", w.cols, "]"));
  return absl::OkStatus();
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_WEIGHT_PRUNER_H_
