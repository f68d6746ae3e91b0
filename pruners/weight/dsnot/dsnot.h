#ifndef SLUICE_PRUNERS_WEIGHT_DSNOT_DSNOT_H_
#define SLUICE_PRUNERS_WEIGHT_DSNOT_DSNOT_H_
// DSnoT, dynamic sparse training without training: repairs a mask. Row by row a weight that went
// comes back and one that stayed goes, as long as that brings the mean output of the row nearer to
// the dense one. Weights stay as they are.
//
//   PREP    D_j = w_j mean(x_j), what a weight gives on average; error = sum of D over those gone
//   SCORE   come back: D_j / var(x_j)^power, from the end that lowers the error
//           go: |w_j| sqrt(sum x_j^2), the lowest whose D has the sign that lowers the error;
//           N:M: the lowest of the group that the other comes back to, whatever its sign
//   STOP    |error| at the threshold, a swap that does not lower it (guard), a queue that is empty,
//           `cycles` swaps
//
// Both queues are made once, of the start mask. Every row keeps its count, N:M every group. Ties go
// to the lowest index. A variance of 0 ranks its column at the ends of the queue, by the sign of D,
// and D = 0 is 0 whatever the variance. Weights that are no numbers are refused. O(n log n), with
// `growth` O(n cols) more.
//
// Against the published program: the threshold is in units of a token (there 0.1 of a sum over
// 2,048 tokens); the queue of those gone ends with them (there it goes on into weights that never
// went, so that rows lose their count); every matrix is repaired, which matrices is the caller's
// choice (there not those of the MLP); an N:M group's lowest is by Wanda's metric, not by that of
// the start mask, which is not known (`metric`); the guard is ours, `guard=false` swaps as
// published.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "sluice/api/weight_pruner.h"

SLUICE_BEGIN_NAMESPACE
namespace weight {
namespace dsnot {
enum class Metric : uint8_t { kWanda, kMagnitude };
struct Config {
  int64_t cycles = 50;
  double threshold = 0.1 / 2048;
  double power = 1;
  bool guard = true;
  bool same_sign = false;
  Metric metric = Metric::kWanda;
  double growth = 0;

  template <class V>
  void VisitFields(V&& v) {
    v("cycles", cycles, Range<int64_t>{0, 1 << 20}, "swaps a row at most");
    v("threshold", threshold, Range<double>{0, std::numeric_limits<double>::infinity()},
      "error of the mean output, a token, that may stay");
    v("power", power, Range<double>{0, 16}, "of the variance in the order of return");
    v("guard", guard, Range<bool>{false, true}, "swap only what lowers the error");
    v("same_sign", same_sign, Range<bool>{false, true},
      "stop where the error would change its sign; N:M always does");
    v("metric", metric, Choices{"wanda", "magnitude"}, "by which the lowest goes");
    v("growth", growth, Range<double>{0, 1e6},
      "undo a row whose squared error over the tokens grew by more than this factor; 0: never");
  }
};

// What is known of the columns, as the rows use it.
struct Columns {
  std::vector<double> mean, size, spread;  // of x; sqrt(sum x^2); var(x)^power

  Columns(const PruneStats& s, double power, bool sizes) {
    const double tokens = static_cast<double>(s.tokens);
    for (size_t c = 0; c < s.mean.size(); ++c) {
      const double m = static_cast<double>(s.mean[c]);
      const double squares = static_cast<double>(s.sum_squares[c]);
      const double variance =
          s.variance.empty() ? squares / tokens - m * m : static_cast<double>(s.variance[c]);
      mean.push_back(m);
      size.push_back(sizes ? std::sqrt(squares) : 1.0);
      spread.push_back(std::pow(std::max(0.0, variance), power));
    }
  }
};

struct Outcome {
  double before = 0, after = 0;  // error of the mean output, a token
  int64_t swaps = 0;
};

// Repairs one row after the other; holds their scratch.
class RowRepair {
 public:
  // group: of N:M; 0: any weight of the row may go for any other.
  RowRepair(const Config& config, const Columns& columns, int64_t group)
      : config_(config), columns_(columns), group_(group) {}

