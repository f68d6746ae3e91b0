#ifndef SLUICE_ROUTERS_EXPERT_COMMON_K_EXPERTS_H_
#define SLUICE_ROUTERS_EXPERT_COMMON_K_EXPERTS_H_
// What routers of tokens to experts end with: the k best experts of every token, their weights, and
// the rows packed. Tokens run beside each other; nothing depends on the number of workers.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "sluice/api/router.h"
#include "sluice/routers/common/pipeline/gate.h"
#include "sluice/routers/common/pipeline/selector.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// body(begin, end, worker) over n tokens, in pieces where a plan for `workers` allows it.
template <class Body>
void ForEachPiece(int64_t n, int workers, const RunContext& ctx, const Body& body) {
  constexpr int64_t kTokens = 64;
  if (ctx.executor != nullptr && ctx.executor->num_workers() <= std::max(1, workers)) {
    ctx.executor->ParallelFor(n, kTokens, body);
  } else if (n > 0) {
    body(0, n, 0);
  }
}

// body(begin, end) over the sequences of a batch: one ends where positions do not rise. Without
// positions all tokens are of one. O(items).
template <class Body>
void ForEachSequence(const RouteInputs& in, const Body& body) {
  int64_t begin = 0;
  for (int64_t i = 1; i < in.items; ++i) {
    if (in.positions.empty() || in.positions[i] > in.positions[i - 1]) continue;
    body(begin, i);
    begin = i;
  }
  if (begin < in.items) body(begin, in.items);
}

// An expert's share of the dense mixture, in which every token visits all.
inline UnitInfo DescribeExpert(const RoutePlanInfo& p) {
  return {UnitKind::kHost, 1.0 / static_cast<double>(p.shape.units), Concurrency::kUnits};
}

// Whether there is room for the k experts (0: all) of every token, or why not.
inline absl::Status CheckExperts(const RouteShape& s, int64_t k) {
  constexpr int64_t kMostExperts = int64_t{1} << 20;
  if (s.units <= 0 || s.units > kMostExperts)
    return absl::InvalidArgumentError(absl::StrCat(
        "shape: ", s.units, " units; say how many experts there are, 1 to ", kMostExperts));
  if (k > s.units)
    return absl::InvalidArgumentError(absl::StrCat("k=", k, " of ", s.units, " experts"));
  const int64_t each = k == 0 ? s.units : k;
  if (s.items > std::numeric_limits<int32_t>::max() / each)
    return absl::InvalidArgumentError(
        absl::StrCat(s.items, " items of ", each, " experts; allowed 2^31 - 1 entries"));
  return absl::OkStatus();
}

// Items are tokens; a token of another number of rows has no single state to route by.
inline absl::Status CheckTokens(const RouteInputs& in) {
  if (in.rows() == in.items) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("items are tokens: ", in.rows(), " rows for ", in.items, " items"));
}

// Token i wrote count[i] entries from i * places on, and met nans[i] ranks that were no number:
// closes the gaps between tokens. O(entries).
inline void PackRows(int64_t items, int64_t places, const int64_t* count, const int64_t* nans,
                     Assignment& a) {
  int64_t to = 0;
  for (int64_t i = 0; i < items; ++i) {
    a.nan_scores += nans[i];
    for (int64_t e = i * places; e < i * places + count[i]; ++e, ++to) {
      if (e == to) continue;
      a.unit[to] = a.unit[e];
      a.weight[to] = a.weight[e];
      if (!a.score.empty()) a.score[to] = a.score[e];
    }
    a.row_ptr[i + 1] = to;
  }
}

class KExperts {
 public:
  // Adds its scratch to `w`. k = 0: all experts. Errors: no experts, fewer than k, or more than
  // 2^31 - 1 entries.
  static absl::StatusOr<KExperts> Reserve(const RouteShape& s, int64_t k, WorkspaceLayout& w) {
    SLUICE_RETURN_IF_ERROR(CheckExperts(s, k));
    const int64_t workers = std::max(1, s.workers);
    KExperts e;
    e.k_ = k == 0 ? s.units : k;
    e.units_ = s.units;
    e.items_ = s.items;
    e.workers_ = s.workers;
    e.row_ = pipeline::RowScratch(s.units);
    e.select_bytes_ = (e.row_.bytes() + 63) / 64 * 64;
    e.scores_ = w.Add<float>(2 * s.units * workers);
    e.select_ = w.Add<std::byte>(e.select_bytes_ * workers);
    e.count_ = w.Add<int64_t>(s.items);
    e.nans_ = w.Add<int64_t>(s.items);
    return e;
  }
  int64_t k() const { return k_; }
  int64_t max_entries() const { return items_ * k_; }

  // Routes `items` tokens into `a`. score(token, worker, Scores) writes a token's ranks and weights
  // and returns its NaN ranks; weigh(weights) turns the weights of the chosen, in place, into those
  // that mix. A token has fewer than k experts where fewer ranks are above -inf.
  // O(items units) besides.
  template <class Score, class Weigh>
  void Run(int64_t items, const RunContext& ctx, const Score& score, const Weigh& weigh,
           Assignment& a) const {
    ForEachPiece(items, workers_, ctx, [&](int64_t begin, int64_t end, int worker) {
      const auto units = static_cast<size_t>(units_);
      float* floats = ctx.workspace.At<float>(scores_) + 2 * units_ * worker;
      const pipeline::Scores scores = {{floats, units}, {floats + units, units}};
      for (int64_t i = begin; i < end; ++i) {
        ctx.workspace.At<int64_t>(nans_)[i] = score(i, worker, scores);
        Choose(i, worker, scores, ctx, weigh, a);
      }
    });
    PackRows(items, k_, ctx.workspace.At<int64_t>(count_), ctx.workspace.At<int64_t>(nans_), a);
  }

 private:
  // The experts of one token, into its own k slots.
  template <class Weigh>
  void Choose(int64_t i, int worker, const pipeline::Scores& scores, const RunContext& ctx,
              const Weigh& weigh, Assignment& a) const {
    const int64_t at = i * k_;
    std::byte* scratch = ctx.workspace.At<std::byte>(select_) + select_bytes_ * worker;
    const int64_t n = pipeline::TopK(scores.rank, k_, row_, scratch, &a.unit[at]);
    for (int64_t e = at; e < at + n; ++e) {
      a.weight[e] = scores.weight[a.unit[e]];
      if (!a.score.empty()) a.score[e] = scores.rank[a.unit[e]];
    }
    weigh(a.weight.subspan(static_cast<size_t>(at), static_cast<size_t>(n)));
    ctx.workspace.At<int64_t>(count_)[i] = n;
  }

  int64_t k_ = 0;
  int64_t units_ = 0;
  int64_t items_ = 0;
  int workers_ = 1;
  pipeline::RowScratch row_;
  int64_t select_bytes_ = 0;  // of one worker
  size_t scores_ = 0, select_ = 0, count_ = 0, nans_ = 0;
};
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_COMMON_K_EXPERTS_H_