  // kept [cols], 1: stays; changed in place. O(cols log cols).
  Outcome Run(const float* w, std::vector<uint8_t>& kept) {
    Prepare(w, kept);
    Outcome o = {error_, error_, 0};
    while (o.swaps < config_.cycles && std::abs(o.after) > config_.threshold) {
      const auto [back, out] = Next(o.after > 0);
      if (back < 0 || out < 0) break;
      const double after = o.after + given_[At(out)] - given_[At(back)];
      if (config_.guard && !(std::abs(after) < std::abs(o.after))) break;
      const bool keeps_sign = config_.same_sign || group_ > 0;
      if (keeps_sign && after * o.before < 0) break;
      moved_[At(back)] = 1;
      moved_[At(out)] = 1;
      kept[At(back)] = 1;
      kept[At(out)] = 0;
      o.after = after;
      ++o.swaps;
    }
    return o;
  }

 private:
  struct Pair {
    int64_t back = -1, out = -1;
  };
  static size_t At(int64_t i) { return static_cast<size_t>(i); }

  void Prepare(const float* w, const std::vector<uint8_t>& kept) {
    const size_t n = kept.size();
    given_.resize(n);
    rank_.resize(n);
    worth_.resize(n);
    moved_.assign(n, 0);
    largest_.clear();
    stay_.clear();
    error_ = 0;
    for (size_t c = 0; c < n; ++c) {
      const double x = static_cast<double>(w[c]);
      given_[c] = x * columns_.mean[c];
      rank_[c] = given_[c] == 0 ? 0 : given_[c] / columns_.spread[c];
      worth_[c] = std::abs(x) * columns_.size[c];
      if (kept[c] == 0) error_ += given_[c];
      (kept[c] == 0 ? largest_ : stay_).push_back(static_cast<int64_t>(c));
    }
    smallest_ = largest_;
    const auto by_rank = [&](int64_t a, int64_t b) { return rank_[At(a)] < rank_[At(b)]; };
    std::stable_sort(smallest_.begin(), smallest_.end(), by_rank);
    std::stable_sort(largest_.begin(), largest_.end(),
                     [&](int64_t a, int64_t b) { return by_rank(b, a); });
    std::stable_sort(stay_.begin(), stay_.end(),
                     [&](int64_t a, int64_t b) { return worth_[At(a)] < worth_[At(b)]; });
  }

  // What comes back and what goes for it; -1: nobody is left.
  Pair Next(bool positive) const {
    for (int64_t back : positive ? largest_ : smallest_) {
      if (moved_[At(back)] != 0) continue;
      const int64_t out = Going(back, positive);
      // A group of which all have gone lets no one back; the next in the queue may be of another.
      if (out >= 0 || group_ == 0) return {back, out};
    }
    return {};
  }
  int64_t Going(int64_t back, bool positive) const {
    for (int64_t c : stay_) {
      if (moved_[At(c)] != 0) continue;
      const double d = given_[At(c)];
      const bool fits = group_ > 0 ? c / group_ == back / group_ : positive ? d < 0 : d > 0;
      if (fits) return c;
    }
    return -1;
  }

  const Config& config_;
  const Columns& columns_;
  const int64_t group_;
  double error_ = 0;
  std::vector<double> given_, rank_, worth_;        // D; its place among those gone; the metric
  std::vector<int64_t> largest_, smallest_, stay_;  // queues
  std::vector<uint8_t> moved_;
};
}  // namespace dsnot

class Dsnot {
 public:
  static constexpr PrunerTraits kTraits = {
      .name = "weight/dsnot",
      .title = "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs",
      .arxiv = "2310.08915",
      .reads = kPrunerReadsMean | kPrunerReadsSumSquares | kPrunerReadsStart,
      .kinds = 0x7,   // a swap between columns of unlike costs keeps no cost
      .scopes = 0x3,  // nor whole blocks
      .repairs = true,
  };
  using Config = dsnot::Config;
  static absl::StatusOr<Dsnot> Create(const Config& c) {
    Dsnot p;
    p.config_ = c;
    return p;
  }

  absl::Status Prune(const PruneInputs& in, const RunContext& ctx, Mask& out) const {
    SLUICE_RETURN_IF_ERROR(Check(in));
    const dsnot::Columns columns(in.stats, config_.power, config_.metric == dsnot::Metric::kWanda);
    const bool n_of_m = in.target.kind == PruneTarget::Kind::kNofM;
    InlineExecutor alone;
    Executor& executor = ctx.executor != nullptr ? *ctx.executor : alone;
    executor.ParallelFor(in.weights.rows, 8, [&](int64_t begin, int64_t end, int) {
      dsnot::RowRepair repair(config_, columns, n_of_m ? in.target.m : 0);
      std::vector<uint8_t> kept(static_cast<size_t>(in.weights.cols));
      for (int64_t r = begin; r < end; ++r) {
        const auto start = [&](int64_t c) { return in.start->kept(r, c); };
        for (int64_t c = 0; c < in.weights.cols; ++c) kept[static_cast<size_t>(c)] = start(c);
        repair.Run(in.weights.row(r), kept);
        const bool undo = config_.growth > 0 && Grew(in, r, kept);
        for (int64_t c = 0; c < in.weights.cols; ++c)
          out.Set(r, c, undo ? start(c) : kept[static_cast<size_t>(c)] != 0);
      }
    });
    return absl::OkStatus();
  }

 private:
  absl::Status Check(const PruneInputs& in) const {
    const auto bad = [](auto... what) {
      return absl::InvalidArgumentError(absl::StrCat("weight/dsnot: ", what...));
    };
    const MatrixView<const float>& w = in.weights;
    if (in.stats.variance.empty() && in.stats.tokens < 1)
      return bad("statistics of ", in.stats.tokens, " tokens; allowed: 1 or more");
    if (config_.growth > 0 && in.stats.gram.empty())
      return bad("growth=", config_.growth, " needs the Gram matrix, which is absent");
    for (int64_t r = 0; r < w.rows; ++r) {
      for (int64_t c = 0; c < w.cols; ++c) {
        if (!std::isfinite(w.row(r)[c]))
          return bad("the weight [", r, ", ", c, "] is ", w.row(r)[c], "; allowed: finite numbers");
      }
    }
    if (in.target.kind != PruneTarget::Kind::kNofM) return absl::OkStatus();
    for (int64_t r = 0; r < w.rows; ++r) {
      for (int64_t b = 0; b < w.cols; b += in.target.m) {
        int64_t kept = 0;
        for (int64_t c = b; c < b + in.target.m; ++c) kept += in.start->kept(r, c);
        if (kept > in.target.n)
          return bad("the start mask keeps ", kept, " of the ", in.target.m, " at row ", r,
                     ", column ", b, "; allowed: ", in.target.n);
      }
    }
    return absl::OkStatus();
  }

  // Whether the squared error of a row over the tokens, d^T X^T X d of what is missing, is more
  // than `growth` times that of the start mask. O(gone cols).
  bool Grew(const PruneInputs& in, int64_t r, const std::vector<uint8_t>& kept) const {
    const float* w = in.weights.row(r);
    const auto error = [&](const auto& gone) {
      double sum = 0;
      for (int64_t i = 0; i < in.weights.cols; ++i) {
        if (!gone(i)) continue;
        double line = 0;
        for (int64_t j = 0; j < in.weights.cols; ++j) {
          if (gone(j))
            line += static_cast<double>(in.stats.gram.row(i)[j]) * static_cast<double>(w[j]);
        }
        sum += line * static_cast<double>(w[i]);
      }
      return sum;
    };
    const double before = error([&](int64_t c) { return !in.start->kept(r, c); });
    const double after = error([&](int64_t c) { return kept[static_cast<size_t>(c)] == 0; });
    return after > config_.growth * before;
  }

  Config config_;
};
}  // namespace weight
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_WEIGHT_DSNOT_DSNOT_H_
